"""A BERT as a text encoder: from a folder, from the package of all-MiniLM-L6-v2, saved with a run and opened again."""

import importlib.util
import json

import numpy as np
import pytest

import pydiff
from pydiff import text
from pydiff.data import load
from pydiff.formats import safetensors
from pydiff.models.bert import BertModel
from pydiff.text.bert import CONFIG, INSTALL, PACKAGE, SCALE, TOKENIZER, WEIGHTS
from pydiff.text.wordpiece import SPECIALS
from tests.peers import import_transformers

needs_minilm = pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"not installed: {INSTALL}")
WORDS = "a red green heart book of the ##s".split()  # noqa: SIM905
SMALL = {"steps": 2, "batch_size": 4, "channels": (8, 8), "groups": 4, "sample_every": 0, "attention": (1,)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT as transformers writes it."""
    path, pieces = tmp_path_factory.mktemp("bert"), [*SPECIALS, *WORDS]
    model = BertModel(
        vocab_size=len(pieces), hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=10,
    )  # fmt: skip
    (path / CONFIG).write_text(json.dumps({"model_type": "bert", **model.config}))
    (path / WEIGHTS).write_bytes(safetensors.encode(model.state_dict()))
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = {"model": {"type": "WordPiece", "vocab": vocabulary}, "normalizer": {"type": "BertNormalizer"}}
    (path / TOKENIZER).write_text(json.dumps(tokenizer))
    return path


@pytest.fixture(scope="module")
def captioned():
    emoji = load("emoji", size=8, channels=1).subset(np.arange(12))
    return load(
        emoji.images, captions=[f"a {'red' if i % 2 else 'green'} {'heart' if i % 3 else 'book'}" for i in range(12)]
    )


def test_a_prompt_is_its_states_and_then_zeros(folder):
    encoder = text.named(str(folder))
    states = encoder.encode(["a red heart", "", "red hearts"])["encoder_hidden_states"]
    assert states.shape == (3, 10, 8) == (3, encoder.tokens, encoder.width)
    assert [int(np.any(row, -1).sum()) for row in states] == [5, 2, 5]
    for prompt, row in zip(("a red heart", "", "red hearts"), states, strict=True):
        np.testing.assert_array_equal(encoder.encode([prompt])["encoder_hidden_states"][0], row)
    np.testing.assert_array_equal(encoder.null()["encoder_hidden_states"], states[1])
    assert encoder.remarks("a red heart") == []
    assert encoder.remarks("a blue heart") == ["the encoder 'bert' does not know 'blue', which is read as [UNK]"]
    assert encoder.remarks("red " * 300) == ["a prompt has at most 8 pieces of words; 292 more at the end are not used"]
    with pytest.raises(
        ValueError, match="the prompt '一颗心' cannot be drawn: the encoder 'bert' does not know '一', '颗'"
    ):
        encoder.remarks("一颗心")
    assert encoder.understands("a blue one")
    assert not encoder.understands("0 0.5 0.25")
    assert encoder.unknown(["a blue heart", "blue"]) == ["blue"]


def test_a_run_that_was_told_by_it_is_opened_without_its_folder(folder, captioned, tmp_path):
    run = pydiff.train(captioned, out=tmp_path / "run", progress=False, text=str(folder), **SMALL)
    assert run.model.config["cross_attention_dim"] == 8
    words = {"prompts": ["a red heart", "a book"], "steps": 2, "guidance": 2.0}
    drawn = run.sample(2, **words)
    opened = pydiff.load(tmp_path / "run")
    np.testing.assert_array_equal(opened.sample(2, **words), drawn)
    assert opened.conditioning.encoder.fingerprint() == text.named(str(folder)).fingerprint()
    again = text.named(str(tmp_path / "run"))  # the folder of a run is a folder of an encoder
    assert again.fingerprint() == opened.conditioning.encoder.fingerprint()
    total = opened.embed("[red book] - [red] + [green]")["encoder_hidden_states"]
    assert not np.allclose(total, opened.embed("green book")["encoder_hidden_states"], atol=1e-3)


def test_the_encoder_of_a_run_is_taken_over_as_it_is(captioned, tmp_path):
    first = pydiff.train(captioned, out=tmp_path / "first", progress=False, text="learned", **SMALL)
    options = {"text": str(tmp_path / "first"), **SMALL}
    second = pydiff.train(captioned, out=tmp_path / "second", progress=False, **options)
    mine, its = (run.conditioning.encoder.network.state_dict() for run in (first, second))
    for name, array in mine.items():
        np.testing.assert_array_equal(its[name], array, name)
    opened = pydiff.load(tmp_path / "second")
    words = {"prompts": "a red heart", "steps": 2}
    np.testing.assert_array_equal(opened.sample(1, **words), second.sample(1, **words))
    assert opened.conditioning.encoder.trained_along is False
    glove = pydiff.train(captioned, out=tmp_path / "glove", progress=False, text="glove", **SMALL)
    assert text.named(str(glove.directory)).kind == "glove"


def test_folders_that_hold_no_encoder(folder, captioned, tmp_path):
    def copy(name, **files):
        (tmp_path / name).mkdir()
        for file in (CONFIG, WEIGHTS, TOKENIZER):
            if (content := files.get(file.partition(".")[0], folder / file)) is not None:
                data = content.read_bytes() if hasattr(content, "read_bytes") else json.dumps(content).encode()
                (tmp_path / name / file).write_bytes(data)
        return tmp_path / name

    (tmp_path / "empty").mkdir()
    bert = json.loads((folder / CONFIG).read_text())
    tokenizer = json.loads((folder / TOKENIZER).read_text())
    pydiff.train(captioned, out=tmp_path / "silent", progress=False, **{**SMALL, "text": "none"})
    cases = [
        (tmp_path / "empty", "holds no text encoder: expected the folder of a run"),
        (tmp_path / "silent", "has not learned from captions"),
        (copy("t5", config={"model_type": "t5"}), "is a text model of the kind 't5', and pydiff reads "),
        (copy("other", config={**bert, "hidden_size": 16}), "holds no BERT that can be read .*must have shape"),
        (copy("deep", config={**bert, "num_hidden_layers": 10**12}), "larger network than its weights are of"),
        (copy("flat", config={**bert, "layer_norm_eps": "x"}), "eps of a normalisation must be a number"),
        (copy("weightless", model=None), "model.safetensors"),
        (copy("bpe", tokenizer={"model": {"type": "BPE"}}), "of another kind than BERT's WordPiece"),
        (copy("odd", tokenizer={**tokenizer, "model": {"type": "WordPiece", "vocab": {"a": 0}}}), r"has no \[PAD\]"),
    ]  # fmt: skip
    for place, message in cases:
        with pytest.raises(pydiff.CheckpointError, match=message) as error:
            text.named(str(place))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="there is no text encoder 'nowhere', nor such a folder; known are "):
        text.named("nowhere")


def test_where_minilm_is_missing_the_command_is_named(captioned, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=f"not installed: {INSTALL}"):
        pydiff.train(captioned, text="minilm", progress=False, **SMALL)
    from pydiff.cli import main

    assert main(["train", "emoji", "--text", "minilm", "--out", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err == (
        f"pydiff: the text encoder 'minilm' needs the files of all-MiniLM-L6-v2, which are not installed: {INSTALL}\n"
    )


@needs_minilm
def test_minilm_is_what_transformers_makes_of_its_files():
    """States within 1e-5, tokens equal; of a German sentence, of a long one, and of the empty one."""
    transformers = import_transformers()
    import torch
    from tokenizers import Tokenizer

    encoder = text.named("minilm")
    place = importlib.util.find_spec(PACKAGE).submodule_search_locations[0] + "/model"
    theirs = transformers.AutoModel.from_pretrained(place).eval()
    tokenizer = Tokenizer.from_file(f"{place}/{TOKENIZER}")
    tokenizer.no_padding()
    for prompt in (
        "woman firefighter: medium-dark skin tone",
        "Der Bär fängt Fische!",
        "",
        "a heart " * 14,
        "naïve 😀",
    ):
        ids = tokenizer.encode(prompt).ids
        assert ids == encoder.wordpiece.row(prompt, 512)
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).last_hidden_state[0].numpy()
        states = encoder.encode([prompt])["encoder_hidden_states"][0]
        np.testing.assert_allclose(states[: len(ids)] / SCALE, expected, atol=1e-5)
        assert not states[len(ids) :].any()


@needs_minilm
def test_minilm_is_not_saved_with_a_run_but_recognised(captioned, tmp_path, monkeypatch):
    run = pydiff.train(captioned, out=tmp_path / "run", progress=False, text="minilm", **SMALL)
    assert run.model.config["cross_attention_dim"] == 384
    assert not (tmp_path / "run" / "model" / "text_encoder").exists()
    opened = pydiff.load(tmp_path / "run")
    words = {"prompts": "a red heart", "steps": 2}
    np.testing.assert_array_equal(opened.sample(1, **words), run.sample(1, **words))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=INSTALL):
        pydiff.load(tmp_path / "run")

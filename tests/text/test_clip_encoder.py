"""CLIP's tower as a text encoder of trainings: from a folder, saved with a run and opened again."""

import json

import numpy as np
import pytest

import pydiff
from pydiff import text
from pydiff.data import load
from pydiff.formats import safetensors
from pydiff.models.clip import CLIPTextModel
from pydiff.text import bpe
from pydiff.text.bpe import BYTES, LAST, Special, Tokenizer
from pydiff.text.clip import CACHED, TOKENS, Clip, tokenizer_config, tokenizer_from

SMALL = {"steps": 2, "batch_size": 4, "channels": (8, 8), "groups": 4, "sample_every": 0, "attention": (1,)}
LETTERS = list(BYTES.values())
VOCABULARY = {token: n for n, token in enumerate([*LETTERS, *(c + LAST for c in LETTERS), "re", bpe.START, bpe.END])}
MERGES = [("r", "e")]


def write(folder, tokenizer="tokenizer", vocabulary=VOCABULARY, **changed):
    """A tiny CLIP as a pipeline of diffusers has it; tokenizer: the folder of its files."""
    options = {
        "vocab_size": len(VOCABULARY), "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 40, "eos_token_id": VOCABULARY[bpe.END],
    }  # fmt: skip
    network = CLIPTextModel(**options)
    for name in ("text_encoder", tokenizer):
        (folder / name).mkdir(exist_ok=True, parents=True)
    told = {"model_type": "clip_text_model", "architectures": ["CLIPTextModel"], **network.config, **changed}
    (folder / "text_encoder/config.json").write_text(json.dumps(told))
    (folder / "text_encoder/model.safetensors").write_bytes(safetensors.encode(network.state_dict()))
    (folder / tokenizer / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / tokenizer / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES))
    return folder


@pytest.fixture(scope="module")
def captioned():
    emoji = load("emoji", size=8, channels=1).subset(np.arange(12))
    return load(
        emoji.images, captions=[f"a {'red' if i % 2 else 'green'} {'heart' if i % 3 else 'book'}" for i in range(12)]
    )


def test_a_folder_trains_and_the_run_opens_without_it(captioned, tmp_path):
    folder = write(tmp_path / "sd")
    encoder = text.named(str(folder))
    assert (encoder.tokens, encoder.width) == (TOKENS, 8)
    assert text.named(str(folder / "text_encoder")).fingerprint() == encoder.fingerprint()
    run = pydiff.train(captioned, out=tmp_path / "run", progress=False, text=str(folder), **SMALL)
    assert run.model.config["cross_attention_dim"] == 8
    words = {"prompts": ["a red heart", "a book"], "steps": 2, "guidance": 2.0}
    drawn = run.sample(2, **words)
    (folder / "text_encoder/model.safetensors").unlink()
    opened = pydiff.load(tmp_path / "run")
    np.testing.assert_array_equal(opened.sample(2, **words), drawn)
    assert text.named(str(tmp_path / "run")).fingerprint() == encoder.fingerprint()


def test_the_tokenizer_may_be_in_the_same_folder(tmp_path):
    apart, together = write(tmp_path / "apart"), write(tmp_path / "together", "text_encoder")
    one, other = (text.named(str(folder / "text_encoder")) for folder in (apart, together))
    assert one.tokenizer.row("a red heart", 20) == other.tokenizer.row("a red heart", 20)
    for folder in (apart, together):
        assert isinstance(text.named(str(folder)), Clip)


def test_what_of_a_prompt_is_read(tmp_path):
    encoder = text.named(str(write(tmp_path / "sd")))
    assert encoder.rows("re") == ["<start>", "r", "e", "<end>"]
    assert encoder.remarks("red") == []
    (said,) = encoder.remarks("x" * 60)
    assert said.startswith("a prompt has at most 30 tokens; 30 more are not used")
    assert not encoder.understands("  ")
    states = encoder.encode(["a", "b", "a"])["encoder_hidden_states"]
    np.testing.assert_array_equal(states[0], states[2])
    np.testing.assert_array_equal(encoder.encode(["b"])["encoder_hidden_states"][0], states[1])
    assert states[0].nbytes <= CACHED


@pytest.mark.parametrize("pad", [bpe.END, "!"])
def test_the_shipped_tokenizer_is_named_only(pad):
    assert tokenizer_config(bpe.clip(pad)) == {"openai": pad}
    assert tokenizer_from({"openai": pad}) is bpe.clip(pad)


def test_another_tokenizer_is_kept_whole():
    specials = [Special(bpe.START, (513,)), Special(bpe.END, (514,), True), Special("<mine>", (3, 4), True)]
    mine = Tokenizer(VOCABULARY, MERGES, specials, 513, 514, 514, 514)
    told = json.loads(json.dumps(tokenizer_config(mine)))
    again = tokenizer_from(told)
    for prompt in ("a red <MINE> heart", "Bär", "", "re"):
        assert again.row(prompt, 20) == mine.row(prompt, 20)
    assert tokenizer_config(again) == tokenizer_config(mine)


def test_folders_that_cannot_be_read(tmp_path):
    (write(tmp_path / "missing") / "tokenizer/vocab.json").unlink()
    larger = {**VOCABULARY, "zz": len(VOCABULARY) + 7}
    write(tmp_path / "larger", vocabulary=larger)
    write(tmp_path / "wide", hidden_size=16)
    for name, message in (
        ("missing", r"expected vocab\.json and merges\.txt"),
        ("larger", "it has more tokens than vectors"),
        ("wide", "describes another text encoder than the weights beside it"),
    ):
        with pytest.raises(pydiff.CheckpointError, match=message) as error:
            text.named(str(tmp_path / name))
        assert "\n" not in str(error.value)

"""Captions are learned through a text encoder, and prompts are drawn: trained, stopped, resumed, saved, opened, added.

The network is the toy of the rooms; nothing here depends on which network takes the encoder's states.
"""

import warnings

import numpy as np
import pytest

import pydiff
from pydiff import backend, text
from pydiff.condition import Condition, Conditioning
from pydiff.data import load
from pydiff.report.grid import grid
from pydiff.text import Glove, PromptWarning
from pydiff.training import DiffusionTask
from tests.networks import context_unet
from tests.trainers import train_until

needs_kernels = pytest.mark.skipif(
    backend.cpu is None, reason="without compiled kernels the BLAS decides the last bits"
)
TINY = {"steps": 6, "batch_size": 6, "warmup": 2, "lr": 3e-3, "timesteps": 50, "sample_every": 3, "text": "glove"}
NAMES = "zero one two three four five six seven eight nine".split()  # noqa: SIM905
DRAW = {"steps": 3, "guidance": 2.0}


@pytest.fixture(scope="module")
def described():
    """Digits with two captions each, one of them in German."""
    digits = load("digits").subset(np.arange(60))
    english = [[f"a handwritten {NAMES[i]}", f"digit {NAMES[i]}"] for i in digits.labels]
    return load(digits.images, captions={"en": english, "de": [f"Ziffer {i}" for i in digits.labels]})


def train(data, out=None, **options):
    return pydiff.train(data, out=out, progress=False, model=context_unet(50), **{**TINY, **options})


@pytest.fixture(scope="module")
def run(described, tmp_path_factory):
    return train(described, tmp_path_factory.mktemp("words") / "run")


def test_a_batch_is_told_its_captions_by_seed_step_and_number(described):
    """Half of a batch is that half of the whole; nobody is told German; some are told nothing."""
    options = pydiff.Options(**{**TINY, "batch_size": 40, "label_drop": 0.3})
    task = DiffusionTask(described, options, model=context_unet(50))
    whole, half = (
        task.batch(3, numbers).condition["encoder_hidden_states"] for numbers in (np.arange(40), np.arange(20, 40))
    )
    np.testing.assert_array_equal(half, whole[20:])
    possible = {Glove().encode([c])["encoder_hidden_states"].tobytes() for row in task.captions for c in row}
    told = [row for row in whole if row.any()]
    assert {row.tobytes() for row in told} <= possible
    assert 0 < len(told) < 40
    assert len({int(np.any(row, -1).sum()) for row in told}) == 2  # of three words, and of two
    assert not np.array_equal(task.batch(4, np.arange(40)).condition["encoder_hidden_states"], whole)


def test_a_stopped_run_goes_on_to_the_same_bits(run, described, tmp_path):
    train_until(tmp_path / "run", 4, described, pydiff.Options(**TINY), model=context_unet(50))
    resumed = train(described, tmp_path / "run")
    for name, array in run.model.state_dict().items():
        assert np.array_equal(resumed.model.state_dict()[name], array), name


def test_other_captions_and_another_encoder_are_another_run(run, described, monkeypatch):
    other = load(described.images, captions=["one"] * 60)
    with pytest.raises(ValueError, match="holds a run on other data"):
        train(other, run.directory)
    monkeypatch.setattr("pydiff.text.glove._fingerprint", lambda: "another")
    with pytest.raises(ValueError, match="holds a run with text_encoder = "):
        train(described, run.directory)
    with pytest.raises(pydiff.CheckpointError, match="trained with another 'glove' encoder"):
        pydiff.load(run.directory)


def test_an_opened_model_draws_the_same_from_the_same_prompts(run):
    drawn = run.sample(prompts=["a three", "a seven"], **DRAW)
    assert drawn.shape == (2, 8, 8, 1)
    assert not np.array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(pydiff.load(run.directory).sample(prompts=["a three", "a seven"], **DRAW), drawn)


@needs_kernels
def test_image_k_of_a_prompt_depends_on_k_and_the_prompt_alone(run):
    many = run.sample(3, prompts=["a three", "a handwritten seven in red", ""], batch_size=4, **DRAW)
    assert len(many) == 9
    for i, prompt in enumerate(("a three", "a handwritten seven in red", "")):
        np.testing.assert_array_equal(run.sample(2, prompts=prompt, **DRAW), many[3 * i : 3 * i + 2])
    *_, last = run.sample_states([2, 0], prompts=["a three", ""], **DRAW)
    np.testing.assert_array_equal(run.codec.decode(last.x), many[[2, 6]])


def test_no_prompt_is_the_empty_prompt(run):
    np.testing.assert_array_equal(run.sample(2, steps=3), run.sample(2, prompts="", steps=3))
    assert len(run.sample(steps=1)) == 16


def test_a_negative_prompt_is_what_guidance_leads_away_from(run):
    plain, negative = (run.sample(2, prompts="a three", negative_prompt=p, **DRAW) for p in (None, "a seven"))
    assert not np.array_equal(plain, negative)
    np.testing.assert_array_equal(run.sample(2, prompts="a three", negative_prompt="", **DRAW), plain)
    same = run.sample(2, prompts="a three", negative_prompt="a three", **DRAW)
    without = run.sample(2, prompts="a three", steps=3)
    assert np.abs(same.astype(int) - without).max() <= 1  # f + 2 (f - f) is f


def test_edits_take_prompts(run, described):
    images, options = described.images[:2], {"steps": 4, "guidance": 2.0}
    three, seven = (run.image_to_image(images, 0.8, prompts=p, **options) for p in ("three", ["three", "seven"]))
    np.testing.assert_array_equal(three[0], seven[0])
    assert not np.array_equal(three[1], seven[1])
    assert not np.array_equal(three, run.image_to_image(images, 0.8, prompts="three", negative_prompt="one", **options))


def test_between_two_seeds_with_a_prompt(run):
    three, nothing = (run.interpolate(0, 1, [0.0, 0.5], prompts=p, **DRAW) for p in ("three", ""))
    assert three.shape == nothing.shape == (2, 8, 8, 1)
    assert not np.array_equal(three, nothing)
    np.testing.assert_array_equal(run.interpolate(0, 1, [0.0, 0.5], condition=run.embed("three"), **DRAW), three)


# ---- arithmetic ----------------------------------------------------------------------------------------------------


def test_woman_firefighter_is_calculated_exactly(run):
    """With sequences of word vectors the sum of the lecture comes out to the bit."""
    calculated = run.embed("man firefighter") - run.embed("man") + run.embed("woman")
    written = run.embed("[man firefighter] - [man] + [woman]")
    for condition in (calculated, written):
        np.testing.assert_array_equal(
            condition["encoder_hidden_states"], run.embed("woman firefighter")["encoder_hidden_states"]
        )
    drawn = run.sample(2, condition=calculated, **DRAW)
    np.testing.assert_array_equal(drawn, run.sample(2, prompts="woman firefighter", **DRAW))
    np.testing.assert_array_equal(drawn, run.sample(2, prompts="[man firefighter] - [man] + [woman]", **DRAW))


def test_half_of_two_prompts(run):
    mixed = run.embed("0.5 [red circle] + 0.5 [blue circle]")["encoder_hidden_states"]
    ends = [run.embed(p)["encoder_hidden_states"] for p in ("red circle", "blue circle")]
    np.testing.assert_allclose(mixed, sum(ends) / 2, atol=1e-6)
    twice = 2 * run.embed("red circle")
    np.testing.assert_array_equal(twice["encoder_hidden_states"], 2 * ends[0])
    assert twice.has_null


def test_conditions_add_vectors_join_masks_and_refuse_numbers():
    def made(vector, mask, label=None):
        arrays = {"v": np.array([vector], np.float32), "m": np.array([mask])}
        return Condition(arrays if label is None else arrays | {"class_labels": np.array([label])})

    total = made([1, 2], [True, False]) - made([5, 5], [True, False]) + made([0, 1], [True, True])
    assert total["v"].tolist() == [[-4, -2]]
    assert total["v"].dtype == np.float32
    assert total["m"].tolist() == [[True, True]]
    same = made([1, 2], [True, True], 3) + made([1, 2], [True, True], 3)
    assert same["class_labels"].tolist() == [3]
    with pytest.raises(ValueError, match="class_labels differ"):
        made([1, 2], [True, True], 3) + made([1, 2], [True, True], 4)
    with pytest.raises(ValueError, match="of different kinds"):
        made([1, 2], [True, True]) - made([1, 2, 3], [True, True])
    with pytest.raises(TypeError):
        made([1, 2], [True, True]) + 1


# ---- what does not fit ---------------------------------------------------------------------------------------------


def test_what_is_not_used_of_a_prompt_is_said(run):
    with pytest.warns(PromptWarning, match="does not know 'flurb', which is left out"):
        run.sample(1, prompts="a red flurb", steps=1)
    with pytest.warns(PromptWarning, match="cut after 'three', 6 more are not used"):
        run.embed("three " * 30)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run.sample(3, prompts=["a flurb", "a flurb"], steps=1)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": "一只红色的猫"}, "the prompt '一只红色的猫' cannot be drawn: the encoder 'glove' knows"),
        ({"prompts": "[three] seven"}, "cannot be calculated; write it like"),
        ({"n": 2, "prompts": ["three"], "labels": [0, 1]}, "trained without classes"),
        ({"n": 0, "prompts": ["three"]}, "must be at least 1"),
        (
            {"n": 3, "condition": Condition({"encoder_hidden_states": np.zeros((2, 24, 50), np.float32)})},
            "one row, and there are 2",
        ),
        ({"prompts": "three", "negative_prompt": ["a", "b"], "guidance": 2.0}, "one row, and there are 2"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(run, options, message):
    with pytest.raises(ValueError, match=message) as error:
        run.sample(steps=1, **options)
    assert "\n" not in str(error.value)


def test_models_without_captions_and_data_without_captions(described):
    plain = pydiff.train(
        "digits", progress=False, **{**TINY, "text": "none", "channels": (8,), "groups": 2, "head_dim": 4}
    )
    with pytest.raises(ValueError, match="trained without captions, so prompts cannot be given"):
        plain.sample(1, prompts="three")
    with pytest.raises(ValueError, match="text='glove' needs captions, but digits has none"):
        train("digits")
    with pytest.raises(
        ValueError,
        match=r"text must be one of auto, none, .*glove.*, or the folder of an encoder; got 'magic'",
    ):
        train(described, text="magic")
    german = load(described.images, captions={"de": ["eins"] * 60})
    with pytest.raises(ValueError, match="has captions in de and none in en"):
        train(german)


def test_a_conditioning_with_classes_and_prompts_is_saved_and_opened():
    saved = Conditioning(["a", "b"], {"extra": np.zeros(3, np.float32)}, text.named("glove"))
    opened = Conditioning.from_config(saved.to_config())
    assert set(opened.to_config()["nothing"]) == {"extra"}
    rows = opened.rows(np.arange(3), labels=[0, 1, 1], prompts=["a", "red", ""])
    assert {n: a.shape for n, a in rows.items()} == {
        "class_labels": (3,),
        "extra": (3, 3),
        "encoder_hidden_states": (3, 24, 50),
    }
    assert rows.has_null
    assert Conditioning(["a"]).to_config() == {"classes": ["a"], "nothing": {}}  # as before there were prompts


# ---- as users meet it ----------------------------------------------------------------------------------------------

SMALL = {"steps": 3, "batch_size": 4, "channels": (8, 8), "groups": 4, "sample_every": 0, "attention": (1,)}


@pytest.fixture(scope="module")
def emoji():
    return load("emoji", size=8, channels=1).subset(np.arange(40))


def test_captions_are_used_unless_told_otherwise_and_that_is_said(emoji):
    said = []
    run = pydiff.train(emoji, progress=False, announce=said.append, **SMALL)
    assert said[1].startswith("told its captions by the text encoder 'glove'; text='none' leaves them out")
    assert type(run.model) is pydiff.models.UNet2DCondition
    assert run.conditioning.encoder.kind == "glove"
    asked = run.sample(2, prompts=["a gold medal", "a red heart"], steps=2, guidance=3)
    assert asked.shape == (4, 8, 8, 1)
    assert not np.array_equal(asked[0], asked[2])
    without = pydiff.train(emoji, progress=False, announce=said.append, text="none", **SMALL)
    assert len(said) == 3
    assert without.conditioning.empty
    assert type(without.model) is pydiff.models.UNet2D


@pytest.mark.parametrize(
    ("captions", "note"),
    [
        ({"de": ["ein Herz"] * 40}, "its captions are not used: array has captions in de and none in en"),
        (
            ["0 0.5 0.25 0.1 0.1"] * 40,
            "its captions are not used: the text encoder 'glove' understands too few of them",
        ),
        (
            ["a red glorp"] * 40,
            "told its captions by the text encoder 'glove'; text='none' leaves them out; unknown to it: glorp",
        ),
    ],
)
def test_captions_that_nobody_understands_are_left_out_and_that_is_said(emoji, captions, note):
    said = []
    run = pydiff.train(load(emoji.images, captions=captions), progress=False, announce=said.append, **SMALL)
    assert said[1] == note
    assert (run.conditioning.encoder is None) == note.startswith("its captions are not used")


def test_the_conditional_unet_has_the_options_heads_and_levels(emoji):
    options = pydiff.Options(**{**SMALL, "channels": (8, 16, 16), "attention": (1,), "head_dim": 4, "layers": 2})
    config = DiffusionTask(emoji, options).model.config
    assert config["down_block_types"] == ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]
    assert config["up_block_types"] == ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]
    assert config["attention_head_dim"] == [2, 4, 4]  # which are numbers of heads
    assert (config["cross_attention_dim"], config["layers_per_block"], config["num_class_embeds"]) == (50, 2, None)


@needs_kernels
def test_a_run_with_the_conditional_unet_resumes_opens_and_draws_each_image_by_itself(emoji, tmp_path):
    options = {**SMALL, "self_conditioning": True}
    run = pydiff.train(emoji, out=tmp_path / "whole", progress=False, **options)
    train_until(tmp_path / "run", 2, emoji, pydiff.Options(**options))
    resumed = pydiff.train(emoji, out=tmp_path / "run", progress=False, **options)
    for name, array in run.model.state_dict().items():
        np.testing.assert_array_equal(resumed.model.state_dict()[name], array, name)
    opened = pydiff.load(tmp_path / "whole")
    drawn = opened.sample(3, prompts=["red", "a green heart"], steps=2, guidance=2)
    np.testing.assert_array_equal(run.sample(1, prompts=["a green heart"], steps=2, guidance=2), drawn[3:4])


@pytest.fixture(scope="module")
def folder(emoji, tmp_path_factory):
    from pydiff.cli import main

    data, out = tmp_path_factory.mktemp("data") / "captioned.npz", tmp_path_factory.mktemp("cli") / "run"
    np.savez(data, images=emoji.images, captions_en=np.array([row[0] for row in emoji.captions]))
    arguments = "--steps 2 --batch-size 4 --channels 8 8 --groups 4 --sample-every 0 --attention 1 --text glove"
    assert main(["train", str(data), "--out", str(out), *arguments.split()]) == 0
    return out


def opened(path):
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image), image.text


def test_the_command_line_draws_prompts_and_keeps_them_in_the_file(folder, tmp_path, capsys):
    from pydiff.cli import main

    ask = ["--prompt", "a green heart", "--prompt", "ein Bär in red", "--negative-prompt", "a book", "--guidance", "2"]
    more = ["-n", "2", "--steps", "2", "--seed", "5"]
    assert main(["sample", str(folder), *ask, *more, "--out", str(tmp_path / "each")]) == 0
    assert "pydiff: the encoder 'glove' does not know 'ein' and 'bär', which are left out" in capsys.readouterr().err
    with pytest.warns(PromptWarning):
        expected = pydiff.load(folder).sample(
            2, 5, steps=2, prompts=["a green heart", "ein Bär in red"], negative_prompt="a book", guidance=2.0
        )
    for i, (prompt, number) in enumerate((p, k) for p in ("a green heart", "ein Bär in red") for k in (0, 1)):
        image, said = opened(tmp_path / "each" / f"{i:06d}-{prompt.replace(' ', '-')}.png")
        np.testing.assert_array_equal(image, expected[i, :, :, 0])
        known = {"guidance": "2.0", "negative_prompt": "a book", "prompt": prompt, "number": str(number), "seed": "5"}
        assert {name: said[name] for name in known} == known
    assert main(["sample", str(folder), *ask, *more, "--out", str(tmp_path / "all.png")]) == 0
    image, said = opened(tmp_path / "all.png")
    assert said["prompt"] == "a green heart\nein Bär in red"
    assert image.shape[0] == image.shape[1]  # a row a prompt, n columns


def test_prompts_from_a_file_or_the_standard_input(folder, tmp_path, monkeypatch):
    import io

    from pydiff.cli import main

    (tmp_path / "prompts.txt").write_text("\ufeffa heart\n\n[a red book] - [red] + [green]\r\n", "utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("a heart\n[a red book] - [red] + [green]\n"))
    for name, source in (("file", tmp_path / "prompts.txt"), ("input", "-")):
        arguments = ["--prompts", str(source), "--steps", "2", "--out", str(tmp_path / f"{name}.npz")]
        assert main(["sample", str(folder), *arguments]) == 0
    with np.load(tmp_path / "file.npz") as one, np.load(tmp_path / "input.npz") as other:
        np.testing.assert_array_equal(one["images"], other["images"])
        assert len(one["images"]) == 2


def test_a_chinese_prompt_on_the_command_line_is_one_sentence(folder, tmp_path, capsys):
    from pydiff.cli import main

    assert main(["sample", str(folder), "--prompt", "一颗心", "--out", str(tmp_path / "x.png")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "pydiff: the prompt '一颗心' cannot be drawn: the encoder 'glove' knows 4,724 English words"
    )
    assert error.count("\n") == 1


def test_the_page_shows_prompts_beside_the_samples(run, described, tmp_path):
    """Of the data's captions, in the language that the encoder understands, unless others are given."""
    own = run.report(tmp_path / "own", n=3, steps=3).read_text("utf-8")
    assert len([line for line in own.split("<figcaption>") if line.startswith("a handwritten ")]) >= 3
    asked = ["a three", "<b>seven</b>", "three " * 20]
    given = run.report(tmp_path / "given", n=3, steps=3, prompts=asked, guidance=2.5).read_text("utf-8")
    for shown in (
        "<figcaption>a three<br>",
        "&lt;b&gt;seven&lt;/b&gt;<br>",
        f"{('three ' * 20)[:77]}...<br>",
        "guidance 2.5",
    ):
        assert shown in given
    *_, last = run.sample_states(3, 0, "ddpm", 3, prompts=asked, guidance=2.5)
    expected = grid(run.codec.decode(last.x))[..., 0]
    np.testing.assert_array_equal(opened(tmp_path / "given" / "samples.png")[0], expected)
    assert described.titles([0])[0] in own


# ---- an encoder that is trained along --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(emoji, tmp_path_factory):
    """A run that has read German and English captions, in a folder."""
    said = []
    run = pydiff.train(
        emoji, out=tmp_path_factory.mktemp("learned") / "run", progress=False, text="learned", announce=said.append,
        **{**SMALL, "steps": 4},
    )  # fmt: skip
    assert said[1] == "told its captions by the text encoder 'learned'; text='none' leaves them out"
    return run


def test_the_transformer_is_trained_through_the_unet(learned, emoji):
    options = pydiff.Options(**SMALL, text="learned")
    task = DiffusionTask(emoji, options)
    task.losses(task.batch(1, np.arange(4))).mean().backward()
    reader = dict(task.model.text_encoder.named_parameters())
    for name, p in reader.items():
        assert np.isfinite(p.grad).all(), name
    assert all(np.abs(p.grad).max() > 0 for name, p in reader.items() if "to_k.bias" not in name)  # softmax ignores it
    assert {p for p, _ in learned.conditioning.encoder.network.named_parameters()} == set(reader)


def test_a_learned_encoder_resumes_opens_and_draws_each_image_by_itself(learned, emoji, tmp_path):
    options = {**SMALL, "steps": 4, "text": "learned"}
    train_until(tmp_path / "run", 2, emoji, pydiff.Options(**options))
    resumed = pydiff.train(emoji, out=tmp_path / "run", progress=False, **options)
    opened = pydiff.load(learned.directory)
    for other in (resumed, opened):
        for mine, its in ((learned.model, other.model), *[(r.conditioning.encoder.network for r in (learned, other))]):
            for name, array in mine.state_dict().items():
                np.testing.assert_array_equal(its.state_dict()[name], array, name)
    words = {"prompts": ["Goldmedaille", "alien"], "steps": 2, "guidance": 2.0}
    drawn = opened.sample(2, **words)
    np.testing.assert_array_equal(learned.sample(2, **words), drawn)
    assert not np.array_equal(drawn[0], drawn[2])
    if backend.cpu is not None:
        np.testing.assert_array_equal(opened.sample(1, **{**words, "prompts": "alien"}), drawn[2:3])


def test_what_it_never_read_is_said_and_any_language_is_drawn(learned):
    with pytest.warns(PromptWarning, match="'ein' and 'xylophon' were in none of the captions"):
        learned.embed("ein Xylophon")
    with pytest.warns(PromptWarning, match="pieces of words, no caption was longer; .* more at the end"):
        learned.embed("alien " * 300)
    with pytest.warns(PromptWarning):
        assert learned.sample(1, prompts="一颗红心", steps=1).shape == (1, 8, 8, 1)
    total = learned.embed("[alien artist] - [alien] + [anchor]")["encoder_hidden_states"]
    assert total.shape == learned.embed("")["encoder_hidden_states"].shape
    assert not np.allclose(total, learned.embed("anchor artist")["encoder_hidden_states"])  # here it is a question


def test_a_model_without_its_reader_is_refused(learned, tmp_path):
    import shutil

    shutil.copytree(learned.directory / "model", tmp_path / "model")
    (tmp_path / "model" / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(pydiff.CheckpointError, match="text_encoder"):
        pydiff.load(tmp_path / "model")

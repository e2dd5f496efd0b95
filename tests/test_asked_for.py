"""What a user asks for and cannot have is refused in one sentence that names it as it was written; NumPy's numbers are
numbers, and nothing that was asked for is ignored.
"""

import os
import re
import subprocess

import numpy as np
import pytest

import pydiff
from pydiff import cli, nn, optim
from pydiff.drawing import Order, draw
from pydiff.formats.safetensors import CheckpointError
from pydiff.printed import printable, typed
from pydiff.training import Options

TINY = {"steps": 1, "batch_size": 2, "channels": (8, 16), "timesteps": 20, "sample_every": 0, "progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("asked") / "run"
    pydiff.train("digits", conditional=True, out=where, **TINY)
    return where


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": -1}, "accumulate must be a whole number of at least 0, got -1"),
        ({"accumulate": 2, "shards": 3}, "accumulate and shards are the same option"),
        ({"seed": 2**64}, r"seed must be below 2\*\*64"),
        ({"groups": 7}, "groups=7 does not divide 8 channels"),
        ({"conditional": "yes"}, "conditional must be True or False, got 'yes'"),
        ({"flip": 1}, "flip must be True or False, got 1"),
        ({"text": None}, "text must be a name or a folder, got None"),
        ({"image_share": 0.5}, "image_share is for clips that are learned beside images"),
        ({"split": "val"}, "split='val' is for folders .* leave split out"),
    ],
)
def test_options_of_a_training(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        pydiff.train("digits", **{**TINY, **options})


def test_numbers_of_numpy_are_numbers_everywhere():
    i, f = np.int64, np.float32
    run = pydiff.train(
        "digits", steps=i(1), batch_size=i(2), channels=np.array([8, 16]), attention=np.array([1]), timesteps=i(20),
        sample_every=i(0), seed=np.uint8(3), lr=f(1e-3), warmup=np.array(1), conditional=np.bool_(True),
        accumulate=i(2), dropout=f(0.1), size=np.array([16, 8]), image_channels=i(1), limit=f(3), progress=False,
    )  # fmt: skip
    drawn = run.sample(i(2), steps=i(2), seed=i(1), labels=np.array([1, 2]), guidance=f(2))
    assert drawn.shape == (2, 16, 8, 1)
    assert run.image_to_image(drawn, strength=f(0.5), steps=i(3), seed=i(2)).shape == drawn.shape
    assert run.interpolate(i(1), i(2), np.linspace(0, 1, 3), steps=i(2)).shape == (3, 16, 8, 1)
    assert pydiff.data.load("tones", rate=np.int32(8000), seconds=f(1)).rate == 8000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 64}, "size is nothing that .* could be told: it says how large"),
        ({"variant": "fp16"}, "variant is nothing that .* could be told"),
        ({"embedding": ["x"]}, "embedding is nothing that .* could be told: that is for Stable Diffusion"),
        ({"config": "x"}, "config is nothing that"),
        ({"scheduler": "Nope"}, "^there is no scheduler 'Nope'; choose one of DDPMScheduler"),
        ({"prediction": "zzz"}, "^there is no prediction 'zzz'; choose one of eps"),
    ],
)
def test_wishes_about_a_folder(folder, options, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        pydiff.load(folder, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "^n must be at least 1, got 0"),
        ({"steps": 0}, "got 0 steps .* use at least one"),
        ({"steps": 100}, "got 100 steps .* use fewer"),
        ({"threshold": 2.0}, "threshold is the share of pixels .* 0 to 1; got 2.0"),
        ({"threshold": float("nan")}, "threshold is the share"),
    ],
)
def test_options_of_drawing(folder, options, message):
    with pytest.raises(ValueError, match=message):
        pydiff.load(folder).sample(**{"n": 1, "steps": 2, **options})


@pytest.mark.parametrize("name", ["blocked/a", "blocked/a.png", "/proc/pydiff", "/proc/a.png"])
def test_places_that_cannot_be_written_to(folder, tmp_path, name):
    (tmp_path / "blocked").write_text("a file")
    with pytest.raises((OSError, ValueError, CheckpointError), match=r"^Could not write into .*; .*choose another"):
        draw(pydiff.load(folder).pipeline, tmp_path / name, Order(n=1, options={"steps": 1}))


def test_a_run_that_cannot_have_its_folder(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises((OSError, CheckpointError), match="something else has this name, choose another"):
        pydiff.train("digits", out=tmp_path / "run", **TINY)
    assert (tmp_path / "run").read_text() == "a file"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--strength", "0.5"], "--strength is for a given image"),
        (["--limit", "1"], "--limit is for a given image"),
        (["--image", "nothing.png"], "nothing.png cannot be used: no such file"),
        (["--image", "nothing.png", "--no-clip"], "--no-clip is for images without a given one"),
        (["--image", "bomb.png"], r"bomb.png cannot be used: .* would unfold .* say limit=4 \(--limit 4\)"),
    ],
)
def test_flags_of_drawing(folder, tmp_path, monkeypatch, capsys, flags, message):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    if "bomb.png" in flags:
        Image.new("L", (8300, 8100)).save("bomb.png")  # above 2^26 pixels
        message = r"bomb.png cannot be used: 8300 x 8100 pixels, above the limit of .* say limit=4 \(--limit 4\)"
    assert cli.main(["sample", str(folder), "-n", "1", "--steps", "2", *flags]) == 1
    import re

    assert re.search(message, capsys.readouterr().err)
    if "bomb.png" in flags:
        assert cli.main(["sample", str(folder), "-n", "1", "--steps", "2", *flags, "--limit", "4"]) == 0
        assert "1 image in samples.png" in capsys.readouterr().out


def test_deep_grey_that_is_given_is_read_over_its_bits(tmp_path):
    from PIL import Image

    from pydiff.data.given import image_from

    Image.fromarray((np.arange(64, dtype=np.uint16) * 64).reshape(8, 8)).save(tmp_path / "a.png")
    assert image_from(tmp_path / "a.png", (8, 8), 1).max() > 250


def test_classes_with_control_characters_are_asked_for_by_either_name(tmp_path):
    from PIL import Image

    for name in ("\x1b[31mred", "b\nlue"):
        (tmp_path / "p" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "p" / name / "a.png")
    run = pydiff.train(tmp_path / "p", conditional=True, **TINY)
    for name in ("\x1b[31mred", "\\x1b[31mred"):
        assert run.conditioning.number_of(name) == run.classes.index("\\x1b[31mred")
    with pytest.raises(ValueError, match=r"there is no class '\\x1b\[2J'") as caught:
        run.conditioning.number_of("\x1b[2J")
    assert printable(str(caught.value)) == str(caught.value)


def test_commands_that_are_shown_can_be_typed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--steps", "1", "--batch-size", "2", "--channels", "8", "16", "--sample-every", "0", "--timesteps", "20"]
    assert cli.main(["train", "digits", *small, "--out", "my run; x"]) == 0
    shown = capsys.readouterr().out
    assert "pydiff sample 'my run; x' -n 64, pydiff report 'my run; x'" in shown
    assert typed("plain") == "plain"


@pytest.mark.parametrize(
    "name",
    ["-x", "new\nline", "t\tab", "\x1b[31m", "q'\n", "back\\\n", "`x`\n", "lat\udce4", "\u202e", "it's", "$HOME"],
)
def test_a_shown_name_is_that_name_for_a_shell(name):
    read = subprocess.run(["bash", "-c", f"printf %s {typed(name)}"], capture_output=True, check=True).stdout
    assert os.path.normpath(os.fsdecode(read)) == os.path.normpath(name)
    assert typed(name).isprintable()


def test_names_are_printed_on_one_line(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sample", str(folder), "-n", "1", "--steps", "1", "--out", "a\nb"]) == 0
    assert capsys.readouterr().out == "1 image in a\\nb\n"
    assert cli.main(["sample", "no\nwhere"]) == 1
    assert capsys.readouterr().err.startswith("pydiff: no\\nwhere is not a folder; ")
    assert cli.main(["train", "digits", "--out", "x" * 300, "--steps", "1"]) == 1
    assert capsys.readouterr().err == f"pydiff: {'x' * 300}/log.jsonl: File name too long\n"


@pytest.mark.parametrize(
    ("out", "advice"), [("a.png", "or a folder, where each is a file"), ("a", "give a smaller -n$")]
)
def test_more_samples_than_there_is_memory_for_are_refused_at_once(folder, tmp_path, monkeypatch, capsys, out, advice):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sample", str(folder), "-n", str(10**12), "--steps", "1", "--out", out]) == 1
    said = capsys.readouterr().err.strip()
    assert re.search(rf"1,000,000,000,000 images in {out} would take .* of memory, and .* are free; .*{advice}", said)
    assert list(tmp_path.glob("a*")) == []


def test_what_a_network_learned_to_predict_is_not_overruled(folder):
    assert pydiff.load(folder, prediction="eps").process.prediction == "eps"
    for wish in ({"prediction": "v"}, {"scheduler": "FlowMatchEulerDiscreteScheduler"}):
        with pytest.raises(
            CheckpointError, match=r"learned to predict eps, and was to be read as if that were (v|flow)"
        ):
            pydiff.load(folder, **wish)


def test_gradients_that_are_no_arrays_are_refused():
    layer = nn.Linear(3, 2)
    layer.initialize(0)
    optimizer = optim.AdamW(layer)
    for what, value in (("grad", pydiff.Tensor(np.ones((3, 2), np.float32))), ("grad", 5), ("data", "x"), ("data", 5)):
        p = layer.weight
        before = p.data
        setattr(p, what, value)
        with pytest.raises((ValueError, TypeError), match=rf"weight\.{what} was replaced by"):
            optimizer.step(1, 1e-3)
        p.data, p.grad = before, None
    optimizer.step(1, 1e-3)


def test_no_accumulation_can_be_asked_for():
    assert Options.from_keywords({"accumulate": 0}).shards == 0


@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (-1, ValueError, "n must be at least 1, got -1"),
        (2.5, TypeError, r"n is how many samples to draw, a whole number, got 2\.5"),
        ("a", TypeError, "a whole number, got 'a'"),
        ([3, 3], TypeError, r"a whole number, got \[3, 3\]"),
        (
            10**12,
            ValueError,
            r"1,000,000,000,000 \w+s at once would take .* are free; ask for fewer at a time",
        ),
    ],
)
def test_how_many_samples_is_named_as_it_was_given(folder, n, error, message):
    run = pydiff.load(folder)
    with pytest.raises(error, match=message):
        run.sample(n, steps=1)
    if n == 10**12:
        with pytest.raises(error, match=message):
            run.report(n=n, steps=1)


@pytest.mark.parametrize(
    ("path", "error", "said"), [(None, TypeError, "None"), (3, TypeError, "3"), ("", ValueError, "")]
)
def test_a_folder_that_is_no_path(folder, path, error, said):
    run = pydiff.load(folder)
    message = f"is {said or 'empty'}, expected the path of a folder"
    for attempt in (run.save, pydiff.load):
        with pytest.raises(error, match=f"directory {message}"):
            attempt(path)
    if path is not None:
        with pytest.raises(error, match=f"out {message}"):
            pydiff.train("digits", out=path, steps=1, progress=False)
        with pytest.raises(error, match=f"directory {message}"):
            run.report(path)


def test_a_model_is_saved_in_the_home_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    pydiff.load(folder).save("~/mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert pydiff.load("~/mine").step == pydiff.load(folder).step


def test_the_home_of_nobody_is_refused_by_its_name(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path, run = "~no-such-user/x", pydiff.load(folder)
    for attempt in (
        lambda: run.save(path),
        lambda: pydiff.load(path),
        lambda: pydiff.data.load(path),
        lambda: pydiff.train("digits", out=path, **TINY),
        lambda: pydiff.train("digits", init_from=path, **TINY),
        lambda: run.report(path),
    ):
        with pytest.raises(ValueError, match=r"~no-such-user/x: no user has this home folder; write the path in full$"):
            attempt()
    for words in (["sample", path], ["sample", str(folder), "--out", path], ["data", path]):
        assert cli.main(words) == 1
        assert "~no-such-user/x: no user has this home folder; write the path in full" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_current_folder_that_was_removed_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    try:
        assert cli.main(["train", "digits", "--out", "run", "--steps", "1"]) == 1
        assert capsys.readouterr().err.splitlines()[-1] == (
            "pydiff: the current folder was removed; change into another"
        )
    finally:
        os.chdir(tmp_path)


def test_a_run_that_never_began_may_be_asked_for_again(folder, tmp_path):
    """As the message advises, in the same folder."""
    options = {"steps": 1, "batch_size": 2, "channels": (8, 16), "timesteps": 20, "progress": False, "sample_every": 0}
    with pytest.raises(ValueError, match="or leave out init_from"):
        pydiff.train("digits", out=tmp_path / "run", init_from=folder, **{**options, "channels": (8, 8)})
    assert pydiff.train("digits", out=tmp_path / "run", **options).step == 1
    with pytest.raises(ValueError, match="holds a run with seed = 0, not 1"):
        pydiff.train("digits", out=tmp_path / "run", seed=1, **options)

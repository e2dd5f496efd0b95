"""Samples drawn into files: checked first, written as they come, gone on with."""

import errno
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import pydiff
from pydiff import drawing
from pydiff.drawing import Order, Stopped, draw, slug
from pydiff.training.distributed import Group

TINY = {"steps": 1, "batch_size": 4, "channels": (8,), "groups": 4, "timesteps": 20, "progress": False}
FEW = {"steps": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return pydiff.train("digits", out=tmp_path_factory.mktemp("drawing") / "run", sample_every=0, **TINY)


@pytest.fixture(scope="module")
def classes():
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1)).astype(np.uint8)
    data = pydiff.data.load(images, labels=["../cat dog", "ä bird", "../cat dog"] * 2)
    return pydiff.train(data, conditional=True, **TINY)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)[..., None]


def stopping(monkeypatch, after):
    """A keyboard interrupt in the middle of batch number `after`, counted from 0."""
    batches = drawing._batches

    def some(*arguments):
        for number, batch in enumerate(batches(*arguments)):
            if number == after:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(drawing, "_batches", some)


def test_a_folder_holds_what_sample_gives(run, tmp_path):
    done = draw(run.pipeline, tmp_path / "many", Order(n=5, seed=3, options=FEW))
    assert done == (5, 0, 5)
    expected = run.sample(5, seed=3, steps=2)
    files = sorted((tmp_path / "many").iterdir())
    assert [f.name for f in files] == [f"{i:06d}.png" for i in range(5)]
    assert all(np.array_equal(pixels(f), image) for f, image in zip(files, expected, strict=True))


def test_ctrl_c_keeps_what_was_drawn_and_the_same_order_draws_the_others(run, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "BATCH", 4)
    order = Order(n=11, options=FEW)
    with monkeypatch.context() as patch:
        stopping(patch, after=2)
        with pytest.raises(Stopped, match=r"stopped; 8 of 11 are in .*many; the same command draws the others"):
            draw(run.pipeline, tmp_path / "many", order)
    times = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "many").iterdir()}
    assert len(times) == 8
    (tmp_path / "many" / "000002.png").write_bytes((tmp_path / "many" / "000002.png").read_bytes()[:40])  # damaged
    assert draw(run.pipeline, tmp_path / "many", order) == (4, 7, 11)
    expected = run.sample(11, steps=2)
    for i, image in enumerate(expected):
        path = tmp_path / "many" / f"{i:06d}.png"
        assert np.array_equal(pixels(path), image)
        assert i == 2 or path.stat().st_mtime_ns == times.get(path.name, path.stat().st_mtime_ns)
    assert draw(run.pipeline, tmp_path / "many", Order(n=13, options=FEW)) == (2, 11, 13)  # and more of them


@pytest.mark.parametrize("suffix", [".png", ".npz"])
def test_ctrl_c_keeps_a_part_of_a_grid_or_an_array(run, tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(drawing, "BATCH", 4)
    stopping(monkeypatch, after=1)
    with pytest.raises(Stopped, match="stopped; 4 of 9 are in"):
        draw(run.pipeline, tmp_path / f"all{suffix}", Order(n=9, options=FEW))
    assert (tmp_path / f"all{suffix}").exists()
    if suffix == ".npz":
        with np.load(tmp_path / "all.npz") as file:
            assert np.array_equal(file["images"], run.sample(4, steps=2))


@pytest.mark.parametrize("name", ["some", "all.png", "all.npz"])
def test_a_full_disk_names_the_file_and_keeps_what_was_there(run, tmp_path, monkeypatch, name):
    """The system names no file where a write finds no room."""
    out, room = tmp_path / name, [2]
    kept = Order(1, 5, options={"steps": 1})
    if out.suffix:
        draw(run.pipeline, out, kept)
    before = out.read_bytes() if out.suffix else b""
    sync = os.fsync

    def full(descriptor):
        room[0] -= 1
        if room[0] < 0 or out.suffix:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises((OSError, ValueError)) as caught:
        draw(run.pipeline, out, Order(4, 5, options={"steps": 1}))
    assert str(tmp_path / name) in str(caught.value)
    assert "No space left on device" in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
    if out.suffix:
        assert out.read_bytes() == before
        return
    assert "; 1 of 4 are in" in str(caught.value)  # a file takes two: its own, and its folder's
    monkeypatch.undo()
    assert draw(run.pipeline, out, Order(4, 5, options={"steps": 1})) == (3, 1, 4)


def test_an_array_has_the_name_that_was_given(run, tmp_path):
    draw(run.pipeline, tmp_path / "a.NPZ", Order(1, 5, options={"steps": 1}))
    assert [path.name for path in tmp_path.iterdir()] == ["a.NPZ"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"options": {"steps": 3}}, "steps 2, not 3"),
        ({"options": {"steps": 2, "sampler": "ddpm"}}, "sampler ddim, not ddpm"),
        ({"options": {"steps": 2, "eta": 0.5}}, "eta unknown, not 0.5"),
    ],
)
def test_other_samples_under_these_names_are_not_replaced(run, tmp_path, change, named):
    draw(run.pipeline, tmp_path / "many", Order(n=2, options=FEW))
    before = (tmp_path / "many" / "000000.png").read_bytes()
    with pytest.raises(ValueError, match=f"000000.png is there already, and is another sample \\({named}\\)") as error:
        draw(run.pipeline, tmp_path / "many", Order(**{"n": 2, "options": FEW, **change}))
    assert "\n" not in str(error.value)
    assert (tmp_path / "many" / "000000.png").read_bytes() == before
    draw(run.pipeline, tmp_path / "other", Order(**{"n": 2, "options": FEW, **change}))  # the advice


def test_samples_of_another_model_and_images_of_others_are_not_replaced(run, tmp_path):
    draw(run.pipeline, tmp_path / "many", Order(n=2, options=FEW))
    other = pydiff.train("digits", seed=1, **TINY)
    with pytest.raises(ValueError, match=r"is another sample \(model [0-9a-f]{16}, not [0-9a-f]{16}\)"):
        draw(other.pipeline, tmp_path / "many", Order(n=2, options=FEW))
    Image.new("L", (8, 8)).save(tmp_path / "000000.png")
    with pytest.raises(ValueError, match="is another sample \\(Software unknown, not pydiff\\)"):
        draw(run.pipeline, tmp_path, Order(n=2, options=FEW))


def test_names_say_class_and_cannot_leave_the_folder(classes, tmp_path):
    draw(classes.pipeline, tmp_path / "turns", Order(n=3, options=FEW))
    assert sorted(f.name for f in (tmp_path / "turns").iterdir()) == [
        "000000-cat-dog.png",
        "000001-ä-bird.png",
        "000002-cat-dog.png",
    ]
    draw(classes.pipeline, tmp_path / "birds", Order(n=2, label="ä bird", options=FEW))
    assert {f.name for f in (tmp_path / "birds").iterdir()} == {"000000-ä-bird.png", "000001-ä-bird.png"}
    with pytest.raises(ValueError, match="there is no class 'fish'"):
        draw(classes.pipeline, tmp_path / "fish", Order(n=2, label="fish", options=FEW))
    assert not (tmp_path / "fish").exists()


@pytest.mark.parametrize(
    ("words", "name"),
    [("a green heart", "a-green-heart"), ("[a] - [b]/..", "a-b"), ("", ""), ("x" * 99, "x" * 40), ("\x1b[31m", "31m")],
)
def test_what_a_name_says(words, name):
    assert slug(words) == name


def test_places_are_checked_before_anything_is_drawn(run, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "_batches", lambda *_: pytest.fail("something was drawn"))
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.png").mkdir()
    for out, message in [
        (tmp_path / "x.jpg", "are written to a .png, a .npz or a folder"),
        (tmp_path / "file", "something else has this name"),
        (tmp_path / "file" / "x.png", "something else has this name"),
        (tmp_path / "folder.png", "is a folder, and would have to be a file of that name"),
    ]:
        with pytest.raises((ValueError, OSError), match=message):
            draw(run.pipeline, out, Order(n=2, options=FEW))
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(ValueError, match="change its permissions"):
            draw(run.pipeline, tmp_path / "closed" / "x.png", Order(n=2, options=FEW))


def test_fewer_noise_levels_than_fifty_are_all_taken(run, tmp_path):
    draw(run.pipeline, tmp_path / "a", Order(n=1))
    assert np.array_equal(pixels(tmp_path / "a" / "000000.png"), run.sample(1, steps=20)[0])


# ---- the command -----------------------------------------------------------------------------------------------------


def command(*arguments, **more):
    line = [sys.executable, "-m", "pydiff", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False, **more)


def test_a_signal_in_the_middle_and_the_same_command_again(run, background, tmp_path):
    line = ["sample", run.directory, "-n", "3000", "--steps", "20", "--out", tmp_path / "many"]
    out = tmp_path / "many"
    command_line = [sys.executable, "-m", "pydiff", *line]
    process = background(command_line, lambda: list(out.glob("0*.png")), subprocess.PIPE)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"stopped; \d+ of 3,000 are in", message)
    kept = len(list((tmp_path / "many").glob("0*.png")))
    assert 0 < kept < 3000
    line[3] = str(kept + 3)
    done = command(*line)
    assert done.returncode == 0, done.stderr
    assert f"{kept + 3} images in {tmp_path / 'many'}, {kept} of them from before" in done.stdout


def test_the_version():
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"pydiff {pydiff.__version__}\n")


@pytest.mark.parametrize("arguments", ["info", "data digits", "--version", "words king", "--help"])
def test_a_broken_pipe_is_quiet(arguments):
    line = f"{sys.executable} -m pydiff {arguments} | true"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, check=False)
    assert done.stderr == ""


class OneOf(Group):
    """One of several processes, which does its part while the others wait."""

    told = None

    def __init__(self, rank, size):
        super().__init__()
        self.rank, self.size = rank, size

    def agree(self, value):
        if self.first:
            OneOf.told = value
        return OneOf.told


@pytest.mark.parametrize(("n", "size"), [(11, 3), (3, 4)])
def test_any_number_of_processes_fills_a_folder_alike(run, n, size, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "BATCH", 2)
    order = Order(n=n, seed=3, options=FEW)
    draw(run.pipeline, tmp_path / "alone", order)
    draw(run.pipeline, tmp_path / "shared", Order(n=2, seed=3, options=FEW))  # some are there
    drawn = [draw(run.pipeline, tmp_path / "shared", order, group=OneOf(rank, size)) for rank in range(size)]
    assert sum(done.drawn for done in drawn) == n - 2
    assert {done[1:] for done in drawn} == {(2, n)}
    alone, shared = ({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("alone", "shared"))
    assert alone == shared


def test_several_processes_need_a_folder(run, tmp_path):
    with pytest.raises(ValueError, match="several processes draw into a folder, not into"):
        draw(run.pipeline, tmp_path / "a.png", Order(n=2, options=FEW), group=OneOf(0, 2))

"""Clips as films, from Python, from the command line and on the page."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import pydiff
from pydiff.cli import main
from pydiff.codecs.frames import Frames
from pydiff.data import load
from pydiff.data.moving import moving_shapes
from pydiff.report.clips_page import PANEL_VALUES, clips_section, oversee, room
from pydiff.report.video import save_clip, save_clips
from pydiff.report.write import SLIDER_VALUES, budget, slider_values
from tests.report import browser as driver

MOVE = """
const slider = document.querySelector(arguments[0]);
slider.value = arguments[1];
slider.dispatchEvent(new Event("input"));
"""
CANVAS = """
const canvas = document.querySelector(".player2 canvas");
return [canvas.height, canvas.width, ...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    tiny = {"batch_size": 2, "channels": (8,), "groups": 2, "head_dim": 4, "timesteps": 20, "sample_every": 0}
    folder = tmp_path_factory.mktemp("films") / "run"
    return pydiff.train(moving_shapes(8, frames=3, size=8), out=folder, steps=2, progress=False, **tiny)


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_a_film_comes_back_as_the_clip(tmp_path, suffix):
    clip = moving_shapes(1, seed=4).images[0]
    path = save_clip(tmp_path / f"a{suffix}", clip, 10)
    back = load(tmp_path, frames=8)
    assert path.is_file()
    assert back.rate == 10
    assert back.shape == (8, 256, 256, 3)  # magnified by whole numbers
    off = np.abs(back.images[0, :, 8::16, 8::16].astype(int) - clip).max()
    assert off <= (0 if suffix == ".webp" else 8)


def test_an_mp4_comes_back_nearly(tmp_path):
    pytest.importorskip("av", reason="the extra 'video' is not installed")
    clip = moving_shapes(1, seed=4).images[0]
    save_clip(tmp_path / "a.mp4", clip, 10)
    back = load(tmp_path, frames=8, size=16)
    assert abs(back.rate - 10) < 0.2
    assert np.abs(back.images[0].astype(int) - clip).mean() < 6
    save_clip(tmp_path / "odd.mp4", clip[:, :9, :7, :1], 3.5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "odd.mp4"]


def test_what_is_no_clip_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a clip is an array"):
        save_clip(tmp_path / "a.gif", np.zeros((4, 4, 3), np.uint8), 8)
    with pytest.raises(ValueError, match=r"\.webp or \.gif"):
        save_clips(tmp_path / "a.avi", np.zeros((2, 3, 4, 4, 3), np.uint8), 8)


def test_the_command_writes_films(run, tmp_path, capsys):
    common = ["sample", str(run.directory), "-n", "2", "--steps", "2", "--prompt", "a red circle"]
    for name in ("a.gif", "a.webp", "a.png", "a.npz", "folder"):
        assert main([*common, "--out", str(tmp_path / name)]) == 0, capsys.readouterr().err
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames >= 1
    assert np.load(tmp_path / "a.npz")["images"].shape == (2, 3, 8, 8, 3)
    assert sorted(p.suffix for p in (tmp_path / "folder").iterdir()) == [".gif", ".gif", ".png", ".png"]
    assert main([*common, "--out", str(tmp_path / "folder")]) == 0  # they are there already
    assert main([*common, "--out", str(tmp_path / "a.wav")]) == 1
    assert "clips are written to" in capsys.readouterr().err


def test_the_command_trains_clips_beside_images_and_describes_them(tmp_path, capsys):
    (tmp_path / "films").mkdir()
    for i in range(4):
        save_clip(tmp_path / "films" / f"{i}.webp", moving_shapes(1, seed=i).images[0], 10)
    films = str(tmp_path / "films")
    assert main(["data", films, "--frames", "4", "--size", "8"]) == 0
    assert "8 clips of 4 frames at 10 a second, 8 x 8" in capsys.readouterr().out
    small = ["--steps", "2", "--batch-size", "2", "--channels", "8", "--groups", "2", "--timesteps", "20"]
    reading = ["--frames", "4", "--size", "8", "--images", "frames"]
    assert main(["train", films, "--out", str(tmp_path / "run"), *reading, *small]) == 0, capsys.readouterr().err
    assert main(["train", "digits", "--images", "frames", "--out", str(tmp_path / "other"), *small]) == 1
    assert "beside clips" in capsys.readouterr().err


@pytest.mark.skipif(
    not (driver.CHROMIUM and driver.DRIVER), reason="needs chromium and chromedriver, which are not installed"
)
def test_the_page_has_a_slider_over_time_and_one_over_noise(run):
    page = run.report(n=4, steps=4)
    with driver.browser() as window:
        window.open(page.as_uri())
        window.wait("document.documentElement.dataset.ready === 'yes'", 20)
        seen = []
        for row, column in ((0, 0), (0, 2), (3, 2)):
            window.execute(MOVE, ".player2 input[name=row]", row)
            window.execute(MOVE, ".player2 input[name=column]", column)
            seen.append(bytes(window.execute(CANVAS)))
            said = window.execute("return document.querySelector('.said2').innerText")
            assert said == f"after {(1, 2, 3, 4)[row]} of 4 steps, frame {column + 1} of 3"
        assert len(set(seen)) == 3
        assert not [entry for entry in window.log("browser") if entry["level"] == "SEVERE"]


shapes = st.tuples(st.integers(1, 64), st.integers(1, 160), st.integers(1, 160), st.integers(1, 4))


@given(shapes)
def test_a_panel_and_a_slider_of_clips_have_room_for_so_much_and_no_more(shape):
    made = room(shape)
    assert made.values(shape) <= PANEL_VALUES
    frames, height, width, c = shape
    most = slider_values(Frames(shape))
    assert most < SLIDER_VALUES
    kept = budget(16, (height, frames * width, c), values=most)
    sides = height // kept["factor"], frames * width // kept["factor"]
    assert min(sides) >= 1
    if height > 1 or frames * width * c <= most // 40:  # a single row cannot be reduced
        assert kept["samples"] * kept["keep"] * sides[0] * sides[1] * c <= most


@pytest.mark.parametrize(("frames", "size", "clips"), [(8, 16, 9), (8, 64, 1), (16, 128, 1)])
def test_clips_on_a_page_weigh_no_more_for_being_large(frames, size, clips):
    """Noise, which no compression makes smaller."""
    shape = (frames, size, size, 3)
    noise = np.random.default_rng(0).standard_normal((16, *shape), np.float32)
    states = [SimpleNamespace(step=s, steps=40, x=noise, x0=noise) for s in range(1, 41)]
    kept = []
    assert list(oversee(states, kept, shape)) == states
    assert len(kept[0][2]) == clips
    page = clips_section(kept, Frames(shape), np.zeros((1, *shape), np.uint8))
    assert len(page) < 2 * 1.5 * PANEL_VALUES + 100_000  # two panels; base64 makes 4 bytes of 3

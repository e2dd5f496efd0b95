"""Films, read again with Pillow."""

import numpy as np
import pytest
from PIL import Image, ImageSequence

from pydiff.report import film
from pydiff.report.film import save_film
from tests.report.example import random_images

needs_webp = pytest.mark.skipif(not film._has_webp(), reason="this Pillow cannot write animated WebP")
WEBP = pytest.param(".webp", marks=needs_webp)


def read(path, mode):
    """All frames (S, H, W, C) and their durations in milliseconds, which Pillow tells once a frame is decoded."""
    frames, durations = [], []
    with Image.open(path) as file:
        for frame in ImageSequence.Iterator(file):
            pixels = np.asarray(frame.convert(mode))
            frames.append(pixels.reshape(*pixels.shape[:2], -1))
            durations.append(frame.info["duration"])
        assert file.info["loop"] == 0
    return np.stack(frames), durations


@pytest.mark.parametrize(
    ("suffix", "channels", "mode"),
    [
        pytest.param(".webp", 1, "L", marks=needs_webp),
        pytest.param(".webp", 3, "RGB", marks=needs_webp),
        pytest.param(".webp", 4, "RGBA", marks=needs_webp),
        (".gif", 1, "L"),
    ],
)
def test_frames_and_durations_survive(tmp_path, suffix, channels, mode):
    frames = random_images(5, seed=0, shape=(64, 96, channels))
    if channels == 4:
        frames[..., 3] |= 1  # WebP does not keep the colour of what is fully transparent
    path = save_film(tmp_path / f"film{suffix}", list(frames), fps=10, hold_last=1.5)
    got, durations = read(path, mode)
    np.testing.assert_array_equal(got, frames.repeat(4, axis=1).repeat(4, axis=2))  # 64 x 4 = 256
    assert durations == [100, 100, 100, 100, 1500]


@pytest.mark.parametrize("suffix", [WEBP, ".gif"])
def test_tiny_images_are_magnified_in_whole_blocks(tmp_path, suffix):
    frames = random_images(2, seed=0, shape=(8, 12, 1))
    got, _ = read(save_film(tmp_path / f"film{suffix}", list(frames)), "L")
    np.testing.assert_array_equal(got, frames.repeat(32, axis=1).repeat(32, axis=2))


def test_gif_shows_few_colours_exactly_and_transparency_on_white(tmp_path):
    frame = np.zeros((256, 256, 4), np.uint8)
    frame[:128, :, :] = (200, 10, 30, 255)
    got, _ = read(save_film(tmp_path / "film.gif", [frame]), "RGB")
    assert got[0, 0, 0].tolist() == [200, 10, 30]
    assert got[0, 255, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("suffix", [WEBP, ".gif"])
def test_same_frames_same_bytes(tmp_path, suffix):
    frames = list(random_images(3, seed=0))
    first, second = (save_film(tmp_path / f"{name}{suffix}", frames).read_bytes() for name in "ab")
    assert first == second


def test_suffix_follows_what_pillow_can_do(tmp_path, monkeypatch):
    frames = list(random_images(2, seed=0))
    monkeypatch.setattr(film, "_has_webp", lambda: False)
    assert save_film(tmp_path / "film", frames) == tmp_path / "film.gif"
    with pytest.raises(ValueError, match=r"cannot write animated WebP .* ends in \.gif"):
        save_film(tmp_path / "film.webp", frames)
    with pytest.raises(ValueError, match=r"\.webp or \.gif file, got .*film\.mp4"):
        save_film(tmp_path / "film.mp4", frames)
    assert [entry.name for entry in tmp_path.iterdir()] == ["film.gif"]


@needs_webp
def test_webp_is_chosen_where_there_is_one(tmp_path):
    path = save_film(tmp_path / "film", list(random_images(2, seed=0)))
    assert path == tmp_path / "film.webp"
    with Image.open(path) as file:
        assert file.format == "WEBP"


@pytest.mark.parametrize("frames", [[], [random_images(1, 0)[0], random_images(1, 0)[0, :2]], [np.zeros((2, 2, 1))]])
def test_other_frames_are_refused(tmp_path, frames):
    with pytest.raises(ValueError, match="a film needs at least one frame"):
        save_film(tmp_path / "film.gif", frames)


@pytest.mark.parametrize("arguments", [{"fps": 0}, {"fps": float("nan")}, {"hold_last": -1}])
def test_impossible_times_are_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match="fps > 0 and hold_last >= 0"):
        save_film(tmp_path / "film.gif", list(random_images(2, seed=0)), **arguments)

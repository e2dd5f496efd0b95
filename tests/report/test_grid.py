"""Grids and PNG files, pixel by pixel."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pydiff.report.grid import PAD_VALUE, grid, png_bytes, save_png
from tests.report.example import random_images


@given(
    n=st.integers(1, 7),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    channels=st.sampled_from([1, 3, 4]),
    columns=st.integers(1, 8),
    pad=st.integers(0, 3),
    scale=st.integers(1, 3),
)
def test_every_pixel_is_where_it_belongs(n, height, width, channels, columns, pad, scale):
    images = random_images(n, seed=0, shape=(height, width, channels))
    got = grid(images, columns, pad, scale)
    rows = -(-n // columns)
    assert got.shape == (pad + rows * (height * scale + pad), pad + columns * (width * scale + pad), channels)
    expected = np.full(got.shape, PAD_VALUE, np.uint8)
    for i in range(n):
        for y in range(height * scale):
            for x in range(width * scale):
                row = pad + (i // columns) * (height * scale + pad) + y
                column = pad + (i % columns) * (width * scale + pad) + x
                expected[row, column] = images[i, y // scale, x // scale]
    np.testing.assert_array_equal(got, expected)


def test_defaults_are_nearly_square_and_magnify_small_images():
    assert grid(random_images(10, seed=0, shape=(8, 8, 1))).shape == (
        1 + 3 * 49,
        1 + 4 * 49,
        1,
    )  # 4 columns, 8 x 6 = 48
    assert grid(random_images(4, seed=0, shape=(64, 64, 3))).shape == (131, 131, 3)


@pytest.mark.parametrize(("channels", "shown"), [(1, [0]), (2, [0]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (7, [0, 1, 2])])
def test_channels_that_cannot_be_shown_are_left_out(channels, shown):
    image = random_images(1, seed=0, shape=(3, 5, channels))
    np.testing.assert_array_equal(grid(image, pad=0, scale=1), image[0][..., shown])
    decoded = np.asarray(Image.open(io.BytesIO(png_bytes(image[0])))).reshape(3, 5, -1)
    np.testing.assert_array_equal(decoded, image[0][..., shown])


def test_save_png_replaces_the_file_and_leaves_nothing_else(tmp_path):
    first, second = random_images(2, seed=4)
    path = save_png(tmp_path / "a.png", first)
    assert save_png(tmp_path / "a.png", second) == path
    np.testing.assert_array_equal(np.asarray(Image.open(path)), second)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == png_bytes(second)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_png(tmp_path / "a.png", random_images(1, seed=0)[0])
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save_png(path, random_images(1, seed=1)[0])
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("images", [random_images(0, 0), random_images(1, 0)[0], np.zeros((1, 2, 2, 1))])
def test_other_arrays_are_refused(images):
    with pytest.raises(ValueError, match=r"grid needs a non-empty array \(N, H, W, C\) uint8, got"):
        grid(images)


@pytest.mark.parametrize("arguments", [{"columns": 0}, {"pad": -1}, {"scale": 0}])
def test_impossible_layouts_are_refused(arguments):
    with pytest.raises(ValueError, match="columns >= 1, pad >= 0 and scale >= 1"):
        grid(random_images(2, seed=0), **arguments)

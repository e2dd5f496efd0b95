"""Images that are given for editing come as a model takes them: its size, its channels, the right side up."""

import numpy as np
import pytest
from PIL import Image

from pydiff.data.given import image_from, mask_from

RNG = np.random.default_rng(0)


def saved(path, pixels, mode, **options):
    Image.fromarray(pixels, mode).save(path, **options)
    return path


@pytest.fixture
def colours(tmp_path):
    pixels = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return pixels, saved(tmp_path / "colours.png", pixels, "RGB")


def test_channels_are_those_of_the_model(colours, tmp_path):
    pixels, path = colours
    assert np.array_equal(image_from(path, None, 3), pixels)
    grey = image_from(path, None, 1)
    assert np.array_equal(grey, np.rint(pixels.mean(-1, keepdims=True)).astype(np.uint8))
    opaque = image_from(path, None, 4)
    assert np.array_equal(opaque[..., :3], pixels)
    assert (opaque[..., 3] == 255).all()
    path = saved(tmp_path / "grey.png", pixels[..., 0], "L")
    assert np.array_equal(image_from(path, None, 1), pixels[..., :1])
    assert np.array_equal(image_from(path, None, 3), np.repeat(pixels[..., :1], 3, axis=2))
    assert np.array_equal(image_from(path, None, 4)[..., :3], np.repeat(pixels[..., :1], 3, axis=2))


def test_transparency_becomes_white_where_a_model_has_none(tmp_path):
    pixels = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    pixels[0, 0, 3], pixels[0, 1, 3] = 0, 255
    path = saved(tmp_path / "transparent.png", pixels, "RGBA")
    assert np.array_equal(image_from(path, None, 4), pixels)
    share = pixels[..., 3:] / 255.0
    on_white = pixels[..., :3] * share + 255.0 * (1.0 - share)
    assert np.abs(image_from(path, None, 3).astype(float) - on_white).max() <= 0.5 + 1e-9
    assert image_from(path, None, 3)[0, 0].tolist() == [255, 255, 255]
    assert np.array_equal(image_from(path, None, 3)[0, 1], pixels[0, 1, :3])


def test_an_image_that_lies_on_its_side_stands_up(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    path = tmp_path / "side.png"
    Image.fromarray(pixels).save(path, exif=exif.tobytes())
    assert np.array_equal(image_from(path, None, 3), np.rot90(pixels, -1))
    assert image_from(path, (4, 4), 3).shape == (4, 4, 3)


def test_sizes_are_those_of_the_model_and_masks_are_black_or_white(colours, tmp_path):
    assert image_from(colours[1], (3, 3), 3).shape == (3, 3, 3)
    grey = np.array([[0, 127, 128, 255]], np.uint8)
    mask = mask_from(saved(tmp_path / "mask.png", grey, "L"), (1, 4))
    assert mask.dtype == np.float32
    assert mask.tolist() == [[0.0, 0.0, 1.0, 1.0]]


def test_what_is_no_image_is_said(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text.png cannot be used: not an image in any known format"):
        image_from(tmp_path / "text.png", None, 3)
    with pytest.raises(ValueError, match=r"none.png cannot be used: no such file"):
        mask_from(tmp_path / "none.png", (4, 4))

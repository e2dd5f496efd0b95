"""Every file gives the right pixels or a reason; none raises."""

import os
import warnings

import numpy as np
import odd_images as made
import pytest
from PIL import Image

from pydiff.data.image import MAX_PIXELS, Decoded, look, read_image

ODD = made.odd()
BROKEN = made.broken()
ORDINARY = made.ordinary()


@pytest.fixture(autouse=True)
def decoders_may_warn():
    """`load_folder` silences Pillow around all its reading; here each file is read alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read(tmp_path, name, content, size=None):
    path = tmp_path / name
    path.write_bytes(content)
    seen = look(path)
    return read_image(path, size or (seen.size if seen else (8, 8)))


@pytest.mark.parametrize("name", ODD)
def test_odd_images_give_their_exact_pixels(tmp_path, name):
    content, expected = ODD[name]
    image = read(tmp_path, name, content)
    assert isinstance(image, Decoded), image
    assert image.size == expected.shape[:2]
    assert image.pixels.dtype == np.uint8
    np.testing.assert_array_equal(image.pixels, expected)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_give_a_one_line_reason(tmp_path, name):
    reason = read(tmp_path, name, BROKEN[name])
    assert isinstance(reason, str)
    assert reason
    assert "\n" not in reason
    assert str(tmp_path) not in reason


@pytest.mark.parametrize("name", ORDINARY)
def test_every_format_is_read(tmp_path, name):
    image = read(tmp_path, name, ORDINARY[name])
    assert isinstance(image, Decoded), image
    assert image.pixels.shape == (made.H, made.W, 3)
    error = np.abs(image.pixels.astype(int) - made.colour())
    # Random pixels are the worst case of lossy formats; unrelated ones would differ by 85.
    assert error.mean() <= (30 if name in ("a.jpg", "progressive.jpeg", "a.avif", "a.gif") else 0)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (6, 5), shade) for shade in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    for kind, name in (("GIF", "a.gif"), ("PNG", "a.apng"), ("WEBP", "a.webp")):
        content = made.encode(
            frames[0], kind, save_all=True, append_images=frames[1:], **{"lossless": True} if kind == "WEBP" else {}
        )
        np.testing.assert_array_equal(read(tmp_path, name, content).pixels, np.full((5, 6, 3), (200, 0, 0)))


# What a viewer shows for each orientation, written with NumPy alone, from the EXIF 2.3 table of row 0 and column 0.
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation_pixel_by_pixel(tmp_path, orientation, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    content = made.encode(made.colour(), kind, exif=made.exif(orientation), **options)
    expected = UPRIGHT[orientation](made.colour())
    image = read(tmp_path, f"a.{kind.lower()}", content, size=expected.shape[:2])
    assert image.size == expected.shape[:2]
    np.testing.assert_array_equal(image.pixels, expected)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_of_a_jpeg(tmp_path, orientation):
    stored = read(tmp_path, "stored.jpg", made.encode(made.colour(), "JPEG")).pixels
    expected = UPRIGHT[orientation](stored)
    content = made.encode(made.colour(), "JPEG", exif=made.exif(orientation))
    np.testing.assert_array_equal(read(tmp_path, "a.jpg", content, size=expected.shape[:2]).pixels, expected)


def test_exif_orientation_of_16_bit_grey(tmp_path):
    deep = made.grey().astype(np.uint16) * 257
    content = made.encode(deep, exif=made.exif(6))
    np.testing.assert_array_equal(
        read(tmp_path, "a.png", content, (made.W, made.H)).pixels[..., 0], UPRIGHT[6](made.grey())
    )


def test_cmyk_jpeg_is_close_to_its_colours(tmp_path):
    smooth = Image.new("RGB", (16, 16), (180, 60, 30))
    image = read(tmp_path, "a.jpg", made.encode(smooth.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(image.pixels.astype(int) - (180, 60, 30)).max() <= 4


def test_links_pipes_and_missing_files(tmp_path):
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "link" in read_image(tmp_path / "dangling.png", (8, 8))
    assert read_image(tmp_path / "pipe.png", (8, 8)) == "not a file"  # opening it would wait for ever
    assert isinstance(read_image(tmp_path / "missing.png", (8, 8)), str)


def test_the_limit_of_pixels_is_exact(tmp_path):
    side = int(MAX_PIXELS**0.5)
    assert side * side == MAX_PIXELS
    at_limit = read(tmp_path, "at.png", made.png(side, side, 1, 0, bytes(side * (side // 8 + 1))), size=(4, 4))
    assert isinstance(at_limit, Decoded), at_limit
    assert "limit" in read(tmp_path, "above.png", made.png(side, side + 1, 1, 0, bytes(9)), size=(4, 4))


@pytest.mark.parametrize("name", ORDINARY)
def test_no_cut_and_no_flipped_byte_raises(tmp_path, name):
    content, path = ORDINARY[name], tmp_path / name
    rng = np.random.default_rng(len(name))
    cuts = [content[:stop] for stop in range(0, len(content), max(1, len(content) // 40))]
    flips = []
    for place in rng.integers(0, len(content), 40):
        flipped = bytearray(content)
        flipped[place] ^= int(rng.integers(1, 256))
        flips.append(bytes(flipped))
    for damaged in cuts + flips:
        path.write_bytes(damaged)
        result = read_image(path, (4, 4))
        assert isinstance(result, str) or (result.pixels.shape[:2] == (4, 4) and result.pixels.dtype == np.uint8)

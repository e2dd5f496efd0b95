"""The edge between uint8 and [-1, 1], resizing and channels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pydiff.data import from_uint8, to_uint8
from pydiff.data.pixels import MAX_SIDE, check_size, crop_box, resize, to_channels

LEVELS = np.arange(256, dtype=np.uint8)


def test_all_256_levels_survive_the_round_trip():
    x = from_uint8(LEVELS)
    assert x.dtype == np.float32
    assert x[0] == -1
    assert x[255] == 1
    assert (np.diff(x) > 0).all()
    for dtype in (np.float16, np.float32, np.float64):
        np.testing.assert_array_equal(to_uint8(x.astype(dtype)), LEVELS)


@given(hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(-1e300, 1e300)))
def test_to_uint8_is_the_nearest_level(x):
    levels = to_uint8(x)
    assert levels.dtype == np.uint8
    distance = np.abs(from_uint8(LEVELS).astype(np.float64)[:, None] - np.clip(x, -1, 1))
    chosen = distance[levels, np.arange(x.size)]
    assert (chosen <= distance.min(axis=0) + 1e-6).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_and_infinity_have_no_level(bad, dtype):
    x = np.zeros((2, 3), dtype)
    x[1, 2] = bad
    with pytest.raises(ValueError, match="1 of 6 values are NaN or infinite"):
        to_uint8(x)


def test_the_wrong_direction_is_an_error():
    with pytest.raises(TypeError, match="got uint8 values, expected floats"):
        to_uint8(LEVELS)
    with pytest.raises(TypeError, match="got float32 pixels, expected uint8"):
        from_uint8(from_uint8(LEVELS))
    with pytest.raises(TypeError, match="got int64 pixels, expected uint8"):
        from_uint8(np.arange(3))


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (2, 3, 4, 1)])
def test_shapes_are_kept(shape):
    pixels = np.full(shape, 7, np.uint8)
    np.testing.assert_array_equal(to_uint8(from_uint8(pixels)), pixels)


@pytest.mark.parametrize("size", [None, 8, np.int64(8), (8, 8), [8, 8], (np.int32(8), 8)])
def test_sizes(size):
    assert check_size(size) == (None if size is None else (8, 8))


@pytest.mark.parametrize("size", ["32", 8.0, (8,), (8, 8, 3), (8, "8"), True, (True, 8), (8.5, 8), object(), {}])
def test_sizes_of_the_wrong_type(size):
    with pytest.raises(TypeError, match=r"size is .* expected an integer or"):
        check_size(size)


@pytest.mark.parametrize("size", [0, -1, (8, 0), MAX_SIDE + 1])
def test_sizes_out_of_range(size):
    with pytest.raises(ValueError, match="pixels a side"):
        check_size(size)


@given(*[st.integers(1, 5000)] * 4)
def test_the_crop_box_is_the_largest_centred_one(height, width, h, w):
    left, top, right, bottom = crop_box(height, width, (h, w))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    np.testing.assert_allclose([left + right, top + bottom], [width, height], rtol=1e-12)
    np.testing.assert_allclose((right - left) * h, (bottom - top) * w, rtol=1e-9)
    assert right - left == width or bottom - top == height


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_resize_keeps_constants_and_channels_apart(dtype, channels):
    constants = (np.arange(channels) * 30 + 40).astype(np.uint8)
    constants = constants if dtype == np.uint8 else from_uint8(constants)
    if channels == 4 and dtype == np.uint8:
        constants[3] = 255  # alpha; its premultiplication would round the colours
    images = np.broadcast_to(constants, (2, 9, 7, channels)).astype(dtype)
    out = resize(images, (5, 12))
    assert out.shape == (2, 5, 12, channels)
    assert out.dtype == dtype
    np.testing.assert_allclose(out, np.broadcast_to(constants, out.shape), atol=1e-6)


def test_resize_averages_instead_of_picking():
    checkers = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)[None, ..., None]
    small = resize(checkers, (4, 4)).astype(int)
    assert np.abs(small - 127.5).max() <= 16  # without antialiasing these would be 0 or 255


def test_resize_of_floats_stays_in_range():
    edges = np.where(np.indices((1, 8, 8, 1))[2] < 4, -1, 1).astype(np.float32)
    out = resize(edges, (32, 32))
    assert out.min() == -1
    assert out.max() == 1


def test_the_same_size_is_the_same_array():
    images = np.zeros((2, 4, 5, 3), np.uint8)
    assert resize(images, (4, 5)) is images
    assert to_channels(images, 3) is images


@pytest.mark.parametrize("as_floats", [False, True])
def test_channel_conversions(as_floats):
    def pixel(*values):
        values = np.array(values, np.uint8)
        return from_uint8(values) if as_floats else values

    cases = [
        (pixel(7), 3, pixel(7, 7, 7)),
        (pixel(7), 4, pixel(7, 7, 7, 255)),
        (pixel(255, 0, 0), 1, pixel(76)),
        (pixel(0, 255, 0), 1, pixel(150)),
        (pixel(0, 0, 255), 1, pixel(29)),
        (pixel(90, 90, 90), 1, pixel(90)),
        (pixel(1, 2, 3), 4, pixel(1, 2, 3, 255)),
        (pixel(1, 2, 3, 255), 3, pixel(1, 2, 3)),
        (pixel(1, 2, 3, 0), 3, pixel(255, 255, 255)),
        (pixel(0, 100, 200, 51), 3, pixel(204, 224, 244)),  # a fifth of the colour, four fifths white
        (pixel(1, 2, 3, 0), 1, pixel(255)),
    ]
    for source, channels, expected in cases:
        out = to_channels(source, channels)
        assert out.dtype == source.dtype
        np.testing.assert_allclose(out, expected, atol=1 / 255 if as_floats else 0)


@pytest.mark.parametrize(("have", "channels"), [(2, 3), (5, 1), (3, 2), (1, 0), (3, -1), (3, "RGB")])
def test_impossible_channels(have, channels):
    with pytest.raises(ValueError, match=f"cannot make .* channels from {have}"):
        to_channels(np.zeros((2, 2, have), np.uint8), channels)

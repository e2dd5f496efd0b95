"""The CPU's algorithms for a convolution, each at the shapes it is made for: exactness, bits, and the switch."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import backend, ops
from tests.bits import check_any_batch, check_any_thread_count
from tests.compare import array_path, check_kernel, gradients
from tests.strategies import seeds, simd  # noqa: F401

# x (N, H, W, Cin) and w: few output channels, few input channels, and few of both
NARROW = [((3, 9, 13, 17), 3), ((2, 8, 8, 64), 1), ((2, 7, 6, 3), 32), ((3, 5, 8, 1), 48), ((2, 6, 7, 16), 4)]


@st.composite
def narrow(draw):
    """A convolution with 1 to 4 channels on one side."""
    rng = np.random.default_rng(draw(seeds))
    few, many = draw(st.integers(1, 4)), draw(st.sampled_from([15, 16, 17, 32, 33, 48, 64]))
    cin, cout = draw(st.permutations([few, many]))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    size = draw(st.tuples(st.integers(4, 15), st.integers(4, 15)))
    options = {
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": draw(st.sampled_from([0, 1, 2, ((0, 1), (2, 0))])),
    }
    return rng, [rng.standard_normal((draw(st.integers(1, 3)), *size, cin)),
                 rng.standard_normal((*kernel, cin, cout)), rng.standard_normal(cout)], options  # fmt: skip


@pytest.mark.usefixtures("simd")
@given(narrow())
def test_few_channels_are_as_exact_as_plain_float32(case):
    rng, arrays, options = case
    check_kernel(lambda *a: ops.conv2d(*a, **options), arrays, rng)


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize(("shape", "cout"), NARROW)
def test_few_channels_have_the_same_bits_for_any_batch_and_any_thread_count(shape, cout):
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in (shape, (3, 3, shape[-1], cout)))
    dy = rng.standard_normal((*shape[:-1], cout))
    check_any_batch(lambda part: gradients(lambda x: ops.conv2d(x, w, padding=1), [x[part]], dy[part]), shape[0])
    check_any_thread_count(lambda: gradients(lambda *a: ops.conv2d(*a, padding=1), [x, w], dy))


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize(("shape", "cout"), NARROW)
def test_nan_of_other_images_stays_there(shape, cout):
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in (shape, (3, 3, shape[-1], cout)))
    dy = np.ones((*shape[:-1], cout))
    x[1], dy[1] = np.nan, np.nan
    y, dx, _ = gradients(lambda *a: ops.conv2d(*a, padding=1), [x, w], dy)
    for a in (y, dx):
        assert np.isfinite(np.delete(a, 1, axis=0)).all()
        assert np.isnan(a[1]).all()


# x and the output channels of convolutions that Winograd's algorithm suits. Most have more weights than those of which
# the transform is made as a whole: with few tiles and with many, with one row of tiles, with tiles over the edge
SUITED = [((2, 16, 12, 48), 64), ((1, 8, 8, 1280), 320), ((2, 7, 6, 320), 1280), ((1, 4, 12, 1312), 208),
          ((3, 15, 16, 520), 516)]  # fmt: skip


def results(shape=SUITED[0][0], cout=SUITED[0][1], seed=0):
    """[y, dx, dw] in float32 and float64 of a convolution with 3 x 3 weights."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(s) for s in (shape, (3, 3, shape[-1], cout))]
    arrays = [a.astype(np.float32).astype(np.float64) for a in arrays]
    dy = rng.standard_normal((*shape[:-1], cout)).astype(np.float32)
    with array_path():
        exact = gradients(lambda *a: ops.conv2d(*a, padding=1), arrays, dy.astype(np.float64))
    return gradients(lambda *a: ops.conv2d(*a, padding=1), [a.astype(np.float32) for a in arrays], dy), exact


def rms_errors(shape, cout):
    """Root mean square error of each result, relative to the root mean square of the truth."""
    return [np.sqrt(((g - e) ** 2).mean() / (e**2).mean()) for g, e in zip(*results(shape, cout), strict=True)]


@pytest.fixture
def plain(simd):  # noqa: ARG001, F811
    """Switches Winograd's algorithm off; returns the function that does."""
    yield backend.use_winograd
    backend.use_winograd(True)


@pytest.mark.parametrize(("shape", "cout"), SUITED)
def test_winograd_rounds_little_more_than_the_plain_sum(shape, cout, plain):
    """docs/winograd.md has 2 to 6 times as the measured figures.

    The sum's limit is that of k random terms of size 1, added one after another: the j-th addition rounds a number of
    size sqrt(j), by up to u times that, all errors equally likely, hence by u sqrt(j / 3) on average. Over all j, and
    relative to the result's size sqrt(k), that is u sqrt(k / 6). Kernels add in several accumulators and stay below.
    """
    fast = rms_errors(shape, cout)
    plain(False)
    terms = 9 * shape[-1], 9 * cout, math.prod(shape[:-1])  # of y, dx, dw
    for by_winograd, by_sum, k in zip(fast, rms_errors(shape, cout), terms, strict=True):
        assert by_sum <= np.finfo(np.float32).eps / 2 * np.sqrt(k / 6)
        assert by_winograd != by_sum  # it was Winograd's algorithm
        assert by_winograd <= 10 * by_sum


# The third: together, not alone, more tiles than one pass takes with so many channels. The fourth: some numbers of
# threads share its channels out, others its tiles
WIDE = [((3, 5, 8, 528), 512), ((2, 4, 4, 1280), 640), ((2, 20, 28, 4096), 80), ((2, 40, 52, 256), 144)]


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize(("shape", "cout"), WIDE)
def test_many_channels_have_the_same_bits_for_any_batch_and_any_thread_count(shape, cout):
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in (shape, (3, 3, shape[-1], cout)))
    dy = rng.standard_normal((*shape[:-1], cout))
    check_any_batch(lambda part: gradients(lambda x: ops.conv2d(x, w, padding=1), [x[part]], dy[part]), shape[0])
    check_any_thread_count(lambda: gradients(lambda *a: ops.conv2d(*a, padding=1), [x, w], dy))


@pytest.mark.usefixtures("simd")
def test_many_channels_of_an_upsampled_image_with_addends():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s) for s in ((2, 3, 4, 560), (3, 3, 560, 480), (2, 480), (2, 6, 8, 480))]
    check_kernel(lambda x, w, bias, add: ops.conv2d(x, w, bias, padding=1, upsample=2, add=add), arrays, rng)


def test_the_switch_changes_the_algorithm_and_back(plain):
    fast, _ = results()
    plain(False)
    slow, _ = results()
    plain(True)
    again, _ = results()
    for a, b, c in zip(fast, slow, again, strict=True):
        assert np.array_equal(a, c)
        assert not np.array_equal(a, b)

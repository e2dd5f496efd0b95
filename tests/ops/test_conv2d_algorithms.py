"""The CPU's algorithms for a convolution, each at the shapes it is made for: exactness, bits, and the switch."""

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
def test_nan_of_other_pictures_stays_there(shape, cout):
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in (shape, (3, 3, shape[-1], cout)))
    dy = np.ones((*shape[:-1], cout))
    x[1], dy[1] = np.nan, np.nan
    y, dx, _ = gradients(lambda *a: ops.conv2d(*a, padding=1), [x, w], dy)
    for a in (y, dx):
        assert np.isfinite(np.delete(a, 1, axis=0)).all()
        assert np.isnan(a[1]).all()


def results(seed=0):
    """[y, dx, dw] in float32 and float64 of a convolution that Winograd's algorithm suits."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(s) for s in ((2, 16, 12, 48), (3, 3, 48, 64))]
    arrays = [a.astype(np.float32).astype(np.float64) for a in arrays]
    dy = rng.standard_normal((2, 16, 12, 64)).astype(np.float32)
    with array_path():
        exact = gradients(lambda *a: ops.conv2d(*a, padding=1), arrays, dy.astype(np.float64))
    return gradients(lambda *a: ops.conv2d(*a, padding=1), [a.astype(np.float32) for a in arrays], dy), exact


def rms_errors(seed=0):
    """Root mean square error of each result, relative to the root mean square of the truth."""
    return [np.sqrt(((g - e) ** 2).mean() / (e**2).mean()) for g, e in zip(*results(seed), strict=True)]


@pytest.fixture
def plain(simd):  # noqa: ARG001, F811
    """Switches Winograd's algorithm off; returns the function that does."""
    yield backend.use_winograd
    backend.use_winograd(True)


def test_winograd_rounds_little_more_than_the_plain_sum(plain):
    """docs/winograd.md has 3 to 8 times as the measured figures.

    The sum's limit is that of k random terms of size 1, added one after another: the j-th addition rounds a number of
    size sqrt(j), by up to u times that, all errors equally likely, hence by u sqrt(j / 3) on average. Over all j, and
    relative to the result's size sqrt(k), that is u sqrt(k / 6). Kernels add in several accumulators and stay below.
    """
    fast = rms_errors()
    plain(False)
    terms = 9 * 48, 9 * 64, 2 * 16 * 12  # of y, dx, dw
    for by_winograd, by_sum, k in zip(fast, rms_errors(), terms, strict=True):
        assert by_sum <= np.finfo(np.float32).eps / 2 * np.sqrt(k / 6)
        assert by_winograd <= 10 * by_sum


def test_the_switch_changes_the_algorithm_and_back(plain):
    fast, _ = results()
    plain(False)
    slow, _ = results()
    plain(True)
    again, _ = results()
    for a, b, c in zip(fast, slow, again, strict=True):
        assert np.array_equal(a, c)
        assert not np.array_equal(a, b)

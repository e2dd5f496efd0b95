"""Dropout: array path against the scalar reference, gradients, kernels, and what a mask may depend on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import ops, random
from pydiff.reference.dropout import dropout as reference
from pydiff.tensor import Tensor
from tests.bits import assert_same_bits, check_any_batch, check_any_thread_count
from tests.compare import array_path, assert_close, check_gradient, gradients, naive_kernels
from tests.strategies import bfloat16, kernels, keys, seeds, simd, simt, sizes, small, strided  # noqa: F401


@st.composite
def cases(draw, extent=small):
    """x in any memory order, a share, and a key with samples and steps up to the ends of their range."""
    rng = np.random.default_rng(draw(seeds))
    n = draw(st.integers(1, 4))
    x = draw(strided(rng, (n, *draw(st.lists(extent, min_size=1, max_size=2)))))
    p = draw(st.one_of(st.sampled_from([0.0, 0.1, 0.5, 0.3, 1 - 2**-20, 2.0**-24]), st.floats(0, 0.99)))
    return rng, x, p, draw(keys(n, [random.DROPOUT, random.DROPOUT + 256, 2**32 - 1]))


@given(cases(st.integers(1, 4)))
def test_array_path_matches_the_equation(case):
    _, x, p, key = case
    assert_close(ops.dropout(Tensor(x), p, key).data, reference(x, p, *key), rtol=1e-12)


@given(cases())
def test_gradient_matches_the_slope(case):
    rng, x, p, key = case
    mask = ops.dropout(np.ones(x.shape), p, key).data
    check_gradient(lambda x: ops.dropout(x, p, key), lambda x: mask * x, [x], rng)


@pytest.mark.usefixtures("kernels")
@given(case=cases(sizes))
def test_kernel_has_the_bits_of_the_array_path(case):
    """One product an element, by the same mask: nothing is left to rounding."""
    rng, x, p, key = case
    x = x.astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    got = gradients(lambda x: ops.dropout(x, p, key), [x], dy)
    with array_path():
        assert_same_bits(got, gradients(lambda x: ops.dropout(x, p, key), [x], dy))


@pytest.mark.usefixtures("kernels")
@given(case=cases(sizes))
def test_what_is_not_finite_is_not_hidden(case):
    """An element that is dropped is 0 times itself, as in the array path: a step with a NaN has to be noticed."""
    _, x, p, key = case
    x = np.full(x.shape, np.inf, np.float32)
    with np.errstate(invalid="ignore"), array_path():
        expected = ops.dropout(x, p, key).data
    assert (np.isnan(ops.dropout(x, p, key).data) == np.isnan(expected)).all()


@pytest.mark.usefixtures("bfloat16")
@given(case=cases(sizes))
def test_kernel_in_bfloat16_rounds_once(case):
    _, x, p, key = case
    half = x.astype("bfloat16")
    got = ops.dropout(half, p, key).data
    with array_path():
        exact = ops.dropout(half.astype(np.float32), p, key).data
        assert_same_bits([ops.dropout(half, p, key).data], [exact.astype("bfloat16")])
    assert_same_bits([got], [exact.astype("bfloat16")])


@pytest.mark.usefixtures("bfloat16")
@given(case=cases(sizes))
def test_naive_kernel_agrees_with_the_fast_one(case):
    _, x, p, key = case
    for dtype in ("float32", "bfloat16"):
        fast = ops.dropout(x.astype(dtype), p, key).data
        with naive_kernels():
            assert_same_bits([ops.dropout(x.astype(dtype), p, key).data], [fast])


@pytest.mark.usefixtures("kernels")
def test_kernel_crosses_its_tiles_without_a_seam():
    key = random.key(3, random.DROPOUT, [1, 2], 1)
    x = np.ones((2, 20_001), np.float32)
    u = random.uniform(key, (20_001,))
    assert_same_bits([ops.dropout(x, 0.3, key).data], [np.where(u >= np.float32(0.3), np.float32(1 / 0.7), 0)])


def part_of(size):
    """dropout and its gradient, of a slice of five samples."""
    x = np.random.default_rng(0).standard_normal((5, size)).astype(np.float32)

    def run(part):
        key = random.key(1, random.DROPOUT, np.arange(5)[part] + 7, 3)
        return gradients(lambda x: ops.dropout(x, 0.4, key), [x[part]], x[part])

    return run


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", [1, 37 * 19, 4099])
def test_same_bits_for_any_batch(size):
    check_any_batch(part_of(size), 5)


@pytest.mark.usefixtures("simd")
def test_same_bits_for_any_thread_count():
    check_any_thread_count(lambda: part_of(33 * 41 * 3)(slice(None)))


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_a_share_must_be_one(p):
    with pytest.raises(ValueError, match=r"^dropout must be at least 0 and below 1, got"):
        ops.dropout(np.ones((2, 3)), p, random.key(0, random.DROPOUT, [0, 1]))


@pytest.mark.parametrize("shape", [(3, 4), ()])
def test_a_key_must_have_the_samples_of_x(shape):
    with pytest.raises(ValueError, match=r"^got dropout masks for 2 samples, but an input of shape"):
        ops.dropout(np.ones(shape), 0.5, random.key(0, random.DROPOUT, [0, 1]))

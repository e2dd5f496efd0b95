"""Layer normalisation: array path against the equation, gradient against its slope, both against torch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydiff import ops
from pydiff.reference.layer_norm import layer_norm as reference
from pydiff.tensor import Tensor
from tests.bits import check_any_batch, check_any_thread_count
from tests.compare import assert_close, check_gradient, check_kernel, gradients, naive_kernels
from tests.peers import import_torch
from tests.strategies import bfloat16, kernels, seeds, simt, sizes, small, strided  # noqa: F401


@st.composite
def cases(draw):
    """[x, gamma, beta], one or both of the latter left out, x in any memory order."""
    rng = np.random.default_rng(draw(seeds))
    # Of a single channel there is no variance: y is beta and every slope is noise.
    shape = (*draw(st.lists(small, max_size=3)), draw(sizes.filter(lambda c: c > 1)))
    # A large mean beside a small spread is what naive variance formulas (E[x²] - E[x]²) get wrong.
    x = draw(strided(rng, shape)) + draw(st.sampled_from([0.0, 3.0, 30.0]))
    parameters = [1 + 0.5 * rng.standard_normal(shape[-1:]), rng.standard_normal(shape[-1:])]
    return rng, [x, *parameters[: draw(st.integers(0, 2))]], {"eps": draw(st.sampled_from([1e-3, 1e-2]))}


@given(cases())
def test_array_path_matches_the_equation(case):
    _, arrays, options = case
    got = ops.layer_norm(*map(Tensor, arrays), **options).data
    assert_close(got, reference(*arrays, **options), rtol=1e-12)
    single = ops.layer_norm(*(Tensor(a.astype(np.float32)) for a in arrays), **options).data
    assert single.dtype == np.float32
    assert_close(single, got, rtol=1e-3)


@given(cases())
def test_gradient_matches_the_slope_of_the_reference(case):
    rng, arrays, options = case
    check_gradient(
        lambda *a: ops.layer_norm(*a, **options), lambda *a: reference(*a, **options), arrays, rng, rtol=1e-5
    )


def test_a_shift_without_a_scale():
    rng = np.random.default_rng(0)
    x, beta = rng.standard_normal((2, 3, 5)), rng.standard_normal(5)
    check_gradient(lambda x, b: ops.layer_norm(x, beta=b), lambda x, b: reference(x, beta=b), [x, beta], rng, rtol=1e-5)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (3,), (1,), (2, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_empty_and_single(shape, dtype):
    x = np.full(shape, 0.1, dtype)
    parameters = np.ones(shape[-1], dtype), np.full(shape[-1], 2.0, dtype)
    y, dx, dgamma, dbeta = gradients(ops.layer_norm, [x, *parameters], np.ones(shape))
    assert_close(y, np.full(shape, 2.0), rtol=1e-12)
    assert_close(dx, np.zeros(shape), rtol=0, atol=1e-10 if dtype is np.float64 else 1e-4)
    assert dgamma.shape == dbeta.shape == shape[-1:]


def test_nan_stays_in_its_row():
    x = np.ones((3, 4))
    x[1, 2] = np.nan
    assert np.isnan(ops.layer_norm(x).data).all(axis=1).tolist() == [False, True, False]


def test_output_and_gradients_equal_torch():
    torch = import_torch()
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s) for s in ((2, 5, 7), (7,), (7,))]
    x, gamma, beta = (torch.from_numpy(a).requires_grad_() for a in arrays)
    theirs = torch.nn.functional.layer_norm(x, (7,), gamma, beta, 1e-3)
    dy = rng.standard_normal((2, 5, 7))
    theirs.backward(torch.from_numpy(dy))
    y, *grads = gradients(lambda *a: ops.layer_norm(*a, eps=1e-3), arrays, dy)
    assert_close(y, theirs.detach().numpy(), rtol=1e-12)
    for got, expected in zip(grads, (x, gamma, beta), strict=True):
        assert_close(got, expected.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    ("x", "gamma", "beta", "message"),
    [
        ((), None, None, r"layer_norm needs x of shape \(\.\.\., C\) with something to normalise, got \(\)"),
        ((2, 0), None, None, r"got \(2, 0\)"),
        ((2, 3), (2,), None, r"gamma must have shape \(3,\), got \(2,\)"),
        ((2, 3), (3,), (1, 3), r"beta must have shape \(3,\), got \(1, 3\)"),
    ],
)
def test_bad_arguments(x, gamma, beta, message):
    gamma, beta = (None if s is None else np.zeros(s) for s in (gamma, beta))
    with pytest.raises(ValueError, match=message):
        ops.layer_norm(Tensor(np.zeros(x)), gamma, beta)


# ---- kernels -------------------------------------------------------------------------------------------------------


def op(options):
    return lambda *a: ops.layer_norm(*a, **options)


@pytest.mark.usefixtures("kernels")
@given(case=cases())
def test_kernel_is_as_exact_as_plain_float32(case):
    rng, arrays, options = case
    check_kernel(op(options), arrays, rng)


@pytest.mark.usefixtures("bfloat16")
@given(case=cases())
def test_kernel_in_bfloat16_is_as_exact_as_its_rounding(case):
    rng, arrays, options = case
    check_kernel(op(options), arrays, rng, half=(0,))


@pytest.mark.usefixtures("simt")
@pytest.mark.parametrize("half", [(), (0,)], ids=["float32", "bfloat16"])
@settings(max_examples=15)
@given(case=cases())
def test_naive_kernel_is_as_exact_as_plain_float32(half, case):
    rng, arrays, options = case
    with naive_kernels():
        check_kernel(op(options), arrays, rng, half=half)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [(700, 40), (3, 5000), (2, 17, 320)], ids=["many rows", "long rows", "tokens"])
def test_kernel_over_several_blocks(shape):
    """More rows than a block of work or a chunk of the column sums has, rows longer than a sum in float."""
    rng = np.random.default_rng(0)
    x = 3 + rng.standard_normal(shape)
    gamma, beta = rng.standard_normal((2, shape[-1]))
    check_kernel(op({"eps": 1e-5}), [x, 1 + 0.5 * gamma, beta], rng)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("first", [1e3, -3e9])
@pytest.mark.parametrize("c", [5, 64, 1280])
def test_rows_that_begin_unlike_the_rest(first, c):
    """Deviations from the first values would lose the digits of all others."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, c))
    x[:, :4] += first
    x[3, 0] = -first
    check_kernel(op({"eps": 1e-5}), [x, 1 + 0.5 * rng.standard_normal(c), rng.standard_normal(c)], rng)


@pytest.mark.usefixtures("kernels")
def test_a_constant_row_becomes_the_shift():
    beta = np.arange(70, dtype=np.float32)
    for value in (0.1, 1e20, -3e-30):
        y = ops.layer_norm(Tensor(np.full((6, 70), value, np.float32)), None, Tensor(beta))
        np.testing.assert_array_equal(y.data, np.broadcast_to(beta, (6, 70)))


@pytest.mark.usefixtures("kernels")
def test_same_bits_in_any_batch_and_on_any_number_of_threads():
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 5, 133, 70)).astype(np.float32)
    gamma, beta = rng.standard_normal((2, 70)).astype(np.float32)

    def run(part):
        return gradients(ops.layer_norm, [x[part], gamma, beta], dy[part])

    check_any_batch(lambda part: run(part)[:2], len(x))
    check_any_thread_count(lambda: run(slice(None)))


@pytest.mark.usefixtures("kernels")
def test_kernel_without_parameters_and_with_frozen_ones():
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 6, 9)).astype(np.float32)
    gamma = rng.standard_normal(9).astype(np.float32)
    y, dx = gradients(ops.layer_norm, [x], dy)
    exact = gradients(ops.layer_norm, [x.astype(np.float64)], dy.astype(np.float64))
    assert_close(y, exact[0], rtol=1e-6)
    assert_close(dx, exact[1], rtol=1e-5)
    leaf, frozen = Tensor(x, requires_grad=True), Tensor(gamma)
    ops.layer_norm(leaf, frozen).backward(dy)
    assert frozen.grad is None
    expected = gradients(lambda x: ops.layer_norm(x, gamma.astype(np.float64)), [x.astype(np.float64)], dy)[1]
    assert_close(leaf.grad, expected, rtol=1e-5)

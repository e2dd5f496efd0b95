"""Reductions, matrix products and losses: values against NumPy, gradients against slopes and against torch."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pydiff import ops
from pydiff.tensor import Tensor
from tests.compare import assert_close, check_gradient, gradients
from tests.peers import import_torch
from tests.strategies import seeds, small, strided


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def cross_entropy(logits, labels):
    return np.mean([-np.log(softmax(row)[label]) for row, label in zip(logits, labels, strict=True)])


@st.composite
def reductions(draw, min_side=0):
    """rng, x in any memory order, and axis (None, an int or a tuple, also negative) with keepdims."""
    rng = np.random.default_rng(draw(seeds))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=min_side, max_side=4))
    axis = draw(st.none() | st.integers(-len(shape), len(shape) - 1) | hnp.valid_tuple_axes(len(shape)))
    return rng, draw(strided(rng, shape)), {"axis": axis, "keepdims": draw(st.booleans())}


@given(reductions())
def test_sum(case):
    rng, x, options = case
    assert_close(ops.summation(Tensor(x), **options).data, x.sum(**options), rtol=1e-14)
    check_gradient(lambda x: ops.summation(x, **options), lambda x: x.sum(**options), [x], rng)


@given(reductions(min_side=1))
def test_mean(case):
    rng, x, options = case
    assert_close(ops.mean(Tensor(x), **options).data, x.mean(**options), rtol=1e-14, atol=1e-15)
    check_gradient(lambda x: ops.mean(x, **options), lambda x: x.mean(**options), [x], rng)


@given(reductions(min_side=1))
def test_max(case):
    rng, x, options = case
    x = rng.permutation(x.size).reshape(x.shape) / 8.0  # no two equal: at a tie the slope depends on the direction
    assert_close(ops.maximum(Tensor(x), **options).data, x.max(**options), rtol=0)
    check_gradient(lambda x: ops.maximum(x, **options), lambda x: x.max(**options), [x], rng)


def test_methods_are_these_operations():
    x = np.random.default_rng(0).standard_normal((2, 3))
    assert_close(Tensor(x).sum(axis=1, keepdims=True).data, x.sum(axis=1, keepdims=True), rtol=1e-15)
    assert_close(Tensor(x).mean().data, x.mean(), rtol=1e-15)
    assert_close(Tensor(x).max(axis=0).data, x.max(axis=0), rtol=0)


def test_the_mean_of_nothing_is_nan():
    assert np.isnan(ops.mean(Tensor(np.zeros((0, 3)))).item())
    assert np.isnan(ops.mean(Tensor(np.zeros((3, 0))), axis=1).data).tolist() == [True] * 3


def test_equal_largest_elements_share_the_gradient():
    _, dx = gradients(
        lambda x: ops.maximum(x, axis=1), [np.array([[2.0, 1.0, 2.0], [0.0, 0.0, 0.0]])], np.array([1.0, 3.0])
    )
    assert dx.tolist() == [[0.5, 0, 0.5], [1, 1, 1]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("op", [ops.summation, ops.mean, ops.maximum, ops.softmax])
def test_dtype_stays(op, dtype):
    x = np.arange(6, dtype=dtype).reshape(2, 3)
    y, dx = gradients(op, [x], np.ones(op(Tensor(x)).shape))
    assert y.dtype == dx.dtype == dtype


# ---- softmax -------------------------------------------------------------------------------------------------------


@given(reductions(min_side=1), st.data())
def test_softmax(case, data):
    rng, x, _ = case
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    assert_close(ops.softmax(Tensor(x), axis=axis).data, softmax(x, axis), rtol=1e-14)
    check_gradient(lambda x: ops.softmax(x, axis=axis), lambda x: softmax(x, axis), [x], rng)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_of_huge_numbers(dtype):
    y, dx = gradients(ops.softmax, [np.array([[1e30, -1e30, 1e30], [-1e4, 0, 1e4]], dtype)], np.ones((2, 3)))
    assert y.tolist() == [[0.5, 0, 0.5], [0, 0, 1]]
    assert_close(dx, np.zeros((2, 3)), rtol=0)


@given(reductions(min_side=1), st.data())
def test_log_softmax(case, data):
    rng, x, _ = case
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    expected = lambda x: np.log(softmax(x, axis))  # noqa: E731
    assert_close(ops.log_softmax(Tensor(x), axis=axis).data, expected(x), rtol=1e-14, atol=1e-15)
    check_gradient(lambda x: ops.log_softmax(x, axis=axis), expected, [x], rng)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_softmax_of_huge_numbers(dtype):
    y, dx = gradients(ops.log_softmax, [np.array([[1e30, -1e30], [-1e4, 1e4]], dtype)], np.array([[1.0, 2], [3, 4]]))
    assert y.tolist() == [[0, dtype(-2e30)], [-2e4, 0]]
    assert dx.tolist() == [[-2, 2], [3, -3]]


# ---- matmul --------------------------------------------------------------------------------------------------------


@st.composite
def matrices(draw):
    """Two stacks of matrices with broadcasting in front, in any memory order."""
    stacks = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=2, min_side=0, max_side=3)).input_shapes
    m, k, n = draw(small), draw(st.integers(0, 5)), draw(small)
    rng = np.random.default_rng(draw(seeds))
    return rng, [draw(strided(rng, s)) for s in ((*stacks[0], m, k), (*stacks[1], k, n))]


@given(matrices())
def test_matmul(case):
    rng, arrays = case
    assert_close(ops.matmul(*map(Tensor, arrays)).data, arrays[0] @ arrays[1], rtol=1e-13)
    check_gradient(ops.matmul, np.matmul, arrays, rng)
    check_gradient(lambda y: arrays[0] @ y, lambda y: arrays[0] @ y, arrays[1:], rng)
    check_gradient(lambda x: x @ arrays[1], lambda x: x @ arrays[1], arrays[:1], rng)


@pytest.mark.parametrize(("x", "y"), [((3,), (3, 2)), ((2, 3), (3,)), ((), (1, 1))])
def test_matmul_needs_matrices(x, y):
    with pytest.raises(ValueError, match="matmul needs matrices"):
        ops.matmul(Tensor(np.zeros(x)), np.zeros(y))


# ---- losses --------------------------------------------------------------------------------------------------------


@given(reductions(min_side=1))
def test_mean_squared_error(case):
    rng, x, _ = case
    y = rng.standard_normal(x.shape)
    assert_close(ops.mean_squared_error(Tensor(x), y).data, ((x - y) ** 2).mean(), rtol=1e-14)
    check_gradient(ops.mean_squared_error, lambda x, y: ((x - y) ** 2).mean(), [x, y], rng)
    check_gradient(lambda x: ops.mean_squared_error(x, y), lambda x: ((x - y) ** 2).mean(), [x], rng)
    check_gradient(lambda y: ops.mean_squared_error(x, y), lambda y: ((x - y) ** 2).mean(), [y], rng)


@given(seed=seeds, n=small, classes=small, dtype=st.sampled_from([np.int64, np.uint8, np.int32]))
def test_cross_entropy(seed, n, classes, dtype):
    rng = np.random.default_rng(seed)
    logits, labels = rng.standard_normal((n, classes)), rng.integers(classes, size=n).astype(dtype)
    assert_close(ops.cross_entropy(Tensor(logits), labels).data, cross_entropy(logits, labels), rtol=1e-13, atol=1e-15)
    assume(classes > 1)  # of a single class the loss is 0 everywhere
    check_gradient(lambda x: ops.cross_entropy(x, labels), lambda x: cross_entropy(x, labels), [logits], rng)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_of_huge_logits(dtype):
    """The logarithm is taken of no probability that was rounded to zero."""
    loss, dx = gradients(
        lambda x: ops.cross_entropy(x, np.array([0, 1])), [np.array([[1e4, 0], [1e4, 0]], dtype)], np.array(1.0)
    )
    assert loss == 5e3
    assert dx.tolist() == [[0, 0], [0.5, -0.5]]


def test_losses_equal_torch():
    torch = import_torch()
    rng = np.random.default_rng(0)
    x, y, labels = rng.standard_normal((5, 4)), rng.standard_normal((5, 4)), np.array([0, 3, 3, 1, 2])
    for ours, theirs in [
        (lambda x: ops.mean_squared_error(x, y), lambda x: torch.nn.functional.mse_loss(x, torch.from_numpy(y))),
        (
            lambda x: ops.cross_entropy(x, labels),
            lambda x: torch.nn.functional.cross_entropy(x, torch.from_numpy(labels)),
        ),
        (lambda x: ops.softmax(x, axis=0).max(), lambda x: torch.softmax(x, 0).max()),
        (
            lambda x: (ops.log_softmax(x, axis=0) * y).sum(),
            lambda x: (torch.log_softmax(x, 0) * torch.from_numpy(y)).sum(),
        ),
    ]:
        tensor = torch.from_numpy(x.copy()).requires_grad_()
        out = theirs(tensor)
        out.backward()
        loss, dx = gradients(ours, [x], np.array(1.0))
        assert_close(loss, out.detach().numpy(), rtol=1e-9)
        assert_close(dx, tensor.grad.numpy(), rtol=1e-7)


@pytest.mark.parametrize(("x", "y"), [((2, 3), (3, 2)), ((2, 3), (3,)), ((2,), ())])
def test_mean_squared_error_does_not_broadcast(x, y):
    with pytest.raises(ValueError, match="compares arrays of the same shape"):
        ops.mean_squared_error(Tensor(np.zeros(x)), np.zeros(y))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ((3,), np.zeros(3, int), r"needs logits \(N, K\) and integer labels \(N,\), got \(3,\)"),
        ((2, 3), np.zeros(3, int), r"got \(2, 3\) and int64 \(3,\)"),
        ((2, 3), np.zeros((2, 1), int), "integer labels"),
        ((2, 3), np.zeros(2), r"got \(2, 3\) and float64 \(2,\)"),
        ((2, 3), np.array([0, 3]), r"labels must lie in 0\.\.2, got 0\.\.3"),
        ((2, 3), np.array([-1, 0]), r"labels must lie in 0\.\.2, got -1\.\.0"),
    ],
)
def test_bad_arguments_of_cross_entropy(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        ops.cross_entropy(Tensor(np.zeros(logits)), labels)

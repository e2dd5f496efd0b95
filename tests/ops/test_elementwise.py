"""Elementwise operations: values against NumPy itself, gradients against slopes and against torch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pydiff import ops
from pydiff.tensor import Tensor
from tests.compare import assert_close, check_gradient, gradients
from tests.peers import import_torch
from tests.strategies import seeds, strided


def sigmoid(x):
    return 0.5 * (1 + np.tanh(x / 2))


def normal(x):
    """Any real number, but none so close to 0 or 1 that a finite difference would cross a kink there."""
    return np.where((np.abs(x) < 0.01) | (np.abs(x - 1) < 0.01) | (np.abs(x + 1) < 0.01), 0.5, x)


def positive(x):
    return np.abs(x) + 0.2


def nonzero(x):
    return np.where(x < 0, x - 0.2, x + 0.2)


# name: (our operation, NumPy's, where x may lie, torch's name)
UNARY = {
    "negative": (ops.negative, np.negative, normal, "neg"),
    "exp": (ops.exp, np.exp, normal, "exp"),
    "log": (ops.log, np.log, positive, "log"),
    "sqrt": (ops.sqrt, np.sqrt, positive, "sqrt"),
    "tanh": (ops.tanh, np.tanh, normal, "tanh"),
    "sigmoid": (ops.sigmoid, sigmoid, normal, "sigmoid"),
    "silu": (ops.silu, lambda x: x * sigmoid(x), normal, "nn.functional.silu"),
    "relu": (ops.relu, lambda x: np.maximum(x, 0), normal, "relu"),
    "absolute": (ops.absolute, np.abs, normal, "abs"),
    "clip": (lambda x: ops.clip(x, -1.0, 1.0), lambda x: np.clip(x, -1, 1), normal, None),
    "square": (lambda x: x**2, lambda x: x**2, normal, None),
    "cube": (lambda x: ops.power(x, 3), lambda x: x**3, normal, None),
    "root": (lambda x: x**0.5, lambda x: x**0.5, positive, None),
    "reciprocal": (lambda x: x**-1, lambda x: 1 / x, nonzero, None),
}
BINARY = {
    "add": (ops.add, np.add, normal),
    "subtract": (ops.subtract, np.subtract, normal),
    "multiply": (ops.multiply, np.multiply, normal),
    "divide": (ops.divide, np.divide, nonzero),
    "maximum": (ops.elementwise_maximum, np.maximum, normal),
    "minimum": (ops.elementwise_minimum, np.minimum, normal),
}
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)


@st.composite
def arrays(draw, domain, shape=None):
    rng = np.random.default_rng(draw(seeds))
    shape = draw(shapes) if shape is None else shape
    return rng, domain(draw(strided(rng, shape)) if shape else rng.standard_normal())


@pytest.mark.parametrize("name", UNARY)
@given(data=st.data())
def test_unary(name, data):
    op, expected, domain, _ = UNARY[name]
    rng, x = data.draw(arrays(domain))
    x = np.asarray(x)
    assert_close(op(Tensor(x)).data, expected(x), rtol=1e-14)
    single = op(Tensor(x.astype(np.float32)))
    assert single.dtype == np.float32
    assert_close(single.data, expected(x), rtol=1e-5)
    check_gradient(op, expected, [x], rng, rtol=1e-5)


@pytest.mark.parametrize("name", BINARY)
@given(data=st.data())
def test_binary_with_broadcasting(name, data):
    op, expected, domain = BINARY[name]
    drawn = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=4))
    rng, x = data.draw(arrays(normal, drawn.input_shapes[0]))
    _, y = data.draw(arrays(domain, drawn.input_shapes[1]))
    x, y = np.asarray(x), np.asarray(y)
    assert_close(op(Tensor(x), Tensor(y)).data, expected(x, y), rtol=1e-14)
    check_gradient(op, expected, [x, y], rng, rtol=1e-5)
    # a constant on either side
    check_gradient(lambda x: op(x, y), lambda x: expected(x, y), [x], rng, rtol=1e-5)
    check_gradient(lambda y: op(x, y), lambda y: expected(x, y), [y], rng, rtol=1e-5)


def test_the_larger_and_the_smaller_of_two():
    """Elementwise, as NumPy's and PyTorch's; equal ones share the gradient, and NaN stays."""
    x = Tensor(np.array([-1.0, 0.0, 2.0]), requires_grad=True)
    for larger in (ops.elementwise_maximum(x, 0), ops.elementwise_maximum(0, x), np.maximum(x, 0)):
        assert larger.data.tolist() == [0, 0, 2]
    for smaller in (ops.elementwise_minimum(x, 0), np.minimum(x, 0.0)):
        assert smaller.data.tolist() == [-1, 0, 0]
    np.maximum(x, 0).sum().backward()
    assert x.grad.tolist() == [0, 0.5, 1]
    assert np.isnan(ops.elementwise_maximum(np.array([1.0, np.nan]), np.array([np.nan, 1.0])).data).all()
    assert np.maximum(Tensor(np.array([1, 5])), 3).data.tolist() == [3, 5]
    for other in (0.0, x, x.data):
        with pytest.raises(TypeError, match=r"^maximum is taken along axes; np\.maximum\(x, y\) is that of two"):
            ops.maximum(x, other)


@given(data=st.data())
def test_where_with_broadcasting(data):
    drawn = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, min_side=0, max_side=4))
    condition = data.draw(hnp.arrays(bool, drawn.input_shapes[0]))
    rng, x = data.draw(arrays(normal, drawn.input_shapes[1]))
    _, y = data.draw(arrays(normal, drawn.input_shapes[2]))
    check_gradient(lambda x, y: ops.where(condition, x, y), lambda x, y: np.where(condition, x, y), [x, y], rng)
    assert_close(ops.where(condition, x, y).data, np.where(condition, x, y), rtol=0)


@pytest.mark.parametrize("condition", [[2, 0, -1], [1.5, 0.0, np.nan], [True, False, True]])
def test_where_takes_anything_true_as_true(condition):
    """As NumPy does, in the gradient too."""
    x, y = (Tensor(np.ones(3), requires_grad=True) for _ in range(2))
    ops.where(np.array(condition), x, y).sum().backward()
    assert x.grad.tolist() == [1, 0, 1]
    assert y.grad.tolist() == [0, 1, 0]


def test_operators_are_these_operations():
    x, y = np.array([1.0, 2.0]), np.array([3.0, 5.0])
    a, b = Tensor(x), Tensor(y)
    for got, expected in [
        (a + b, x + y), (a - b, x - y), (a * b, x * y), (a / b, x / y), (-a, -x), (a**3, x**3),
        (2 + a, 2 + x), (2 - a, 2 - x), (2 * a, 2 * x), (2 / a, 2 / x), (a + 2, x + 2), (a - 2, x - 2), (a / 2, x / 2),
        (y + a, y + x), (y - a, y - x), (y * a, y * x), (y / a, y / x), (y[1] * a, y[1] * x), (a - y, x - y),
    ]:  # fmt: skip
        assert isinstance(got, Tensor)
        assert_close(got.data, expected, rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_python_numbers_keep_the_dtype(dtype):
    x = Tensor(np.ones(3, dtype), requires_grad=True)
    y = (2 * x - 1) / 3 + x**2 - 1 / (x + 1)
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_arguments_neither_overflow_nor_warn(dtype):
    x = np.array([-1e30, -1e4, -90, 90, 1e4, 1e30], dtype)
    y, dx = gradients(ops.sigmoid, [x], np.ones(6))
    assert_close(y, [0, 0, 0, 1, 1, 1], rtol=0, atol=1e-30)
    assert_close(dx, np.zeros(6), rtol=0, atol=1e-30)
    y, dx = gradients(ops.silu, [x], np.ones(6))
    assert (y[:2] == 0).all()
    assert (y[3:] == x[3:]).all()
    assert_close(dx, [0, 0, 0, 1, 1, 1], rtol=0, atol=1e-30)


@pytest.mark.parametrize("name", UNARY)
def test_nan_comes_out_as_nan(name):
    assert np.isnan(UNARY[name][0](Tensor(np.array([np.nan, 1.0]))).data).tolist() == [True, False]


def test_an_exponent_that_wants_a_gradient_is_refused():
    with pytest.raises(TypeError, match="exponent"):
        Tensor(np.ones(2), requires_grad=True) ** Tensor(np.ones(2), requires_grad=True)


def test_exponent_zero():
    x = np.array([0.0, -1.0, 2.0])
    y, dx = gradients(lambda x: x**0, [x], np.ones(3))
    assert y.tolist() == [1, 1, 1]
    assert dx.tolist() == [0, 0, 0]


def test_shapes_that_do_not_broadcast_are_refused():
    for op, _, _ in BINARY.values():
        with pytest.raises(ValueError, match="broadcast"):
            op(Tensor(np.ones((2, 3))), Tensor(np.ones((2, 4))))


@pytest.mark.parametrize("name", [name for name, entry in UNARY.items() if entry[3]] + ["clip"])
def test_gradients_equal_torch(name):
    """At kinks too: the same choice of a slope at 0, and at the bounds of clip."""
    torch = import_torch()
    op, _, domain, path = UNARY[name]
    x = np.concatenate([domain(np.linspace(-3, 3, 41)), [2.0] if domain is positive else [0, 1, -1]])
    theirs = torch
    for part in path.split(".") if path else ():
        theirs = getattr(theirs, part)
    tensor = torch.from_numpy(x).requires_grad_()
    out = theirs(tensor) if path else torch.clamp(tensor, -1.0, 1.0)
    g = np.random.default_rng(1).standard_normal(len(x))
    out.backward(torch.from_numpy(g))
    y, dx = gradients(op, [x], g)
    assert_close(y, out.detach().numpy(), rtol=1e-9)
    assert_close(dx, tensor.grad.numpy(), rtol=1e-7)

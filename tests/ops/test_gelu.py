"""GELU in its forms, GEGLU and erf: values against their equations, gradients against slopes, both against torch."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pydiff import ops
from pydiff.ops.gelu import erf_array
from pydiff.reference import gelu as reference
from pydiff.tensor import Tensor
from tests.compare import assert_close, check_gradient, gradients
from tests.peers import import_torch
from tests.strategies import seeds, small, strided

OPS = {
    "erf": (ops.erf, reference.erf, lambda t, x: t.erf(x)),
    "gelu": (ops.gelu, reference.gelu, lambda t, x: t.nn.functional.gelu(x)),
    "gelu tanh": (
        lambda x: ops.gelu(x, approximate="tanh"),
        lambda x: reference.gelu(x, "tanh"),
        lambda t, x: t.nn.functional.gelu(x, approximate="tanh"),
    ),
    "quick_gelu": (ops.quick_gelu, reference.quick_gelu, lambda t, x: x * t.sigmoid(1.702 * x)),
    "geglu": (ops.geglu, reference.geglu, lambda t, x: x.chunk(2, -1)[0] * t.nn.functional.gelu(x.chunk(2, -1)[1])),
}


@pytest.mark.parametrize("name", OPS)
@given(data=st.data(), seed=seeds, lead=st.lists(st.integers(0, 4), max_size=2), half=small)
def test_values_and_gradients(name, data, seed, lead, half):
    op, expected, _ = OPS[name]
    rng = np.random.default_rng(seed)
    x = 3 * data.draw(strided(rng, (*lead, 2 * half)))
    assert_close(op(Tensor(x)).data, expected(x), rtol=1e-14, atol=1e-15)
    single = op(Tensor(x.astype(np.float32)))
    assert single.dtype == np.float32
    assert_close(single.data, expected(x), rtol=1e-6, atol=1e-6)
    check_gradient(op, expected, [x], rng, rtol=1e-5)


@pytest.mark.parametrize("name", OPS)
def test_output_and_gradient_equal_torch(name):
    torch = import_torch()
    op, _, theirs = OPS[name]
    rng = np.random.default_rng(0)
    x = 4 * rng.standard_normal((3, 5, 8))
    tensor = torch.from_numpy(x.copy()).requires_grad_()
    out = theirs(torch, tensor)
    dy = rng.standard_normal(tuple(out.shape))
    out.backward(torch.from_numpy(dy))
    y, dx = gradients(op, [x], dy)
    assert_close(y, out.detach().numpy(), rtol=1e-14)
    assert_close(dx, tensor.grad.numpy(), rtol=1e-13)


@pytest.mark.parametrize(("dtype", "ulps"), [(np.float32, 2), (np.float64, 2)])
def test_erf_is_right_to_the_last_digits(dtype, ulps):
    """Relative to the value itself, near zero too."""
    x = np.concatenate([np.linspace(-7, 7, 20_011), np.logspace(-30, 0.9, 5_000), [0.0, 1 / 32, 5.96, 6, 6.1, 1e30]])
    x = x.astype(dtype)
    exact = np.array([math.erf(v) for v in x.tolist()])
    got = erf_array(x)
    assert got.dtype == dtype
    assert (np.abs(got.astype(np.float64) - exact) <= ulps * np.finfo(dtype).eps * np.abs(exact)).all()
    assert (erf_array(-x) == -got).all()


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_arguments_nan_and_infinity(name, dtype):
    op = OPS[name][0]
    x = np.array([-1e10, -100, 100, 1e10], dtype)
    y, dx = gradients(op, [x], np.ones(2 if name == "geglu" else 4))
    if name == "erf":
        assert y.tolist() == [-1, -1, 1, 1]
        assert not dx.any()
    elif name != "geglu":
        assert np.abs(y[:2]).max() <= 1e-30
        assert (y[2:] == x[2:]).all()
        assert_close(dx, [0, 0, 1, 1], rtol=0, atol=1e-30)
    assert np.isnan(op(np.array([np.nan, np.nan], dtype)).data).all()
    assert ops.erf(np.array([-np.inf, np.inf], dtype)).data.tolist() == [-1, 1]


@given(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3))
def test_any_shape(shape):
    for op in (ops.erf, ops.gelu, ops.quick_gelu):
        assert op(np.zeros(shape)).shape == shape


def test_bad_arguments():
    with pytest.raises(ValueError, match=r'approximate must be None or "tanh", got True'):
        ops.gelu(np.zeros(2), True)
    with pytest.raises(ValueError, match=r"geglu needs x of shape \(\.\.\., 2C\), got \(2, 3\)"):
        ops.geglu(np.zeros((2, 3)))

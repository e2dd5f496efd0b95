"""GELU in its forms, GEGLU and erf: values against their equations, gradients against slopes, both against torch."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pydiff import ops
from pydiff.ops.gelu import erf_array
from pydiff.reference import gelu as reference
from pydiff.tensor import Tensor
from tests.bits import check_any_batch, check_any_thread_count
from tests.compare import array_path, assert_close, check_gradient, check_kernel, gradients, naive_kernels
from tests.peers import import_torch
from tests.strategies import bfloat16, kernels, seeds, simt, small, strided  # noqa: F401

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


# ---- kernels -------------------------------------------------------------------------------------------------------

KERNELS = {"gelu": ops.gelu, "geglu": ops.geglu}


@st.composite
def cases(draw):
    """x of up to two axes in front of an even last one, in any memory order; sizes around vectors and beyond a tile."""
    rng = np.random.default_rng(draw(seeds))
    shape = (*draw(st.lists(st.integers(0, 4), max_size=2)), 2 * draw(small | st.sampled_from([32, 67, 4099])))
    return rng, [3 * draw(strided(rng, shape))]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", KERNELS)
@given(case=cases())
def test_kernel_is_as_exact_as_plain_float32(name, case):
    rng, arrays = case
    check_kernel(KERNELS[name], arrays, rng)


@pytest.mark.parametrize("name", OPS)
def test_array_path_rounds_bfloat16_once(name, bfloat16):  # noqa: F811
    op, expected, _ = OPS[name]
    x = np.random.default_rng(0).uniform(-4, 4, (5, 24)).astype(bfloat16)
    with array_path():
        y, dx = gradients(op, [x], np.ones_like(op(Tensor(x)).data))
    wide = expected(x.astype(np.float64))
    assert (y.dtype, dx.dtype) == (bfloat16, np.float32)
    assert (np.abs(y.astype(np.float64) - wide) <= 2.0**-8 * np.abs(wide) + 1e-6).all()
    (slope,) = gradients(op, [x.astype(np.float64)], np.ones(y.shape))[1:]
    assert_close(dx, slope, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("name", KERNELS)
@given(case=cases())
def test_kernel_in_bfloat16_is_as_exact_as_its_rounding(name, case):
    rng, arrays = case
    check_kernel(KERNELS[name], arrays, rng, half=(0,))


@pytest.mark.usefixtures("simt")
@pytest.mark.parametrize("half", [(), (0,)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=15)
@given(case=cases())
def test_naive_kernel_is_as_exact_as_plain_float32(name, half, case):
    rng, arrays = case
    with naive_kernels():
        check_kernel(KERNELS[name], arrays, rng, half=half)


@pytest.mark.usefixtures("kernels")
def test_the_kernel_follows_the_curve_everywhere():
    """Every part of the approximation, on a grid: value and slope to a few units in the last place of max(|y|, 1)."""
    x = np.concatenate([np.linspace(-14, 14, 20_001), np.logspace(-30, 1, 2_000)]).astype(np.float32)
    y, dx = gradients(ops.gelu, [x], np.ones(x.shape, np.float32))
    exact, slope = gradients(ops.gelu, [x.astype(np.float64)], np.ones(x.shape))
    eps = np.finfo(np.float32).eps
    assert (np.abs(y - exact) <= 4 * eps * np.abs(x)).all()
    assert (np.abs(dx - slope) <= 6 * eps).all()


@pytest.mark.usefixtures("kernels")
def test_limits_of_the_kernel():
    x = np.array([-np.inf, -1e10, -13, 0, 13, 1e10, np.inf], np.float32)
    y, dx = gradients(ops.gelu, [x], np.ones(7))
    assert_close(y[:4], np.zeros(4), rtol=0, atol=1e-30)
    assert y[4:].tolist() == x[4:].tolist()
    assert_close(dx, [0, 0, 0, 0.5, 1, 1, 1], rtol=1e-6)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", KERNELS)
def test_same_bits_in_any_batch_and_on_any_number_of_threads(name):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 33, 70)).astype(np.float32)
    dy = rng.standard_normal((5, 33, 35 if name == "geglu" else 70)).astype(np.float32)
    check_any_batch(lambda part: gradients(KERNELS[name], [x[part]], dy[part]), len(x))
    check_any_thread_count(lambda: gradients(KERNELS[name], [x], dy))


def test_kernels_and_arrays_agree():
    x = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    for op in KERNELS.values():
        got = op(x).data
        with array_path():
            assert_close(got, op(x).data, rtol=1e-6)

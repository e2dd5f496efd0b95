"""Transposed convolution: array path against the definition, gradient against its slope, kernels, torch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import ops
from pydiff.reference.conv_transpose2d import conv_transpose2d as reference
from pydiff.tensor import Tensor
from tests.compare import assert_close, check_gradient, check_kernel, gradients
from tests.peers import import_torch
from tests.strategies import bfloat16, kernels, seeds, simt, strided  # noqa: F401

few = st.integers(1, 3)


@st.composite
def cases(draw, kernels_serve=False):
    """[x, w, bias] in any memory order, with every option drawn."""
    rng = np.random.default_rng(draw(seeds))
    groups = 1 if kernels_serve else draw(few)
    kernel, stride = [draw(st.integers(1, 4)) for _ in range(2)], tuple(draw(few) for _ in range(2))
    dilation = (1, 1) if kernels_serve else tuple(draw(few) for _ in range(2))
    more = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    size, padding = [], []
    for k, s, d, m in zip(kernel, stride, dilation, more, strict=True):
        size.append(draw(st.integers(1, 5)))
        whole = (size[-1] - 1) * s + d * (k - 1) + 1 + m
        first = draw(st.integers(0, min(whole - 1, 3)))
        padding.append((first, draw(st.integers(0, min(whole - 1 - first, 3)))))
    cin, cout = groups * draw(few), draw(few)
    shapes = (draw(few), *size, cin), (*kernel, cout, cin), (cout * groups,)
    options = {"stride": stride, "padding": tuple(padding), "output_padding": more, "dilation": dilation}
    return rng, [draw(strided(rng, s)) for s in shapes], {**options, "groups": groups}


@given(cases())
def test_array_path_matches_the_definition(case):
    rng, arrays, options = case
    op = lambda *a: ops.conv_transpose2d(*a, **options)  # noqa: E731
    assert_close(op(*map(Tensor, arrays)).data, reference(*arrays, **options), rtol=1e-12)
    assert_close(op(*map(Tensor, arrays[:2])).data, reference(*arrays[:2], **options), rtol=1e-12)
    check_gradient(op, lambda *a: reference(*a, **options), arrays, rng)


@pytest.mark.usefixtures("kernels")
@given(case=cases(kernels_serve=True))
def test_kernel_is_as_exact_as_plain_float32(case):
    rng, arrays, options = case
    check_kernel(lambda *a: ops.conv_transpose2d(*a, **options), arrays, rng)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("options", [{}, {"dilation": 2}, {"groups": 2}])
def test_bfloat16(options):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s) for s in ((2, 3, 4, 4), (2, 3, 2, 4))]
    check_kernel(lambda *a: ops.conv_transpose2d(*a, **options), arrays, rng, half=(0, 1), floor=2.0**-8)


@pytest.mark.parametrize("shape", [(0, 3, 4, 2), (2, 3, 4, 0)])
def test_no_samples_or_no_channels(shape):
    arrays = [np.zeros(shape), np.ones((2, 2, 3, shape[3]))]
    y, dx, dw = gradients(ops.conv_transpose2d, arrays, np.ones((shape[0], 4, 5, 3)))
    assert y.shape == (shape[0], 4, 5, 3)
    assert not y.any()
    assert (dx.shape, dw.shape) == (shape, arrays[1].shape)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"stride": (3, 1), "padding": (0, 2), "dilation": (1, 2), "groups": 2},
    ],
)
def test_output_and_gradients_equal_torch(options):
    torch = import_torch()
    rng = np.random.default_rng(0)
    groups = options.get("groups", 1)
    arrays = [rng.standard_normal(s) for s in ((2, 4, 5, 6), (3, 4, 4, 6), (4 * groups,))]
    x, w, bias = (torch.from_numpy(a.copy()).requires_grad_() for a in arrays)
    theirs = torch.nn.functional.conv_transpose2d(x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), bias, **options)
    theirs = theirs.permute(0, 2, 3, 1)
    dy = rng.standard_normal(tuple(theirs.shape))
    theirs.backward(torch.from_numpy(dy))
    y, *grads = gradients(lambda *a: ops.conv_transpose2d(*a, **options), arrays, dy)
    assert_close(y, theirs.detach().numpy(), rtol=1e-12)
    for got, tensor in zip(grads, (x, w, bias), strict=True):
        assert_close(got, tensor.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    ("x", "w", "bias", "options", "message"),
    [
        ((5, 5, 3), (3, 3, 4, 3), None, {}, r"needs x \(N, H, W, Cin\).*got \(5, 5, 3\)"),
        ((1, 5, 5, 3), (3, 3, 4, 2), None, {}, "x has 3 channels, but the filters .* take 2"),
        ((1, 5, 5, 3), (3, 3, 4, 3), None, {"groups": 2}, "cannot cut 3 channels into 2 equal groups"),
        ((1, 5, 5, 3), (3, 3, 4, 3), (3,), {}, r"bias must have shape \(4,\), got \(3,\)"),
        ((1, 5, 5, 3), (3, 3, 4, 3), None, {"stride": 0}, "stride must be a whole number >= 1"),
        ((1, 5, 5, 3), (3, 3, 4, 3), None, {"output_padding": 1}, "smaller than stride or dilation, got 1"),
        ((1, 2, 5, 3), (3, 3, 4, 3), None, {"padding": 2}, r"nothing is left of a \(2, 5\) image"),
        ((1, 0, 5, 3), (3, 3, 4, 3), None, {}, "nothing is left"),
    ],
)
def test_bad_arguments(x, w, bias, options, message):
    with pytest.raises(ValueError, match=message):
        ops.conv_transpose2d(Tensor(np.zeros(x)), np.zeros(w), None if bias is None else np.zeros(bias), **options)

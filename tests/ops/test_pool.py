"""Pooling: values against the definition, gradients against slopes, both against torch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import ops
from pydiff.reference import pool as reference
from pydiff.tensor import Tensor
from tests.compare import assert_close, check_gradient, gradients
from tests.peers import import_torch
from tests.strategies import seeds, small, strided


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(seeds))
    kernel, stride = (tuple(draw(st.integers(1, 4)) for _ in range(2)) for _ in range(2))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = [max(k - 2 * p, 1) + draw(st.integers(0, 6)) for k, p in zip(kernel, padding, strict=True)]
    x = draw(strided(rng, (draw(st.integers(1, 3)), *size, draw(small))))
    return rng, x, {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": draw(st.booleans())}


@given(cases(), st.booleans())
def test_average(case, count_include_pad):
    rng, x, options = case
    options["count_include_pad"] = count_include_pad
    assert_close(ops.avg_pool2d(Tensor(x), **options).data, reference.avg_pool2d(x, **options), rtol=1e-13)
    assert ops.avg_pool2d(x.astype(np.float32), **options).dtype == np.float32
    check_gradient(lambda x: ops.avg_pool2d(x, **options), lambda x: reference.avg_pool2d(x, **options), [x], rng)


@given(cases())
def test_maximum(case):
    rng, x, options = case
    x = rng.permutation(x.size).reshape(x.shape) / 8.0  # no two equal: at a tie the slope depends on the direction
    assert_close(ops.max_pool2d(Tensor(x), **options).data, reference.max_pool2d(x, **options), rtol=0)
    assert ops.max_pool2d(x.astype(np.float32), **options).dtype == np.float32
    check_gradient(lambda x: ops.max_pool2d(x, **options), lambda x: reference.max_pool2d(x, **options), [x], rng)


@given(cases())
def test_output_and_gradients_equal_torch(case):
    torch = import_torch()
    rng, x, options = case
    theirs_options = {"kernel_size": options["kernel"], **{k: v for k, v in options.items() if k != "kernel"}}
    x = np.round(x)  # with ties
    for name in ("avg_pool2d", "max_pool2d"):
        tensor = torch.from_numpy(x.copy()).requires_grad_()
        theirs = getattr(torch.nn.functional, name)(tensor.permute(0, 3, 1, 2), **theirs_options).permute(0, 2, 3, 1)
        dy = rng.standard_normal(tuple(theirs.shape))
        theirs.backward(torch.from_numpy(dy))
        y, dx = gradients(lambda x, name=name: getattr(ops, name)(x, **options), [x], dy)
        assert_close(y, theirs.detach().numpy(), rtol=1e-13)
        assert_close(dx, tensor.grad.numpy(), rtol=1e-13)


def test_short_forms():
    x = np.random.default_rng(0).standard_normal((1, 6, 6, 2))
    assert_close(ops.avg_pool2d(x, 2).data, ops.average_pool(x, 2).data, rtol=1e-15)
    assert ops.max_pool2d(x, 3, 1, 1).shape == x.shape
    assert ops.avg_pool2d(x[:0], 2).shape == (0, 3, 3, 2)
    assert ops.max_pool2d(x[..., :0], (1, 2)).shape == (1, 6, 3, 0)


def test_integers_and_nan():
    x = np.array([[3, 250], [0, 7]], np.uint8).reshape(1, 2, 2, 1)
    assert ops.max_pool2d(x, 2, padding=1, stride=1).data.ravel().tolist() == [3, 250, 250, 3, 250, 250, 0, 7, 7]
    x = np.array([np.nan, 1.0, 2.0, 3.0]).reshape(1, 1, 4, 1)
    assert np.isnan(ops.max_pool2d(x, (1, 2)).data).ravel().tolist() == [True, False]


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4, 4, 3), {"kernel": 2}, r"pooling needs an image \(N, H, W, C\), got \(4, 4, 3\)"),
        ((1, 4, 4, 3), {"kernel": 0}, "kernel must be a whole number >= 1"),
        ((1, 4, 4, 3), {"kernel": 2, "stride": 0}, "stride must be"),
        (
            (1, 4, 4, 3),
            {"kernel": 2, "padding": 2},
            r"a \(2, 2\) window does not fit .* \(2, 2\), which may be half",
        ),
        ((1, 4, 1, 3), {"kernel": 2}, r"into a \(4, 1\) image"),
    ],
)
def test_bad_arguments(shape, options, message):
    for op in (ops.avg_pool2d, ops.max_pool2d):
        with pytest.raises(ValueError, match=message):
            op(np.zeros(shape), **options)

"""Bilinear and bicubic resampling: values against the definition, gradients against slopes, torch, and PIL."""

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import ops
from pydiff.reference.resample import resample as reference
from pydiff.tensor import Tensor
from tests.compare import assert_close, check_gradient, gradients
from tests.peers import import_torch
from tests.strategies import seeds, strided

sides = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 13, 16])


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(seeds))
    x = draw(strided(rng, (draw(st.integers(0, 2)), draw(sides), draw(sides), draw(st.integers(0, 3)))))
    mode = draw(st.sampled_from(["bilinear", "bicubic"]))
    return rng, x, {"size": (draw(sides), draw(sides)), "mode": mode, "antialias": draw(st.booleans())}


@given(cases())
def test_values_and_gradient(case):
    rng, x, options = case
    assert_close(ops.resample(Tensor(x), **options).data, reference(x, **options), rtol=1e-12)
    single = ops.resample(x.astype(np.float32), **options)
    assert single.dtype == np.float32
    assert_close(single.data, reference(x, **options), rtol=1e-5)
    check_gradient(lambda x: ops.resample(x, **options), lambda x: reference(x, **options), [x], rng)


@given(cases())
def test_output_and_gradient_equal_torch(case):
    torch = import_torch()
    rng, x, options = case
    if not x.size:
        return  # which torch refuses
    tensor = torch.from_numpy(x.copy()).requires_grad_()
    theirs = torch.nn.functional.interpolate(tensor.permute(0, 3, 1, 2), **options).permute(0, 2, 3, 1)
    dy = rng.standard_normal(tuple(theirs.shape))
    theirs.backward(torch.from_numpy(dy))
    y, dx = gradients(lambda x: ops.resample(x, **options), [x], dy)
    assert_close(y, theirs.detach().numpy(), rtol=1e-12)
    assert_close(dx, tensor.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize("size", [(5, 7), (16, 9), (33, 40)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_antialiased_is_what_pil_does(mode, size):
    x = np.random.default_rng(0).random((16, 20)).astype(np.float32)
    theirs = PIL.Image.fromarray(x).resize(size[::-1], getattr(PIL.Image.Resampling, mode.upper()))
    assert_close(ops.resample(x[None, ..., None], size, mode, True).data[0, ..., 0], np.asarray(theirs), rtol=1e-6)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_flat_image_stays_flat_and_the_same_size_changes_nothing(mode, antialias):
    assert_close(
        ops.resample(np.full((1, 7, 5, 2), 3.0), (11, 2), mode, antialias).data, np.full((1, 11, 2, 2), 3.0), rtol=1e-14
    )
    x = np.random.default_rng(0).standard_normal((1, 7, 5, 2))
    assert_close(ops.resample(x, (7, 5), mode, antialias).data, x, rtol=1e-15)
    assert ops.resample(x, 4).shape == (1, 4, 4, 2)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4, 4, 3), {"size": 2}, r"resample needs images \(N, H, W, C\) with pixels, got \(4, 4, 3\)"),
        ((1, 0, 4, 3), {"size": 2}, r"got \(1, 0, 4, 3\)"),
        ((1, 4, 4, 3), {"size": 0}, "size must be a whole number >= 1 or a pair of them, got 0"),
        ((1, 4, 4, 3), {"size": 2, "mode": "nearest"}, "mode must be one of bilinear, bicubic, got 'nearest'"),
    ],
)
def test_bad_arguments(shape, options, message):
    with pytest.raises(ValueError, match=message):
        ops.resample(np.zeros(shape), **options)

"""How results are compared: NaN never passes, kernels are judged against plain code in the same precision, and
gradients against finite differences of the float64 reference along a random direction with a random cotangent."""

import importlib

import numpy as np

from pydiff import backend
from pydiff.tensor import Tensor


def assert_close(got, expected, rtol, atol=0.0, what="result"):
    """|got - expected| <= atol + rtol max|expected|, element by element; shapes equal; fails on NaN in either."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    if not expected.size:
        return
    bound = atol + rtol * np.abs(expected).max()
    ok = np.abs(got.astype(np.float64) - expected) <= bound
    assert ok.all(), f"{what}: off by {np.abs(got - expected).max():.3g}, allowed {bound:.3g}"


def assert_no_worse(got, naive, exact, factor=3.0, floor=2e-6, what="result"):
    """A float32 result is at most `factor` times as far from the float64 truth as plain float32 code is.

    floor: error relative to max(|exact|, 1) that always passes: plain code is sometimes exact by luck, and where large
    terms cancel (inputs are standard normals, so terms are about 1) rounding is relative to them, not to the result.
    """
    got, naive, exact = (np.asarray(a, np.float64) for a in (got, naive, exact))
    assert got.shape == exact.shape, f"{what}: shape {got.shape}, expected {exact.shape}"
    if not exact.size:
        return
    allowed = factor * np.abs(naive - exact).max() + floor * max(np.abs(exact).max(), 1.0)
    error = np.abs(got - exact).max()
    assert error <= allowed, (
        f"{what}: error {error:.3g}, allowed {allowed:.3g} (plain code: {np.abs(naive - exact).max():.3g})"
    )


def numerical_slope(function, arrays, directions, cotangent, h=1e-5):
    """d/ds <cotangent, function(arrays + s directions)> at s = 0, by central differences in float64."""
    ahead = function(*(a + h * d for a, d in zip(arrays, directions, strict=True)))
    behind = function(*(a - h * d for a, d in zip(arrays, directions, strict=True)))
    return float(np.sum(cotangent * (ahead - behind)) / (2 * h))


def check_gradient(op, reference, arrays, rng, rtol=1e-6):
    """op's backward in float64 against the slope of `reference`, for a random direction and a random cotangent.

    op takes Tensors, reference arrays; arrays: the differentiable arguments, float64.
    """
    arrays = [np.asarray(a, np.float64) for a in arrays]
    directions = [rng.standard_normal(a.shape) for a in arrays]
    tensors = [Tensor(a.copy(), requires_grad=True) for a in arrays]
    out = op(*tensors)
    cotangent = rng.standard_normal(out.shape)
    out.backward(cotangent)
    slope = sum(float(np.sum(t.grad * d)) for t, d in zip(tensors, directions, strict=True))
    expected = numerical_slope(reference, arrays, directions, cotangent)
    scale = sum(float(np.sum(np.abs(t.grad * d))) for t, d in zip(tensors, directions, strict=True)) + 1e-3
    assert abs(slope - expected) <= rtol * scale, f"slope {slope}, expected {expected}"


def gradients(op, arrays, cotangent):
    """[output, gradient of every array] of one forward and backward."""
    tensors = [Tensor(a, requires_grad=True) for a in arrays]
    out = op(*tensors)
    out.backward(cotangent.astype(out.dtype))
    return [out.data, *(t.grad for t in tensors)]


class array_path:
    """Inside, no compiled kernels are used: the array path in the arrays' own precision."""

    def __enter__(self):
        self.before = backend.cpu, backend.here.emulator
        backend.cpu = backend.here.emulator = None

    def __exit__(self, *_):
        backend.cpu, backend.here.emulator = self.before


class naive_kernels:
    """Inside, the emulator runs the CUDA kernels that are written as the equations are."""

    def __enter__(self):
        backend.emulator.set_naive(True)

    def __exit__(self, *_):
        backend.emulator.set_naive(False)


def check_kernel(op, arrays, rng, factor=3.0, floor=2e-6, half=(), out=None):
    """Compiled forward and backward, judged against the array path in float32, with float64 as the truth.

    floor: as for assert_no_worse; or a function of the arrays and the cotangent that gives one for the output and one
    for every gradient. half: which of the arrays are bfloat16; if any are, the output is, unless `out` says its dtype.
    The plain code's results are then rounded as a bfloat16 kernel has to round them. Emulated kernels run their threads
    in an order drawn from rng.
    """
    if backend.emulator is not None:
        backend.emulator.set_seed(int(rng.integers(2**32)))
    types = [bfloat16() if i in half else np.float32 for i in range(len(arrays))]
    arrays = [a.astype(t).astype(np.float64) for a, t in zip(arrays, types, strict=True)]
    with array_path():
        cotangent = rng.standard_normal(op(*map(Tensor, arrays)).shape)
        out_type = out or (bfloat16() if half else np.float32)
        cotangent = cotangent.astype(out_type).astype(np.float64)
        exact = gradients(op, arrays, cotangent)
        naive = gradients(op, [a.astype(np.float32) for a in arrays], cotangent)
    got = gradients(op, [a.astype(t) for a, t in zip(arrays, types, strict=True)], cotangent)
    floors = floor(arrays, cotangent) if callable(floor) else [floor] * len(got)
    for i, (g, n, e, least) in enumerate(zip(got, naive, exact, floors, strict=True)):
        # A parameter's gradient may be float32 beside its bfloat16.
        assert g.dtype in ((types[i - 1], np.float32) if i else (out_type,))
        what = "output" if i == 0 else f"gradient of argument {i - 1}"
        assert_no_worse(g.astype(np.float64), n.astype(g.dtype).astype(np.float64), e, factor, least, what=what)


def bfloat16():
    """NumPy's dtype of that name, which only CUDA kernels take."""
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16)

"""The forward process in one step (Ho et al. 2020, "Denoising Diffusion Probabilistic Models", eq. 4):

    x_t = alpha x0 + sigma eps,   eps ~ N(0, 1), a pure function of (seed, purpose, sample, step, element)

Because the noise can be computed again from its key, it never needs to be stored or sent. The kernel draws and mixes in
one pass. Bits of the random integers are the same on every backend; normals agree to rounding.

Reference: reference/noise.py. Kernels: csrc/cpu/noise.cpp, csrc/cuda/noise.cu. The generator: random.py.
"""

from pydiff import random
from pydiff.backend import array_module, contiguous, empty, native
from pydiff.tensor import Function


def noise(x0, alpha, sigma, key):
    """Mixes every sample with its own noise.

    x0: (N, ...) array or Tensor; alpha, sigma: (N,) arrays; key: random.Key for N samples.
    Returns (x_t, eps), both of x0's shape and dtype.
    """
    n = len(x0)
    for name, value in (
        ("alpha", alpha),
        ("sigma", sigma),
        ("the key's sample", key.sample),
        ("the key's step", key.step),
    ):
        if getattr(value, "shape", None) != (n,):
            raise ValueError(
                f"{name} must have shape ({n},) for x0 of shape {x0.shape}, got {getattr(value, 'shape', value)!r}"
            )
    return Noise.apply(x0, alpha, sigma, key)


class Noise(Function):
    def forward(self, x0, alpha, sigma, key):
        xp = array_module(x0)
        alpha, sigma = (xp.asarray(a, x0.dtype) for a in (alpha, sigma))
        self.alpha = alpha
        kernel = native(x0, "noise_forward")
        if kernel:
            x2 = contiguous(x0).reshape(len(x0), x0[:1].size)
            x_t, eps = empty(x2, x2.shape), empty(x2, x2.shape)
            kernel(x2, contiguous(alpha), contiguous(sigma), *key_on(x0, key), x_t, eps)
            return x_t.reshape(x0.shape), eps.reshape(x0.shape)
        eps = xp.asarray(random.normal(key, x0.shape[1:], x0.dtype))
        return _column(alpha, x0) * x0 + _column(sigma, x0) * eps, eps

    def backward(self, dx_t, _):
        if dx_t is None:
            return None, None, None, None
        kernel = native(dx_t, "noise_backward")
        if kernel:
            g = contiguous(dx_t).reshape(len(dx_t), dx_t[:1].size)
            dx0 = empty(g, g.shape)
            kernel(g, contiguous(self.alpha), dx0)
            return dx0.reshape(dx_t.shape), None, None, None
        return _column(self.alpha, dx_t) * dx_t, None, None, None


def key_on(x, key):
    """The key with its arrays where x lives, as the kernels take it."""
    xp = array_module(x)
    return key.seed, key.purpose, xp.asarray(key.sample), xp.asarray(key.step)


def _column(a, like):
    """(N,) -> (N, 1, 1, ..) so that it multiplies every element of its sample."""
    return a.reshape((-1,) + (1,) * (like.ndim - 1))

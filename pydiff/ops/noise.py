"""The forward process in one step (Ho et al. 2020, "Denoising Diffusion Probabilistic Models", eq. 4), and the squared
error of a network that predicts a mix of x0 and eps from x_t:

    x_t    = alpha x0 + sigma eps,   eps ~ N(0, 1), a pure function of (seed, purpose, sample, step, element)
    loss   = weight mean((f - target)^2),   target = p x0 + q eps

Because the noise can be recomputed from its key, it never needs to be stored or transferred: `noise_loss` draws it
where it is needed. Kernels draw and mix in one pass. The random integers are bitwise equal on every backend; normals
agree to rounding.

Reference: reference/noise.py. Kernels: csrc/cpu/noise.cpp, csrc/cuda/noise.cu. The generator: random.py.
"""

import math
from typing import Any

import numpy as np

from pydiff import random
from pydiff.arrays import array_module, contiguous, empty, sent
from pydiff.backend import FLOAT32, is_bfloat16, native
from pydiff.tensor import Function


def noise(x0, alpha, sigma, key, keep=True):
    """Mixes every sample with its own noise.

    x0: (N, ...) array or Tensor; alpha, sigma: (N,) arrays; key: random.Key for N samples.
    Returns (x_t, eps), both of x0's shape and dtype; (x_t, None) if not keep. Raises ValueError for shapes that do not
    fit.
    """
    _check("x0", x0, key, alpha=alpha, sigma=sigma)
    made = Noise.apply(x0, alpha, sigma, key, keep=keep)
    return made if keep else (made, None)


def noise_loss(f, x0, p, q, weight, key):
    """The squared error of f against p x0 + q eps, with the eps that `noise` draws for this key: (N,), weight
    mean((..)^2).

    f: (N, ...) array or Tensor; x0: array of that shape, cast to f's dtype; p, q, weight: (N,) arrays; key: random.Key
    for N samples. If p or q is 0, its term is omitted. The losses have f's dtype, or float32 for bfloat16. The gradient
    flows only to f. Raises ValueError for shapes that do not fit.
    """
    if x0.shape != f.shape:
        raise ValueError(f"x0 must have f's shape {f.shape}, got {x0.shape}")
    _check("f", f, key, p=p, q=q, weight=weight)
    return NoiseLoss.apply(f, x0, p, q, weight, key)


def _check(what, x, key, **values):
    samples = x.shape[:1]
    values |= {"the key's sample": key.sample, "the key's step": key.step}
    for name, value in values.items():
        if getattr(value, "shape", None) != samples:
            got = getattr(value, "shape", value)
            raise ValueError(f"{name} must have shape {samples} for {what} of shape {x.shape}, got {got!r}")


class Noise(Function):
    def forward(self, x0, alpha, sigma, key, keep=True):
        xp = array_module(x0)
        alpha, sigma = _coefficients(x0, alpha, sigma)
        self.alpha = alpha
        kernel = native(x0, "noise_forward")
        if kernel:
            x2 = _rows(x0)
            x_t: Any = empty(x2, x2.shape)
            eps: Any = empty(x2, x2.shape) if keep else None
            kernel(x2, alpha, sigma, *key_on(x0, key), x_t, eps)
            return (x_t.reshape(x0.shape), eps.reshape(x0.shape)) if keep else x_t.reshape(x0.shape)
        eps = xp.asarray(random.normal(key, x0.shape[1:], x0.dtype))
        x_t = _column(alpha, x0) * x0 + _column(sigma, x0) * eps
        return (x_t, eps) if keep else x_t

    def backward(self, dx_t, _=None):
        if dx_t is None:
            return None, None, None, None
        kernel = native(dx_t, "noise_backward")
        if kernel:
            g = _rows(dx_t)
            dx0 = empty(g, g.shape)
            kernel(g, self.alpha, dx0)
            return dx0.reshape(dx_t.shape), None, None, None
        return _column(self.alpha, dx_t) * dx_t, None, None, None


class NoiseLoss(Function):
    def forward(self, f, x0, p, q, weight, key):
        p, q, weight = _coefficients(f, p, q, weight)
        x0 = array_module(f).asarray(x0, f.dtype)
        self.saved, self.shape = (_rows(f), _rows(x0), p, q, weight, key), f.shape
        kernel = native(f, "noise_loss_forward")
        if not kernel:
            square = _difference(*self.saved) ** 2
            size = square.shape[1]
            return weight * square.sum(axis=1) / size if size else weight * math.nan
        loss = empty(weight, weight.shape)
        kernel(*self.saved[:-1], *key_on(f, key), loss)
        return loss

    def backward(self, dloss):
        """df = dloss weight 2 / size (f - target). eps is drawn again, not stored."""
        f, x0, p, q, weight, key = self.saved
        kernel = native(f, "noise_loss_backward")
        if kernel:
            df = empty(f, f.shape)
            kernel(contiguous(dloss), f, x0, p, q, weight, *key_on(f, key), df)
        else:
            df = _column(dloss * weight * (2 / max(f.shape[1], 1)), f) * _difference(f, x0, p, q, weight, key)
        return df.reshape(self.shape), None, None, None, None, None


def _difference(f, x0, p, q, _weight, key):
    """f - (p x0 + q eps), all (N, size), on the array path."""
    xp, p, q = array_module(f), _column(p, f), _column(q, f)
    eps = xp.asarray(random.normal(key, f.shape[1:], f.dtype))
    return f - (p * xp.where(p == 0, xp.zeros_like(x0), x0) + q * eps)


def key_on(x, key):
    """(seed, purpose, sample, step) of the key, with its arrays on x's device, as the kernels take them."""
    return key.seed, key.purpose, sent(key.sample, x), sent(key.step, x)


def _coefficients(x, *values):
    """(N,) arrays on x's device, in x's dtype, or in float32 for bfloat16."""
    xp, dtype = array_module(x), FLOAT32 if is_bfloat16(x.dtype) else x.dtype
    if xp is not np and all(isinstance(value, np.ndarray) for value in values):
        return [*xp.asarray(np.stack(values), dtype)]  # one transfer for all
    return [contiguous(xp.asarray(value, dtype)) for value in values]


def _rows(x):
    """(N, ...) -> (N, size), contiguous."""
    return contiguous(x).reshape(len(x), math.prod(x.shape[1:]))


def _column(a, like):
    """(N,) -> (N, 1, 1, ..) so that it multiplies every element of its sample."""
    return a.reshape((-1,) + (1,) * (like.ndim - 1))

"""Layer normalisation (Ba et al. 2016, "Layer Normalization", eq. 4): every vector of channels is normalised
separately, then every channel gets its own scale and shift:

    x_hat = (x - mean) rstd,   rstd = 1 / sqrt(var + eps)        mean, var over the C channels of one position
    y     = gamma x_hat + beta

Reference: reference/layer_norm.py. Kernels: csrc/cpu/layer_norm.cpp, csrc/cuda/layer_norm.cu.
"""

import math

from pydiff.arrays import array_module, contiguous, empty
from pydiff.backend import FLOAT32, native
from pydiff.ops.elementwise import unbroadcast
from pydiff.tensor import Function


def layer_norm(x, gamma=None, beta=None, eps=1e-5):
    """Normalises (..., C) over its last axis.

    x: (..., C), any number of leading axes, C >= 1. gamma, beta: (C,), or None for 1 and 0. With the CUDA kernels, x
    may be bfloat16; gamma, beta and their gradients are still float32. Returns an array of x's shape. The variance is
    the biased one (divided by C), as in the paper. Raises ValueError for shapes that do not fit.
    """
    if x.ndim < 1 or x.shape[-1] == 0:
        raise ValueError(f"layer_norm needs x of shape (..., C) with something to normalise, got {x.shape}")
    for name, value in (("gamma", gamma), ("beta", beta)):
        if value is not None and value.shape != x.shape[-1:]:
            raise ValueError(f"{name} must have shape ({x.shape[-1]},), got {value.shape}")
    return LayerNorm.apply(x, gamma, beta, eps=eps)


class LayerNorm(Function):
    def forward(self, x, gamma, beta, *, eps):
        rows = contiguous(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])
        kernel = native(rows, "layer_norm_forward")
        if kernel:
            y = empty(rows, rows.shape)
            mean, rstd = array_module(x).empty((2, len(rows)), FLOAT32)
            kernel(rows, _contiguous(gamma), _contiguous(beta), eps, y, mean, rstd)
        else:
            y, mean, rstd = forward_arrays(rows, gamma, beta, eps)
        self.saved, self.shape = (rows, gamma, mean, rstd), x.shape
        return y.reshape(x.shape)

    def backward(self, dy):
        x, gamma, mean, rstd = self.saved
        dy = contiguous(dy).reshape(x.shape)
        kernel = native(x, "layer_norm_backward")
        if kernel:
            parameter = array_module(x).empty
            dgamma, dbeta = (parameter(x.shape[-1], FLOAT32) if need else None for need in self.needs[1:])
            dx = empty(x, x.shape)
            kernel(dy, x, gamma, mean, rstd, dx, dgamma, dbeta)
        else:
            dx, dgamma, dbeta = backward_arrays(dy, x, gamma, mean, rstd)
        return dx.reshape(self.shape), dgamma if self.needs[1] else None, dbeta if self.needs[2] else None


def _contiguous(parameter):
    return None if parameter is None else contiguous(parameter)


def forward_arrays(x, gamma, beta, eps):
    """x (..., C) -> y (..., C), mean (..., 1), rstd (..., 1)."""
    mean = x.mean(axis=-1, keepdims=True)
    centred = x - mean
    rstd = 1 / array_module(x).sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps)
    y = centred * rstd
    y = y if gamma is None else y * gamma
    return y if beta is None else y + beta, mean, rstd


def backward_arrays(dy, x, gamma, mean, rstd):
    """Gradients of x (..., C), gamma (C,), beta (C,). The normalised values are computed again, not stored.

    1. the affine part:   dbeta = sum dy,  dgamma = sum dy x_hat,  dx_hat = dy gamma
    2. the statistics:    dx = rstd (dx_hat - mean(dx_hat) - x_hat mean(dx_hat x_hat)),  means over the channels
    """
    x_hat = (x - mean) * rstd
    dgamma, dbeta = unbroadcast(dy * x_hat, x.shape[-1:]), unbroadcast(dy, x.shape[-1:])
    dx_hat = dy if gamma is None else dy * gamma
    m1, m2 = dx_hat.mean(axis=-1, keepdims=True), (dx_hat * x_hat).mean(axis=-1, keepdims=True)
    return rstd * (dx_hat - m1 - x_hat * m2), dgamma, dbeta

"""Group normalisation, optionally followed by SiLU (Wu & He 2018, "Group Normalization", eq. 1-2 and 7).

The channels of a sample are cut into groups; each group is normalised over its channels and all positions, then every
channel gets its own scale and shift:

    x_hat = (x - mean) rstd,   rstd = 1 / sqrt(var + eps)        mean, var over the S · C/G elements of a group
    z     = gamma x_hat + beta
    y     = z  or  z sigmoid(z)

Reference: reference/group_norm.py. Kernels: csrc/cpu/group_norm.cpp, csrc/cuda/group_norm.cu.
"""

import math

import numpy as np

from pydiff import backend
from pydiff.arrays import array_module, contiguous, empty
from pydiff.backend import FLOAT32, native
from pydiff.ops.elementwise import stable_sigmoid
from pydiff.tensor import Function


def group_norm(x, gamma, beta, groups, eps=1e-5, activation=None):
    """Normalises (N, ..., C) over each of `groups` groups of consecutive channels and all positions.

    x: (N, ..., C), any number of position axes; gamma, beta: (C,); C divisible by groups. With the CUDA kernels, x may
    be bfloat16; gamma, beta and their gradients are still float32. activation: None, or "silu" to apply x sigmoid(x) in
    the same pass. Returns an array of x's shape. The variance is the biased one (divided by the number of elements), as
    in the paper. Raises ValueError for shapes that do not fit.
    """
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise ValueError(f"group_norm needs x of shape (N, ..., C) with something to normalise, got {x.shape}")
    c = x.shape[-1]
    if groups < 1 or c % groups:
        raise ValueError(f"group_norm cannot cut {c} channels into {groups} equal groups")
    if gamma.shape != (c,) or beta.shape != (c,):
        raise ValueError(f"gamma and beta must have shape ({c},), got {gamma.shape} and {beta.shape}")
    if activation not in (None, "silu"):
        raise ValueError(f'activation must be None or "silu", got {activation!r}')
    return GroupNorm.apply(x, gamma, beta, groups=groups, eps=eps, silu=activation == "silu")


class GroupNorm(Function):
    def forward(self, x, gamma, beta, *, groups, eps, silu):
        x3 = contiguous(x).reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])  # (N, S, C)
        kernel = native(x3, "group_norm_forward")
        if kernel:
            gamma, beta = contiguous(gamma), contiguous(beta)
            y, mean, rstd = empty(x3, x3.shape), empty(gamma, (len(x3), groups)), empty(gamma, (len(x3), groups))
            kernel(x3, gamma, beta, groups, eps, silu, y, mean, rstd)
        else:
            y, mean, rstd = forward_arrays(x3, gamma, beta, groups, eps, silu)
        self.saved = x3, gamma, beta, mean, rstd
        self.groups, self.silu, self.shape = groups, silu, x.shape
        return y.reshape(x.shape)

    def backward(self, dy):
        x, gamma, beta, mean, rstd = self.saved
        dy = contiguous(dy).reshape(x.shape)
        kernel = native(x, "group_norm_backward")
        if kernel:
            dx, dgamma, dbeta = empty(x, x.shape), empty(gamma, gamma.shape), empty(gamma, gamma.shape)
            kernel(dy, x, gamma, beta, mean, rstd, self.groups, self.silu, dx, dgamma, dbeta, None)
        else:
            dx, dgamma, dbeta = backward_arrays(dy, x, gamma, beta, mean, rstd, self.silu)
        return dx.reshape(self.shape), dgamma, dbeta


def statistics(x, groups, eps):
    """(mean, rstd), each (N, G), of every group of x (N, ..., C). With these, `normalised` can process a few positions
    at a time.
    """
    x3 = contiguous(x).reshape(len(x), -1, x.shape[-1])
    if _in_halves(x3):
        mean, rstd = empty(x3, (len(x3), groups)), empty(x3, (len(x3), groups))
        backend.cpu.group_norm_statistics(x3, groups, eps, mean, rstd)
        return mean, rstd
    return statistics_arrays(x3, groups, eps)


def normalised(x, gamma, beta, mean, rstd, silu, out=None):
    """Some positions x (N, ..., C) as `group_norm` normalises them with all others, bit for bit. out: where they go,
    contiguous.
    """
    x3 = contiguous(x).reshape(len(x), -1, x.shape[-1])
    out = empty(x, x.shape) if out is None else out
    y = out.reshape(x3.shape)
    if _in_halves(x3):
        backend.cpu.group_norm_apply(x3, contiguous(gamma), contiguous(beta), mean, rstd, mean.shape[1], silu, y)
    else:
        y[...] = normalised_arrays(x3, gamma, beta, mean, rstd, silu)
    return out


def _in_halves(x):
    """Whether the CPU kernel's two halves, statistics and application, serve x (csrc/cpu/group_norm_bands.h)."""
    return backend.cpu is not None and backend.emulator is None and type(x) is np.ndarray and x.dtype == FLOAT32


def forward_arrays(x, gamma, beta, groups, eps, silu):
    """x (N, S, C) -> y (N, S, C), mean (N, G), rstd (N, G)."""
    mean, rstd = statistics_arrays(x, groups, eps)
    return normalised_arrays(x, gamma, beta, mean, rstd, silu), mean, rstd


def statistics_arrays(x, groups, eps):
    """x (N, S, C) -> mean (N, G), rstd (N, G)."""
    n, s, c = x.shape
    xg = x.reshape(n, s, groups, c // groups)  # (N, S, G, C/G)
    # Statistics are summed in float64: over these axes NumPy adds sequentially, and loses five digits at 256 x 256.
    mean = xg.mean(axis=(1, 3), dtype=np.float64).astype(x.dtype)  # (N, G)
    centred = xg - mean[:, None, :, None]
    variance = (centred * centred).mean(axis=(1, 3), dtype=np.float64)
    return mean, (1 / array_module(x).sqrt(variance + eps)).astype(x.dtype)


def normalised_arrays(x, gamma, beta, mean, rstd, silu):
    """x (N, S, C), mean and rstd (N, G) -> y (N, S, C)."""
    n, s, c = x.shape
    centred = x.reshape(n, s, mean.shape[1], c // mean.shape[1]) - mean[:, None, :, None]
    z = (centred * rstd[:, None, :, None]).reshape(x.shape) * gamma + beta
    return z * stable_sigmoid(z) if silu else z


def backward_arrays(dy, x, gamma, beta, mean, rstd, silu):
    """Gradients of x (N, S, C), gamma (C,), beta (C,). The normalised values are computed again, not stored.

    1. through the activation:  dz = dy silu'(z),  silu'(z) = sig(z) (1 + z (1 - sig(z)))
    2. the affine part:         dbeta = sum dz,  dgamma = sum dz x_hat,  dx_hat = dz gamma
    3. the statistics:          dx = rstd (dx_hat - mean(dx_hat) - x_hat mean(dx_hat x_hat)),  means over the group
    """
    n, s, c = x.shape
    grouped = (n, s, mean.shape[1], c // mean.shape[1])
    x_hat = (x.reshape(grouped) - mean[:, None, :, None]) * rstd[:, None, :, None]  # (N, S, G, C/G)
    if silu:
        z = x_hat.reshape(x.shape) * gamma + beta
        sig = stable_sigmoid(z)
        dy = dy * (sig * (1 + z * (1 - sig)))
    dgamma = (dy * x_hat.reshape(x.shape)).sum(axis=(0, 1))
    dbeta = dy.sum(axis=(0, 1))
    dx_hat = (dy * gamma).reshape(grouped)
    m1 = dx_hat.mean(axis=(1, 3), keepdims=True)
    m2 = (dx_hat * x_hat).mean(axis=(1, 3), keepdims=True)
    dx = rstd[:, None, :, None] * (dx_hat - m1 - x_hat * m2)
    return dx.reshape(x.shape), dgamma, dbeta

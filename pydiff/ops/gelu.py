"""GELU in its three forms, the gate made of it, and the error function.

    gelu(x)       = x Phi(x),   Phi(x) = (1 + erf(x / sqrt 2)) / 2              Hendrycks & Gimpel 2016, section 2
    its tanh form = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x³)))                the same
    quick_gelu(x) = x sigmoid(1.702 x)                                          the same; the form of OpenAI's CLIP
    geglu(a, b)   = a gelu(b)                                                   Shazeer 2020, "GLU Variants", eq. 6

NumPy has no error function. Here it is computed from a table of Taylor polynomials around x_k = k/16:

    erf(x_k + h) = erf(x_k) + 2/sqrt(pi) exp(-x_k²) sum over n >= 0 of (-1)^n H_n(x_k) h^(n+1) / (n+1)!

with H_0 = 1, H_1 = 2x, H_{n+1} = 2x H_n - 2n H_{n-1} (Hermite). |h| is at most 1/32, so eleven terms reach the
precision of float64 and six that of float32; beyond 6, erf is 1 in both.

Reference: reference/gelu.py. Kernels for the exact GELU and for GEGLU, which the networks use: csrc/cpu/gelu.cpp,
csrc/cuda/gelu.cu.
"""

import functools
import math

import numpy as np

from pydiff.arrays import array_module, contiguous, empty
from pydiff.backend import native, widened
from pydiff.ops.elementwise import stable_sigmoid
from pydiff.tensor import Function

NODES, LAST = 16, 6  # per unit, and where erf has become 1
CUBIC, SLOPE, QUICK = 0.044715, math.sqrt(2 / math.pi), 1.702


def gelu(x, approximate=None):
    """x Phi(x), elementwise, for x of any shape. approximate: None for the exact GELU, or "tanh"."""
    if approximate not in (None, "tanh"):
        raise ValueError(f'approximate must be None or "tanh", got {approximate!r}')
    return GELU.apply(x) if approximate is None else TanhGELU.apply(x)


def geglu(x):
    """x (..., 2C) -> (..., C): the first C channels times the exact GELU of the others, the gate."""
    if x.ndim < 1 or x.shape[-1] % 2:
        raise ValueError(f"geglu needs x of shape (..., 2C), got {x.shape}")
    return GEGLU.apply(x)


@functools.cache
def _table(dtype, terms):
    """(nodes, terms): the coefficients of h^0, h^1, .. around every node."""
    rows = []
    for k in range(NODES * LAST + 1):
        x = k / NODES
        row, previous, hermite = [math.erf(x)], 0.0, 1.0
        for n in range(terms - 1):
            row.append((-1) ** n * 2 / math.sqrt(math.pi) * math.exp(-x * x) * hermite / math.factorial(n + 1))
            previous, hermite = hermite, 2 * x * hermite - 2 * n * previous
        rows.append(row)
    return np.array(rows, dtype)


def erf_array(x):
    """The error function of an array, accurate to the last digits of its dtype."""
    xp = array_module(x)
    table = xp.asarray(_table(x.dtype, 11 if x.dtype.itemsize > 4 else 6))
    size = xp.minimum(xp.abs(x), LAST)  # NaN stays NaN
    nearest = xp.rint(xp.where(size == size, size, 0) * NODES).astype(np.int32)
    h = size - nearest.astype(x.dtype) / NODES
    y = table[:, -1][nearest]
    for power in range(table.shape[1] - 2, -1, -1):
        y = y * h + table[:, power][nearest]
    return xp.copysign(y, x)


def _gelu(x):
    return x * (0.5 * (1 + erf_array(x * math.sqrt(0.5))))


def _tanh(x):
    return array_module(x).tanh(SLOPE * (x + CUBIC * (x * x * x)))


def _normal(x):
    """Phi(x) and its derivative phi(x)."""
    phi = array_module(x).exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return 0.5 * (1 + erf_array(x * math.sqrt(0.5))), phi


def _on_wide(f, x):
    """f(x) in x's dtype; bfloat16 is computed in float32 and rounded once."""
    return f(widened(x)).astype(x.dtype, copy=False)


class Erf(Function):
    def forward(self, x):
        self.x = x
        return _on_wide(erf_array, x)

    def backward(self, g):
        x = widened(self.x)
        return g * (array_module(g).exp(-x * x) * (2 / math.sqrt(math.pi)))


class GELU(Function):
    def forward(self, x):
        self.x = x
        kernel = native(x, "gelu_forward")
        if not kernel:
            return _on_wide(_gelu, x)
        y = empty(x, x.size)
        kernel(contiguous(x).reshape(-1), y)
        return y.reshape(x.shape)

    def backward(self, g):
        """(x Phi)' = Phi + x phi"""
        kernel = native(self.x, "gelu_backward")
        if not kernel:
            x = widened(self.x)
            cdf, phi = _normal(x)
            return g * (cdf + x * phi)
        dx = empty(self.x, self.x.size)
        kernel(contiguous(g).reshape(-1), contiguous(self.x).reshape(-1), dx)
        return dx.reshape(self.x.shape)


class TanhGELU(Function):
    def forward(self, x):
        self.x = x
        return _on_wide(lambda x: 0.5 * x * (1 + _tanh(x)), x)

    def backward(self, g):
        """y = x/2 (1 + t), t = tanh(u): y' = (1 + t)/2 + x/2 (1 - t²) u'"""
        x = widened(self.x)
        t = _tanh(x)
        return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * (SLOPE * (1 + 3 * CUBIC * (x * x))))


class QuickGELU(Function):
    """x sigmoid(1.702 x), elementwise."""

    def forward(self, x):
        self.x = x
        return _on_wide(lambda x: x * stable_sigmoid(QUICK * x), x)

    def backward(self, g):
        x = widened(self.x)
        sigmoid = stable_sigmoid(QUICK * x)
        return g * (sigmoid * (1 + QUICK * x * (1 - sigmoid)))


class GEGLU(Function):
    def forward(self, x):
        self.x, half = x, x.shape[-1] // 2
        kernel = native(x, "geglu_forward")
        if kernel:
            y = empty(x, (math.prod(x.shape[:-1]), half))
            kernel(contiguous(x).reshape(len(y), 2 * half), y)
            return y.reshape(*x.shape[:-1], half)
        return _on_wide(lambda x: x[..., :half] * _gelu(x[..., half:]), x)

    def backward(self, g):
        """y = a gelu(b): da = g gelu(b), db = g a (Phi(b) + b phi(b))"""
        half = self.x.shape[-1] // 2
        kernel = native(self.x, "geglu_backward")
        if kernel:
            dx = empty(self.x, (math.prod(self.x.shape[:-1]), 2 * half))
            kernel(contiguous(g).reshape(len(dx), half), contiguous(self.x).reshape(dx.shape), dx)
            return dx.reshape(self.x.shape)
        x = widened(self.x)
        a, b = x[..., :half], x[..., half:]
        cdf, phi = _normal(b)
        return array_module(g).concatenate([g * (b * cdf), g * a * (cdf + b * phi)], axis=-1)


erf, quick_gelu = Erf.apply, QuickGELU.apply

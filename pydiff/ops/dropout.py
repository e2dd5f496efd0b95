"""Dropout (Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting", section 4):

    y = m x,   m = 1 / (1 - p) where u >= p, else 0        u in [0, 1), a pure function of the key and the element

Because the mask can be recomputed from its key, kernels neither store it nor take it from the host: forward and
backward draw it where it is needed. The masks are the same on every backend, bit for bit.

Reference: reference/dropout.py. Kernels: csrc/cpu/dropout.cpp, csrc/cuda/dropout.cu. The generator: random.py.
"""

import math

from pydiff import random
from pydiff.arrays import array_module, contiguous, empty
from pydiff.backend import native, widened
from pydiff.ops.noise import key_on
from pydiff.tensor import Function


def dropout(x, p, key):
    """Sets a fraction p of the elements to zero and scales the others by 1 / (1 - p).

    x: (N, ...) array or Tensor; 0 <= p < 1; key: random.Key for N samples. Returns y of x's shape and dtype.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {p}")
    if x.shape[:1] != key.sample.shape:
        raise ValueError(f"got dropout masks for {len(key.sample)} samples, but an input of shape {x.shape}")
    return Dropout.apply(x, p, key)


class Dropout(Function):
    def forward(self, x, p, key):
        self.p, self.key, self.mask = float(p), key, None
        return self._masked(x)

    def backward(self, dy):
        """dx = m dy"""
        return self._masked(dy), None, None

    def _masked(self, x):
        kernel = native(x, "dropout_forward")
        if kernel:
            y = empty(x, (len(x), math.prod(x.shape[1:])))
            kernel(contiguous(x).reshape(y.shape), self.p, 1 / (1 - self.p), *key_on(x, self.key), y)
            return y.reshape(x.shape)
        if self.mask is None:  # in NumPy, drawing it twice would cost more than keeping it
            xp = array_module(x)
            self.mask = xp.asarray(random.uniform(self.key, x.shape[1:]) >= self.p)
        wide = widened(x)
        return (wide * (self.mask / (1 - self.p)).astype(wide.dtype)).astype(x.dtype, copy=False)

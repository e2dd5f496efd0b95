"""The activations that a checkpoint's `act_fn` may name."""

import math

import numpy as np

from pydiff import ops
from pydiff.arrays import array_module, to_host
from pydiff.tensor import Function

_erf = np.frompyfunc(math.erf, 1, 1)


class GELU(Function):
    """x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel 2016), exact, not by tanh."""

    def forward(self, x):
        self.x, xp = x, array_module(x)
        erf = _erf(np.asarray(to_host(x), np.float64) / math.sqrt(2.0)).astype(np.float64)
        self.phi = xp.asarray((0.5 * (1.0 + erf)).astype(x.dtype))
        return x * self.phi

    def backward(self, g):
        density = array_module(g).exp(-0.5 * self.x * self.x) / math.sqrt(2.0 * math.pi)
        return (g * (self.phi + self.x * density)).astype(g.dtype)


def mish(x):
    """x tanh(log(1 + exp(x))) (Misra 2019), without overflow."""
    return x * ops.tanh(ops.relu(x) + ops.log(1 + ops.exp(-ops.absolute(x))))


ACTIVATIONS = {"silu": ops.silu, "swish": ops.silu, "relu": ops.relu, "gelu": GELU.apply, "mish": mish}

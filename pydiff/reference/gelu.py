"""GELU and its relatives from their equations, in float64: one number at a time (Hendrycks & Gimpel 2016)."""

import math

import numpy as np


def _each(function, x):
    x = np.asarray(x, np.float64)
    return np.array([function(v) for v in x.ravel().tolist()], np.float64).reshape(x.shape)


def erf(x):
    """The elementwise error function."""
    return _each(math.erf, x)


def gelu(x, approximate=None):
    """x Phi(x), or its approximation by tanh; see ops/gelu.py for the contract."""
    if approximate == "tanh":
        return _each(lambda v: v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))), x)
    return _each(lambda v: v / 2 * math.erfc(-v / math.sqrt(2)), x)


def quick_gelu(x):
    """x sigmoid(1.702 x), with the sigmoid written as tanh, which cannot overflow."""
    return _each(lambda v: v / 2 * (1 + math.tanh(0.851 * v)), x)


def geglu(x):
    """The first half of the last axis times the GELU of the second."""
    x = np.asarray(x, np.float64)
    half = x.shape[-1] // 2
    return x[..., :half] * gelu(x[..., half:])

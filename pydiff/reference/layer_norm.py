"""Layer normalisation from its equation, in float64: one vector at a time (Ba et al. 2016, eq. 4)."""

import numpy as np


def layer_norm(x, gamma=None, beta=None, eps=1e-5):
    """x (..., C) -> same shape, float64; see ops/layer_norm.py for the contract."""
    x = np.asarray(x, np.float64)
    y = np.empty_like(x)
    for place in np.ndindex(x.shape[:-1]):
        row = x[place]
        y[place] = (row - row.mean()) / np.sqrt(row.var() + eps)
    y = y if gamma is None else y * np.asarray(gamma, np.float64)
    return y if beta is None else y + np.asarray(beta, np.float64)

"""Group normalisation from its equation, in float64: one group of one sample at a time (Wu & He 2018, eq. 1-2)."""

import numpy as np


def group_norm(x, gamma, beta, groups, eps=1e-5, activation=None):
    """x (N, ..., C) -> same shape, float64; see ops/group_norm.py for the contract."""
    x, gamma, beta = (np.asarray(a, np.float64) for a in (x, gamma, beta))
    y = np.empty_like(x)
    width = x.shape[-1] // groups
    for n in range(len(x)):
        for g in range(groups):
            channels = slice(g * width, (g + 1) * width)
            members = x[n, ..., channels]
            x_hat = (members - members.mean()) / np.sqrt(members.var() + eps)
            y[n, ..., channels] = x_hat * gamma[channels] + beta[channels]
    if activation == "silu":
        # z sigmoid(z), written with tanh, which cannot overflow
        y = y * 0.5 * (1 + np.tanh(y / 2))
    return y

"""Attention from its equation, in float64: one query of one head at a time (Vaswani et al. 2017, eq. 1)."""

import numpy as np


def attention(q, k, v, heads, scale=None, causal=False, key_mask=None):
    """q (N, Tq, C), k and v (N, Tk, C) -> (N, Tq, C) float64; see ops/attention.py for the contract."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    d = q.shape[2] // heads
    scale = d**-0.5 if scale is None else scale
    out = np.empty_like(q)
    for n in range(len(q)):
        for h in range(heads):
            c = slice(h * d, (h + 1) * d)
            for t in range(q.shape[1]):
                scores = scale * (k[n, :, c] @ q[n, t, c])  # (Tk,)
                seen = [
                    j for j in range(len(scores)) if (not causal or j <= t) and (key_mask is None or key_mask[n, j])
                ]
                weights = np.exp(scores[seen] - scores[seen].max(initial=-np.inf))
                out[n, t, c] = (weights / weights.sum()) @ v[n, seen, c] if seen else 0
    return out

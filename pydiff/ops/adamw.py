"""AdamW (Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2) and the exponential moving
average of the weights, in one pass over flat buffers of all parameters. At step t = 1, 2, ..:

    g'  = g min(1, clip / (norm + 1e-6))                    if clip > 0 (Pascanu et al. 2013, algorithm 1)
    m   = beta1 m + (1 - beta1) g'
    v   = beta2 v + (1 - beta2) g'²
    p   = p - lr (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay p)
    ema = ema_decay ema + (1 - ema_decay) p

What changes from step to step, and the norm, are read from small arrays on the parameters' device: nothing waits for a
GPU, and a recorded sequence of kernels can be replayed.

Reference: reference/adamw.py. Kernels: csrc/cpu/adamw.cpp, csrc/cuda/adamw.cu.
"""

import math

from pydiff.arrays import array_module
from pydiff.backend import native


def adamw(p, g, m, v, ema, schedule, norm2=None, *, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, low=None):
    """Updates p, m, v and ema in place; does nothing if norm2 is not finite.

    p, g, m, v: flat contiguous arrays (P,) of one floating dtype; ema: the same, or None. schedule: float64 array (4,)
    of lr, t (1 for the first step), ema_decay and clip (largest norm; 0 for no clipping). norm2: the result of
    `squared_norm(g)`; without it nothing is clipped. low: None, or a bfloat16 array (P,) that becomes a copy of p; on
    GPUs only. Raises ValueError for arrays that do not match.
    """
    for name, a in (("g", g), ("m", m), ("v", v), ("ema", ema), ("low", low)):
        if a is not None and (a.shape != p.shape or (a.dtype != p.dtype and name != "low") or p.ndim != 1):
            raise ValueError(f"{name} must be flat and match p, {p.dtype} {p.shape}, got {a.dtype} {a.shape}")
    kernel = native(p, "adamw")
    if kernel:
        kernel(p, g, m, v, ema, low, beta1, beta2, eps, weight_decay, schedule, norm2)
        return
    if low is not None:
        raise ValueError("low, a bfloat16 copy, needs the compiled kernels")
    xp = array_module(p)
    lr, t, ema_decay, clip = schedule.tolist()
    if norm2 is not None:
        if not math.isfinite(float(norm2[0])):
            return
        if clip > 0:
            g = g * min(1.0, clip / (math.sqrt(float(norm2[0])) + 1e-6))
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    p -= lr * ((m / (1 - beta1**t)) / (xp.sqrt(v / (1 - beta2**t)) + eps) + weight_decay * p)
    if ema is not None:
        ema += (1 - ema_decay) * (p - ema)


def squared_norm(g):
    """Sum of squares of a flat array, accumulated in float64: an array (1,) on g's device. Not finite if g is not."""
    xp, kernel = array_module(g), native(g, "squared_norm")
    norm2 = xp.empty(1, "float64")
    if kernel:
        kernel(g, norm2)
    else:
        wide = g.astype("float64")
        norm2[0] = wide @ wide
    return norm2


def global_norm(g):
    """sqrt of `squared_norm(g)` as a Python number. Waits for a GPU."""
    return math.sqrt(float(squared_norm(g)[0]))

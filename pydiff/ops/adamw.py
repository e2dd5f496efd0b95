"""AdamW (Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2) and the exponential moving
average of the weights, in one pass over flat buffers of all parameters. With g' = grad_scale g, at step t = 1, 2, ..:

    m   = beta1 m + (1 - beta1) g'
    v   = beta2 v + (1 - beta2) g'²
    p   = p - lr (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay p)
    ema = ema_decay ema + (1 - ema_decay) p

Reference: reference/adamw.py. Kernels: csrc/cpu/adamw.cpp.
"""

import math

from pydiff.backend import array_module, native


def adamw(
    p, g, m, v, ema, *, step, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, grad_scale=1.0, ema_decay=0.0
):
    """Updates p, m, v and ema in place.

    p, g, m, v: flat contiguous arrays (P,) of one floating dtype; ema: the same, or None. step: 1 for the first one.
    """
    for name, a in (("g", g), ("m", m), ("v", v), ("ema", ema)):
        if a is not None and (a.shape != p.shape or a.dtype != p.dtype or p.ndim != 1):
            raise ValueError(f"{name} must be flat and match p, {p.dtype} {p.shape}, got {a.dtype} {a.shape}")
    if step < 1:
        raise ValueError(f"the first optimiser step is 1, got {step}")
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    kernel = native(p, "adamw")
    if kernel:
        kernel(p, g, m, v, ema, lr, beta1, beta2, eps, weight_decay, correction1, correction2, grad_scale, ema_decay)
        return
    xp = array_module(p)
    g = g * grad_scale
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    p -= lr * ((m / correction1) / (xp.sqrt(v / correction2) + eps) + weight_decay * p)
    if ema is not None:
        ema += (1 - ema_decay) * (p - ema)


def global_norm(g):
    """sqrt of the sum of squares of a flat array, accumulated in float64; infinity or NaN when g holds one."""
    kernel = native(g, "squared_norm")
    if kernel:
        return math.sqrt(kernel(g))
    wide = g.astype("float64")
    return math.sqrt(float(wide @ wide))

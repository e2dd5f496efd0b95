"""One reverse step of any sampler that is linear in its inputs:

    f      = f_uncond + guidance (f_cond - f_uncond)      Ho and Salimans 2022, eq. 6, where guidance is 1 + w
    x0_hat = clip(u x + v f, low, high)
    x_next = a x + b x0_hat + d f + sum_k c_k history_k + s z

The history holds the values that a multistep sampler keeps; z is standard normal noise.
"""

import numpy as np


def denoise(x, f, u, v, low, high, a, b, d, s, c=(), history=(), z=None, f_uncond=None, guidance=1.0):
    """(x_next, x0_hat), both float64 and of x's shape. Arrays x, f, z, f_uncond and history[k] have one shape.

    guidance is used only with `f_uncond`, the noise s z only with `z`.
    """
    x, f = np.asarray(x, dtype=np.float64), np.asarray(f, dtype=np.float64)
    if f_uncond is not None:
        f = np.asarray(f_uncond, dtype=np.float64) + guidance * (f - np.asarray(f_uncond, dtype=np.float64))

    x0_hat = np.clip(u * x + v * f, low, high)
    x_next = a * x + b * x0_hat + d * f
    for c_k, history_k in zip(c, history, strict=True):
        x_next = x_next + c_k * np.asarray(history_k, dtype=np.float64)
    if z is not None:
        x_next = x_next + s * np.asarray(z, dtype=np.float64)
    return x_next, x0_hat

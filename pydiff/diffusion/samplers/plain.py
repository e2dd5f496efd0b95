"""DDPM in twelve lines: algorithm 2 of Ho et al. 2020 as published, for reading. A test checks that it equals `ddpm`.

The actual samplers (walk.py, ancestral.py) do the same for any path, prediction and guidance, with one kernel per step.
"""

from math import sqrt

import numpy as np

from pydiff import random
from pydiff.arrays import array_module


def ddpm_plain(model, x, process, seed=0, sample=None):
    """From noise x (N, ...) to x0, through every t. model: (x_t, t (N,)) -> the noise in x_t, that is, prediction
    "eps".

    For variance-preserving schedules. Arrays in, arrays out; sample: the samples' numbers (N,), 0 .. N-1 if None.
    """
    xp, T = array_module(x), process.schedule.T
    beta, alpha_bar = process.schedule.beta.tolist(), process.schedule.alpha_bar.tolist()
    for t in reversed(range(T)):
        eps = model(x, np.full(len(x), t))  # the noise that the U-Net recognises
        x = (x - beta[t] / sqrt(1 - alpha_bar[t]) * eps) / sqrt(1 - beta[t])  # .. is removed
        if t > 0:  # and a little fresh noise is added, but not in the last step
            key = random.key(seed, random.SAMPLE, np.arange(len(x)) if sample is None else sample, step=T - t)
            variance = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta[t]
            x = x + sqrt(variance) * xp.asarray(random.normal(key, x.shape[1:], x.dtype))
    return x

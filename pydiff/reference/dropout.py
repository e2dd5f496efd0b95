"""Dropout (Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting", section 4) with
masks from the counter-based generator of noise.py, one number at a time.
"""

import numpy as np

from pydiff.reference.noise import philox4x32


def uniform(seed: int, purpose: int, sample: int, step: int, element: int) -> float:
    """The number in [0, 1) with this address, a multiple of 2^-24."""
    block, place = divmod(element, 4)
    return (philox4x32((block, step, sample, purpose), (seed % 2**32, seed // 2**32))[place] // 2**8) / 2**24


def dropout(x, p: float, seed: int, purpose: int, sample, step) -> np.ndarray:
    """y = x / (1 - p) where the element's number is at least p (in float32), else 0. x (N, ...); sample, step (N,)."""
    x = np.asarray(x, dtype=np.float64)
    y = np.zeros_like(x)
    for n in range(len(x)):
        for element in range(x[n].size):
            if uniform(seed, purpose, int(sample[n]), int(step[n]), element) >= np.float32(p):
                y[n].flat[element] = x[n].flat[element] / (1 - p)
    return y

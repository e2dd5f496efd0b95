"""The forward process x_t = alpha_t x_0 + sigma_t eps (Ho et al. 2020, eq. 4), with eps from a counter-based generator,
and the squared error of a network's prediction, which is a mix of x_0 and the same eps.

Everything is written for one number at a time in Python integers and float64, for reading and for comparison.
"""

import math

import numpy as np


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32 with ten rounds (Salmon et al., SC 2011, section 3.3): four 32-bit words from a counter and a key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + 0x9E3779B9) % 2**32
        k1 = (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def normal(seed: int, purpose: int, sample: int, step: int, element: int) -> float:
    """The standard normal number with this address (Box and Muller 1958)."""
    block, place = divmod(element, 4)
    word = philox4x32((block, step, sample, purpose), (seed % 2**32, seed // 2**32))
    even = place - place % 2  # words (0, 1) make elements 0 and 1, words (2, 3) make elements 2 and 3
    u1 = (word[even] // 2**8 + 1) / 2**24  # in (0, 1]: its logarithm is finite
    u2 = (word[even + 1] // 2**8) / 2**24  # in [0, 1)
    radius = math.sqrt(-2 * math.log(u1))
    return radius * (math.cos(2 * math.pi * u2) if place == even else math.sin(2 * math.pi * u2))


def noise(x0, alpha, sigma, seed: int, purpose: int, sample, step) -> tuple[np.ndarray, np.ndarray]:
    """x_t = alpha x0 + sigma eps, and eps. x0 (N, ...); alpha, sigma, sample, step (N,); returns two arrays like x0."""
    x0 = np.asarray(x0, dtype=np.float64)
    eps = np.empty_like(x0)
    x_t = np.empty_like(x0)
    for n in range(len(x0)):
        address = (seed, purpose, int(sample[n]), int(step[n]))
        eps[n] = np.reshape([normal(*address, element) for element in range(x0[n].size)], x0[n].shape)
        x_t[n] = float(alpha[n]) * x0[n] + float(sigma[n]) * eps[n]
    return x_t, eps


def noise_loss(f, x0, p, q, weight, seed: int, purpose: int, sample, step) -> np.ndarray:
    """(N,): weight times the mean of (f - p x0 - q eps)^2 over a sample. f, x0 (N, ...); the others (N,), as above.

    A term whose coefficient is 0 is omitted, even if x0 is not finite.
    """
    f, x0 = np.asarray(f, dtype=np.float64), np.asarray(x0, dtype=np.float64)
    loss = np.empty(len(f))
    for n in range(len(f)):
        squares = 0.0
        for element in range(f[n].size):
            target = float(q[n]) * normal(seed, purpose, int(sample[n]), int(step[n]), element)
            if p[n] != 0:
                target += float(p[n]) * x0[n].flat[element]
            squares += (f[n].flat[element] - target) ** 2
        loss[n] = float(weight[n]) * squares / f[n].size if f[n].size else math.nan
    return loss

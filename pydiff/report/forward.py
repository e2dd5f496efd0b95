"""The forward process on a few training pictures: what the page's first slider shows."""

from dataclasses import dataclass

import numpy as np

from pydiff.data.pixels import from_uint8, to_uint8
from pydiff.report.pixels import eps_to_uint8, shrink, visible


@dataclass(frozen=True)
class Forward:
    """x_t = alpha_t x_0 + sigma_t eps for M pictures at K times. Pixels are uint8; eps as in pixels.eps_to_uint8.

    t: (K,) int. alpha, sigma: (K,) float64. x: (K, M, H, W, C). x0, eps: (M, H, W, C), the two ingredients.
    """

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    x: np.ndarray
    x0: np.ndarray
    eps: np.ndarray


def add_noise(images, eps, alpha, sigma, keep=41, factor=1):
    """The forward process at `keep` evenly spaced times, t = 0 and t = T - 1 among them. Returns Forward.

    images: (M, H, W, C) uint8. eps: (M, H, W, C) standard normal noise, the same for all times, as in Ho et al. (2020),
    equation 4. alpha, sigma: (T,), the schedule. factor: pictures are reduced by block means, for display.
    """
    if images.shape != eps.shape:
        raise ValueError(f"images and eps must have one shape, got {images.shape} and {eps.shape}")
    alpha, sigma = np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)
    t = np.unique(np.linspace(0, len(alpha) - 1, keep).round().astype(np.int64))
    x0 = shrink(visible(from_uint8(images)), factor)
    eps = shrink(visible(eps), factor)
    a, s = (c[t].reshape(-1, 1, 1, 1, 1) for c in (alpha, sigma))
    return Forward(t, alpha[t], sigma[t], to_uint8(a * x0 + s * eps), to_uint8(x0), eps_to_uint8(eps))

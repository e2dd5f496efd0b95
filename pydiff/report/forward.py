"""The forward process on a few training images, for the page's first slider."""

from dataclasses import dataclass

import numpy as np

from pydiff.codec import Codec
from pydiff.report.pixels import shrink, visible


@dataclass(frozen=True)
class Forward:
    """x_t = alpha_t x_0 + sigma_t eps for M images at K times. All arrays are images, as the codec shows them.

    t: (K,) int. alpha, sigma: (K,) float64. x: (K, M, H, W, C). x0, eps: (M, H, W, C), the two components.
    """

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    x: np.ndarray
    x0: np.ndarray
    eps: np.ndarray


def add_noise(codec: Codec, samples, eps, alpha, sigma, keep=41, factor=1):
    """The forward process at `keep` evenly spaced times, including t = 0 and t = T - 1. Returns Forward.

    samples: M of a data set. eps: (M, *codec.shape) standard normal noise, the same for all times, as in Ho et al.
    (2020), equation 4. alpha, sigma: (T,), the schedule. factor: images are reduced by block means, for display.
    """
    x0 = codec.encode(samples)
    if x0.shape != eps.shape:
        raise ValueError(f"samples and eps must have one shape, got {x0.shape} and {eps.shape}")
    alpha, sigma = np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)
    t = np.unique(np.linspace(0, len(alpha) - 1, keep).round().astype(np.int64))

    def image(made):
        return shrink(visible(made), factor)

    x = np.stack([image(codec.show_x(a * x0 + s * eps)) for a, s in zip(alpha[t], sigma[t], strict=True)])
    return Forward(t, alpha[t], sigma[t], x, image(codec.show_x(x0)), image(codec.show_noise(eps)))

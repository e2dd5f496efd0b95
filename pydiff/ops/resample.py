"""Bilinear and bicubic resampling of images to any size, with PyTorch's conventions (align_corners=False).

A pixel of the output, with its centre at (i + 1/2) H / OH in pixels of the input, is a sum of the input's pixels around
it with weights that depend on their distance t (Keys 1981, "Cubic Convolution Interpolation", eq. 4):

    bilinear:  k(t) = 1 - |t|                                            for |t| < 1, else 0
    bicubic:   k(t) = (a + 2)|t|³ - (a + 3)|t|² + 1                      for |t| < 1
               k(t) = a|t|³ - 5a|t|² + 8a|t| - 4a                        for 1 <= |t| < 2, else 0

Beyond the border the last pixel is repeated, and a = -3/4. With antialias (which is what PIL does), the kernel is
stretched by the scale if that is above 1, k(t / scale), pixels beyond the border are left out, the weights of a pixel
are divided by their sum, and a = -1/2. Rows and columns are independent, so the whole is y = A x Bᵀ with two matrices;
the gradient is dx = Aᵀ dy B.

Reference: reference/resample.py.
"""

import functools

import numpy as np

from pydiff.arrays import array_module
from pydiff.ops.conv2d import as_pair
from pydiff.tensor import Function

REACH = {"bilinear": 1, "bicubic": 2}  # how far the kernels reach, in pixels


def resample(x, size, mode="bilinear", antialias=False):
    """Interpolates images.

    x: (N, H, W, C) with at least one pixel. size: (OH, OW), or one int for both. mode: "bilinear" or "bicubic".
    antialias: whether to average over all pixels that an output pixel covers; without it, strong reduction uses only a
    few of the pixels. Returns (N, OH, OW, C). Raises ValueError for other modes and for images without pixels.
    """
    if x.ndim != 4 or 0 in x.shape[1:3]:
        raise ValueError(f"resample needs images (N, H, W, C) with pixels, got {x.shape}")
    if mode not in REACH:
        raise ValueError(f"mode must be one of {', '.join(REACH)}, got {mode!r}")
    return Resample.apply(x, size=as_pair(size, "size", 1), mode=mode, antialias=bool(antialias))


class Resample(Function):
    def forward(self, x, *, size, mode, antialias):
        xp = array_module(x)
        self.matrices = [
            xp.asarray(weights(out, old, mode, antialias), x.dtype)
            for out, old in zip(size, x.shape[1:3], strict=True)
        ]  # fmt: skip
        return _apply(*self.matrices, x)  # pyright: ignore[reportCallIssue]

    def backward(self, dy):
        rows, columns = self.matrices
        return _apply(rows.T, columns.T, dy)


def _apply(rows, columns, x):
    """rows (OH, H), columns (OW, W), x (N, H, W, C) -> (N, OH, OW, C)."""
    n, h, w, c = x.shape
    y = (rows @ x.reshape(n, h, w * c)).reshape(n, len(rows), w, c)
    return columns @ y


@functools.lru_cache(64)
def weights(out, size, mode, antialias):
    """(out, size) float64: the matrix that resamples a line of `size` pixels to `out`. Cached: do not modify it."""
    scale, reach, a = size / out, REACH[mode], -0.5 if antialias else -0.75
    centre = (np.arange(out)[:, None] + 0.5) * scale
    if antialias:
        wide = max(scale, 1.0)
        pixels = np.arange(size)
        first = np.maximum(centre - reach * wide + 0.5, 0).astype(int)
        last = np.minimum(centre + reach * wide + 0.5, size).astype(int)
        matrix = _kernel((pixels + 0.5 - centre) / wide, mode, a) * ((pixels >= first) & (pixels < last))
        return matrix / matrix.sum(axis=1, keepdims=True)
    pixels = np.floor(centre - 0.5).astype(int) + np.arange(1 - reach, 1 + reach)  # (out, 2 reach)
    matrix, taps = np.zeros((out, size)), _kernel(pixels + 0.5 - centre, mode, a)
    np.add.at(matrix, (np.arange(out)[:, None], np.clip(pixels, 0, size - 1)), taps)
    return matrix


def _kernel(t, mode, a):
    t = np.abs(t)
    if mode == "bilinear":
        return np.maximum(1 - t, 0)
    near, far = ((a + 2) * t - (a + 3)) * t * t + 1, a * (((t - 5) * t + 8) * t - 4)
    return np.where(t < 1, near, np.where(t < 2, far, 0))

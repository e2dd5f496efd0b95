"""Bilinear and bicubic resampling from their definition, in float64: one row of weights at a time."""

import math

import numpy as np


def _triangle(t):
    return max(1 - abs(t), 0.0)


def _cubic(t, a):
    """Keys 1981, eq. 4 with its free parameter."""
    t = abs(t)
    if t < 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def weights(out, size, mode, antialias):
    """(out, size): the weight of each pixel in a line of `size` for each pixel in a line of `out`."""
    result, scale = np.zeros((out, size)), size / out
    for i in range(out):
        centre = (i + 0.5) * scale  # in pixels of the input, whose first one reaches from 0 to 1
        if antialias:
            wide = max(scale, 1.0)
            support = (1 if mode == "bilinear" else 2) * wide
            for j in range(size):
                t = (j + 0.5 - centre) / wide
                inside = int(max(centre - support + 0.5, 0)) <= j < int(min(centre + support + 0.5, size))
                result[i, j] = (_triangle(t) if mode == "bilinear" else _cubic(t, -0.5)) * inside
            result[i] /= result[i].sum()
        else:
            reach = 1 if mode == "bilinear" else 2
            for j in range(math.floor(centre - 0.5) - reach + 1, math.floor(centre - 0.5) + reach + 1):
                t = j + 0.5 - centre
                weight = _triangle(t) if mode == "bilinear" else _cubic(t, -0.75)
                result[i, min(max(j, 0), size - 1)] += weight  # the border is repeated
    return result


def resample(x, size, mode="bilinear", antialias=False):
    """x (N, H, W, C) -> (N, *size, C) float64; see ops/resample.py for the contract."""
    x = np.asarray(x, np.float64)
    rows = weights(size[0], x.shape[1], mode, antialias)
    columns = weights(size[1], x.shape[2], mode, antialias)
    return np.einsum("ih,nhwc,jw->nijc", rows, x, columns)

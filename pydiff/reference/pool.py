"""Average and maximum pooling from their definitions, in float64: one window at a time."""

import math

import numpy as np


def _windows(shape, kernel, stride, padding, ceil_mode):
    """(output pixel, slices of the image inside its window, size of its window with padding) for every output."""
    sides = []
    for axis in (0, 1):
        size, k, s, p = shape[1 + axis], kernel[axis], stride[axis], padding[axis]
        count = (math.ceil if ceil_mode else math.floor)((size + 2 * p - k) / s) + 1
        if ceil_mode and (count - 1) * s >= size + p:  # a last window must not begin in the padding
            count -= 1
        starts = [i * s - p for i in range(count)]
        sides.append([(slice(max(a, 0), min(a + k, size)), min(a + k, size + p) - a) for a in starts])
    for i, (rows, height) in enumerate(sides[0]):
        for j, (columns, width) in enumerate(sides[1]):
            yield i, j, rows, columns, height * width


def avg_pool2d(x, kernel, stride, padding=(0, 0), ceil_mode=False, count_include_pad=True):
    """x (N, H, W, C), pairs -> (N, OH, OW, C) float64; see ops/pool.py for the contract."""
    x = np.asarray(x, np.float64)
    pixels = {}
    for i, j, rows, columns, size in _windows(x.shape, kernel, stride, padding, ceil_mode):
        inside = x[:, rows, columns]
        pixels[i, j] = inside.sum(axis=(1, 2)) / (size if count_include_pad else inside[0, ..., 0].size)
    return _image(pixels)


def max_pool2d(x, kernel, stride, padding=(0, 0), ceil_mode=False):
    """x (N, H, W, C), pairs -> (N, OH, OW, C) float64: the largest value of every window."""
    x = np.asarray(x, np.float64)
    windows = _windows(x.shape, kernel, stride, padding, ceil_mode)
    return _image({(i, j): x[:, rows, columns].max(axis=(1, 2)) for i, j, rows, columns, _ in windows})


def _image(pixels):
    height, width = (1 + max(place[axis] for place in pixels) for axis in (0, 1))
    return np.stack([np.stack([pixels[i, j] for j in range(width)], axis=1) for i in range(height)], axis=1)

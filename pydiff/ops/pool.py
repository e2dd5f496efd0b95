"""Pooling as PyTorch has it: the mean or the largest value of every window of an image.

    avg:  y[n, i, j, c] = 1/size sum over the window of x[n, p, q, c]
    max:  y[n, i, j, c] = max over the window of x[n, p, q, c]          window: p = i·stride - pad + a,  0 <= a < kernel

Padding counts as zeros in the mean and is never the maximum. Both are computed tap by tap, as in conv2d: for each of
the kernel's pixels (a, b), the view of the image under it. Reference: reference/pool.py. For disjoint squares without
padding there is ops.average_pool.
"""

import math

import numpy as np

from pydiff.arrays import array_module
from pydiff.ops.conv2d import as_pair
from pydiff.tensor import Function


def avg_pool2d(x, kernel, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    """The mean of every window.

    x: (N, H, W, C). kernel, stride, padding: int or (vertical, horizontal); stride None is the kernel's size; padding
    is at most half of the kernel. ceil_mode: whether a last window may reach beyond the image and its padding.
    count_include_pad: whether the mean includes the padding (what is beyond the padding never counts).
    Returns (N, OH, OW, C), OH = (H + 2 padding - kernel) / stride + 1, rounded down, or up in ceil_mode. Raises
    ValueError for windows that do not fit.
    """
    kernel, stride, padding, out, ends = _geometry(x, kernel, stride, padding, ceil_mode)
    counts = []  # pixels of every window, vertically and horizontally
    for k, s, p, n, size in zip(kernel, stride, padding, out, x.shape[1:3], strict=True):
        start = np.arange(n) * s - p
        if count_include_pad:
            counts.append(np.minimum(start + k, size + p) - start)
        else:
            counts.append(np.minimum(start + k, size) - np.maximum(start, 0))
    sizes = counts[0][:, None] * counts[1]  # (OH, OW)
    return AveragePool2d.apply(x, kernel=kernel, stride=stride, padding=padding, out=out, ends=ends, sizes=sizes)


def max_pool2d(x, kernel, stride=None, padding=0, ceil_mode=False):
    """The largest value of every window; arguments and result as in avg_pool2d. Among equal values, the first in row
    order gets the gradient; NaN counts as the largest.
    """
    kernel, stride, padding, out, ends = _geometry(x, kernel, stride, padding, ceil_mode)
    return MaxPool2d.apply(x, kernel=kernel, stride=stride, padding=padding, out=out, ends=ends)


def _geometry(x, kernel, stride, padding, ceil_mode):
    """The options as pairs, the output's size, and how far the last windows reach beyond the image."""
    if x.ndim != 4:
        raise ValueError(f"pooling needs an image (N, H, W, C), got {x.shape}")
    kernel = as_pair(kernel, "kernel", 1)
    stride, padding = kernel if stride is None else as_pair(stride, "stride", 1), as_pair(padding, "padding", 0)
    out, ends = [], []
    for k, s, p, size in zip(kernel, stride, padding, x.shape[1:3], strict=True):
        if 2 * p > k or size + 2 * p < k:
            raise ValueError(
                f"a {kernel} window does not fit into a {x.shape[1:3]} image with padding {padding}, which may be "
                "half of the window at most"
            )
        count = (size + 2 * p - k + (s - 1 if ceil_mode else 0)) // s + 1
        count -= ceil_mode and (count - 1) * s >= size + p  # a window that would begin in the padding
        out.append(count)
        ends.append(max((count - 1) * s + k - p - size, 0))
    return kernel, stride, padding, tuple(out), tuple(ends)


class _Pool(Function):
    """What both poolings share: the padded image and its taps."""

    integers = True

    def padded(self, x, kernel, stride, padding, out, ends, fill):
        """x padded with `fill`, as far as the windows reach."""
        self.shape, self.kernel, self.stride, self.padding, self.out = x.shape, kernel, stride, padding, out
        around = ((0, 0), (padding[0], ends[0]), (padding[1], ends[1]), (0, 0))
        return array_module(x).pad(x, around, constant_values=fill)

    def taps(self, padded):
        """For each tap: the view (N, OH, OW, C) of the pixels under it."""
        (sh, sw), (oh, ow) = self.stride, self.out
        for a in range(self.kernel[0]):
            for b in range(self.kernel[1]):
                yield padded[:, a : a + sh * (oh - 1) + 1 : sh, b : b + sw * (ow - 1) + 1 : sw]

    def inside(self, padded):
        """The image without its padding."""
        (top, left), (_, h, w, _) = self.padding, self.shape
        return padded[:, top : top + h, left : left + w]


class AveragePool2d(_Pool):
    """y = share times the sum of the taps, share = 1 / size."""

    integers = False

    def forward(self, x, *, kernel, stride, padding, out, ends, sizes):
        padded = self.padded(x, kernel, stride, padding, out, ends, 0)
        self.reach = padded.shape
        self.share = array_module(x).asarray(1 / sizes, x.dtype)[:, :, None]  # (OH, OW, 1)
        return sum(self.taps(padded)) * self.share

    def backward(self, g):
        """Every pixel of a window gets g / size."""
        dpadded, share = array_module(g).zeros(self.reach, g.dtype), g * self.share
        for pixels in self.taps(dpadded):
            pixels += share
        return self.inside(dpadded)


class MaxPool2d(_Pool):
    """Remembers which tap was the largest, for the gradient."""

    def forward(self, x, *, kernel, stride, padding, out, ends):
        lowest = -math.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min if x.dtype.kind in "iu" else False
        padded = self.padded(x, kernel, stride, padding, out, ends, lowest)
        self.reach = padded.shape
        xp, taps = array_module(x), self.taps(padded)
        y = next(taps).copy()
        self.chosen = xp.zeros(y.shape, np.int32)  # the number of the tap
        for number, pixels in enumerate(taps, 1):
            larger = (pixels > y) | ((pixels != pixels) & (y == y))
            y, self.chosen = xp.where(larger, pixels, y), xp.where(larger, np.int32(number), self.chosen)
        return y

    def backward(self, g):
        """The pixel that was the largest gets g."""
        dpadded = array_module(g).zeros(self.reach, g.dtype)
        for number, pixels in enumerate(self.taps(dpadded)):
            pixels += g * (self.chosen == number)
        return self.inside(dpadded)

"""Two-dimensional convolution, channels-last (as in every deep-learning library, a cross-correlation):

    y[n, i, j, o] = sum_{a, b, c} X[n, i·stride + a·dilation - top, j·stride + b·dilation - left, c] w[a, b, c, o]
                    + bias[o] + add[n, i, j, o]

with zeros outside the image X, which is x, or x enlarged by repeating pixels: X[n, p, q] = x[n, p // up, q // up];
stride, dilation and up may differ between the vertical and the horizontal. With groups, an output channel o sums over
only the channels c of its own group (Krizhevsky et al. 2012; one group per channel is a depthwise convolution).

The other terms serve the blocks of a U-Net: the bias may differ for each sample, bias[n, o], which adds the timestep
embedding; `add` is the skip connection of a residual block; and an enlarged image that nothing else uses need not be
made. The array path computes the same sum tap by tap: for each of the kH·kW taps (a, b) the pixels it touches form a
matrix (N·OH·OW, Cin), and the tap adds that matrix times w[a, b]. A linear layer is the case kH = kW = 1, so it uses
the same kernels.

Reference: reference/conv2d.py. Kernels: csrc/cpu/conv2d.cpp, csrc/cuda/conv2d.cu; dilation, groups and enlargements
other than 2 x 2 have none and take the array path.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from pydiff.arrays import array_module, contiguous, empty
from pydiff.backend import native, widened
from pydiff.ops.shape import repeat_pixels, sum_pixels
from pydiff.tensor import Function


class Window(NamedTuple):
    """How a filter moves over the image: (vertical, horizontal) pairs, and padding ((top, bottom), (left, right))."""

    stride: tuple = (1, 1)
    padding: tuple = ((0, 0), (0, 0))
    upsample: tuple = (1, 1)
    dilation: tuple = (1, 1)
    groups: int = 1

    @property
    def served(self):
        """Whether the compiled kernels support this window."""
        return self.groups == 1 and self.dilation == (1, 1) and self.upsample in ((1, 1), (2, 2))

    def sizes(self, x_shape, w_shape):
        """Yields (filter, image, output) sizes in pixels, vertically, then horizontally; image includes padding."""
        for axis in (0, 1):
            size = self.dilation[axis] * (w_shape[axis] - 1) + 1
            image = self.upsample[axis] * x_shape[1 + axis] + sum(self.padding[axis])
            yield size, image, (image - size) // self.stride[axis] + 1


def conv2d(
    x, w, bias=None, stride: Any = 1, padding: Any = 0, upsample: Any = 1, add=None, dilation: Any = 1, groups=1
) -> Any:
    """Convolves images with a bank of filters.

    x: (N, H, W, Cin). w: (kH, kW, Cin/groups, Cout). bias: (Cout,), or (N, Cout) with one for each sample, or None.
    stride, dilation, upsample: int or (vertical, horizontal). padding: zeros around the image: int, (vertical,
    horizontal), or ((top, bottom), (left, right)). upsample: 2 enlarges x by repeating pixels first; 1 does not. add:
    None, or an array of the result's shape to add to it. groups: the number of groups into which Cin and Cout are
    divided; each output channel sees only the input channels of its own group. Returns (N, OH, OW, Cout), OH =
    (upsample·H + top + bottom - dilation·(kH - 1) - 1) // stride + 1, OW alike. Raises ValueError for shapes and
    options that do not fit.
    """
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError(f"conv2d needs x (N, H, W, Cin) and w (kH, kW, Cin, Cout), got {x.shape} and {w.shape}")
    check_groups(groups, x.shape[3], w.shape[3])
    if x.shape[3] != groups * w.shape[2]:
        per_group = f" per group of {groups}" if groups > 1 else ""
        last = "; channels are last here, x.transpose(0, 2, 3, 1)" if x.shape[1] == groups * w.shape[2] else ""
        raise ValueError(
            f"x has {x.shape[3]} channels, but the filters of shape {w.shape} take {w.shape[2]}{per_group}{last}"
        )
    stride, upsample, dilation = (
        as_pair(value, name, minimum=1)
        for name, value in (("stride", stride), ("upsample", upsample), ("dilation", dilation))
    )
    window = Window(stride, as_padding(padding), upsample, dilation, groups)
    (kh, height, oh), (kw, width, ow) = window.sizes(x.shape, w.shape)
    if min(kh, kw) < 1 or height < kh or width < kw:
        image = tuple(up * side for up, side in zip(window.upsample, x.shape[1:3], strict=True))
        raise ValueError(f"a {w.shape[:2]} filter does not fit into a {image} image with padding {window.padding}")
    shape = (len(x), oh, ow, w.shape[3])
    check_addends(x, bias, [shape[3:], (len(x), shape[3])], add, shape)
    return Conv2d.apply(x, w, bias, add, window=window, shape=shape)


def check_groups(groups, *channels):
    """Raises ValueError unless each of these channel counts is divisible by groups."""
    if not isinstance(groups, int | np.integer) or groups < 1 or any(c % groups for c in channels):
        raise ValueError(f"cannot cut {' and '.join(map(str, channels))} channels into {groups!r} equal groups")


def linear(x, w, bias=None, add=None):
    """x @ w + bias + add: x (..., Cin), w (Cin, Cout), bias (Cout,), add of the result's shape (..., Cout)."""
    if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"linear needs x (..., Cin) and w (Cin, Cout), got {x.shape} and {w.shape}")
    check_addends(x, bias, [w.shape[1:]], add, (*x.shape[:-1], w.shape[1]))
    return Linear.apply(x, w, bias, add)


def check_addends(x, bias, bias_shapes, add, shape):
    """Raises ValueError unless bias and add, if given, fit the result."""
    if bias is not None and bias.shape not in bias_shapes:
        raise ValueError(f"bias must have shape {' or '.join(map(str, bias_shapes))}, got {bias.shape}")
    if add is not None and (add.shape != shape or add.dtype != x.dtype):
        raise ValueError(f"add must be {x.dtype} of the result's shape {shape}, got {add.dtype} {add.shape}")


def as_pair(value, name, minimum):
    """(vertical, horizontal) from one integer or a pair. Raises ValueError for others, or below the minimum."""
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    pair = tuple(int(v) if isinstance(v, np.integer) else v for v in pair)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= minimum for v in pair):
        raise ValueError(f"{name} must be a whole number >= {minimum} or a pair of them, got {value!r}")
    return pair


def as_padding(value):
    """((top, bottom), (left, right)) from one integer, a pair, or two pairs."""
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, tuple | list) for v in value):
        return as_pair(value[0], "padding", 0), as_pair(value[1], "padding", 0)
    vertical, horizontal = as_pair(value, "padding", 0)
    return (vertical, vertical), (horizontal, horizontal)


class Conv2d(Function):
    def forward(self, x, w, bias, add, *, window, shape):
        x, w = contiguous(x), contiguous(w)
        self.saved, self.window = (x, w, None if bias is None else bias.shape), window
        return convolve(x, w, bias, add, window, empty(x, shape))

    def backward(self, dy):
        x, w, bias_shape = self.saved
        dy = contiguous(dy)
        dx = input_gradient(dy, w, x.shape, self.window) if self.needs[0] else None
        dw = dbias = None
        if self.needs[1] or self.needs[2]:
            dw, dbias = weight_gradient(dy, x, w.shape, bias_shape, self.window)
        return dx, dw, dbias, dy if self.needs[3] else None


def convolve(x, w, bias, add, window, y):
    """What conv2d makes of these arrays, in y (N, OH, OW, Cout), which is returned. x, w and y are contiguous.

    With kernels, the padding above and below may be negative, of an enlarged image: as many of its rows are left out,
    fewer than one pixel became.
    """
    kernel = native(x, "conv2d_forward") if window.served else None
    if kernel:
        # The kernels add it to their float32 sums: a bfloat16 one is widened.
        bias = None if bias is None else contiguous(bias if bias.dtype.kind == "f" else bias.astype("float32"))
        add = None if add is None else contiguous(add)
        kernel(x, w, bias, add, window.stride, (window.padding[0][0], window.padding[1][0]), window.upsample[0], y)
        return y
    x, w = repeat_pixels(widened(x), window.upsample), widened(w)  # the array path cannot multiply bfloat16
    sums = forward_arrays(x, w, window.stride, window.padding, y.shape, window.dilation, window.groups)
    if bias is not None:
        sums += bias if bias.ndim == 1 else bias[:, None, None, :]
    y[...] = sums if add is None else sums + add
    return y


def input_gradient(dy, w, x_shape, window):
    """The gradient dx of the input, of shape x_shape."""
    kernel = native(dy, "conv2d_backward_input") if window.served else None
    if kernel:
        dx = empty(dy, x_shape)
        kernel(dy, w, window.stride, (window.padding[0][0], window.padding[1][0]), window.upsample[0], dx)
        return dx
    n, h, width, cin = x_shape
    enlarged = (n, window.upsample[0] * h, window.upsample[1] * width, cin)
    dx = backward_input_arrays(
        widened(dy), widened(w), enlarged, window.stride, window.padding, window.dilation, window.groups
    )
    return sum_pixels(dx, window.upsample)


def weight_gradient(dy, x, w_shape, bias_shape, window):
    """(dw, dbias); dbias is None if bias_shape is None."""
    kernel = native(dy, "conv2d_backward_weight") if window.served else None
    if kernel:
        xp = array_module(dy)  # float32 also for bfloat16: many small terms are added up
        dw, dbias = xp.empty(w_shape, "float32"), xp.empty(bias_shape, "float32") if bias_shape else None
        kernel(dy, x, window.stride, (window.padding[0][0], window.padding[1][0]), window.upsample[0], dw, dbias)
        return dw, dbias
    dy, x = widened(dy), repeat_pixels(widened(x), window.upsample)
    dw = backward_weight_arrays(dy, x, w_shape, window.stride, window.padding, window.dilation, window.groups)
    return dw, dy.sum(axis=(0, 1, 2) if len(bias_shape) == 1 else (1, 2)) if bias_shape else None


class Linear(Conv2d):
    """A convolution with a 1 x 1 filter; the pixels may be along any number of axes."""

    plain = Window()

    def forward(self, x, w, bias, add):
        (cin, cout), line = w.shape, (math.prod(x.shape[:-1]), 1, 1)
        self.shapes = x.shape, w.shape, w.shape[1:], (*x.shape[:-1], cout)
        add = None if add is None else add.reshape((*line, cout))
        x, w = x.reshape((*line, cin)), w.reshape((1, 1, cin, cout))
        return super().forward(x, w, bias, add, window=self.plain, shape=(*line, cout)).reshape(self.shapes[3])

    def backward(self, dy):
        gradients = super().backward(dy.reshape((*self.saved[0].shape[:3], dy.shape[-1])))
        return tuple(None if g is None else g.reshape(s) for g, s in zip(gradients, self.shapes, strict=True))


def _taps(padded, kernel_size, stride, out_size, dilation):
    """For each tap (a, b): the view (N, OH, OW, C) of the pixels that it multiplies."""
    (sh, sw), (oh, ow), (dh, dw) = stride, out_size, dilation
    for a in range(kernel_size[0]):
        for b in range(kernel_size[1]):
            top, left = a * dh, b * dw
            yield a, b, padded[:, top : top + sh * (oh - 1) + 1 : sh, left : left + sw * (ow - 1) + 1 : sw]


def _pad(x, padding):
    return array_module(x).pad(x, ((0, 0), *padding, (0, 0))) if padding != ((0, 0), (0, 0)) else x


def _cut(a, groups):
    """(M, C) -> (groups, M, C/groups), one matrix per group; a itself for one group."""
    return a if groups == 1 else a.reshape(len(a), groups, a.shape[1] // groups).swapaxes(0, 1)


def _uncut(a, groups):
    """The inverse of `_cut`."""
    return a if groups == 1 else a.swapaxes(0, 1).reshape(a.shape[1], groups * a.shape[2])


def forward_arrays(x, w, stride, padding, shape, dilation=(1, 1), groups=1):
    """y = sum over taps of (pixels of the tap) @ w[tap]; with groups, one product per group."""
    kh, kw, _, cout = w.shape
    y = array_module(x).zeros((math.prod(shape[:3]), cout), x.dtype)
    for a, b, pixels in _taps(_pad(x, padding), (kh, kw), stride, shape[1:3], dilation):
        y += _uncut(_cut(pixels.reshape(-1, x.shape[3]), groups) @ _cut(w[a, b], groups), groups) if x.size else 0
    return y.reshape(shape)


def backward_input_arrays(dy, w, x_shape, stride, padding, dilation=(1, 1), groups=1):
    """dx: every tap adds dy @ w[tap]ᵀ to the pixels that it had read; the padding is cropped at the end."""
    kh, kw, _, cout = w.shape
    (top, bottom), (left, right) = padding
    n, h, width, cin = x_shape
    dpadded = array_module(dy).zeros((n, h + top + bottom, width + left + right, cin), dy.dtype)
    for a, b, pixels in _taps(dpadded, (kh, kw), stride, dy.shape[1:3], dilation):
        if dy.size:
            product = _cut(dy.reshape(-1, cout), groups) @ _cut(w[a, b], groups).swapaxes(-1, -2)
            pixels += _uncut(product, groups).reshape(pixels.shape)
    return dpadded[:, top : top + h, left : left + width]


def backward_weight_arrays(dy, x, w_shape, stride, padding, dilation=(1, 1), groups=1):
    """dw[tap] = (pixels of the tap)ᵀ @ dy."""
    kh, kw, _, cout = w_shape
    dw = array_module(x).empty(w_shape, dy.dtype)
    for a, b, pixels in _taps(_pad(x, padding), (kh, kw), stride, dy.shape[1:3], dilation):
        if x.size and dy.size:
            rows = _cut(pixels.reshape(-1, x.shape[3]), groups).swapaxes(-1, -2)
            dw[a, b] = _uncut(rows @ _cut(dy.reshape(-1, cout), groups), groups)
        else:
            dw[a, b] = 0
    return dw

"""Two-dimensional convolution, channels-last (as in every deep-learning library, a cross-correlation):

    y[n, i, j, o] = sum_{a, b, c} X[n, i·stride + a - top, j·stride + b - left, c] w[a, b, c, o]
                    + bias[o] + add[n, i, j, o]

with zeros outside the picture X, which is x, or x enlarged by repeating pixels: X[n, p, q] = x[n, p // up, q // up].
A U-Net's blocks use all of it: the bias may be one for each sample, bias[n, o], which is how the embedding of the step
number comes in, `add` is what a residual block passes by, and an enlarged picture that nobody else looks at need not be
made. The array path is the same sum taken tap by tap: for each of the kH·kW taps (a, b) the pixels it touches form a
matrix (N·OH·OW, Cin), and the tap adds that matrix times w[a, b].
A linear layer is the case kH = kW = 1, so it uses the same kernels.

Reference: reference/conv2d.py. Kernels: csrc/cpu/conv2d.cpp, csrc/cuda/conv2d.cu.
"""

import math

from pydiff.arrays import array_module, contiguous, empty
from pydiff.backend import native
from pydiff.ops.shape import repeat_pixels, sum_pixels
from pydiff.tensor import Function


def conv2d(x, w, bias=None, stride=1, padding=0, upsample=1, add=None):
    """Convolves pictures with a bank of filters.

    x: (N, H, W, Cin). w: (kH, kW, Cin, Cout). bias: (Cout,), or (N, Cout) with one for each sample, or None.
    stride: int or (vertical, horizontal). padding: zeros around the picture: int, (vertical, horizontal), or
    ((top, bottom), (left, right)). upsample: 2 enlarges x by repeating pixels first; 1 does not.
    add: None, or something of the result's shape to add to it.
    Returns (N, OH, OW, Cout) with OH = (upsample·H + top + bottom - kH) // stride + 1, OW alike.
    """
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError(f"conv2d needs x (N, H, W, Cin) and w (kH, kW, Cin, Cout), got {x.shape} and {w.shape}")
    if x.shape[3] != w.shape[2]:
        raise ValueError(f"x has {x.shape[3]} channels, but the filters of shape {w.shape} take {w.shape[2]}")
    if upsample not in (1, 2):
        raise ValueError(f"upsample must be 1 or 2, got {upsample!r}")
    stride = _pair(stride, "stride", minimum=1)
    (top, bottom), (left, right) = padding = _padding(padding)
    kh, kw, _, cout = w.shape
    h, width = upsample * x.shape[1], upsample * x.shape[2]
    if kh < 1 or kw < 1 or h + top + bottom < kh or width + left + right < kw:
        raise ValueError(f"a {w.shape[:2]} filter does not fit into a {(h, width)} picture with padding {padding}")
    shape = (len(x), (h + top + bottom - kh) // stride[0] + 1, (width + left + right - kw) // stride[1] + 1, cout)
    _check_addends(x, bias, [(cout,), (len(x), cout)], add, shape)
    return Conv2d.apply(x, w, bias, add, stride=stride, padding=padding, upsample=upsample, shape=shape)


def linear(x, w, bias=None, add=None):
    """x @ w + bias + add: x (..., Cin), w (Cin, Cout), bias (Cout,), add as the result (..., Cout)."""
    if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"linear needs x (..., Cin) and w (Cin, Cout), got {x.shape} and {w.shape}")
    _check_addends(x, bias, [w.shape[1:]], add, (*x.shape[:-1], w.shape[1]))
    return Linear.apply(x, w, bias, add)


def _check_addends(x, bias, bias_shapes, add, shape):
    if bias is not None and bias.shape not in bias_shapes:
        raise ValueError(f"bias must have shape {' or '.join(map(str, bias_shapes))}, got {bias.shape}")
    if add is not None and (add.shape != shape or add.dtype != x.dtype):
        raise ValueError(f"add must be {x.dtype} of the result's shape {shape}, got {add.dtype} {add.shape}")


def _pair(value, name, minimum):
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= minimum for v in pair):
        raise ValueError(f"{name} must be a whole number >= {minimum} or a pair of them, got {value!r}")
    return pair


def _padding(value):
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, tuple | list) for v in value):
        return _pair(value[0], "padding", 0), _pair(value[1], "padding", 0)
    vertical, horizontal = _pair(value, "padding", 0)
    return (vertical, vertical), (horizontal, horizontal)


class Conv2d(Function):
    def forward(self, x, w, bias, add, *, stride, padding, upsample, shape):
        x, w = contiguous(x), contiguous(w)
        self.saved = x, w, None if bias is None else bias.shape
        self.stride, self.padding, self.upsample = stride, padding, upsample
        kernel = native(x, "conv2d_forward")
        if kernel:
            y = empty(x, shape)
            # The kernels add it to their float32 sums: a bfloat16 one is widened.
            bias = None if bias is None else contiguous(bias if bias.dtype.kind == "f" else bias.astype("float32"))
            add = None if add is None else contiguous(add)
            kernel(x, w, bias, add, stride, (padding[0][0], padding[1][0]), upsample, y)
            return y
        y = forward_arrays(repeat_pixels(x, upsample), w, stride, padding, shape)
        if bias is not None:
            y += bias if bias.ndim == 1 else bias[:, None, None, :]
        if add is not None:
            y += add
        return y

    def backward(self, dy):
        x, w, bias_shape = self.saved
        dy = contiguous(dy)
        corner = (self.padding[0][0], self.padding[1][0])
        dx = dw = dbias = None
        if self.needs[0]:
            kernel = native(dy, "conv2d_backward_input")
            if kernel:
                dx = empty(x, x.shape)
                kernel(dy, w, self.stride, corner, self.upsample, dx)
            else:
                enlarged = (len(x), self.upsample * x.shape[1], self.upsample * x.shape[2], x.shape[3])
                dx = backward_input_arrays(dy, w, enlarged, self.stride, self.padding)
                dx = sum_pixels(dx, self.upsample)
        if self.needs[1] or self.needs[2]:
            kernel = native(dy, "conv2d_backward_weight")
            if kernel:
                xp = array_module(dy)  # float32 for bfloat16, too: many small terms are added up
                dw, dbias = xp.empty(w.shape, "float32"), xp.empty(bias_shape, "float32") if bias_shape else None
                kernel(dy, x, self.stride, corner, self.upsample, dw, dbias)
            else:
                dw = backward_weight_arrays(dy, repeat_pixels(x, self.upsample), w.shape, self.stride, self.padding)
                if bias_shape:
                    dbias = dy.sum(axis=(0, 1, 2) if len(bias_shape) == 1 else (1, 2))
        return dx, dw, dbias, dy if self.needs[3] else None


class Linear(Conv2d):
    """The case of a 1 x 1 kernel; the pixels may lie along any number of axes."""

    def forward(self, x, w, bias, add):
        (cin, cout), line = w.shape, (math.prod(x.shape[:-1]), 1, 1)
        self.shapes = x.shape, w.shape, w.shape[1:], (*x.shape[:-1], cout)
        add = None if add is None else add.reshape((*line, cout))
        x, w = x.reshape((*line, cin)), w.reshape((1, 1, cin, cout))
        options = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "upsample": 1, "shape": (*line, cout)}
        return super().forward(x, w, bias, add, **options).reshape(self.shapes[3])

    def backward(self, dy):
        gradients = super().backward(dy.reshape((*self.saved[0].shape[:3], dy.shape[-1])))
        return tuple(None if g is None else g.reshape(s) for g, s in zip(gradients, self.shapes, strict=True))


def _taps(padded, kernel_size, stride, out_size):
    """For each tap (a, b): the view (N, OH, OW, C) of the pixels that it multiplies."""
    (sh, sw), (oh, ow) = stride, out_size
    for a in range(kernel_size[0]):
        for b in range(kernel_size[1]):
            yield a, b, padded[:, a : a + sh * (oh - 1) + 1 : sh, b : b + sw * (ow - 1) + 1 : sw]


def _pad(x, padding):
    return array_module(x).pad(x, ((0, 0), *padding, (0, 0))) if padding != ((0, 0), (0, 0)) else x


def forward_arrays(x, w, stride, padding, shape):
    """y = sum over taps of (pixels of the tap) @ w[tap]."""
    kh, kw, cin, cout = w.shape
    y = array_module(x).zeros((math.prod(shape[:3]), cout), x.dtype)
    for a, b, pixels in _taps(_pad(x, padding), (kh, kw), stride, shape[1:3]):
        y += pixels.reshape(-1, cin) @ w[a, b] if x.size else 0
    return y.reshape(shape)


def backward_input_arrays(dy, w, x_shape, stride, padding):
    """dx: every tap hands dy @ w[tap]ᵀ back to the pixels that it had read; the padding is cut off at the end."""
    kh, kw, cin, cout = w.shape
    (top, bottom), (left, right) = padding
    n, h, width, _ = x_shape
    dpadded = array_module(dy).zeros((n, h + top + bottom, width + left + right, cin), dy.dtype)
    for a, b, pixels in _taps(dpadded, (kh, kw), stride, dy.shape[1:3]):
        pixels += (dy.reshape(-1, cout) @ w[a, b].T).reshape(pixels.shape) if dy.size else 0
    return dpadded[:, top : top + h, left : left + width]


def backward_weight_arrays(dy, x, w_shape, stride, padding):
    """dw[tap] = (pixels of the tap)ᵀ @ dy."""
    kh, kw, cin, cout = w_shape
    dw = array_module(x).empty(w_shape, dy.dtype)
    for a, b, pixels in _taps(_pad(x, padding), (kh, kw), stride, dy.shape[1:3]):
        dw[a, b] = pixels.reshape(-1, cin).T @ dy.reshape(-1, cout) if x.size and dy.size else 0
    return dw

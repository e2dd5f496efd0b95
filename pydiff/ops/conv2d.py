"""Two-dimensional convolution, channels-last (as in every deep-learning library, a cross-correlation):

    y[n, i, j, o] = bias[o] + sum_{a, b, c} x[n, i·stride + a - top, j·stride + b - left, c] w[a, b, c, o]

with zeros outside the picture. The array path is the same sum taken tap by tap: for each of the kH·kW taps (a, b) the
pixels it touches form a matrix (N·OH·OW, Cin), and the tap adds that matrix times w[a, b].
A linear layer is the case kH = kW = 1, so it uses the same kernels.

Reference: reference/conv2d.py. Kernels: csrc/cpu/conv2d.cpp, csrc/cuda/conv2d.cu.
"""

import math

from pydiff.backend import array_module, contiguous, empty, native
from pydiff.tensor import Function


def conv2d(x, w, bias=None, stride=1, padding=0):
    """Convolves pictures with a bank of filters.

    x: (N, H, W, Cin). w: (kH, kW, Cin, Cout). bias: (Cout,) or None.
    stride: int or (vertical, horizontal). padding: zeros around the picture: int, (vertical, horizontal), or
    ((top, bottom), (left, right)).
    Returns (N, OH, OW, Cout) with OH = (H + top + bottom - kH) // stride + 1, OW alike.
    """
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError(f"conv2d needs x (N, H, W, Cin) and w (kH, kW, Cin, Cout), got {x.shape} and {w.shape}")
    if x.shape[3] != w.shape[2]:
        raise ValueError(f"x has {x.shape[3]} channels, but the filters of shape {w.shape} take {w.shape[2]}")
    if bias is not None and bias.shape != w.shape[3:]:
        raise ValueError(f"bias must have shape {w.shape[3:]}, got {bias.shape}")
    stride = _pair(stride, "stride", minimum=1)
    (top, bottom), (left, right) = padding = _padding(padding)
    if (
        w.shape[0] < 1
        or w.shape[1] < 1
        or x.shape[1] + top + bottom < w.shape[0]
        or x.shape[2] + left + right < w.shape[1]
    ):
        raise ValueError(f"a {w.shape[:2]} filter does not fit into a {x.shape[1:3]} picture with padding {padding}")
    return Conv2d.apply(x, w, bias, stride=stride, padding=padding)


def linear(x, w, bias=None):
    """x @ w + bias on the last axis: x (..., Cin), w (Cin, Cout), bias (Cout,) or None -> (..., Cout)."""
    if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"linear needs x (..., Cin) and w (Cin, Cout), got {x.shape} and {w.shape}")
    pixels = x.reshape((math.prod(x.shape[:-1]), 1, 1, w.shape[0]))
    return conv2d(pixels, w.reshape((1, 1, *w.shape)), bias).reshape((*x.shape[:-1], w.shape[1]))


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


def _single(bias):
    """What the kernels add to their float32 sums: a bfloat16 bias widened, any other as it is."""
    return bias.astype("float32") if bias.dtype.name == "bfloat16" else bias


class Conv2d(Function):
    def forward(self, x, w, bias, stride, padding):
        x, w = contiguous(x), contiguous(w)
        (top, bottom), (left, right) = padding
        oh = (x.shape[1] + top + bottom - w.shape[0]) // stride[0] + 1
        ow = (x.shape[2] + left + right - w.shape[1]) // stride[1] + 1
        self.saved = x, w, bias is not None
        self.stride, self.padding = stride, padding
        kernel = native(x, "conv2d_forward")
        if kernel:
            y = empty(x, (len(x), oh, ow, w.shape[3]))
            kernel(x, w, None if bias is None else contiguous(_single(bias)), stride, (top, left), y)
            return y
        return forward_arrays(x, w, bias, stride, padding, (oh, ow))

    def backward(self, dy):
        x, w, has_bias = self.saved
        dy = contiguous(dy)
        corner = (self.padding[0][0], self.padding[1][0])
        dx = dw = dbias = None
        if self.needs[0]:
            kernel = native(dy, "conv2d_backward_input")
            if kernel:
                dx = empty(x, x.shape)
                kernel(dy, w, self.stride, corner, dx)
            else:
                dx = backward_input_arrays(dy, w, x.shape, self.stride, self.padding)
        if self.needs[1] or self.needs[2]:
            kernel = native(dy, "conv2d_backward_weight")
            if kernel:
                xp = array_module(dy)  # float32 for bfloat16, too: many small terms are added up
                dw, dbias = xp.empty(w.shape, "float32"), xp.empty(w.shape[3:], "float32") if has_bias else None
                kernel(dy, x, self.stride, corner, dw, dbias)
            else:
                dw = backward_weight_arrays(dy, x, w.shape, self.stride, self.padding)
                dbias = dy.sum(axis=(0, 1, 2)) if has_bias else None
        return dx, dw, dbias


def _taps(padded, kernel_size, stride, out_size):
    """For each tap (a, b): the view (N, OH, OW, C) of the pixels that it multiplies."""
    (sh, sw), (oh, ow) = stride, out_size
    for a in range(kernel_size[0]):
        for b in range(kernel_size[1]):
            yield a, b, padded[:, a : a + sh * (oh - 1) + 1 : sh, b : b + sw * (ow - 1) + 1 : sw]


def _pad(x, padding):
    return array_module(x).pad(x, ((0, 0), *padding, (0, 0))) if padding != ((0, 0), (0, 0)) else x


def forward_arrays(x, w, bias, stride, padding, out_size):
    """y = bias + sum over taps of (pixels of the tap) @ w[tap]."""
    kh, kw, cin, cout = w.shape
    y = array_module(x).zeros((len(x) * out_size[0] * out_size[1], cout), x.dtype)
    for a, b, pixels in _taps(_pad(x, padding), (kh, kw), stride, out_size):
        y += pixels.reshape(-1, cin) @ w[a, b] if x.size else 0
    if bias is not None:
        y += bias
    return y.reshape(len(x), *out_size, cout)


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

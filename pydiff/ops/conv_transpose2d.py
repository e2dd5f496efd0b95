"""Transposed convolution: the linear map that a convolution's gradient applies, used forwards to enlarge images
(Zeiler et al. 2010, "Deconvolutional Networks"; Dumoulin & Visin 2016, "A guide to convolution arithmetic", section 4):

    y[n, i·stride + a·dilation - top, j·stride + b·dilation - left, o] += x[n, i, j, c] w[a, b, o, c]    for all indices

plus a bias for every o. So forward here is the input gradient of conv2d, and backward is conv2d itself, with the same
kernels.

Reference: reference/conv_transpose2d.py.
"""

from pydiff.arrays import contiguous
from pydiff.ops.conv2d import (
    Conv2d,
    Window,
    as_padding,
    as_pair,
    check_addends,
    check_groups,
    input_gradient,
    weight_gradient,
)
from pydiff.tensor import Function


def conv_transpose2d(x, w, bias=None, stride=1, padding=0, output_padding=0, dilation=1, groups=1):
    """Enlarges images by a convolution read backwards.

    x: (N, H, W, Cin). w: (kH, kW, Cout/groups, Cin), the filters of the convolution that this is the transpose of.
    bias: (Cout,) or None. stride, dilation: int or (vertical, horizontal). padding: pixels that are cropped from the
    result: int, (vertical, horizontal), or ((top, bottom), (left, right)). output_padding: additional rows and columns
    below and to the right, fewer than stride or dilation. Returns (N, OH, OW, Cout), OH = (H - 1) stride + dilation (kH
    - 1) + 1 + output_padding - top - bottom, OW alike. Raises ValueError for shapes and options that do not fit.
    """
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError(
            f"conv_transpose2d needs x (N, H, W, Cin) and w (kH, kW, Cout, Cin), got {x.shape} and {w.shape}"
        )
    check_groups(groups, x.shape[3])
    if x.shape[3] != w.shape[3]:
        raise ValueError(f"x has {x.shape[3]} channels, but the filters of shape {w.shape} take {w.shape[3]}")
    window = Window(
        as_pair(stride, "stride", 1), as_padding(padding), dilation=as_pair(dilation, "dilation", 1), groups=groups
    )
    more = as_pair(output_padding, "output_padding", 0)
    if any(m >= max(s, d) for m, s, d in zip(more, window.stride, window.dilation, strict=True)):
        raise ValueError(f"output_padding must be smaller than stride or dilation, got {output_padding!r}")
    size = [
        (x.shape[1 + i] - 1) * window.stride[i] + window.dilation[i] * (w.shape[i] - 1) + 1 + more[i]
        - sum(window.padding[i]) for i in (0, 1)
    ]  # fmt: skip
    if min(size) < 1 or 0 in x.shape[1:3] or 0 in w.shape[:2]:
        raise ValueError(f"nothing is left of a {x.shape[1:3]} image with padding {window.padding}")
    shape = (len(x), *size, groups * w.shape[2])
    check_addends(x, bias, [shape[3:]], None, shape)
    return ConvTranspose2d.apply(x, w, bias, window=window, shape=shape)


class ConvTranspose2d(Function):
    def forward(self, x, w, bias, *, window, shape):
        self.saved, self.window = (contiguous(x), contiguous(w)), window
        y = input_gradient(*self.saved, shape, window)
        return (y if bias is None else y + bias).astype(x.dtype, copy=False)

    def backward(self, dy):
        """With conv the convolution that this is the transpose of, y = convᵀ(x; w) + bias:

        1. dx = conv(dy; w)
        2. dw = the weight gradient of conv for the image dy and the output gradient x
        3. dbias = sum dy
        """
        x, w = self.saved
        dy = contiguous(dy)
        dx = Conv2d().forward(dy, w, None, None, window=self.window, shape=x.shape) if self.needs[0] else None
        dw = weight_gradient(x, dy, w.shape, None, self.window)[0] if self.needs[1] else None
        return dx, dw, dy.sum(axis=(0, 1, 2)) if self.needs[2] else None

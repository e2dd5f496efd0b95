"""Transposed convolution from its definition, in float64: every pixel of x adds its multiple of the filter to y."""

import numpy as np


def conv_transpose2d(x, w, bias=None, stride=(1, 1), padding=((0, 0), (0, 0)), output_padding=(0, 0), dilation=(1, 1),
                     groups=1):  # fmt: skip
    """x (N, H, W, Cin), w (kH, kW, Cout/groups, Cin), bias (Cout,) -> (N, OH, OW, Cout) float64; see
    ops/conv_transpose2d.py for the contract."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    kh, kw, cout, cin = w.shape
    height = (x.shape[1] - 1) * stride[0] + dilation[0] * (kh - 1) + 1 + output_padding[0]
    width = (x.shape[2] - 1) * stride[1] + dilation[1] * (kw - 1) + 1 + output_padding[1]
    y = np.zeros((len(x), height, width, cout * groups))
    for i, j, a, b, c in np.ndindex(*x.shape[1:3], *w.shape[:2], cin):
        first = c // (cin // groups) * cout
        place = i * stride[0] + a * dilation[0], j * stride[1] + b * dilation[1], slice(first, first + cout)
        y[:, *place] += x[:, i, j, c, None] * w[a, b, :, c]
    (top, bottom), (left, right) = padding
    y = y[:, top : height - bottom, left : width - right]
    return y if bias is None else y + np.asarray(bias, np.float64)

"""Convolution from its equation, in float64: one output pixel at a time."""

import numpy as np


def conv2d(x, w, bias=None, stride=(1, 1), padding=((0, 0), (0, 0)), upsample=1, add=None):
    """x (N, H, W, Cin), w (kH, kW, Cin, Cout), bias (Cout,) or (N, Cout), add like the result -> (N, OH, OW, Cout)
    float64. upsample: each pixel of x becomes a square of so many by so many."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    x = x.repeat(upsample, axis=1).repeat(upsample, axis=2)
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    kh, kw = w.shape[:2]
    oh = (padded.shape[1] - kh) // stride[0] + 1
    ow = (padded.shape[2] - kw) // stride[1] + 1
    y = np.empty((len(x), oh, ow, w.shape[3]))
    for i in range(oh):
        for j in range(ow):
            window = padded[:, i * stride[0] : i * stride[0] + kh, j * stride[1] : j * stride[1] + kw]
            y[:, i, j] = np.einsum("nabc,abco->no", window, w)
    if bias is not None:
        bias = np.asarray(bias, np.float64)
        y = y + (bias[:, None, None, :] if bias.ndim == 2 else bias)
    return y if add is None else y + np.asarray(add, np.float64)

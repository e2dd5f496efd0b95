"""Convolution from its equation, in float64: one output pixel at a time."""

import numpy as np


def conv2d(x, w, bias=None, stride=(1, 1), padding=((0, 0), (0, 0)), upsample=1, add=None, dilation=(1, 1), groups=1):
    """x (N, H, W, Cin), w (kH, kW, Cin/groups, Cout), bias (Cout,) or (N, Cout), add of the result's shape -> (N, OH,
    OW, Cout) float64. upsample: by which each pixel of x is repeated, an int or (vertical, horizontal).
    """
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    up, along = (upsample, upsample) if isinstance(upsample, int) else upsample
    padded = np.pad(x.repeat(up, axis=1).repeat(along, axis=2), ((0, 0), *padding, (0, 0)))
    spread = [d * (k - 1) + 1 for d, k in zip(dilation, w.shape[:2], strict=True)]
    oh = (padded.shape[1] - spread[0]) // stride[0] + 1
    ow = (padded.shape[2] - spread[1]) // stride[1] + 1
    y = np.empty((len(x), oh, ow, w.shape[3]))
    cin, cout = w.shape[2], w.shape[3] // groups
    for i in range(oh):
        for j in range(ow):
            rows = slice(i * stride[0], i * stride[0] + spread[0], dilation[0])
            columns = slice(j * stride[1], j * stride[1] + spread[1], dilation[1])
            for g in range(groups):
                window = padded[:, rows, columns, g * cin : (g + 1) * cin]
                outputs = slice(g * cout, (g + 1) * cout)
                y[:, i, j, outputs] = np.einsum("nabc,abco->no", window, w[..., outputs])
    if bias is not None:
        bias = np.asarray(bias, np.float64)
        y = y + (bias[:, None, None, :] if bias.ndim == 2 else bias)
    return y if add is None else y + np.asarray(add, np.float64)

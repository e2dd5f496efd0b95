"""Which word a pixel attends to: the weights of the words of a prompt in the network's cross-attention
(Tang et al. 2023, "What the DAAM: Interpreting Stable Diffusion using cross attention", section 3).

The operation is observed during a forward pass. From its queries and keys and the log-sum-exp of each row, which its
kernel keeps for the gradient,

    p = exp(scale q kᵀ - lse)

is the weight of every token for every pixel: p v is the operation's result, and the weights of a pixel sum to 1.
"""

from typing import NamedTuple

import numpy as np

from pydiff import backend
from pydiff.arrays import array_module, to_host
from pydiff.ops.attention import Attention
from pydiff.tensor import Tensor, applied, no_grad


class Listened(NamedTuple):
    """One cross-attention: q (N, Tq, C), k, v (N, Tk, C), lse (N, heads, Tq), out (N, Tq, C); heads and scale."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    lse: np.ndarray
    out: np.ndarray
    heads: int
    scale: float

    def shares(self) -> np.ndarray:
        """The attention weights p (N, heads, Tq, Tk)."""
        s = _split(self.q, self.heads) @ _split(self.k, self.heads).swapaxes(2, 3) * self.scale
        return np.exp(s - self.lse[..., None])

    def result(self) -> np.ndarray:
        """p v (N, Tq, C), which equals the operation's result."""
        made = self.shares() @ _split(self.v, self.heads)
        return made.transpose(0, 2, 1, 3).reshape(self.q.shape)


def listen(network, x, t, **condition) -> list[Listened]:
    """The cross-attentions in one forward pass of a network with `encoded` and `body`, in order.

    Cross-attentions are those to the context, whose keys are made of nothing else. Masked ones, which the kernels do
    not support, are left out.
    """
    heard = []
    with no_grad():
        x = network.checked(x)
        encoded = network.encoded(x.data, t, **condition)
        told = {id(encoded["context"]): encoded["context"]}  # tensors that are made of the context alone

        def listener(operation, arguments, options, outputs):
            first = arguments[0]
            if operation is not Attention and isinstance(first, Tensor) and id(first) in told:
                told.update((id(output), output) for output in outputs)
            if operation is Attention and id(arguments[1]) in told and arguments[3] is None:
                heard.append(([a.data for a in arguments[:3]], options, outputs[0].data))

        with applied(listener):
            network.body(x, **encoded)
        return [_listened(*one) for one in heard]


def _listened(arrays, options, out):
    operation = Attention()
    operation.forward(*arrays, None, **options)  # again, for what it saves  # pyright: ignore[reportCallIssue]
    *_, last = operation.saved
    heads, scale = options["heads"], options["scale"]
    q, k, v = (to_host(a) for a in arrays)
    if last.ndim == 3:  # the kernel's
        base_two = array_module(arrays[0]) is np and backend.emulator is None  # see csrc/kernels.h
        lse = to_host(last) * (np.float32(np.log(2)) if base_two else 1)
    else:
        s = _split(q, heads) @ _split(k, heads).swapaxes(2, 3) * scale
        largest = s.max(-1)
        lse = largest + np.log(np.exp(s - largest[..., None]).sum(-1))
    return Listened(q, k, v, lse, to_host(out), heads, scale)


def _split(x, heads):
    n, t, c = x.shape
    return x.reshape(n, t, heads, c // heads).transpose(0, 2, 1, 3)


def maps(heard: list[Listened], shape) -> np.ndarray:
    """The mean weight over heads and layers of each token for each pixel: (N, Tk, h, w), with the finest layer's h, w.

    shape: (H, W) of the network's input; coarser layers are enlarged by repeating pixels.
    """
    grids = [_grid(one.q.shape[1], shape) for one in heard]
    h, w = max(grids)
    total = 0.0
    for one, (rows, columns) in zip(heard, grids, strict=True):
        p = one.shares().mean(1)  # (N, Tq, Tk)
        p = p.transpose(0, 2, 1).reshape(len(p), p.shape[2], rows, columns)
        places = np.arange(h) * rows // h, np.arange(w) * columns // w
        total = total + p[:, :, places[0]][:, :, :, places[1]]
    return total / len(heard)  # pyright: ignore[reportReturnType]


def _grid(pixels, shape):
    """(rows, columns) of a layer with this many pixels: the sides halved, rounding up, as often as needed. Raises
    ValueError if no level has that many.
    """
    rows, columns = shape
    while rows * columns > pixels:
        rows, columns = -(-rows // 2), -(-columns // 2)
    if rows * columns != pixels:
        raise ValueError(f"{pixels} pixels are no level of an image of {shape[0]} x {shape[1]}")
    return rows, columns

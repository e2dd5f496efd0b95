"""Which word looks where: the shares that pixels give to the words of a prompt, in the network's cross-attention
(Tang et al. 2023, "What the DAAM: Interpreting Stable Diffusion using cross attention", section 3).

The operation is listened to while the network answers. From its queries and keys and the log-sum-exp of each row, which
its kernel keeps for the gradient,

    p = exp(scale q kᵀ - lse)

is the share of every token for every pixel: p v is what the operation gives, and the shares of a pixel add up to 1.
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
        """p (N, heads, Tq, Tk)."""
        s = _split(self.q, self.heads) @ _split(self.k, self.heads).swapaxes(2, 3) * self.scale
        return np.exp(s - self.lse[..., None])

    def result(self) -> np.ndarray:
        """p v (N, Tq, C), which is what the operation gave."""
        made = self.shares() @ _split(self.v, self.heads)
        return made.transpose(0, 2, 1, 3).reshape(self.q.shape)


def listen(network, x, t, **condition) -> list[Listened]:
    """The cross-attentions of one answer of a network with `encoded` and `body`, in the order of the data's flow.

    Those to the context, that is, whose keys were made of nothing else. Masked ones, which the kernels do not know, are
    left out.
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
    operation.forward(*arrays, None, **options)  # once more, for what it keeps  # pyright: ignore[reportCallIssue]
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
    """The mean share over heads and layers of each token for each pixel: (N, Tk, h, w), with the finest layer's h, w.

    shape: (H, W) of what the network was given; every layer has a fraction of it, and shows as blocks.
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
    """(rows, columns) of a layer with so many pixels: the sides halved, and rounded up, as often as it takes."""
    rows, columns = shape
    while rows * columns > pixels:
        rows, columns = -(-rows // 2), -(-columns // 2)
    if rows * columns != pixels:
        raise ValueError(f"{pixels} pixels are no level of an image of {shape[0]} x {shape[1]}")
    return rows, columns

"""Operations that only move elements: their backward moves the gradient back where it came from."""

import numpy as np

from pydiff.arrays import array_module, join, split, to_host
from pydiff.ops.elementwise import unbroadcast
from pydiff.tensor import Function, Tensor


class Reshape(Function):
    integers = True

    def forward(self, x, shape):
        self.shape = x.shape
        return x.reshape(shape)

    def backward(self, g):
        return g.reshape(self.shape), None


class Transpose(Function):
    """Axes in the given order; reversed by default."""

    integers = True

    def forward(self, x, axes=None):
        y = x.transpose(axes)  # refuses axes that are none
        self.axes = tuple(reversed(range(x.ndim))) if axes is None else tuple(a % x.ndim for a in axes)
        return y

    def backward(self, g):
        return g.transpose(tuple(np.argsort(self.axes)))


class BroadcastTo(Function):
    integers = True

    def forward(self, x, shape):
        self.shape = x.shape
        return array_module(x).broadcast_to(x, shape)

    def backward(self, g):
        return unbroadcast(g, self.shape), None


class Index(Function):
    """x[index] for slices, integers, integer arrays and boolean masks, in any combination that NumPy supports."""

    integers = True

    def forward(self, x, index):
        xp, parts = array_module(x), index if isinstance(index, tuple) else (index,)
        parts = [i.data if isinstance(i, Tensor) else i for i in parts]
        self.shape, self.index = x.shape, tuple(xp.asarray(i) if isinstance(i, np.ndarray) else i for i in parts)
        self.basic = all(isinstance(i, slice | int | np.integer) or i is None or i is Ellipsis for i in parts)
        return x[self.index]

    def backward(self, g):
        dx = array_module(g).zeros(self.shape, g.dtype)
        if self.basic:
            dx[self.index] = g
        else:
            _add_at(dx, self.index, g)  # an element picked twice gets both gradients
        return dx, None


def _add_at(a, index, values):
    """a[index] += values in a fixed order; an element picked twice gets both. index: a tuple.

    A GPU's atomics would add in any order. So on a GPU rows are picked by a matrix product, and everything else is done
    on the host.
    """
    xp = array_module(a)
    if xp is np:
        np.add.at(a, index, values)
    elif len(index) == 1 and getattr(index[0], "dtype", values.dtype).kind in "iu" and index[0].ndim == 1:
        picked = xp.arange(len(a))[:, None] == index[0] % len(a)  # (rows, N)
        a += (picked.astype(a.dtype) @ values.reshape(len(values), a[:1].size)).reshape(a.shape)
    else:
        total = to_host(a)
        np.add.at(total, tuple(to_host(i) if isinstance(i, xp.ndarray) else i for i in index), to_host(values))
        a[...] = xp.asarray(total)


class Concatenate(Function):
    """Joins arrays along an existing axis (the last by default: channels, for the U-Net's skip connections)."""

    integers = True

    def forward(self, *arrays, axis=-1):
        if not arrays or isinstance(arrays[0], list | tuple):
            raise TypeError("concatenate takes its arrays one by one; write concatenate(a, b, axis=-1)")
        self.axis, self.sizes = axis, [a.shape[axis] for a in arrays]
        self.channels_of_two = len(arrays) == 2 and axis in (-1, arrays[0].ndim - 1)
        return join(*arrays) if self.channels_of_two else array_module(*arrays).concatenate(arrays, axis=axis)

    def backward(self, g):
        if self.channels_of_two:
            return split(g, self.sizes[0])
        return tuple(array_module(g).split(g, np.cumsum(self.sizes)[:-1].tolist(), axis=self.axis))


def repeat_pixels(x, factor):
    """(N, H, W, C) -> (N, factor H, factor W, C): every pixel becomes a factor x factor square, or a rectangle if the
    factor is a pair (vertical, horizontal). x itself for factor 1.
    """
    up, along = factor if isinstance(factor, tuple | list) else (factor, factor)
    if up == along == 1:
        return x
    n, h, w, c = x.shape
    stretched = array_module(x).broadcast_to(x[:, :, None, :, None, :], (n, h, up, w, along, c))
    return stretched.reshape(n, h * up, w * along, c)


def sum_pixels(g, factor):
    """The transpose of repeat_pixels: sums every square or rectangle."""
    up, along = factor if isinstance(factor, tuple | list) else (factor, factor)
    if up == along == 1:
        return g
    n, h, w, c = g.shape
    return g.reshape(n, h // up, up, w // along, along, c).sum(axis=(2, 4))


class UpsampleNearest(Function):
    """Every pixel of (N, H, W, C) becomes a factor x factor square; a pair is (vertical, horizontal). Before a
    convolution, use conv2d's upsample instead.
    """

    integers = True

    def forward(self, x, factor=2):
        self.factor = factor
        return repeat_pixels(x, factor)

    def backward(self, g):
        return sum_pixels(g, self.factor)


class AveragePool(Function):
    """Mean of every factor x factor square of (N, H, W, C); rows and columns that do not fill a square are dropped."""

    integers = True

    def forward(self, x, factor=2):
        self.shape, self.factor = x.shape, factor
        n, h, w, c = x.shape
        cut = x[:, : h // factor * factor, : w // factor * factor]
        return cut.reshape(n, h // factor, factor, w // factor, factor, c).mean(axis=(2, 4))

    def backward(self, g):
        xp, f = array_module(g), self.factor
        n, h, w, c = g.shape
        dx = xp.zeros(self.shape, g.dtype)
        share = (g / (f * f))[:, :, None, :, None, :]
        dx[:, : h * f, : w * f] = xp.broadcast_to(share, (n, h, f, w, f, c)).reshape(n, h * f, w * f, c)
        return dx


reshape, transpose, broadcast_to, index = Reshape.apply, Transpose.apply, BroadcastTo.apply, Index.apply
concatenate, upsample_nearest, average_pool = Concatenate.apply, UpsampleNearest.apply, AveragePool.apply

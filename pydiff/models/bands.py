"""Computes an autoencoder in little memory: layer by layer, and within a layer in bands of rows, with the same bits as
the whole.

A layer is a convolution of a normalised feature map, and the normalisation needs mean and variance of the whole map. So
the maps between layers are whole, and within a layer there are only bands:


    y[band] = conv(silu(norm(x)[band and the rows beside it])) + shortcut(x)[band]

with the statistics of all of x, summed in the kernel's own order before the first band (ops/group_norm.py). A residual
block's second convolution writes in place: of the rows that one band has read, the next needs the last two, normalised,
and these are kept. So such a block holds its input and one more map.


    decoder(network, h), encoder(network, h)    those of autoencoder.py, of one sample and without gradients

With NumPy in place of the compiled kernels the last bits may differ: it rounds products of larger matrices differently.
"""

from functools import partial

import numpy as np

from pydiff import backend
from pydiff.arrays import contiguous
from pydiff.ops.conv2d import Window, as_padding, convolve
from pydiff.ops.group_norm import normalised, statistics
from pydiff.tensor import Tensor

BAND = 1 << 21  # numbers in a band, about, of the wider of input and output
# From so many pixels a side on, the kernel chooses its algorithm by the channels alone (csrc/cpu/conv2d_winograd.cpp):
# it is the same for a band and for the whole. Winograd's tiles have 4 rows, and a band begins with one.
LEAST, TILE = 16, 4


def serves(x):
    """Whether this map can be processed in bands: CUDA's kernels normalise only whole maps."""
    return isinstance(x, np.ndarray) and backend.emulator is None


def encoder(network, h):
    """The Encoder's output, an array, for x (1, H, W, C)."""
    steps = [partial(convolved, network.conv_in)]
    for block in network.down_blocks:
        steps += [*_layers(block), *(partial(convolved, resampler.conv) for resampler in block.downsamplers)]
    return _through(h, [*steps, *_middle(network.mid_block), partial(_ending, network)])


def decoder(network, h):
    """The Decoder's output, an array, for z (1, h, w, C)."""
    steps = [partial(convolved, network.conv_in), *_middle(network.mid_block)]
    for block in network.up_blocks:
        enlarged = (partial(convolved, resampler.conv, upsample=2) for resampler in block.upsamplers)
        steps += [*_layers(block), *enlarged]
    return _through(h, [*steps, partial(_ending, network)])


def _through(h, steps):
    """Applies the steps in sequence, without holding a map that the next step does not read."""
    for step in steps:
        before, h = h.shape, step(h)
        if h.shape != before:
            backend.trim()  # layers with many channels need scratch memory, and those with large maps follow them
    return h


def _layers(block):
    """Residual blocks, with attention after each if there is any."""
    for i, resnet in enumerate(block.resnets):
        yield partial(_residual, resnet)
        if block.attentions:
            yield partial(_whole, block.attentions[i])


def _middle(block):
    first, last = (partial(_residual, resnet) for resnet in block.resnets)
    return [first, *(partial(_whole, attention) for attention in block.attentions), last]


def _whole(layer, x):
    return layer(Tensor(x)).data


def _residual(block, x):
    """A ResnetBlock without a step embedding, as in autoencoders."""
    act = None if block.fused else block.act
    h = convolved(block.conv1, x, Norm(block.norm1, x, act))
    shortcut = None if block.conv_shortcut is None else Convolution(block.conv_shortcut)

    def passed_by(first, last):
        rows = x[:, first:last]
        return rows if shortcut is None else shortcut(rows)

    return convolved(block.conv2, h, Norm(block.norm2, h, act), add=passed_by, out=h)


def _ending(network, h):
    return convolved(network.conv_out, h, Norm(network.conv_norm_out, h))


def convolved(conv, x, norm=None, *, upsample=1, add=None, out=None):
    """A Conv2d of a map x (1, H, W, C), band by band.

    norm: makes of rows of x what is convolved. upsample: that is enlarged first, by repeating pixels. add: gives the
    rows [first, last) of what is added to the result. out: where the result goes, x itself if there is a norm and it
    has that shape.
    """
    layer = Convolution(conv, upsample)
    height, width, channels = upsample * x.shape[1], upsample * x.shape[2], x.shape[3]
    shape = (1, *layer.result(height, width))
    out = np.empty(shape, x.dtype) if out is None else out
    cut = bands(shape[1], shape[2], max(channels, shape[3]))
    seen = [layer.sees(first, last, height) for first, last in cut]
    rows = Rows(x) if norm is None else NormalisedRows(x, norm, max(end - begin for begin, end, *_ in seen))
    for (first, last), (begin, end, *padding) in zip(cut, seen, strict=True):
        added = None if add is None else add(first, last)
        layer(rows(begin, end), padding, added, out[:, first:last])
    return out


class Rows:
    """Rows [begin, end) of a map (1, H, W, C), as a view."""

    def __init__(self, x):
        self.x = x

    def __call__(self, begin, end):
        return self.x[:, begin:end]


class NormalisedRows(Rows):
    """Like Rows, normalised, with a maximum number of rows; the next ones reuse the memory. Rows that two bands read
    are normalised once: the first band may have overwritten them.
    """

    def __init__(self, x, norm, most):
        super().__init__(x)
        self.norm, self.made, self.begin, self.end = norm, np.empty((1, most, *x.shape[2:]), x.dtype), 0, 0

    def __call__(self, begin, end):
        kept = max(self.end - begin, 0)
        self.made[:, :kept] = self.made[:, begin - self.begin :][:, :kept]
        first = max(begin, self.end)
        self.norm(self.x[:, first:end], self.made[:, kept : kept + end - first])
        self.begin, self.end = begin, end
        return self.made[:, : end - begin]


def bands(height, width, channels):
    """[(first, last), ..]: the bands of a map, none with less than LEAST rows unless it is the only one."""
    rows = max(LEAST, BAND // (width * channels) // TILE * TILE) if width >= LEAST else height
    starts = range(0, max(height - LEAST, 0) + 1, rows)
    return list(zip(starts, [*starts[1:], height], strict=True))


class Norm:
    """A GroupNorm and the activation after it, for a map x (1, H, W, C): called with some of its rows."""

    def __init__(self, norm, x, act=None):
        self.mean, self.rstd = statistics(x, norm.groups, norm.eps)
        self.gamma, self.beta = norm.weight.data, norm.bias.data  # parameters are read once: they may be in a file
        self.silu, self.act = norm.activation == "silu", act

    def __call__(self, rows, out):
        """Normalises some rows into `out`."""
        normalised(rows, self.gamma, self.beta, self.mean, self.rstd, self.silu, out)
        if self.act is not None:
            out[...] = self.act(Tensor(out)).data


class Convolution:
    """A Conv2d of some rows of a map, which is upsampled first."""

    def __init__(self, conv, upsample=1):
        self.weight, self.bias = conv.weight.data, None if conv.bias is None else conv.bias.data
        self.stride, ((self.top, self.bottom), self.sides) = conv.stride, as_padding(conv.padding)
        self.upsample = upsample

    def result(self, height, width):
        """The output shape (height, width, channels) for an upsampled map of this size."""
        kh, kw, _, channels = self.weight.shape
        padded = height + self.top + self.bottom, width + sum(self.sides)
        return *((side - k) // self.stride + 1 for side, k in zip(padded, (kh, kw), strict=True)), channels

    def sees(self, first, last, height):
        """(begin, end, above, below): the rows of the map that rows [first, last) of the result see, and the rows of
        zeros around them once they are enlarged, to `height` the whole map; a negative number of them means rows to
        omit.
        """
        above = first * self.stride - self.top
        below = above + (last - first - 1) * self.stride + self.weight.shape[0]
        begin, end = max(above, 0) // self.upsample, -(-min(below, height) // self.upsample)
        return begin, end, self.upsample * begin - above, below - self.upsample * end

    def __call__(self, rows, padding=(0, 0), add=None, out=None):
        """rows, add: arrays (1, R, W, C). padding: rows of zeros above and below. out: the array for the result."""
        window = Window((self.stride,) * 2, (tuple(padding), self.sides), (self.upsample,) * 2)
        if out is None:
            out = np.empty((1, *self.result(len(rows[0]), rows.shape[2])), rows.dtype)
        return convolve(contiguous(rows), contiguous(self.weight), self.bias, add, window, out)

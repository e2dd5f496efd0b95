"""Layers along time, for clips whose frames are folded into the sample axis: (N F, H, W, C).

Names and structure are those of diffusers' TemporalConvLayer and TransformerTemporalModel. Both start as the identity,
so an image network with these layers in between still generates its images, one per frame (Singer et al. 2022,
"Make-A-Video", section 3.2).
"""

import math

import numpy as np

from pydiff import ops
from pydiff.nn.layers import Dropout, GroupNorm, Linear
from pydiff.nn.module import Module, Parameter
from pydiff.nn.transformer import BasicTransformerBlock


class TemporalConv(Module):
    """A convolution over 3 neighbouring frames, each pixel separately: (N, F, P, C) -> same shape, zeros outside.

    weight (3, 1, 1, C, C), in files PyTorch's Conv3d layout. zero: whether it starts at 0.
    """

    def __init__(self, channels, zero=False):
        bound = 0.0 if zero else 1 / math.sqrt(3 * channels)
        weight = np.zeros((3, 1, 1, channels, channels), np.float32)
        self.weight = Parameter(weight, bound, file_axes=(4, 3, 0, 1, 2))
        self.bias = Parameter(np.zeros(channels, np.float32), bound)

    def forward(self, x, add=None):
        c = x.shape[3]
        return ops.conv2d(x, self.weight.reshape((3, 1, c, c)), self.bias, 1, (1, 0), add=add)


class TemporalConvLayer(Module):
    """Four temporal convolutions, each after a normalisation over the whole clip and silu, added to the input.

    (N F, H, W, C) -> same shape. The last convolution starts at 0. dropout: before the second, third and fourth.
    """

    def __init__(self, channels, groups, dropout=0.0):
        def part(last=False, drop=0.0):
            inner = [Dropout(drop)] if drop else [None]
            return [GroupNorm(groups, channels, activation="silu"), None, *inner, TemporalConv(channels, zero=last)]

        first = part()
        self.conv1 = [first[0], None, first[3]]  # without dropout: the convolution is number 2 in files
        self.conv2, self.conv3 = part(drop=dropout), part(drop=dropout)
        self.conv4 = part(last=True, drop=dropout)

    def forward(self, x, frames):
        n, height, width, c = x.shape
        x = h = x.reshape((n // frames, frames, height * width, c))
        for i, (norm, *between, conv) in enumerate((self.conv1, self.conv2, self.conv3, self.conv4)):
            h = norm(h)
            for module in between:
                h = h if module is None else module(h)
            h = conv(h, add=x if i == 3 else None)
        return h.reshape((n, height, width, c))


class TemporalBlock(BasicTransformerBlock):
    """A transformer block with two self-attentions, diffusers' "double self attention"."""

    def __init__(self, channels, heads, head_dim, activation="geglu"):
        super().__init__(channels, heads, head_dim, context_channels=channels, activation=activation)

    def forward(self, x):
        x = self.attn1(self.norm1(x), add=x)
        x = self.attn2(self.norm2(x), add=x)
        return self.ff(self.norm3(x), add=x)


class TransformerTemporalModel(Module):
    """A transformer over the frames, for each pixel separately, between two projections, added to the input.

    (N F, H, W, C) -> same shape; heads head_dim channels inside. The last projection starts at 0.
    """

    def __init__(self, channels, heads, head_dim, groups, activation="geglu"):
        inner = heads * head_dim
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, inner)
        self.transformer_blocks = [TemporalBlock(inner, heads, head_dim, activation)]
        self.proj_out = Linear(inner, channels)
        for p in (self.proj_out.weight, self.proj_out.bias):
            p.bound = 0.0  # pyright: ignore[reportOptionalMemberAccess]

    def forward(self, x, frames):
        n, height, width, c = x.shape
        clip = (n // frames, frames, height * width, c)
        h = self.norm(x.reshape(clip)).transpose((0, 2, 1, 3)).reshape((n // frames * height * width, frames, c))
        h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h)
        h = self.proj_out(h).reshape((n // frames, height * width, frames, c)).transpose((0, 2, 1, 3))
        return h.reshape((n, height, width, c)) + x

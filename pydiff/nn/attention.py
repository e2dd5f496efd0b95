"""Attention layers: the projections around ops.attention, alone and with diffusers' normalisation and residual."""

import math

from pydiff import ops
from pydiff.nn.layers import Dropout, GroupNorm, Linear
from pydiff.nn.module import Module


class MultiHeadAttention(Module):
    """Every position of x attends to all positions of x, or of a context (Vaswani et al. 2017, section 3.2.2):

        out = to_out(attention(to_q(x), to_k(context), to_v(context)))

    x: (N, T, C), context: (N, Tk, context_channels) -> (N, T, C). heads·head_dim channels inside. There is no
    normalisation or residual, but `add` (N, T, C) is added in the same pass. causal, key_mask: as in ops.attention.
    bias: whether the projections of q, k and v have one; dropout: applied to the result, before `add`.
    """

    def __init__(self, channels, heads, head_dim, context_channels=None, bias=True, dropout=0.0):
        inner = heads * head_dim
        self.to_q = Linear(channels, inner, bias)
        self.to_k = Linear(context_channels or channels, inner, bias)
        self.to_v = Linear(context_channels or channels, inner, bias)
        self.to_out = [Linear(inner, channels), *([Dropout(dropout)] if dropout else [])]
        self.heads = heads

    def forward(self, x, context=None, add=None, causal=False, key_mask=None):
        context = x if context is None else context
        h = ops.attention(
            self.to_q(x), self.to_k(context), self.to_v(context), self.heads, causal=causal, key_mask=key_mask
        )
        if len(self.to_out) == 1:
            return self.to_out[0](h, add=add)
        h = self.to_out[1](self.to_out[0](h))
        return h if add is None else h + add


class Attention(MultiHeadAttention):
    """Multi-head attention of all positions to each other (or to a context), with normalisation before and a residual
    after.

    x: (N, ..., C) -> same shape. heads·head_dim channels inside; groups None omits the normalisation. The sum is
    multiplied by 1 / output_scale.
    """

    def __init__(self, channels, head_dim, groups, eps=1e-5, output_scale=1.0, context_channels=None):
        if not 1 <= head_dim <= channels:
            raise ValueError(f"attention_head_dim must be from 1 to the {channels} channels at hand, got {head_dim}")
        self.group_norm = GroupNorm(groups, channels, eps) if groups else None
        super().__init__(channels, channels // head_dim, head_dim, context_channels)
        self.output_scale = output_scale

    def forward(self, x, context=None):
        tokens = (len(x), math.prod(x.shape[1:-1]), x.shape[-1])
        h = self.group_norm(x) if self.group_norm else x
        h = super().forward(h.reshape(tokens), context, add=x.reshape(tokens)).reshape(x.shape)
        return h if self.output_scale == 1 else h * (1 / self.output_scale)

"""Transformer blocks with the names of diffusers' checkpoints: BasicTransformerBlock and Transformer2DModel, which put
a prompt's states into a U-Net (Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models",
section 3.3 and appendix E.2.1).
"""

from typing import Any

from pydiff import ops
from pydiff.nn.attention import MultiHeadAttention
from pydiff.nn.layers import Conv2d, Dropout, GroupNorm, LayerNorm, Linear
from pydiff.nn.module import Module

ACTIVATIONS = {
    "geglu": ops.geglu,
    "gelu": ops.gelu,
    "gelu-approximate": lambda x: ops.gelu(x, approximate="tanh"),
    "geglu-approximate": ops.quick_gelu,  # diffusers' name, though it has no gate
}


def once_for_each(x, contexts):
    """x (N, ..) repeated for every one of the k contexts in contexts (k N, ..), one copy after the other: (k N, ..)."""
    if len(x) == len(contexts):
        return x
    return ops.concatenate(*[x] * (len(contexts) // len(x)), axis=0)


class ProjectedActivation(Module):
    """activation(proj(x)); the gate of GEGLU takes a projection twice as wide."""

    def __init__(self, cin, cout, activation):
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.proj = Linear(cin, 2 * cout if activation == "geglu" else cout)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x):
        return self.activation(self.proj(x))


class FeedForward(Module):
    """Two linear layers around an activation, for every position separately: x (N, T, C) -> (N, T, C) (+ add)."""

    def __init__(self, channels, activation="geglu", dropout=0.0, width=4):
        inner = width * channels
        self.net = [ProjectedActivation(channels, inner, activation), Dropout(dropout), Linear(inner, channels)]

    def forward(self, x, add=None):
        return self.net[2](self.net[1](self.net[0](x)), add=add)


class BasicTransformerBlock(Module):
    """Self-attention, cross-attention to a context, and a feed-forward part, each after a layer norm and with a
    residual:

        x = x + attn1(norm1(x));   x = x + attn2(norm2(x), context);   x = x + ff(norm3(x))

    x: (N, T, C) -> (N, T, C); context: (N, Tk, context_channels), key_mask: bool (N, Tk) for it, or None. For k
    contexts per x, (k N, ..), there are k results; what precedes the first use of a context is computed once.
    context_channels None omits attn2. only_cross_attention: attn1 also attends to the context. bias: whether the
    projections of q, k and v have one.
    """

    def __init__(
        self, channels, heads, head_dim, context_channels=None, dropout=0.0, activation="geglu", bias=False,
        only_cross_attention=False,
    ):  # fmt: skip
        options = {"bias": bias, "dropout": dropout}
        self.norm1 = LayerNorm(channels)
        first = context_channels if only_cross_attention else None
        self.attn1 = MultiHeadAttention(channels, heads, head_dim, first, **options)
        self.norm2: Any = None
        self.attn2: Any = None
        if context_channels is not None:
            self.norm2 = LayerNorm(channels)
            self.attn2 = MultiHeadAttention(channels, heads, head_dim, context_channels, **options)
        self.norm3 = LayerNorm(channels)
        self.ff = FeedForward(channels, activation, dropout)
        self.only_cross_attention = only_cross_attention

    def forward(self, x, context=None, key_mask=None):
        if self.attn2 is not None and context is None:
            raise ValueError("this transformer block attends to a context, such as a prompt's states, and got none")
        first = context if self.only_cross_attention else None  # unmasked, as in diffusers, whose checkpoints these are
        x = x if first is None else once_for_each(x, first)
        x = self.attn1(self.norm1(x), first, add=x)
        if self.attn2 is not None:
            x = once_for_each(x, context)
            x = self.attn2(self.norm2(x), context, add=x, key_mask=key_mask)
        return self.ff(self.norm3(x), add=x)


class Transformer2DModel(Module):
    """Transformer blocks over the pixels of an image, between two projections, with a residual:

        x = x + proj_out(blocks(proj_in(norm(x))))

    x: (N, H, W, C) -> same shape; context, key_mask: as in BasicTransformerBlock. heads·head_dim channels inside.
    use_linear_projection: whether the checkpoint stores the projections as linear layers, (out, in), instead of 1 x 1
    convolutions, (out, in, 1, 1); the numbers are the same. block: further options of BasicTransformerBlock.
    """

    def __init__(
        self, channels, heads, head_dim, layers=1, context_channels=None, groups=32, use_linear_projection=False,
        **block,
    ):  # fmt: skip
        inner = heads * head_dim
        projection = Linear if use_linear_projection else lambda cin, cout: Conv2d(cin, cout, 1)
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = projection(channels, inner)
        self.transformer_blocks = [
            BasicTransformerBlock(inner, heads, head_dim, context_channels, **block) for _ in range(layers)
        ]
        self.proj_out = projection(inner, channels)

    def forward(self, x, context=None, key_mask=None):
        n, height, width, _ = x.shape
        h = self.proj_in(self.norm(x))  # (N, H, W, inner)
        h = h.reshape(n, height * width, h.shape[3])
        for block in self.transformer_blocks:
            h = block(h, context=context, key_mask=key_mask)
        return self.proj_out(h.reshape(len(h), height, width, h.shape[2]), add=once_for_each(x, h))

"""A classifier of noisy samples, which can steer a network that was trained without classes (diffusion/guidance.py).

It is the descending half of the U-Net (Dhariwal & Nichol 2021, section 4.1): like the network that it steers, it sees
x_t and t, and predicts how likely each class is.
"""

import itertools

import numpy as np

from pydiff import ops
from pydiff.arrays import array_module
from pydiff.models.blocks import DownBlock
from pydiff.models.registry import register
from pydiff.models.unet import TimestepEmbedding, for_each, sinusoids
from pydiff.models.unet1d import LineConv, LineDownBlock
from pydiff.nn import Conv2d, Dropout, GroupNorm, Linear, Module
from pydiff.tensor import Tensor, as_tensor

PARTS = 3  # parts per axis at the bottom, averaged separately, so that their order matters
STRIDE, DILATIONS = 4, (1, 4)  # for lines, as in a run's UNet1D


@register("NoisyClassifier", part=True)
class NoisyClassifier(Module):
    """x_t (N, H, W, in_channels), t (N,) -> scores (N, classes), whose softmax gives the classes' probabilities.

    line: whether x are lines (N, 1, L, C), which are taken four samples at a time, with every level a quarter as long
    as the one above. block_out_channels, layers_per_block, norm_num_groups, dropout, seed: as for UNet2D. attention:
    the levels that have it.
    """

    def __init__(
        self,
        *,
        classes,
        in_channels=1,
        line=False,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        attention=(),
        attention_head_dim=8,
        norm_num_groups=8,
        norm_eps=1e-5,
        dropout=0.0,
        seed=0,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "seed", "__class__")}
        self.config = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
        widths, levels = list(block_out_channels), len(block_out_channels)
        if classes < 2 or not levels or any(not 0 <= level < levels for level in attention):
            raise ValueError(
                f"a classifier needs 2 classes, a level, and attention on levels that it has; got {classes}, {widths}, "
                f"{list(attention)}"
            )
        temb = 4 * widths[0]
        common = {"temb_dim": temb, "groups": norm_num_groups, "eps": norm_eps, "dropout": dropout}
        self.time_embedding = TimestepEmbedding(widths[0], temb)
        self.conv_in = (
            LineConv(in_channels, widths[0], 2 * STRIDE - 1, STRIDE)
            if line
            else Conv2d(in_channels, widths[0], 3, padding=1)
        )
        self.down_blocks, cin = [], widths[0]
        for level, width in enumerate(widths):
            heads, last = attention_head_dim if level in attention else None, level == levels - 1
            if line:
                block = LineDownBlock(
                    cin, width, layers_per_block, heads, None if last else STRIDE, DILATIONS, **common
                )
            else:
                block = DownBlock(cin, width, layers_per_block, heads, None if last else "conv", 1, **common)
            self.down_blocks.append(block)
            cin = width
        self.conv_norm_out = GroupNorm(norm_num_groups, cin, norm_eps, activation="silu")
        self.dropout = Dropout(dropout)
        self.out = Linear((PARTS if line else PARTS**2) * cin, classes)
        self.initialize(seed)

    def forward(self, x, t):
        """x: array or Tensor; t: step numbers (N,), whole or fractional, or one for all."""
        x = as_tensor(x)
        if x.ndim != 4 or x.shape[3] != self.config["in_channels"] or (self.config["line"] and x.shape[1] != 1):
            kind = "lines (N, 1, L," if self.config["line"] else "images (N, H, W,"
            raise ValueError(f"this classifier takes {kind} {self.config['in_channels']}), got {x.shape}")
        numbers = sinusoids(for_each(t, len(x), "step numbers"), self.config["block_out_channels"][0])
        step = Tensor(array_module(x.data).asarray(numbers.astype(x.dtype)))
        temb = ops.silu(self.time_embedding(step))
        h = self.conv_in(x)
        for block in self.down_blocks:
            h, _ = block(h, temb)
        h = self.conv_norm_out(h)
        rows = parts_of(h.shape[1]) if not self.config["line"] else [(0, 1)]
        means = [h[:, a:b, c:d].mean(axis=(1, 2)) for a, b in rows for c, d in parts_of(h.shape[2])]
        return self.out(self.dropout(ops.concatenate(*means, axis=-1)))


def parts_of(size: int) -> list[tuple[int, int]]:
    """PARTS pieces (from, to) of an axis, of equal lengths up to one; they overlap if the axis is shorter."""
    cuts = np.linspace(0, size, PARTS + 1)
    return [(min(int(a), size - 1), max(int(np.ceil(b)), 1)) for a, b in itertools.pairwise(cuts)]

"""A network for points: rows of a few numbers instead of images (Sohl-Dickstein et al. 2015, section 3.1.1).

Residual blocks of two linear layers with the step number in between, as in the U-Net, but every layer sees all
coordinates of a point: they have no spatial neighbourhood.
"""

import numpy as np

from pydiff import ops
from pydiff.arrays import array_module, to_host
from pydiff.models.registry import register
from pydiff.models.unet import TimestepEmbedding, check_told, for_each, sinusoids
from pydiff.nn import Dropout, Embedding, LayerNorm, Linear, Module
from pydiff.tensor import Tensor, as_tensor


class PointsBlock(Module):
    """x + linear(silu(linear(norm(x)) + step)): (N, C) -> (N, C)."""

    def __init__(self, channels, temb_dim, dropout):
        self.norm, self.inner = LayerNorm(channels), Linear(channels, channels)
        self.step, self.outer = Linear(temb_dim, channels), Linear(channels, channels)
        self.dropout = Dropout(dropout)

    def forward(self, x, temb):
        h = ops.silu(self.inner(self.norm(x), add=self.step(temb)))
        return self.outer(self.dropout(h), add=x)


@register("PointsMLP")
class PointsMLP(Module):
    """Predicts the process's target from points (x_t, t).

    in_channels, out_channels: coordinates of a point. width: channels inside. layers: residual blocks.
    num_class_embeds: rows of the class embedding table, or None. dropout: fraction of activations dropped in every
    block. seed: of the initial weights.
    """

    def __init__(
        self, *, in_channels=2, out_channels=2, width=128, layers=4, num_class_embeds=None, dropout=0.0, seed=0
    ):
        self.config = {
            "in_channels": in_channels, "out_channels": out_channels, "width": width, "layers": layers,
            "num_class_embeds": num_class_embeds, "dropout": dropout,
        }  # fmt: skip
        if min(in_channels, out_channels, width, layers) < 1:
            raise ValueError(f"in_channels, out_channels, width and layers must be at least 1, got {self.config}")
        self.linear_in = Linear(in_channels, width)
        self.time_embedding = TimestepEmbedding(width, width)
        self.class_embedding = None if num_class_embeds is None else Embedding(num_class_embeds, width)
        self.blocks = [PointsBlock(width, width, dropout) for _ in range(layers)]
        self.norm_out, self.linear_out = LayerNorm(width), Linear(width, out_channels)
        self.initialize(seed)

    def forward(self, x, t, class_labels=None):
        """x: (N, in_channels) array or Tensor; t: step numbers (N,) or one for all; class_labels: (N,) integers.

        Returns a Tensor (N, out_channels).
        """
        x = self.checked(x)
        return self.body(x, **self.encoded(x.data, t, class_labels))

    def checked(self, x):
        """x as a Tensor. Raises ValueError for points that this network cannot take."""
        x = as_tensor(x)
        if x.ndim != 2 or x.shape[1] != self.config["in_channels"]:
            raise ValueError(f"this network takes points (N, {self.config['in_channels']}), got {x.shape}")
        return x

    def encoded(self, like, t, class_labels=None):
        """Sinusoids of t and rows of the class embedding table, for the body: Tensors by name."""
        check_told(self.class_embedding is not None, class_labels)
        waves = sinusoids(for_each(t, len(like), "step numbers"), self.config["width"])
        made = {"step": Tensor(array_module(like).asarray(waves.astype(like.dtype)))}
        if class_labels is not None:
            labels = for_each(np.asarray(to_host(class_labels)), len(like), "class labels")
            made["label"] = self.class_embedding(labels)  # pyright: ignore[reportOptionalCall]
        return made

    def body(self, x, step, label=None):
        """Everything between the encoded inputs and the result. Only operations on Tensors: graph.py records them."""
        temb = self.time_embedding(step)
        temb = ops.silu(temb if label is None else temb + label)
        h = self.linear_in(x)
        for block in self.blocks:
            h = block(h, temb)
        return self.linear_out(ops.silu(self.norm_out(h)))

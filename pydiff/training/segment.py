"""Segmentation, the origin of the U-Net (Ronneberger et al. 2015): predicting what every pixel of an image shows.

The same network as in diffusion, with a channel for each class in place of the noise, and the step number always 0.
"""

import numpy as np

from pydiff import ops
from pydiff.arrays import array_module
from pydiff.data.order import batch_indices, flip
from pydiff.models import UNet2D
from pydiff.tensor import Tensor
from pydiff.training.config import default_channels
from pydiff.training.task import Task


class SegmentTask(Task):
    """Training a U-Net to predict masks from images.

    data: data.masks.Masked. options: LoopOptions. dice: weight of the Dice loss relative to the cross-entropy.
    mirror: whether half of the images are mirrored, with their masks. channels, groups, model: of another U-Net.
    """

    unit = "images"

    def __init__(self, data, options, *, dice=1.0, mirror=True, channels=None, groups=8, model=None):
        if not dice >= 0:
            raise ValueError(f"dice is {dice}, expected 0 (cross-entropy alone) or more")
        self.data, self.options, self.dice, self.mirror = data, options, float(dice), mirror
        self.model = segmenter(data, options.seed, channels, groups) if model is None else model

    def batch(self, step, numbers):
        """(x (n, H, W, C), masks (n, H, W))"""
        seed, numbers = self.options.seed, np.asarray(numbers)
        chosen = batch_indices(len(self.data), self.options.batch_size, step - 1, seed)[numbers]
        x, masks = self.data.normalized(chosen), self.data.masks[chosen]
        if self.mirror:
            x, masks = flip(x, step, seed, numbers), flip(masks[..., None], step, seed, numbers)[..., 0]
        return self.xp.asarray(x), self.xp.asarray(masks)

    def losses(self, batch):
        """Cross-entropy per pixel plus `dice` times the Dice loss, one per sample, (N,)."""
        x, masks = batch
        return segmentation_losses(self.model(Tensor(x), np.zeros(len(x))), masks, self.dice)

    def identity(self):
        """The data and the weight of the Dice loss."""
        return {
            "data": self.data.name, "fingerprint": self.data.fingerprint(), "model": "UNet2DModel, segmenting",
            "codec": {"classes": self.data.classes, "dice": self.dice, "mirror": self.mirror},
        }  # fmt: skip


def segmenter(data, seed=0, channels=None, groups=8) -> UNet2D:
    """The U-Net for these images and classes, with attention on levels of 8 x 8 pixels or fewer."""
    _, height, width, c = data.images.shape
    channels = list(channels or default_channels(min(height, width)))
    attends = [i > 0 and min(height, width) / 2**i <= 8 for i in range(len(channels))]
    return UNet2D(
        sample_size=height if height == width else [height, width],
        in_channels=c,
        out_channels=len(data.classes),
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=[f"{'Attn' * a}DownBlock2D" for a in attends],
        up_block_types=[f"{'Attn' * a}UpBlock2D" for a in reversed(attends)],
        norm_num_groups=groups,
        seed=seed,
    )


def segmentation_losses(scores, masks, dice=1.0) -> Tensor:
    """scores: Tensor (N, H, W, K); masks: (N, H, W) integers -> (N,): mean of -log p(class), plus dice (1 - D).

    D = mean over the classes of (2 sum p g + 1) / (sum p + sum g + 1), with sums over the pixels and g = 1 where the
    mask has the class (Milletari et al. 2016, "V-Net", eq. 1, here with the plain sums of Sudre et al. 2017).
    """
    n, _, _, classes = scores.shape
    truth = (masks[..., None] == array_module(masks).arange(classes)).astype(scores.dtype).reshape(n, -1, classes)
    log_p = ops.log_softmax(scores.reshape((n, truth.shape[1], classes)))
    loss = -(log_p * truth).sum(axis=(1, 2)) * (1.0 / truth.shape[1])
    if not dice:
        return loss
    p = ops.exp(log_p)
    overlap = (2.0 * (p * truth).sum(axis=1) + 1.0) / (p.sum(axis=1) + truth.sum(axis=1) + 1.0)
    return loss + (1.0 - overlap.mean(axis=1)) * dice

"""The front door to segmentation: `train` learns masks, a Segmenter predicts the class of every pixel of an image.

result = pydiff.segment.train("shapes", out="runs/shapes")       result.segmenter.predict(images) -> masks
pydiff.segment.load("runs/shapes")                               the Segmenter from the run's folder
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pydiff import backend
from pydiff.arrays import to_host
from pydiff.codec import from_uint8
from pydiff.data.masks import Masked, load_masked
from pydiff.formats.diffusers.parameters import ways_to_write
from pydiff.formats.diffusers.unet import read_config, read_model
from pydiff.formats.files import folder_path
from pydiff.formats.safetensors import CheckpointError
from pydiff.models import MODELS, name_of
from pydiff.report.masks_page import write_masks_page
from pydiff.store import checkpoint
from pydiff.store.log import Log
from pydiff.tensor import Tensor, no_grad
from pydiff.training.config import LoopOptions
from pydiff.training.distributed import join, settled
from pydiff.training.loop import fit, opened
from pydiff.training.segment import SegmentTask

HELD_OUT = 0.2


class Segmenter:
    """A trained network with its classes. model: a UNet2D with one output channel per class. classes: their names."""

    def __init__(self, model, classes, device="cpu"):
        self.model, self.classes, self.device = model, list(classes), device

    @property
    def shape(self):
        """(H, W, C) of the images it was trained with; other sizes with even sides are also accepted."""
        size = self.model.config["sample_size"]
        height, width = size if isinstance(size, list) else (size, size)
        return height, width, self.model.config["in_channels"]

    def scores(self, images, batch_size=64):
        """images (N, H, W, C) uint8 -> (N, H, W, K) float32, the logits of the classes."""
        images = np.asarray(images)
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] != self.shape[2] or not len(images):
            raise ValueError(f"images are {images.dtype} {images.shape}, expected uint8 (N, H, W, {self.shape[2]})")
        parts = []
        with backend.use_device(self.device) as xp, no_grad():
            for first in range(0, len(images), batch_size):
                x = xp.asarray(from_uint8(images[first : first + batch_size]))
                parts.append(to_host(self.model(Tensor(x), np.zeros(len(x))).data))
        return np.concatenate(parts)

    def predict(self, images, batch_size=64):
        """images (N, H, W, C) uint8 -> masks (N, H, W) int64, the most likely class of every pixel."""
        return self.scores(images, batch_size).argmax(axis=-1)

    def save(self, directory):
        """Writes the model as a folder that `load` opens; the network in it is a UNet2DModel of diffusers."""
        extra = {"segmentation": {"classes": self.classes}}
        arrays = ways_to_write(self.model)
        checkpoint.save_model(directory, self.model.config, arrays, extra, name_of(self.model))


class Segmented(NamedTuple):
    """The result of `train`. scores: see `evaluated`. held_out: Masked; predicted, threshold: (N, H, W), the masks that
    the network and the threshold predict for it. log: one dict per step. page: in the run's folder, or None.
    """

    segmenter: Segmenter
    scores: dict
    held_out: Masked
    predicted: np.ndarray
    threshold: np.ndarray
    log: list
    page: Path | None


def train(
    data, *, out=None, size=None, dice=1.0, mirror=True, channels=None, device="cpu", progress=True,
    distributed="auto", **options,
):  # fmt: skip
    """Trains a U-Net to classify every pixel, on four fifths of the data, and evaluates it on the rest: Segmented.

    data: "shapes", a folder with images/ and masks/, or a Masked. out: folder for checkpoints, log, page and model; the
    same call continues where the last one stopped. dice: weight of the Dice loss relative to the cross-entropy.
    distributed: see `pydiff.train`. options: those of LoopOptions. Raises ValueError for data and options that cannot
    work.
    """
    group = join(distributed)
    with group.together(), group.own_processors(device):
        options = {"steps": 600, "batch_size": 32, "lr": 2e-3, "ema": 0.995, **options}
        options = settled(LoopOptions.from_keywords(options), out, group)
        with backend.use_device(device):
            masked = load_masked(data, size)
            kept, held_out = masked.split(HELD_OUT, options.seed)
            task = SegmentTask(kept, options, dice=dice, mirror=mirror, channels=channels)
        with opened(task, options, out, device, group) as (trainer, folder):
            log = Log() if folder is None else folder.log
            fit(trainer, log, folder, progress=progress and group.first)
            segmenter = Segmenter(trainer.ema_model(), masked.classes, device)
            if folder is not None:
                segmenter.save(folder.path / "model")
            predicted, threshold = segmenter.predict(held_out.images), threshold_baseline(kept, held_out.images)
            found = evaluated(predicted, threshold, held_out)
            result, page = (segmenter, found, held_out, predicted, threshold, list(log.entries)), None
            if folder is not None:
                page = write_masks_page(folder.path / "segmentation.html", *result[1:])
    return Segmented(*result, page)


def load(directory, device="cpu") -> Segmenter:
    """The Segmenter in a run's folder or its model folder. Raises FileNotFoundError or CheckpointError if there is
    none.
    """
    directory = folder_path(directory)
    directory = directory / "model" if (directory / "model").is_dir() else directory
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a folder; give the folder of a segmentation run")
    with checkpoint.open_model(directory, MODELS) as found:
        told = found.extra.get("segmentation")
        if not isinstance(told, dict) or not isinstance(told.get("classes"), list):
            raise CheckpointError(f"{directory} holds a model that segments nothing; open it with pydiff.load.")
        checked = read_config({**found.config, "_class_name": found.class_name}, directory)
        model = read_model(checked, found.weights, directory)
    if model.config["out_channels"] != len(told["classes"]):
        raise CheckpointError(f"{directory} names {len(told['classes'])} classes for another number of channels.")
    with backend.use_device(device) as xp:
        model.to(xp)
    return Segmenter(model, told["classes"], device)


def iou(predicted, truth, classes):
    """Intersection over union of every class, over all pixels: (K,), NaN for a class that occurs in neither."""
    found = np.full(classes, np.nan)
    for k in range(classes):
        a, b = predicted == k, truth == k
        union = np.count_nonzero(a | b)
        found[k] = np.count_nonzero(a & b) / union if union else np.nan
    return found


def threshold_baseline(kept, images):
    """Masks (N, H, W) predicted by thresholds on brightness or colour, chosen on the data `kept`.

    For two classes: the grey threshold, and its direction, with the best mean IoU. For more: every pixel gets the class
    whose mean colour is nearest.
    """
    classes = len(kept.classes)
    if classes == 2:
        grey, other = kept.images.mean(axis=-1), images.mean(axis=-1)
        best = (-1.0, 0.0, False)
        for level in np.quantile(grey, np.linspace(0.01, 0.99, 99)):
            for dark in (False, True):
                best = max(best, (float(np.nanmean(iou((grey > level) ^ dark, kept.masks, 2))), float(level), dark))
        return ((other > best[1]) ^ best[2]).astype(np.int64)
    means = np.stack([
        kept.images[kept.masks == k].mean(axis=0) if (kept.masks == k).any() else np.full(kept.images.shape[-1], 1e9)
        for k in range(classes)
    ])  # fmt: skip
    return ((images[..., None, :] - means) ** 2).sum(axis=-1).argmin(axis=-1)


def evaluated(predicted, threshold, held_out):
    """IoU of every class and accuracy over the pixels, for the network's masks and the threshold's."""
    count, truth = len(held_out.classes), held_out.masks
    found = {"images": len(held_out), "classes": held_out.classes}
    for name, masks in (("network", predicted), ("threshold", threshold)):
        each = iou(masks, truth, count)
        told = {
            "iou": [None if np.isnan(value) else float(value) for value in each],
            "mean iou": float(np.nanmean(each)),
        }
        found[name] = {**told, "accuracy": float((masks == truth).mean())}
    return found

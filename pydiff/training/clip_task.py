"""Clips and images together: in some steps the network sees images, past its layers of time (Ho et al. 2022, "Video
diffusion models", section 3.1; Singer et al. 2022). There are more images than clips, and they are cheaper.
"""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from pydiff.codec import Pixels
from pydiff.data import load
from pydiff.training.task import DiffusionTask

SHARE = 0.5


def task_for(dataset, options, model=None, codec=None, images=None) -> DiffusionTask:
    """What is to be learned: of one data set, or, with `images`, of clips and images.

    images: whatever pydiff.data.load takes, or "frames" for the clips' own.
    """
    if images is None and options.image_share is not None:
        raise ValueError("image_share is for clips that are learned beside images; give images, or leave it out")
    if images is None:
        return DiffusionTask(dataset, options, model, codec)
    if not isinstance(images, str) or images != "frames":
        images = load(images, size=dataset.shape[-3:-1], channels=dataset.shape[-1])
    return JointTask(dataset, options, images, model, codec)


class JointTask(DiffusionTask):
    """Learns clips from one data set and, in a share of the steps, images from another.

    dataset: of clips. images: of images with as many pixels and channels as a frame, or "frames" for the clips' own. A
    step of images has F of them in the place of a clip. Other arguments: see DiffusionTask. Raises ValueError for
    images that do not fit.
    """

    def __init__(self, dataset, options, images, model=None, codec=None):
        super().__init__(dataset, options, model, codec)
        if len(self.codec.shape) != 4:
            raise ValueError(f"images can be learned beside clips, and {dataset.name} holds none; leave images out")
        if options.timestep_sampling == "loss_aware":
            raise ValueError("timestep_sampling='loss_aware' keeps one history, and clips and images need two")
        self.images: Any = dataset.stills() if isinstance(images, str) and images == "frames" else images
        if self.images.shape != tuple(self.codec.shape[1:]):
            raise ValueError(
                f"the images of {self.images.name} have shape {self.images.shape}, the frames {self.codec.shape[1:]}; "
                "load them with that size and so many channels"
            )
        if self.conditioning.classes is not None and self.images.classes != self.conditioning.classes:
            raise ValueError(f"{self.images.name} has other classes than {dataset.name}; leave images or classes out")
        self.frames, self.share = self.codec.shape[0], SHARE if options.image_share is None else options.image_share
        plain = dataclasses.replace(options, batch_size=options.batch_size * self.frames, text="none")
        self.still = DiffusionTask(self.images, plain, self.model, Pixels(self.images.shape))
        self.still.conditioning = self.conditioning
        if self.captions is not None:
            self.still.captions = self.images.captions or ((),) * len(self.images)

    def to(self, xp):
        """Moves the model, and where both kinds of batches are put."""
        self.still.xp = xp
        return super().to(xp)

    def shows_images(self, step) -> bool:
        """Whether this step (from 1) is one of images; they are spread evenly, `share` of all steps."""
        return int(step * self.share) > int((step - 1) * self.share)

    def batch(self, step, numbers):
        """Of clips, or F images for each number."""
        if not self.shows_images(step):
            return super().batch(step, numbers)
        numbers = np.asarray(numbers)[:, None] * self.frames + np.arange(self.frames)
        return self.still.batch(step, numbers.ravel())

    def losses(self, batch):
        """(N,), of images the mean of F."""
        if batch.x0.ndim == 5:
            return super().losses(batch)
        return self.still.losses(batch).reshape((-1, self.frames)).mean(axis=1)

    def identity(self):
        """That of the clips, with the images in the fingerprint."""
        known = super().identity()
        both = hashlib.sha256((known["fingerprint"] + self.images.fingerprint()).encode()).hexdigest()
        return {**known, "fingerprint": both, "images": self.images.name}

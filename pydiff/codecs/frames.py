"""Clips: sequences of uint8 frames whose pixels are diffused, as Pixels does for images."""

import numpy as np

from pydiff.codec import Levels, register


@register
class Frames(Levels):
    """Clips (N, F, H, W, C), uint8 or floats in [-1, 1].

    rate: frames per second, for display. Shown as an image, a clip is its frames side by side.
    """

    kind, noun, called = "frames", "clip", "clips"

    def __init__(self, shape, rate=8.0):
        super().__init__(shape)
        self.rate = float(rate)

    def show(self, samples):
        """(N, F, H, W, C) -> (N, H, F W, C) uint8: the frames side by side."""
        return strip(super().show(np.asarray(samples)))

    def show_noise(self, eps):
        """Noise as frames side by side: +-3 standard deviations are white and black."""
        return strip(super().show_noise(eps))

    mask_forms = "(F,), (H, W), (F, H, W) or (N, F, H, W, 1)"

    def mask_axes(self, mask):
        """A mask of whole frames (F,), of the same region of all frames (H, W), or of both, with all axes of clips."""
        lifted = {1: (None, ..., None, None, None), 2: (None, None, ..., None), 3: (None, ..., None)}
        return mask[lifted[mask.ndim]] if mask.ndim in lifted else mask

    def to_config(self):
        """A dict for JSON; `from_config` turns it into an equal codec."""
        return {"kind": self.kind, "shape": list(self.shape), "rate": self.rate}

    @classmethod
    def from_config(cls, config):
        """The codec that `to_config` described."""
        return cls(tuple(config["shape"]), config.get("rate", 8.0))


def strip(clips):
    """(N, F, H, W, C) -> (N, H, F W, C): frames side by side."""
    n, frames, height, width, c = clips.shape
    return clips.transpose(0, 2, 1, 3, 4).reshape(n, height, frames * width, c)

"""Clips: uint8 frames one after the other, diffused as they are, as images are by Pixels."""

import numpy as np

from pydiff.codec import Levels, register


@register
class Frames(Levels):
    """Clips (N, F, H, W, C), uint8 or floats in [-1, 1].

    rate: frames a second, for whoever shows them. Images of a clip are its frames side by side, for a page that knows
    nothing of time.
    """

    kind, noun, called = "frames", "clip", "clips"

    def __init__(self, shape, rate=8.0):
        super().__init__(shape)
        self.rate = float(rate)

    def show(self, samples):
        """(N, F, H, W, C) -> (N, H, F W, C) uint8: the frames side by side."""
        return strip(super().show(np.asarray(samples)))

    def show_noise(self, eps):
        """The same of noise: three standard deviations are black and white."""
        return strip(super().show_noise(eps))

    mask_forms = "(F,), (H, W), (F, H, W) or (N, F, H, W, 1)"

    def mask_axes(self, mask):
        """Of whole frames (F,), of the same part of all frames (H, W), or of both."""
        lifted = {1: (None, ..., None, None, None), 2: (None, None, ..., None), 3: (None, ..., None)}
        return mask[lifted[mask.ndim]] if mask.ndim in lifted else mask

    def to_config(self):
        """What JSON has to hold so that `from_config` gives an equal codec."""
        return {"kind": self.kind, "shape": list(self.shape), "rate": self.rate}

    @classmethod
    def from_config(cls, config):
        """The codec that `to_config` described."""
        return cls(tuple(config["shape"]), config.get("rate", 8.0))


def strip(clips):
    """(N, F, H, W, C) -> (N, H, F W, C): frames side by side."""
    n, frames, height, width, c = clips.shape
    return clips.transpose(0, 2, 1, 3, 4).reshape(n, height, frames * width, c)

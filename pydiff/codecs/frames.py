"""Clips: uint8 frames one after the other, diffused as they are, as images are by Pixels."""

import numpy as np

from pydiff.arrays import to_host
from pydiff.codec import PIXEL_RANGE, Codec, from_uint8, register, to_uint8


@register
class Frames(Codec):
    """Clips (N, F, H, W, C), uint8 or floats in [-1, 1].

    rate: frames a second, for whoever shows them. Images of a clip are its frames side by side, for a page that knows
    nothing of time.
    """

    kind = "frames"
    limits = PIXEL_RANGE
    bits = (0.0, True)

    def __init__(self, shape, rate=8.0):
        self._shape, self.rate = tuple(shape), float(rate)

    @property
    def shape(self):
        """(F, H, W, C) of a clip."""
        return self._shape

    def encode(self, samples):
        """uint8 or float32 (N, F, H, W, C) -> float32 in [-1, 1]."""
        samples = np.asarray(samples)
        if samples.dtype not in (np.uint8, np.float32) or samples.ndim != 5 or samples.shape[1:] != self.shape:
            raise self._unfit(samples)
        return from_uint8(samples) if samples.dtype == np.uint8 else samples

    def encode_given(self, samples):
        """uint8 alone: nobody can tell which range the floats of a stranger have."""
        samples = np.asarray(samples)
        if samples.dtype != np.uint8 or not samples.ndim or not len(samples):
            raise self._unfit(samples)
        return self.encode(samples)

    def _unfit(self, samples):
        expected = ", ".join(map(str, self.shape))
        return ValueError(f"clips are {samples.dtype} {samples.shape}, expected uint8 (N, {expected})")

    def decode(self, x):
        """(N, F, H, W, C) floats -> uint8."""
        return to_uint8(to_host(x).clip(*PIXEL_RANGE))

    def show(self, samples):
        """(N, F, H, W, C) -> (N, H, F W, C) uint8: the frames side by side."""
        samples = np.asarray(samples)
        return strip(samples if samples.dtype == np.uint8 else to_uint8(samples))

    def show_noise(self, eps):
        """The same of noise: three standard deviations are black and white."""
        return strip(super().show_noise(eps))

    mask_forms = "(F,), (H, W), (F, H, W) or (N, F, H, W, 1)"

    def mask_axes(self, mask):
        """Of whole frames (F,), of the same part of all frames (H, W), or of both."""
        lifted = {1: (None, ..., None, None, None), 2: (None, None, ..., None), 3: (None, ..., None)}
        return mask[lifted[mask.ndim]] if mask.ndim in lifted else mask

    def to_config(self):
        """For JSON."""
        return {"kind": self.kind, "shape": list(self.shape), "rate": self.rate}

    @classmethod
    def from_config(cls, config):
        """The codec that `to_config` described."""
        return cls(tuple(config["shape"]), config.get("rate", 8.0))


def strip(clips):
    """(N, F, H, W, C) -> (N, H, F W, C): frames side by side."""
    n, frames, height, width, c = clips.shape
    return clips.transpose(0, 2, 1, 3, 4).reshape(n, height, frames * width, c)

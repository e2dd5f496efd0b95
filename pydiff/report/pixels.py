"""From numbers to pixels: the conventions that every picture of the report shares.

Pictures are uint8, channels last. A picture file or a browser shows 1 (grey), 3 (RGB) or 4 (RGBA) channels; of other
counts, `visible` shows the first three channels, or channel 0 of two.
"""

import os

import numpy as np

from pydiff.data.pixels import to_uint8

EPS_LIMIT = 3.0  # standard deviations of noise that black and white stand for; 99.7 % of a normal lies inside


def visible(images):
    """The channels of images (..., C) that can be seen: all of 1, 3 or 4, channel 0 of 2, the first 3 of 5 and more."""
    channels = images.shape[-1]
    if channels in (1, 3, 4):
        return images
    if channels == 0:
        raise ValueError("a picture without channels cannot be shown; expected an array (..., H, W, C) with C >= 1")
    return images[..., :1] if channels == 2 else images[..., :3]


def eps_to_uint8(eps):
    """Noise, any shape, to uint8: [-3, 3] standard deviations become 0..255, clipped; no noise is mid grey."""
    return to_uint8(eps / EPS_LIMIT)


def host(array):
    """The array in the computer's own memory: CuPy arrays are copied, anything else is viewed."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


def shrink(images, factor):
    """(..., H, W, C) float -> (..., H // factor, W // factor, C): the mean of each factor x factor block."""
    if factor == 1:
        return images
    *batch, height, width, channels = images.shape
    h, w = height // factor, width // factor
    blocks = images[..., : h * factor, : w * factor, :].reshape(*batch, h, factor, w, factor, channels)
    return blocks.mean(axis=(-4, -2))


def write_atomic(path, data):
    """Write bytes such that no reader and no crash leaves half a file: a temporary name beside path, then a rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

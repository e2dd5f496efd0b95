"""Which channels of an image a page shows, and how it is made smaller. The codec makes images of whatever is diffused.

Images are uint8, channels last. An image file or a browser shows 1 (grey), 3 (RGB) or 4 (RGBA) channels; of other
counts, `visible` shows the first three channels, or channel 0 of two.
"""

import numpy as np


def visible(images):
    """The channels of images (..., C) that can be seen: all of 1, 3 or 4, channel 0 of 2, the first 3 of 5 and more."""
    channels = images.shape[-1]
    if channels in (1, 3, 4):
        return images
    if channels == 0:
        raise ValueError("an image without channels cannot be shown; expected an array (..., H, W, C) with C >= 1")
    return images[..., :1] if channels == 2 else images[..., :3]


def shrink(images, factor):
    """(..., H, W, C) -> (..., H // factor, W // factor, C): the mean of each block; uint8 is rounded."""
    if factor == 1:
        return images
    if images.dtype == np.uint8:
        return np.rint(shrink(images.astype(np.float32), factor)).astype(np.uint8)
    *batch, height, width, channels = images.shape
    h, w = height // factor, width // factor
    blocks = images[..., : h * factor, : w * factor, :].reshape(*batch, h, factor, w, factor, channels)
    return blocks.mean(axis=(-4, -2))

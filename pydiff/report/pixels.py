"""Which channels of an image a page shows, and how images are reduced. The codec makes images of whatever is diffused.

Images are uint8, channels last. Image files and browsers have 1 (grey), 3 (RGB) or 4 (RGBA) channels; for other counts,
`visible` takes the first three channels, or the first of two.
"""

import numpy as np


def visible(images):
    """The channels of images (..., C) that can be shown: all of 1, 3 or 4, the first of 2, the first 3 of 5 and more.

    Raises ValueError for images without channels.
    """
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

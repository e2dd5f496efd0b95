"""Images that are given for editing, from files, at the size that a model draws."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pydiff.data.picture import read_picture, read_size


def image_from(path: Path, size: Sequence[int] | None, channels: int) -> np.ndarray:
    """(H, W, channels) uint8. size: (H, W), to which it is cut in the middle and resized; None for its own.

    Transparency becomes white where the model has none. ValueError, in one sentence, for what is no image.
    """
    path = Path(path).expanduser()
    found = read_size(path) if size is None else tuple(size)
    if found is None:
        raise ValueError(f"{path} is no image that can be read")
    read = read_picture(path, found)  # pyright: ignore[reportArgumentType]
    if size is None and not isinstance(read, str) and read.size != found:  # the file says that it lies on its side
        read = read_picture(path, read.size)
    if isinstance(read, str):
        raise ValueError(f"{path} cannot be used: {read}")
    pixels = read.pixels
    if pixels.shape[2] == 4 and channels < 4:
        pixels = np.rint(pixels[..., :3] * (pixels[..., 3:] / 255.0) + 255.0 - pixels[..., 3:]).astype(np.uint8)
    if channels == 1 and pixels.shape[2] > 1:
        pixels = np.rint(pixels[..., :3].mean(-1, keepdims=True)).astype(np.uint8)
    elif pixels.shape[2] == 1 and channels > 1:
        pixels = np.repeat(pixels, min(channels, 3), axis=2)
    if channels == 4 and pixels.shape[2] == 3:
        pixels = np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], axis=2)
    return pixels


def mask_from(path: Path, size: Sequence[int] | None) -> np.ndarray:
    """(H, W) float32 from a black and white image: 1, where is to be drawn, for white. Errors: as `image_from`."""
    grey = image_from(path, size, 1)[..., 0]
    return (grey >= 128).astype(np.float32)

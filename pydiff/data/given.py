"""Images that a user gives for editing, read from files at the size of the model's samples."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pydiff.data.folder import read_depth
from pydiff.data.image import look, read_image
from pydiff.data.limits import limit_of
from pydiff.printed import expanded, printable


def image_from(path: Path, size: Sequence[int] | None, channels: int, limit: float | None = None) -> np.ndarray:
    """(H, W, channels) uint8. size: (H, W), to which it is cropped in the middle and resized; None keeps its own size.

    Transparency becomes white if the model has no alpha channel; grey deeper than 8 bits is read over the bits that it
    uses. limit: GiB of memory that it may take while being read, 4 if None. Raises ValueError if the file is not a
    usable image.
    """
    path, most = expanded(path), limit_of(limit)
    seen = look(path, most)
    found = tuple(size) if size is not None else None if seen is None else seen.size
    top = read_depth([seen.top] if seen and seen.top else [], None)[0]
    read = read_image(path, found or (1, 1), top, most)  # pyright: ignore[reportArgumentType]
    if size is None and not isinstance(read, str) and read.size != found:  # rotated by its EXIF orientation
        read = read_image(path, read.size, top, most)
    if isinstance(read, str):
        raise ValueError(f"{printable(str(path))} cannot be used: {read}")
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


def mask_from(path: Path, size: Sequence[int] | None, limit: float | None = None) -> np.ndarray:
    """(H, W) float32 from a black and white image: white is 1, where to draw. Arguments and errors as `image_from`."""
    grey = image_from(path, size, 1, limit)[..., 0]
    return (grey >= 128).astype(np.float32)

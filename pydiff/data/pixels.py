"""Size and channel count of images; codec.py has the edge between uint8 in 0..255 and float32 in [-1, 1].

All arrays are channels-last, (N, H, W, C) unless a docstring says otherwise. Floats are always in [-1, 1] here.
"""

import operator
from collections.abc import Iterable

import numpy as np

from pydiff import memory
from pydiff.codec import from_uint8, to_uint8

__all__ = ["check_size", "crop_box", "from_uint8", "resize", "to_channels", "to_uint8"]

LUMA = (0.299, 0.587, 0.114)  # grey value of a colour, ITU-R BT.601
MAX_SIDE = 16384


def check_size(size) -> tuple[int, int] | None:
    """`size` as (height, width), from an int, a pair of ints or None (which stays None)."""
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, Iterable) and not isinstance(size, str) else (size, size)
    try:
        if len(pair) != 2 or any(isinstance(side, bool) for side in pair):
            raise TypeError
        height, width = (operator.index(side) for side in pair)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise TypeError(f"size is {size!r}, expected an integer or (height, width); use for example size=32") from None
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(f"size is {size!r}, expected 1 .. {MAX_SIDE} pixels a side; use for example size=32")
    return height, width


def crop_box(height: int, width: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest centred box (left, top, right, bottom) of a height x width image with the proportions of `size`.

    Resizing this box is the same as resizing the shorter side and cropping the middle, without the large intermediate
    image.
    """
    h, w = size
    box_h, box_w = (height, w * height / h) if w * height <= h * width else (h * width / w, width)
    top, left = (height - box_h) / 2, (width - box_w) / 2
    return left, top, min(left + box_w, width), min(top + box_h, height)


def resize_image(image, size: tuple[int, int]):
    """A Pillow image cropped in the middle and resized to (height, width): bicubic, antialiased."""
    from PIL import Image

    if (image.height, image.width) == size:
        return image
    box = crop_box(image.height, image.width, size)
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)


def resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N, H, W, C) uint8, or float32 in [-1, 1], to (N, *size, C), cropped in the middle if the proportions differ."""
    n, height, width, channels = images.shape
    if (height, width) == size:
        return images
    from PIL import Image
    from tqdm import tqdm

    check_room(n, size, channels * images.itemsize)
    # Pillow takes three or four 8-bit channels at once (and premultiplies alpha); anything else goes plane by plane.
    whole = images.dtype == np.uint8 and channels in (3, 4)
    planes = [slice(None)] if whole else list(range(channels))
    out = np.empty((n, *size, channels), images.dtype)
    for i in tqdm(range(n), desc="resizing", unit="image", delay=1, disable=None, leave=False):
        for plane in planes:
            image = Image.fromarray(np.ascontiguousarray(images[i, ..., plane]))
            out[i, ..., plane] = np.asarray(resize_image(image, size))
    return out if out.dtype == np.uint8 else np.clip(out, -1, 1)  # bicubic overshoots at edges


def check_room(count: int, size: tuple[int, int], each: int):
    """Raises ValueError if this many images of (height, width) are too large for memory. each: bytes per pixel."""
    height, width = size
    least = max(8, int(((memory.free() or 0) / (count * each)) ** 0.5) // 8 * 8)
    what = f"{count:,} images of {height} x {width}"
    memory.check(count * height * width * each, what, f"use a smaller size, {least} at most")


def to_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """(..., C) to (..., channels): converts grey (1), RGB (3) and RGBA (4) into one another, uint8 or floats in [-1,
    1].

    Colour becomes grey by its luma; transparency is composited on white; an added alpha channel is opaque.
    """
    have = images.shape[-1]
    if have == channels:
        return images
    if have not in (1, 3, 4) or channels not in (1, 3, 4):
        raise ValueError(
            f"cannot make {channels!r} channels from {have}, only 1 (grey), 3 (RGB) and 4 (RGBA) convert; "
            "leave channels out"
        )
    white, black = (255, 0) if images.dtype == np.uint8 else (1, -1)
    if have == 4:
        colour = images[..., :3].astype(np.float32)
        coverage = (images[..., 3:].astype(np.float32) - black) / (white - black)
        images = _like(colour * coverage + white * (1 - coverage), images)
    if channels == 1:
        r, g, b = (images[..., i].astype(np.float32) for i in range(3))
        return _like(LUMA[0] * r + LUMA[1] * g + LUMA[2] * b, images)[..., None]
    colour = np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
    if channels == 3:
        return colour
    return np.concatenate([colour, np.full_like(colour[..., :1], white)], axis=-1)


def _like(values: np.ndarray, images: np.ndarray) -> np.ndarray:
    return (np.rint(values) if images.dtype == np.uint8 else np.clip(values, -1, 1)).astype(images.dtype)

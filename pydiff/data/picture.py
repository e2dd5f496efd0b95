"""One picture file of any kind as (H, W, C) uint8: formats, bit depths, palettes, transparency, rotation."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pydiff.data.pixels import resize_picture

# Only these decoders are ever tried: others start programs (EPS) or are rare and less tested.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF")
_NAMES = "png apng jpg jpeg jpe jfif gif bmp dib webp avif tif tiff ppm pgm pbm pnm"
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split())

# A small file can unpack to gigabytes. Pictures above this many pixels (8192 x 8192) are refused before unpacking.
MAX_PIXELS = 2**26

ORIENTATION = 0x0112  # EXIF tag


class Picture(NamedTuple):
    """A decoded picture."""

    pixels: np.ndarray  # (h, w, C) uint8; C is 1 if all is grey, 4 if any pixel is transparent, else 3
    size: tuple[int, int]  # (H, W) in the file, upright


def read_size(source: Path | bytes) -> tuple[int, int] | None:
    """(height, width) from the header, before any rotation, or None if there is no readable header."""
    try:
        if isinstance(source, Path) and not source.is_file():  # opening a pipe would wait for ever
            return None
        with _open(source) as picture:
            return picture.height, picture.width
    except Exception:  # `read_picture` reports the reason
        return None


def read_picture(source: Path | bytes, size: tuple[int, int]) -> Picture | str:
    """The first frame of a picture, upright, at (height, width) `size`; or the reason why it cannot be used.

    source: a file, or the contents of one.
    """
    from PIL import Image

    try:
        if isinstance(source, Path) and not source.is_file():
            return "not a file" if source.exists() else "link to a file that is not there"
        if (source.stat().st_size if isinstance(source, Path) else len(source)) == 0:
            return "empty file"
        with _open(source) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return f"{picture.width} x {picture.height} pixels, above the limit of {MAX_PIXELS:,}"
            picture.load()
            picture = _upright(_eight_bit(picture), _orientation(picture))
            pixels = np.asarray(resize_picture(picture, size))
            return Picture(_fewest_channels(pixels), (picture.height, picture.width))
    except Image.UnidentifiedImageError:
        return "not a picture in any known format"
    except Image.DecompressionBombError:
        return f"more pixels than the limit of {MAX_PIXELS:,}"
    except Exception as error:  # decoders raise a dozen types for damaged files; one bad file must not end the run
        return f"damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})"


def _open(source: Path | bytes):
    from PIL import Image

    Image.init()
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def _eight_bit(picture):
    """Any Pillow mode as L, RGB or RGBA."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return _deep_grey(picture)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def _deep_grey(picture):
    """Grey with more than 8 bits: 16-bit integers over their full range, or floats in [0, 1]."""
    from PIL import Image

    if "transparency" in picture.info:
        raise ValueError("16-bit grey with a transparent grey value is not supported")
    values = np.asarray(picture)
    top = 1 if values.dtype.kind == "f" else 65535
    if not (values.min() >= 0 and values.max() <= top):
        raise ValueError(f"grey values run from {values.min()} to {values.max()}, expected 0 .. {top}")
    grey = np.rint(values * 255.0) if top == 1 else (values.astype(np.uint32) + 128) // 257
    return Image.fromarray(grey.astype(np.uint8))


def _orientation(picture) -> int:
    """EXIF orientation 1..8; 1 (as stored) if there is none or the metadata is unreadable, as viewers do."""
    try:
        return picture.getexif().get(ORIENTATION, 1)
    except Exception:  # metadata is parsed with as many error types as pictures are
        return 1


def _upright(picture, orientation: int):
    """Turned and mirrored as the EXIF orientation asks for."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return picture.transpose(turns[orientation]) if orientation in turns else picture


def _fewest_channels(pixels: np.ndarray) -> np.ndarray:
    """(h, w) or (h, w, C) to (h, w, 1), (h, w, 3) or (h, w, 4): drops what carries nothing."""
    if pixels.ndim == 2:
        return pixels[..., None]
    if pixels.shape[-1] == 4:
        if not (pixels[..., 3] == 255).all():
            return pixels
        pixels = pixels[..., :3]
    grey = (pixels[..., :1] == pixels[..., 1:]).all()
    return pixels[..., :1] if grey else pixels

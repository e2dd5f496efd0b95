"""One image of any kind as (H, W, C) uint8: formats, bit depths, palettes, transparency, rotation, frames."""

import contextlib
import io
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pydiff.data.limits import USUAL, Limit, check_memory
from pydiff.data.pixels import resize_image
from pydiff.data.unreadable import readable
from pydiff.printed import first_line

# Only these decoders are ever tried: others start programs (EPS) or are rare and less tested.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF")
_NAMES = "png apng jpg jpeg jpe jfif gif bmp dib webp avif tif tiff ppm pgm pbm pnm"
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split())
SEVERAL = ("GIF", "TIFF", "WEBP", "PNG", "AVIF")  # formats whose further frames are images, not previews

# Images above this many pixels (8192 x 8192) are refused before unpacking.
MAX_PIXELS = 2**26
LARGE = 2**22  # pixels; images above this are unpacked one at a time
BYTES = 12  # per pixel while an image is unpacked, rotated and converted
_one_at_a_time = threading.Lock()

ORIENTATION = 0x0112  # EXIF tag
MAX_SAMPLE = (281, 341)  # TIFF tags: the largest value that a sample can have


class Decoded(NamedTuple):
    """A decoded image."""

    pixels: np.ndarray  # (h, w, C) uint8; C is 1 if all is grey, 4 if any pixel is transparent, else 3
    size: tuple[int, int]  # (H, W) in the file, upright


class Look(NamedTuple):
    """What is known about an image before it is decoded. size: (height, width) as stored. frames: their number. top:
    the largest value of grey deeper than 8 bits, 0 for other images. deep_colour: whether its colours have more than 8
    bits, of which 8 are read.
    """

    size: tuple[int, int]
    frames: int
    top: int
    deep_colour: bool = False


def look(source, limit: Limit = USUAL) -> Look | None:
    """See Look; None if there is no readable header."""
    try:
        if isinstance(source, Path) and not source.is_file():  # opening a pipe would block
            return None
        with opened(source) as image:
            frames = getattr(image, "n_frames", 1) if image.format in SEVERAL else 1
            deep = _has_deep_colour(image)  # Pillow loses this when it decodes
            return Look((image.height, image.width), frames, _top(image, _packed(source), limit), deep)
    except Exception as error:  # `read_image` reports the reason
        check_memory(error)
        return None


def read_size(source) -> tuple[int, int] | None:
    """(height, width) from the header, before any rotation, or None if there is no readable header."""
    found = look(source)
    return None if found is None else found.size


def _has_deep_colour(image) -> bool:
    """Whether the file has colours of more than 8 bits per channel, of which Pillow keeps the upper 8."""
    if image.mode.startswith("I") or image.mode == "F":
        return False
    if image.info.get("bit_depth", 8) > 8:  # set by pillow-heif
        return True
    for decoder, _, _, how in getattr(image, "tile", ()):
        how = how if isinstance(how, tuple) else (how,)
        if decoder.startswith("ppm") and any(isinstance(n, int) and n > 255 for n in how):
            return True  # a PPM file states its largest value
        if any(isinstance(word, str) and ";16" in word for word in how):
            return True
    return False


def _top(image, packed, limit) -> int:
    """The largest value of a grey image deeper than 8 bits, or the maximum the file declares; 0 for other images."""
    if not image.mode.startswith("I"):
        return 0
    said = [image.tag_v2.get(tag) for tag in MAX_SAMPLE] if image.format == "TIFF" else []
    said = [n[0] if isinstance(n, tuple) else n for n in said if n]
    if said and isinstance(said[0], int | float) and said[0] > 0:
        return int(said[0])
    _check(image, packed, limit)
    with _room(image):
        return int(np.asarray(image).max())


def read_image(
    source, size: tuple[int, int], top: int | None = 65535, limit: Limit = USUAL, frame: int = 0
) -> Decoded | str:
    """One frame of an image, upright, at (height, width) `size`; or the reason why it cannot be used.

    source: a file, the contents of one, or a Pillow image. top: the value of white in grey deeper than 8 bits; None if
    unknown, in which case such an image cannot be used.
    """
    frames = read_frames(source, size, top, limit, most=1, first=frame)
    return frames if isinstance(frames, str) else frames[0]


def read_frames(
    source, size: tuple[int, int], top: int | None = 65535, limit: Limit = USUAL, most: int | None = None, first=0
) -> list[Decoded] | str:
    """All frames from `first` on, or `most` of them; otherwise as `read_image`."""
    from PIL import Image

    try:
        if isinstance(source, Path) and not source.is_file():
            return not_a_file(source)
        packed = _packed(source)
        if packed == 0:
            return "empty file"
        with opened(source) as image:
            several = (most != 1 or first) and image.format in SEVERAL
            count = getattr(image, "n_frames", 1) if several else 1
            if first >= count:
                return f"{count} frames, and frame {first} was there before"
            found = []
            for frame in range(first, count if most is None else min(count, first + most)):
                if count > 1:
                    image.seek(frame)
                _check(image, packed, limit)
                with _room(image):
                    image.load()
                    upright = _upright(_eight_bit(image, top), _orientation(image))
                    pixels = np.array(resize_image(upright, size))
                found.append(Decoded(_fewest_channels(pixels), (upright.height, upright.width)))
            return found
    except Image.UnidentifiedImageError:
        return "not an image in any known format"
    except Image.DecompressionBombError:
        return f"more pixels than Pillow's limit of {2 * Image.MAX_IMAGE_PIXELS:,}; make it smaller"  # pyright: ignore[reportOperatorIssue]
    except Exception as error:  # decoders raise a dozen types of error; one damaged file must not end the run
        if isinstance(error, Refused):
            return str(error)
        check_memory(error)
        return f"damaged ({first_line(error)})"


class Refused(ValueError):
    """The image is intact, but is not read."""


def not_a_file(path: Path) -> str:
    """Half a sentence on why there is no file at this path."""
    if path.exists():
        return "not a file"
    return "link to a file that is not there" if path.is_symlink() else "no such file"


def _check(image, packed: int | None, limit: Limit):
    pixels = image.width * image.height
    if pixels > MAX_PIXELS and not limit.raised:
        raise Refused(
            f"{image.width} x {image.height} pixels, above the limit of {MAX_PIXELS:,}; "
            "if it is what it seems, say limit=4 (--limit 4)"
        )
    try:
        what = f"{image.width} x {image.height} pixels"
        limit.check(pixels * BYTES, what)
        if packed is not None:
            limit.check_unfolding(pixels * len(image.getbands()), packed, what)
    except ValueError as error:
        raise Refused(str(error)) from None


def _packed(source) -> int | None:
    """Length in bytes of a file or of its contents; None for a Pillow image."""
    if isinstance(source, Path):
        return source.stat().st_size
    return len(source) if isinstance(source, bytes) else None


def _room(image):
    """A lock that allows one large image at a time, however many threads read; small images need none."""
    return _one_at_a_time if image.width * image.height > LARGE else contextlib.nullcontext()


def opened(source):
    """A file, the contents of one, or a copy of a Pillow image, for `with`; only in the formats that are allowed."""
    from PIL import Image

    if isinstance(source, Image.Image):
        return contextlib.nullcontext(source.copy())
    Image.init()
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    return Image.open(file, formats=[name for name in (*FORMATS, *readable()[1]) if name in Image.OPEN])


def _eight_bit(image, top):
    """An image of any Pillow mode as L, RGB or RGBA."""
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image, top)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _deep_grey(image, top):
    """Grey with more than 8 bits: integers from 0 to top, or floats in [0, 1]."""
    from PIL import Image

    if "transparency" in image.info:
        raise Refused("16-bit grey with one grey value for transparent, which is not read; save it without")
    values = np.asarray(image)
    if top is None and values.dtype.kind != "f":
        raise Refused("grey of more than 8 bits, and nobody has said how many count: bits=16, say")
    top = 1 if values.dtype.kind == "f" else top
    if not (values.min() >= 0 and values.max() <= top):
        raise Refused(f"grey values run from {values.min():g} to {values.max():g}, expected 0 .. {top}; scale them")
    grey = np.rint(values * 255.0) if top == 1 else (values.astype(np.uint32) * 510 + top) // (2 * top)  # pyright: ignore[reportOperatorIssue]
    return Image.fromarray(grey.astype(np.uint8))


def _orientation(image) -> int:
    """EXIF orientation 1..8; 1 (as stored) if there is none, or if, as in viewers, the metadata is unreadable."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception as error:  # metadata is parsed with as many error types as images are
        check_memory(error)
        return 1


def _upright(image, orientation: int):
    """The image rotated and mirrored according to its EXIF orientation."""
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
    return image.transpose(turns[orientation]) if orientation in turns else image


def _fewest_channels(pixels: np.ndarray) -> np.ndarray:
    """(h, w) or (h, w, C) to (h, w, 1), (h, w, 3) or (h, w, 4): drops channels that carry no information."""
    if pixels.ndim == 2:
        return pixels[..., None]
    if pixels.shape[-1] == 4:
        if not (pixels[..., 3] == 255).all():
            return pixels
        pixels = pixels[..., :3]
    grey = (pixels[..., :1] == pixels[..., 1:]).all()
    return pixels[..., :1] if grey else pixels

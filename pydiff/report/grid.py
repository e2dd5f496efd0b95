"""Many images combined into one grid, and PNG files."""

import io
from pathlib import Path

import numpy as np

from pydiff.report.pixels import visible
from pydiff.store.files import write_atomic

PAD_VALUE = 128  # mid grey: visible beside both black and white
COMFORTABLE = 48  # pixels; images with a shorter side below this are magnified to about this size


def grid(images, columns=None, pad=1, scale=None):
    """(N, H, W, C) uint8 -> one image (rows, columns, C) uint8, filled row by row.

    columns: images in a row, by default ceil(sqrt(N)). pad: width in pixels of the lines between and around images.
    scale: each pixel becomes a block of scale x scale, by default such that the shorter side is about 48 pixels. Empty
    cells in the last row are mid grey, like the lines. For channel counts other than 1, 3, 4 see pixels.visible. Raises
    ValueError for empty arrays and for other shapes or dtypes.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype != np.uint8 or 0 in images.shape:
        raise ValueError(f"grid needs a non-empty array (N, H, W, C) uint8, got {images.shape} {images.dtype}")
    images = visible(images)
    n, height, width, channels = images.shape
    columns = int(np.ceil(np.sqrt(n))) if columns is None else columns
    scale = max(1, COMFORTABLE // min(height, width)) if scale is None else scale
    if columns < 1 or pad < 0 or scale < 1:
        raise ValueError(f"grid needs columns >= 1, pad >= 0 and scale >= 1, got {columns}, {pad} and {scale}")
    rows = -(-n // columns)
    h, w = height * scale + pad, width * scale + pad
    canvas = np.full((pad + rows * h, pad + columns * w, channels), PAD_VALUE, np.uint8)
    for i, image in enumerate(magnify(images, scale)):
        top, left = pad + i // columns * h, pad + i % columns * w
        canvas[top : top + h - pad, left : left + w - pad] = image
    return canvas


def magnify(images, scale):
    """(..., H, W, C) -> (..., H scale, W scale, C): every pixel a block of scale x scale."""
    return images.repeat(scale, axis=-3).repeat(scale, axis=-2)


def to_pil(image):
    """(H, W, C) uint8 -> PIL image: grey, RGB or RGBA (other channel counts: see pixels.visible)."""
    from PIL import Image

    image = np.asarray(image)
    if image.ndim != 3 or image.dtype != np.uint8:
        raise ValueError(f"an image is an array (H, W, C) uint8, got {image.shape} {image.dtype}")
    image = np.ascontiguousarray(visible(image))
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def png_bytes(image, said=None):
    """(H, W, C) uint8 -> the bytes of a PNG file: the same pixels give the same bytes.

    said: {keyword: text} to store in the file beside the pixels, such as the prompt and the seed.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for keyword, text in (said or {}).items():
        info.add_itxt(keyword, text)
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "PNG", optimize=True, pnginfo=info)
    return buffer.getvalue()


def save_png(path, image, said=None):
    """Writes (H, W, C) uint8 as a PNG file, atomically. Returns the path. said: see png_bytes."""
    path = Path(path)
    write_atomic(path, png_bytes(image, said))
    return path

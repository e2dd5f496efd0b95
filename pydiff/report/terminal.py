"""An image in a terminal, one character for two pixels."""

import os
import shutil
import sys

import numpy as np

from pydiff.report.pixels import visible

RAMP = np.array(list(" .:-=+*#%@"))  # dark to bright, for terminals without colour


def show(image, stream=None, width=None):
    """(H, W, C) uint8 -> text of ceil(H / 2) lines that draws the image when printed to stream (default: stdout).

    Colour terminals get half blocks: the upper pixel is the character's colour, the lower one its background. If the
    stream is a file or a pipe, the encoding has no half block, TERM is dumb or NO_COLOR is set, the text is ASCII, with
    dense characters for bright pixels. Images wider than `width` columns (default: the terminal's) are reduced by
    averaging whole blocks of pixels. Transparent pixels are shown on black.
    """
    stream = sys.stdout if stream is None else stream
    width = shutil.get_terminal_size().columns if width is None else width
    image = np.asarray(image)
    if image.ndim != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"an image is a non-empty array (H, W, C) uint8, got {image.shape} {image.dtype}")
    if width < 1:
        raise ValueError(f"an image needs a width of at least 1 column, got {width}")
    rgb = _reduce(_rgb(visible(image)), -(-image.shape[1] // width))
    if len(rgb) % 2:  # the last line's lower half
        rgb = np.concatenate([rgb, np.zeros_like(rgb[:1])])
    upper, lower = rgb[0::2], rgb[1::2]
    return _half_blocks(upper, lower) if has_colour(stream) else _ascii(upper, lower)


def has_colour(stream):
    """Whether the stream is a terminal that shows colours and half blocks (https://no-color.org is respected)."""
    if stream is None:  # the process was started without one
        return False
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "") in ("", "dumb") or not stream.isatty():
        return False
    try:
        "▀".encode(getattr(stream, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _rgb(image):
    image = image.astype(np.float64)
    if image.shape[-1] == 4:
        image = image[..., :3] * image[..., 3:] / 255
    return np.broadcast_to(image, (*image.shape[:2], 3))


def _reduce(rgb, factor):
    """Means of factor x factor blocks; incomplete blocks at the right and the bottom use the pixels they have."""
    rows, columns = (np.arange(0, size, factor) for size in rgb.shape[:2])
    total = np.add.reduceat(np.add.reduceat(rgb, rows, axis=0), columns, axis=1)
    heights, widths = (np.diff([*starts, size]) for starts, size in zip((rows, columns), rgb.shape[:2], strict=True))
    return total / (heights[:, None, None] * widths[None, :, None])


def _half_blocks(upper, lower):
    lines = []
    for top, bottom in zip(np.rint(upper).astype(int).tolist(), np.rint(lower).astype(int).tolist(), strict=True):
        cells = ("\x1b[38;2;{};{};{};48;2;{};{};{}m▀".format(*t, *b) for t, b in zip(top, bottom, strict=True))
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def _ascii(upper, lower):
    grey = ((upper + lower) / 2) @ np.array([0.299, 0.587, 0.114])  # luma of ITU-R BT.601
    return "\n".join("".join(row) for row in RAMP[np.rint(grey / 255 * (len(RAMP) - 1)).astype(int)])

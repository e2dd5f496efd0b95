"""A film of the reverse process: animated WebP (lossless) or GIF."""

import io
from pathlib import Path

import numpy as np

from pydiff.report.grid import magnify, to_pil
from pydiff.report.pixels import visible
from pydiff.store.files import write_atomic

SHORT_SIDE = 256  # pixels; smaller films are magnified by an integer factor to about this size


def save_film(path, frames, fps=20, hold_last=2.0):
    """Writes frames, a list of (H, W, C) uint8 of one shape, as an endless film. Returns the path written.

    path: `film.webp` or `film.gif`; without a suffix, .webp is appended if Pillow can write it, else .gif. fps: frames
    per second (GIF counts in hundredths of a second). hold_last: seconds for which the last frame stays. WebP is
    lossless for all visible pixels. GIF keeps every grey; colours are reduced to 256 per frame, and transparency is
    composited on white. Equal frames in a row may be stored as one that stays longer. The same frames give the same
    bytes. Raises ValueError for other frames, or another suffix.
    """
    frames = [np.asarray(frame) for frame in frames]
    if not frames or any(f.shape != frames[0].shape or f.ndim != 3 or f.dtype != np.uint8 for f in frames):
        got = ", ".join(sorted({f"{f.shape} {f.dtype}" for f in frames})) or "none"
        raise ValueError(f"a film needs at least one frame, all (H, W, C) uint8 of one shape; got {got}")
    if not (fps > 0 and hold_last >= 0):
        raise ValueError(f"a film needs fps > 0 and hold_last >= 0, got {fps} and {hold_last}")
    path = _with_suffix(Path(path))
    scale = max(1, SHORT_SIDE // min(frames[0].shape[:2]))
    frames = [to_pil(magnify(visible(frame), scale)) for frame in frames]
    durations = [round(1000 / fps)] * len(frames)  # milliseconds
    durations[-1] = max(durations[-1], round(1000 * hold_last))
    write_atomic(path, _encode(frames, durations, path.suffix.lower()))
    return path


def _encode(frames, durations, suffix):
    buffer = io.BytesIO()
    if suffix == ".webp":
        options = {"format": "WEBP", "lossless": True}
    else:
        frames = [_indexed(frame) for frame in frames]
        options = {"format": "GIF", "optimize": False, "disposal": 1}
    frames[0].save(buffer, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options)
    return buffer.getvalue()


def _indexed(frame):
    """A PIL image with at most 256 colours, as GIF stores them."""
    from PIL import Image

    if frame.mode == "RGBA":
        frame = Image.alpha_composite(Image.new("RGBA", frame.size, "white"), frame).convert("RGB")
    return frame if frame.mode == "L" else frame.quantize(256, dither=Image.Dither.NONE)


def _with_suffix(path):
    suffix = path.suffix.lower()
    if suffix in ("", ".webp"):
        if _has_webp():
            return path.with_suffix(".webp")
        if suffix:
            raise ValueError(f"this Pillow cannot write animated WebP ({path}); use a path that ends in .gif")
        return path.with_suffix(".gif")
    if suffix != ".gif":
        raise ValueError(f"a film is a .webp or .gif file, got {path}")
    return path


def _has_webp():
    from PIL import features

    return features.check("webp")  # since Pillow 11, the oldest that pydiff takes, animation is part of it

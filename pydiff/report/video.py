"""Clips as films: a GIF, a lossless WebP, or, with the extra `video`, an MP4."""

from pathlib import Path

import numpy as np

from pydiff.report.film import save_film
from pydiff.report.grid import grid, magnify
from pydiff.report.pixels import visible

SUFFIXES = (".gif", ".webp", ".mp4")
SHORT_SIDE = 256  # pixels; smaller clips are magnified by an integer factor to about this size


def save_clip(path, clip, rate):
    """Writes a clip (F, H, W, C) uint8 at `rate` frames per second as .gif, .webp or .mp4. Returns the path.

    WebP keeps every pixel, GIF keeps the greys and 256 colours of a frame, MP4 (MPEG-4, without transparency) is lossy.
    Raises ImportError if the library for MP4 is missing.
    """
    path, clip = Path(path), np.asarray(clip)
    if clip.ndim != 4 or clip.dtype != np.uint8 or 0 in clip.shape:
        raise ValueError(f"a clip is an array (F, H, W, C) uint8, got {clip.shape} {clip.dtype}")
    if path.suffix.lower() == ".mp4":
        return _save_mp4(path, clip, rate)
    return save_film(path, list(clip), fps=rate, hold_last=0)


def save_clips(path, clips, rate, columns=None):
    """Writes clips (N, F, H, W, C) side by side as one film, in the layout of `grid`. Returns the path."""
    return save_clip(path, np.stack([grid(clips[:, f], columns) for f in range(clips.shape[1])]), rate)


def _save_mp4(path, clip, rate):
    try:
        import av
    except ImportError:
        raise ImportError(f"{path} needs the library av: pip install 'pydiff[video]', or use .webp or .gif") from None
    from fractions import Fraction

    frames = visible(clip)[..., :3]
    frames = np.repeat(frames, 3, axis=-1) if frames.shape[-1] == 1 else frames
    frames = magnify(frames, max(1, SHORT_SIDE // min(frames.shape[1:3])))
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    partial = path.with_name(f".{path.stem}.partial.mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with av.open(str(partial), "w") as container:
            stream = container.add_stream("mpeg4", rate=Fraction(rate).limit_denominator(1000))
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt, stream.bit_rate = "yuv420p", 8_000_000
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path

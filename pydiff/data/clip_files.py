"""A folder of clips: animated GIF, WebP and PNG files, films (with the extra `video`), and folders of frames.

Every clip is read at one frame rate, by the times at which its frames are shown, so that films of other and of variable
rates keep their speed; cut into pieces of F frames; and resized like images. What is shorter is listed.
"""

import os
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pydiff.data import captions as words
from pydiff.data.clips import RATE, Clips
from pydiff.data.dataset import plural, some
from pydiff.data.folder import _choose_size, labels_of
from pydiff.data.limits import USUAL, Limit
from pydiff.data.listing import find_files
from pydiff.data.picture import MAX_PIXELS, look, not_a_file, read_picture, read_size
from pydiff.data.pixels import resize_picture, to_channels
from pydiff.printed import printable

FRAMES = 8  # of a clip, where nobody says
ANIMATED = frozenset((".gif", ".webp", ".apng", ".png"))
FILMS = frozenset((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ogv"))
STEADY = 0.02  # share by which the times of frames may differ at a steady rate
MAX_FRAMES = 20_000  # of one file
UNTIMED = 0.1  # seconds a frame of a GIF that says 0, as browsers show it


class Reel(NamedTuple):
    """One clip as it is stored. frames: (n, h, w, C) uint8 with C 1, 3 or 4. starts: (n + 1,) seconds at which they are
    shown, and the end. size: (H, W) in the file."""

    frames: list
    starts: np.ndarray
    size: tuple[int, int]

    @property
    def rate(self) -> float:
        """Frames a second, on average over the film."""
        return len(self.frames) / float(self.starts[-1]) if self.starts[-1] > 0 else 1 / UNTIMED

    @property
    def steady(self) -> bool:
        """Whether all frames are shown for the same time."""
        waits = np.diff(self.starts)
        return bool(len(waits) < 2 or np.ptp(waits) <= STEADY * waits.mean())


def holds_clips(root: Path) -> bool:
    """Whether a folder has more films than pictures: files that can be nothing but clips."""
    films = find_files(root, FILMS)[0]
    return bool(films) and len(films) > len(find_files(root)[0])


def load_clips(
    root: Path,
    frames: int | None = None,
    rate: float | None = None,
    size=None,
    channels: int | None = None,
    limit: Limit = USUAL,
) -> Clips:
    """All clips under `root`, in order of path; the class is the first folder below the one that all share.

    frames: of each, 8 if None; a longer one gives several, a shorter one is left out and listed. rate: frames a second;
    None takes the middle of what the files have. size: (height, width). channels: 1 or 3 (what is transparent lies on
    white), or 4; None: 1 if all is grey, else 3. Captions as for pictures. Where there are no animated files and films,
    every folder of pictures is a clip, its frames in the order of their names. limit: of memory, for all frames at the
    size that they are stored in. ValueError if nothing is left, if more than half are broken, or above the limit.
    """
    frames = FRAMES if frames is None else frames
    paths, texts, skipped = find_files(root, ANIMATED | FILMS)
    still = [path for path in paths if _suffix(path) == ".png" and not _is_animated(root / path)]
    paths, notes = [path for path in paths if path not in set(still)], []
    sources = {path: root / path for path in paths}
    if not paths:
        folders = {}
        for path in find_files(root)[0]:
            folders.setdefault(os.path.dirname(path), []).append(path)
        sources = {
            folder or ".": [root / p for p in sorted(of_one, key=_natural)] for folder, of_one in folders.items()
        }
    elif still:
        notes.append(f"{plural(len(still), 'picture')} beside the clips left out")
    reels, room = {}, Room(limit, printable(str(root)))
    for path, source in sources.items():
        found = _read_folder(source, room) if isinstance(source, list) else read_reel(source, room)
        if isinstance(found, Reel):
            reels[path] = found
        else:
            skipped.append((printable(path), found))
    if not reels or len(skipped) > len(reels):
        what = f" (first: {skipped[0][0]}: {skipped[0][1]})" if skipped else ""
        count = f"{len(skipped)} of {len(skipped) + len(reels)} clips in {root} cannot be used" if skipped else ""
        raise ValueError(
            f"{count}{what}; remove or repair them" if count else
            f"{root} holds no clips; expected animated .gif or .webp files, films, or folders of frames"
        )  # fmt: skip
    rate = _rate(reels, rate, notes)
    target = size or _choose_size([reel.size for reel in reels.values()], notes)
    names, pieces = [], []
    for path, reel in reels.items():
        taken = at_rate(reel, rate)
        if len(taken) < frames:
            has = plural(len(taken), "frame")
            skipped.append((printable(path), f"{has} at {rate:g} a second, and {frames} are needed"))
        for first in range(0, len(taken) - frames + 1, frames):
            names.append(path)
            pieces.append([reel.frames[i] for i in taken[first : first + frames]])
    if not pieces:
        raise ValueError(
            f"no clip in {root} has {frames} frames at {rate:g} a second (first: {skipped[0][0]}: {skipped[0][1]}); "
            "use fewer frames or a higher frame_rate"
        )
    limit.check(len(pieces) * frames * target[0] * target[1] * 8, f"{plural(len(pieces), 'clip')} of {root}")
    if len(pieces) > len(set(names)):
        notes.append(f"{plural(len(set(names)), 'file')} cut into {plural(len(pieces), 'clip')} of {frames} frames")
    return _dataset(root, names, pieces, rate, target, channels, list(sources), texts, skipped, notes)


def _dataset(root, names, pieces, rate, target, channels, paths, texts, skipped, notes) -> Clips:
    """The Clips of these pieces, lists of frames, with labels and captions by the files they come from."""
    counts = {frame.shape[-1] for piece in pieces for frame in piece}
    if channels is None:
        channels = 1 if counts == {1} else 3
        if 4 in counts:
            notes.append("what is transparent lies on white; pass channels=4 to keep it")
    clips = np.stack([np.stack([_sized(to_channels(f, channels), target) for f in piece]) for piece in pieces])
    labels, classes, class_notes = labels_of(names, "clip")
    more, captions = {}, words.find_captions(root, paths, texts)
    if captions is not None:
        more, caption_notes = words.columns([captions.of[path] for path in names], names)
        notes += caption_notes + captions.notes
        skipped += captions.skipped
    notes += class_notes
    return Clips(root.name or str(root), clips, labels, classes, sorted(skipped), notes, rate=rate, **more)


class Room:
    """Memory for the frames of all clips, at the size that they are stored in: taken before they are unpacked."""

    def __init__(self, limit: Limit, name: str):
        self.limit, self.name, self.taken = limit, name, 0

    def take(self, count: int, size: tuple[int, int], path: Path | None = None):
        """So many frames more. path: the file that all of them are in, which may be a bomb. TooLarge for too many."""
        more = count * size[0] * size[1] * 4
        try:
            if path is not None:
                told = f"{printable(path.name)}, {plural(count, 'frame')} of {size[0]} x {size[1]},"
                self.limit.check_unfolding(more, path.stat().st_size, told)
            self.limit.check(self.taken + more, f"all frames of {self.name}")
        except ValueError as error:
            raise TooLarge(str(error)) from None
        self.taken += more


class TooLarge(ValueError):
    """More than the limit allows: no file is skipped for that."""


def read_reel(path: Path, room: Room | None = None) -> Reel | str:
    """A file with moving pictures, composed to whole frames; or the reason why it cannot be used."""
    room = Room(USUAL, printable(path.name)) if room is None else room
    try:
        if not path.is_file():
            return not_a_file(path)
        if path.stat().st_size == 0:
            return "empty file"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read_film(path, room) if _suffix(path.name) in FILMS else _read_animation(path, room)
    except TooLarge:
        raise
    except ImportError:
        return "a film needs the library av (pip install 'pydiff[video]')"
    except Exception as error:  # decoders raise a dozen types for damaged files
        return f"damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})"


def _read_animation(path, room) -> Reel | str:
    """GIF, WebP and PNG by Pillow, which lays partial frames over what is there and disposes of them as they say."""
    from PIL import Image

    Image.init()
    try:
        picture = Image.open(path, formats=[name for name in ("GIF", "WEBP", "PNG") if name in Image.OPEN])
    except Image.UnidentifiedImageError:
        return "not a picture in any known format"
    with picture:
        count = getattr(picture, "n_frames", 1)
        if picture.width * picture.height > MAX_PIXELS or count > MAX_FRAMES:
            return f"{count} frames of {picture.width} x {picture.height} pixels, above the limit"
        room.take(count, (picture.height, picture.width), path)
        frames, starts = [], [0.0]
        for i in range(count):
            picture.seek(i)
            frames.append(_fewest(np.asarray(picture.convert("RGBA"))))
            wait = float(picture.info.get("duration") or 0) / 1000
            starts.append(starts[-1] + (wait if wait > 0 else UNTIMED))
        return Reel(frames, np.array(starts), (picture.height, picture.width))


def _read_film(path, room) -> Reel | str:
    """MP4 and the like by PyAV, with the time of every frame."""
    import av

    frames, starts = [], []
    with av.open(str(path)) as container:
        if not container.streams.video:
            return "a film without pictures"
        stream = container.streams.video[0]
        for frame in container.decode(stream):
            if frame.width * frame.height > MAX_PIXELS or len(frames) == MAX_FRAMES:
                return f"more than {MAX_FRAMES:,} frames or {MAX_PIXELS:,} pixels, above the limit"
            room.take(1, (frame.height, frame.width))
            frames.append(_fewest(frame.to_ndarray(format="rgb24")))
            starts.append(
                float(frame.time) if frame.time is not None else len(starts) / float(stream.average_rate or 25)
            )
    if not frames:
        return "no frame can be read"
    waits = np.diff(starts)
    last = float(np.median(waits)) if len(waits) else 1 / float(stream.average_rate or 25)
    return Reel(frames, np.array([*starts, starts[-1] + last]) - starts[0], frames[0].shape[:2])


def _read_folder(paths, room) -> Reel | str:
    """Pictures as frames, at RATE; the size is that of the first."""
    frames, size = [], None
    for path in paths:
        if size is None and (size := read_size(path)) is None:
            return f"{printable(path.name)} cannot be read"
        room.take(1, size)
        found = read_picture(path, size, limit=room.limit)
        if isinstance(found, str):
            return f"{printable(path.name)}: {found}"
        frames.append(found.pixels)
    return Reel(frames, np.arange(len(frames) + 1) / RATE, size)  # pyright: ignore[reportArgumentType]


def at_rate(reel: Reel, rate: float) -> list[int]:
    """Which of its frames are seen in the middle of every 1 / rate seconds: numbers, some of them several times."""
    count = int(np.ceil(float(reel.starts[-1]) * rate - 0.501))  # whose middle lies in the clip
    middles = (np.arange(max(count, 1)) + 0.5) / rate - 1e-6  # of two frames that meet there, the earlier one
    return np.clip(np.searchsorted(reel.starts, middles, "right") - 1, 0, len(reel.frames) - 1).tolist()


def _rate(reels, rate, notes) -> float:
    """The rate that all are read at, and notes on those whose own is another or varies."""
    own = [round(reel.rate, 3) for reel in reels.values() if len(reel.frames) > 1]
    chosen = float(rate or (np.median(own) if own else RATE))
    varying = [printable(path) for path, reel in reels.items() if not reel.steady]
    if varying:
        notes.append(f"{plural(len(varying), 'clip')} with a variable frame rate: {some(varying, ', ', 3)}")
    others = Counter(f"{r:g}" for r in own if abs(r - chosen) > STEADY * chosen)
    if others:
        told = some([f"{count} at {r}" for r, count in sorted(others.items())], ", ", 4)
        notes.append(f"read at {chosen:g} frames a second, whatever their own rate ({told})")
    return chosen


def _sized(frame, target):
    """A frame (h, w, C) at (height, width) target, cropped in the middle."""
    from PIL import Image

    if frame.shape[:2] == tuple(target):
        return frame
    planes = [frame] if frame.shape[-1] in (3, 4) else [frame[..., 0]]
    made = np.asarray(resize_picture(Image.fromarray(np.ascontiguousarray(planes[0])), tuple(target)))
    return made if made.ndim == 3 else made[..., None]


def _fewest(pixels):
    """(h, w, 3 or 4) to (h, w, 1), (h, w, 3) or (h, w, 4): drops what carries nothing."""
    if pixels.shape[-1] == 4:
        if not (pixels[..., 3] == 255).all():
            return pixels.copy()
        pixels = pixels[..., :3]
    return np.ascontiguousarray(pixels[..., :1] if (pixels[..., :1] == pixels).all() else pixels)


def _is_animated(path) -> bool:
    found = look(path)
    return found is not None and found.frames > 1


def _suffix(path) -> str:
    return os.path.splitext(path)[1].lower()


def _natural(path) -> list:
    """frame-2 before frame-10."""
    import re

    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", path)]

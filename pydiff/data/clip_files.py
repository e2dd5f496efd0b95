"""A folder of clips: animated GIF, WebP and PNG files, films (with the extra `video`), and folders of frames.

Every clip is resampled to one frame rate by the display times of its frames, so that films with other or variable rates
keep their speed; it is cut into pieces of F frames and resized like images. Clips that are too short are listed.
"""

import os
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pydiff.data import captions as words
from pydiff.data.classes import divided
from pydiff.data.clips import RATE, Clips, check_frames
from pydiff.data.dataset import plural, some
from pydiff.data.folder import _choose_size, labels_of
from pydiff.data.image import MAX_PIXELS, look, not_a_file, read_image, read_size
from pydiff.data.limits import USUAL, Limit, check_memory
from pydiff.data.listing import files_in, find_files
from pydiff.data.pixels import resize_image, to_channels
from pydiff.data.unreadable import notes_on
from pydiff.printed import printable

FRAMES = 8  # of a clip, by default
ANIMATED = frozenset((".gif", ".webp", ".apng", ".png"))
FILMS = frozenset((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ogv"))
STEADY = 0.02  # relative spread of the frames' durations up to which a rate counts as steady
MAX_FRAMES = 20_000  # of one file
UNTIMED = 0.1  # seconds per frame of a GIF that says 0, as in browsers


class Reel(NamedTuple):
    """One clip. frames: n of (h, w, C) uint8. starts: (n + 1,), the seconds at which they are shown, and the end.
    kinds: those of the frames in the file: grey (1), coloured (3) or partly transparent (4).
    """

    frames: list
    starts: np.ndarray
    kinds: frozenset

    @property
    def rate(self) -> float:
        """Frames per second, on average over the film."""
        return len(self.frames) / float(self.starts[-1]) if self.starts[-1] > 0 else 1 / UNTIMED

    @property
    def steady(self) -> bool:
        """Whether all frames are shown for the same time."""
        waits = np.diff(self.starts)
        return bool(len(waits) < 2 or np.ptp(waits) <= STEADY * waits.mean())


class Fit:
    """Fits each frame to its final size and channels as soon as it is read, so that no clip is ever held at full size,
    and counts the memory that all frames take.

    size: (H, W). channels: 1, 3 or 4; None keeps those of the frame, transparency on white. name: of the folder, for
    messages.
    """

    def __init__(self, size, channels: int | None = None, limit: Limit = USUAL, name: str = ""):
        self.size, self.channels, self.limit, self.name, self.taken = size, channels, limit, name, 0

    def __call__(self, pixels, kinds: set):
        """Fits a frame, (h, w, 3 or 4) uint8 -> (H, W, C), and adds its original kind, 1, 3 or 4, to `kinds`."""
        frame = _fewest(pixels)
        kinds.add(frame.shape[-1])
        if self.channels is not None or frame.shape[-1] == 4:
            frame = to_channels(frame, self.channels or 3)
        return _sized(frame, self.size)

    def take(self, count: int):
        """Counts `count` more frames; raises TooLarge above the limit."""
        self.taken += count * self.size[0] * self.size[1] * 8  # twice: they are also copied into one array
        self._check(self.limit.check, self.taken, f"all frames of {self.name}")

    def check_file(self, path: Path, count: int, size: tuple[int, int]):
        """Raises TooLarge for a possible decompression bomb: tiny, with `count` frames of this (height, width)."""
        told = f"{printable(path.name)}, {plural(count, 'frame')} of {size[0]} x {size[1]},"
        self._check(self.limit.check_unfolding, count * size[0] * size[1] * 4, path.stat().st_size, told)

    def _check(self, check, *arguments):
        try:
            check(*arguments)
        except ValueError as error:
            raise TooLarge(str(error)) from None


class TooLarge(ValueError):
    """More than the memory limit allows; raised for the whole folder, not skipped like a damaged file."""


def holds_clips(root: Path) -> bool:
    """Whether a folder has more films than images. Films are the files that can only be clips."""
    films = find_files(root, FILMS)[0]
    return bool(films) and len(films) > len(find_files(root)[0])


def load_clips(
    root: Path,
    frames: int | None = None,
    rate: float | None = None,
    size=None,
    channels: int | None = None,
    limit: Limit = USUAL,
    *,
    split: str | None = None,
    only=None,
    told=None,
) -> Clips:
    """All clips under `root`, in order of path; the class is the first folder below the one that all share.

    frames: of each, 8 if None; a longer clip is cut into several, a shorter one is left out and listed. rate: frames
    per second; None takes the median of the files' rates. size: (height, width). channels: 1 or 3 (transparency becomes
    white), or 4; None: 1 if everything is grey, else 3. Captions are read as for images. If there are no animated files
    and no films, every folder of images is a clip, with its frames in the order of their names. limit: of memory, for
    all frames at their final size. split: which of the folders called train, val and test, or "all"; None is train.
    only: which files count, Path -> bool. told: the caption of a file, path -> str, instead of captions found in files.
    Raises ValueError if nothing is left, if more than half of the files are broken, or above the limit.
    """
    check_frames(frames, rate)
    frames = FRAMES if frames is None else frames
    listed = files_in(root, ANIMATED | FILMS)
    texts, skipped = listed.texts, listed.skipped
    paths = listed.images if only is None else [path for path in listed.images if only(root / path)]
    still = [path for path in paths if _suffix(path) == ".png" and not _is_animated(root / path)]
    paths, notes = [path for path in paths if path not in set(still)], []
    sources = {path: root / path for path in paths}
    if not paths:
        listed, folders = files_in(root), {}
        for path in listed.images:
            folders.setdefault(os.path.dirname(path), []).append(path)
        sources = {
            folder or ".": [root / p for p in sorted(of_one, key=_natural)] for folder, of_one in folders.items()
        }
    elif still:
        notes.append(f"{plural(len(still), 'image')} beside the clips left out")
    notes += notes_on(listed.others, listed.thumbnails, listed.empty, listed.again) if only is None else []
    kept, split_notes = divided(list(sources), split, printable(str(root)), "clip")
    sources, notes = {path: sources[path] for path in kept}, [*split_notes, *notes]
    sizes = [found for found in map(_size_of, sources.values()) if found is not None]
    fit, reels = Fit(size or _choose_size(sizes, notes), channels, limit, printable(str(root))), {}
    for path, source in sources.items():
        found = _read_folder(source, fit) if isinstance(source, list) else read_reel(source, fit)
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
    if channels is None:
        kinds = frozenset().union(*(reel.kinds for reel in reels.values()))
        channels = 1 if kinds == {1} else 3
        notes += ["what is transparent lies on white; pass channels=4 to keep it"] * (4 in kinds)
    names, pieces, short = [], [], []
    for path, reel in reels.items():
        taken = at_rate(reel, rate)
        if len(taken) < frames:
            has = plural(len(taken), "frame")
            short.append((printable(path), f"{has} at {rate:g} a second, and {frames} are needed"))
        for first in range(0, len(taken) - frames + 1, frames):
            names.append(path)
            pieces.append([reel.frames[i] for i in taken[first : first + frames]])
    if not pieces:
        raise ValueError(
            f"no clip in {root} has {frames} frames at {rate:g} a second (first: {short[0][0]}: {short[0][1]}); "
            "use fewer frames or a higher frame_rate"
        )
    skipped += short
    if len(pieces) > len(set(names)):
        made = f"{plural(len(pieces), 'clip')} of {plural(frames, 'frame')}"
        notes.append(f"{plural(len(set(names)), 'file')} cut into {made}")
    return _dataset(root, names, pieces, rate, channels, list(sources), texts, told, skipped, notes)


def _dataset(root, names, pieces, rate, channels, paths, texts, told, skipped, notes) -> Clips:
    """The Clips of these pieces, lists of frames, with the labels and captions of the files that they come from."""
    clips = np.stack([np.stack([to_channels(frame, channels) for frame in piece]) for piece in pieces])
    labels, classes, class_notes = labels_of(names, "clip")
    more, captions = {}, None if told else words.find_captions(root, paths, texts)
    if told:
        more = {"captions": tuple((told(name),) for name in names), "languages": (("en",),) * len(names)}
    if captions is not None:
        more, caption_notes = words.columns([captions.of[path] for path in names], names)
        notes += caption_notes + captions.notes
        skipped += captions.skipped
    notes += class_notes
    return Clips(root.name or str(root), clips, labels, classes, sorted(skipped), notes, rate=rate, **more)


def _size_of(source):
    """(height, width) of a file's frames, or of the first frame in a folder; None if they cannot be read."""
    path = source[0] if isinstance(source, list) else source
    if _suffix(path.name) not in FILMS:
        return read_size(path)
    try:
        import av

        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            return stream.height, stream.width
    except Exception as error:  # reading the file will say why
        check_memory(error)
        return None


def read_reel(path: Path, fit: Fit) -> Reel | str:
    """The frames of a moving-image file, composed to whole frames; or the reason why it cannot be used."""
    try:
        if not path.is_file():
            return not_a_file(path)
        if path.stat().st_size == 0:
            return "empty file"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return (_read_film if _suffix(path.name) in FILMS else _read_animation)(path, fit)
    except TooLarge:
        raise
    except ImportError:
        return "a film needs the library av (pip install 'pydiff[video]')"
    except Exception as error:  # decoders raise a dozen types for damaged files
        check_memory(error)
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__  # av's messages repeat the path
        return f"damaged ({said.splitlines()[0]})"


def _read_animation(path, fit) -> Reel | str:
    """GIF, WebP and PNG by Pillow, which composes partial frames and applies their disposal methods."""
    from PIL import Image

    Image.init()
    try:
        image = Image.open(path, formats=[name for name in ("GIF", "WEBP", "PNG") if name in Image.OPEN])
    except Image.UnidentifiedImageError:
        return "not an image in any known format"
    with image:
        count = getattr(image, "n_frames", 1)
        if image.width * image.height > MAX_PIXELS or count > MAX_FRAMES:
            return f"{count} frames of {image.width} x {image.height} pixels, above the limit"
        fit.check_file(path, count, (image.height, image.width))
        fit.take(count)
        frames, starts, kinds = [], [0.0], set()
        for i in range(count):
            image.seek(i)
            frames.append(fit(np.asarray(image.convert("RGBA")), kinds))
            wait = float(image.info.get("duration") or 0) / 1000
            starts.append(starts[-1] + (wait if wait > 0 else UNTIMED))
        return Reel(frames, np.array(starts), frozenset(kinds))


def _read_film(path, fit) -> Reel | str:
    """MP4 and other video files by PyAV, with the time of every frame."""
    import av

    frames, starts, kinds = [], [], set()
    with av.open(str(path)) as container:
        if not container.streams.video:
            return "a film without images"
        stream = container.streams.video[0]
        for frame in container.decode(stream):
            if frame.width * frame.height > MAX_PIXELS or len(frames) == MAX_FRAMES:
                return f"more than {MAX_FRAMES:,} frames or {MAX_PIXELS:,} pixels, above the limit"
            fit.take(1)
            frames.append(fit(frame.to_ndarray(format="rgb24"), kinds))
            starts.append(
                float(frame.time) if frame.time is not None else len(starts) / float(stream.average_rate or 25)
            )
    if not frames:
        return "no frame can be read"
    waits = np.diff(starts)
    last = float(np.median(waits)) if len(waits) else 1 / float(stream.average_rate or 25)
    return Reel(frames, np.array([*starts, starts[-1] + last]) - starts[0], frozenset(kinds))


def _read_folder(paths, fit) -> Reel | str:
    """Images as frames, RATE of them per second; images of another size are resized to that of the first."""
    size = read_size(paths[0])
    if size is None:
        return f"{printable(paths[0].name)} cannot be read"
    frames, kinds = [], set()
    for path in paths:
        fit.take(1)
        found = read_image(path, size, limit=fit.limit)
        if isinstance(found, str):
            return f"{printable(path.name)}: {found}"
        frames.append(fit(found.pixels, kinds))
    return Reel(frames, np.arange(len(frames) + 1) / RATE, frozenset(kinds))


def at_rate(reel: Reel, rate: float) -> list[int]:
    """For every 1 / rate seconds of the clip, the number of the frame shown in the middle; frames may repeat."""
    count = int(np.ceil(float(reel.starts[-1]) * rate - 0.501))  # intervals whose middle is in the clip
    middles = (np.arange(max(count, 1)) + 0.5) / rate - 1e-6  # at a change of frames, the earlier one
    return np.clip(np.searchsorted(reel.starts, middles, "right") - 1, 0, len(reel.frames) - 1).tolist()


def _rate(reels, rate, notes) -> float:
    """The rate at which all clips are read; adds notes on those whose own rate differs or varies."""
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
    made = np.asarray(resize_image(Image.fromarray(np.ascontiguousarray(planes[0])), tuple(target)))
    return made if made.ndim == 3 else made[..., None]


def _fewest(pixels):
    """(h, w, 1, 3 or 4) to (h, w, 1), (h, w, 3) or (h, w, 4): drops channels that carry no information."""
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
    """A sort key that puts frame-2 before frame-10."""
    import re

    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", path)]

"""Training data: shipped sets, folders and archives of images, folders of sounds, files of arrays, and arrays or lists
in memory all become a Dataset: (N, H, W, C) images, (N, 1, L, C) sounds, with their classes and captions.

`load` recognises the source; each kind has its own small module, in the tables of sources.py. The rest of pydiff sees
only `Dataset`, `batch_indices`, `flip` and the two functions that convert between uint8 and [-1, 1].
"""

import dataclasses
import os
from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from pydiff.data.animated import animated_emoji
from pydiff.data.arrays import from_array
from pydiff.data.asked import Asked, asked
from pydiff.data.clip_files import holds_clips, load_clips
from pydiff.data.clips import RATE, Clips, check_frames
from pydiff.data.dataset import Dataset, plural
from pydiff.data.describe import describe
from pydiff.data.digits import load_digits
from pydiff.data.emoji import load_emoji
from pydiff.data.faces import load_faces
from pydiff.data.fashion import load_fashion
from pydiff.data.libraries import names_in, part_of, rows_of
from pydiff.data.lists import is_pair, listed, load_list, load_mapping, load_pair, one_of
from pydiff.data.moving import SIZE, moving_shapes
from pydiff.data.order import batch_indices, flip, pick_captions
from pydiff.data.pixels import from_uint8, to_uint8
from pydiff.data.points import Points, swiss_roll
from pydiff.data.sounds import Sounds, check_sound, holds_sounds, load_sounds
from pydiff.data.sources import EXPECTED, load_path
from pydiff.data.spoken import (
    load_captions,
    load_prompts,
    load_spoken_digits,
    load_synthetic_digits,
    load_synthetic_speech,
)
from pydiff.data.stream import load_streamed
from pydiff.data.tones import load_tones
from pydiff.mistakes import by_name
from pydiff.printed import expanded, printable

__all__ = [
    "Clips",
    "Dataset",
    "Points",
    "Sounds",
    "batch_indices",
    "describe",
    "flip",
    "from_uint8",
    "load",
    "pick_captions",
    "to_uint8",
]

NAMED = {"digits": load_digits, "emoji": load_emoji, "faces": load_faces, "fashion": load_fashion}
NAMED |= {"moving-shapes": moving_shapes, "swiss-roll": swiss_roll, "animated-emoji": animated_emoji}
NAMED_SOUNDS = {
    "tones": load_tones,
    "spoken-digits": load_spoken_digits,
    "spoken-captions": load_captions,
    "spoken-prompts": load_prompts,
    "synthetic-digits": load_synthetic_digits,
    "synthetic-speech": load_synthetic_speech,
}
_NAMES = ", ".join(map(repr, [*NAMED, *NAMED_SOUNDS]))


@by_name
def load(
    source,
    size=None,
    channels: int | None = None,
    labels=None,
    captions=None,
    *,
    layout: str | None = None,
    pages: str | None = None,
    split: str | None = None,
    bits: int | None = None,
    limit: float | None = None,
    frames: int | None = None,
    frame_rate: float | None = None,
    rate: int | None = None,
    seconds: float | None = None,
    cache_gb: float = 0,
) -> Dataset:
    """A data set from almost anything. Its `notes` and `skipped` say what was decided, converted or left out.

    source    "digits" (8 x 8, shipped), "emoji" (32 x 32 with captions, shipped), "faces" (25 x 25, needs
              scikit-image), "fashion" (28 x 28, needs Debian's dataset-fashion-mnist), "tones" (sounds, made by
              formula; docs/sound.md has the other named sounds); a folder of images, of sounds, of MNIST's IDX files,
              of CIFAR's batches or of .parquet files, or a .zip or .tar of one; a .npz, .npy or .parquet file; an array
              (N, H, W), (N, H, W, C) or (N, C, H, W), or of points (N, D); a list of arrays, Pillow images, paths or
              (image, label); a pair (x, y); a dict of arrays; a generator or another library's data set of these; or a
              Dataset. "./digits" is a folder of that name
    size      an integer or (height, width): images are resized by their shorter side and cropped in the middle
    channels  1 (grey), 3 (RGB) or 4 (RGBA); None reads it from the data
    labels    (N,) integers or strings, for arrays and lists only: folders and files bring their own
    captions  N strings or sequences of strings, or {language: those}, for arrays only
    layout    of an array: "NHWC", "NCHW" or "NHW"; None infers it from the shape
    pages     of files that hold several pages or frames: "first" or "all"
    split     if there are folders called train, val and test: one of these, or "all"; None is train
    bits      8, 10, 12, 14 or 16: how many bits of deeper grey are used; None takes the fewest that hold the values
    limit     GiB of memory that the data may take, 4 if None
    rate, seconds   of sounds: samples per second, and the length of each; a folder is then read for its sounds
    frames, frame_rate  of clips: how many frames of each are taken, 8 if None, and how many per second
    cache_gb  above 0, images of a folder, a .zip, .tar or .parquet file are decoded when they are needed, and this
              many GB of them are kept: for data larger than memory, see stream.py

    Raises ValueError for data that cannot be used, FileNotFoundError for missing files, and ImportError for a missing
    library.
    """
    if isinstance(cache_gb, bool) or not isinstance(cache_gb, int | float | np.number) or not 0 <= cache_gb < 1 << 40:
        raise ValueError(f"cache_gb is {cache_gb!r}, expected GB of decoded images that are kept, 0 for all in memory")
    source = _plain_source(source)
    sound = rate is not None or seconds is not None or isinstance(source, Sounds)
    if cache_gb and (sound or (isinstance(source, str) and source in NAMED_SOUNDS)):
        raise ValueError("cache_gb is for images; leave it out for sounds")
    if not cache_gb and (sound or is_sound(source)):
        wanted = asked(layout=layout, pages=pages, split=split, bits=bits, limit=limit)
        return _load_sounds(source, size, channels, labels, captions, rate, seconds, wanted)
    check_frames(frames, frame_rate)
    wanted = asked(size, channels, layout, pages, split, bits, limit, frame_rate)
    if cache_gb:
        if labels is not None or captions is not None or not _is_path(source) or source in NAMED:
            raise ValueError("cache_gb is for a folder, a .zip, .tar or .parquet file; leave it out")
        if frames is not None or frame_rate is not None:
            raise ValueError("frames and frame_rate are for clips, and cache_gb is for images; leave one of them out")
        return load_streamed(expanded(source), cache_gb, wanted)  # pyright: ignore[reportArgumentType]
    if isinstance(source, str) and source == "moving-shapes" and (size or frames or frame_rate):
        wanted.only("'moving-shapes'")
        return moving_shapes(frames=frames, size=(wanted.size or (SIZE,))[0], rate=frame_rate or RATE)
    if isinstance(source, str) and source == "animated-emoji":
        return animated_emoji(frames, frame_rate, wanted.size, wanted.channels)
    path = expanded(source) if isinstance(source, str | os.PathLike) and source not in NAMED else None
    if path is not None and path.is_dir() and (frames is not None or frame_rate is not None or holds_clips(path)):
        wanted.only(f"{printable(str(path))} (clips)", "split")
        return load_clips(path, frames, frame_rate, wanted.size, wanted.channels, wanted.limit, split=split)
    dataset = _of_length(_loaded(source, labels, captions, wanted), frames, frame_rate)
    return _fitted(dataset, wanted)


def _plain_source(source):
    """A path of bytes as text; anything else as it is. Raises TypeError for an open file, and for what was in one."""
    if isinstance(source, bytes):
        if len(source) > 4096 or b"\0" in source:
            raise TypeError(f"these {len(source):,} bytes are what is in a file; give its path")
        return os.fsdecode(source) if os.path.exists(source) else source
    if hasattr(source, "read") and hasattr(source, "seek"):
        raise TypeError("this is an open file; give its path")
    return source


def _is_path(source) -> bool:
    return isinstance(source, (str, os.PathLike))


def _of_length(dataset, frames, frame_rate):
    """A loaded data set cut to this many frames per clip. Raises ValueError if it has no frames, or too few."""
    if frames is None and frame_rate is None:
        return dataset
    if not isinstance(dataset, Clips):
        raise ValueError(f"{dataset.name} holds {dataset.noun}s, which have no frames; leave frames and frame_rate out")
    have = dataset.shape[0]
    if frames is not None and frames > have:
        raise ValueError(f"{frames} frames were asked for, and the clips have {have}")
    cut = dataset.images if frames is None else dataset.images[:, :frames]
    return dataclasses.replace(dataset, images=cut, rate=frame_rate or dataset.rate)


def _loaded(source, labels, captions, wanted: Asked) -> Dataset:
    given = "labels" if labels is not None else "captions" if captions is not None else None
    if isinstance(source, (str, os.PathLike)):
        if not str(source):
            raise ValueError(f"the name of the data is empty; expected {_NAMES}, {EXPECTED}")
        if "://" in str(source):
            raise ValueError(f"{printable(str(source))!r} is an address; fetch what is there, and give the file")
        if given:
            raise ValueError(f"{given} were given with {source!r}, which brings its own; {given}= belongs to arrays")
        if isinstance(source, str) and source in NAMED:
            wanted.only(repr(source))
            return NAMED[source]()
        return load_path(expanded(source), wanted, [*NAMED, *NAMED_SOUNDS])
    if (found := part_of(source, wanted)) is not None:
        dataset = _loaded(found[0], labels, captions, wanted._replace(split=None))
        return dataclasses.replace(dataset, notes=[*dataset.notes, found[1]])
    alone = isinstance(source, tuple) and len(source) in (1, 2) and all(part is None for part in source[1:])
    if alone and hasattr(source[0], "__array__") and np.ndim(source[0]) >= 4:
        source = source[0]  # (x,) and (x, None): images without labels
    source = rows_of(source)
    if isinstance(source, Dataset):
        if given:
            raise ValueError(f"{given} were given with a Dataset, which brings its own; {given}= belongs to arrays")
        wanted.only("a Dataset")
        return source
    if is_pair(source, least=2) or isinstance(source, Mapping):
        if given:
            raise ValueError(f"{given} were given with data that bring their own; {given}= belongs to arrays")
        return load_mapping(source, wanted) if isinstance(source, Mapping) else load_pair(source, wanted)
    if _is_pillow(source):
        raise TypeError("this is one image; give a list of images, [image]")
    if hasattr(source, "__array__") and not (isinstance(source, np.ndarray) and source.dtype.hasobject):
        return from_array(source, labels, captions, asked=wanted.only("an array", "layout", "bits"))
    if (items := listed(source, wanted.limit)) is not None:
        return load_list(items, labels, captions, wanted, names_in(source))
    if hasattr(source, "dataset") and hasattr(source, "__iter__"):
        raise TypeError(f"{one_of(source)} gives batches in an order of its own; give its .dataset")
    if hasattr(source, "__iter__") and not isinstance(source, str | bytes | Set):
        raise TypeError(f"{one_of(source)} says neither how many it has nor which; give list(..) of it")
    raise TypeError(f"cannot load data from {type(source).__name__}; expected {_NAMES}, {EXPECTED}")


def is_sound(source) -> bool:
    """Whether a source holds sounds: by its name, by its class, or as a folder with more sounds than images."""
    if isinstance(source, str) and (source in NAMED or source in NAMED_SOUNDS):
        return source in NAMED_SOUNDS
    if isinstance(source, (str, os.PathLike)):
        return holds_sounds(expanded(source))
    return isinstance(source, Sounds)


def _load_sounds(source, size, channels, labels, captions, rate, seconds, wanted: Asked) -> Sounds:
    if size is not None or labels is not None or captions is not None:
        given = "size" if size is not None else "labels" if labels is not None else "captions"
        raise ValueError(
            f"{given} was given with sounds, which have rate and seconds, and their folders' names as classes"
        )
    is_folder = isinstance(source, (str, os.PathLike)) and source not in NAMED_SOUNDS
    wanted.only(*("a folder of sounds", "split") if is_folder else ("a set of sounds",))
    if isinstance(source, Sounds):
        if (rate or source.rate, channels or source.shape[2]) != (source.rate, source.shape[2]) or seconds is not None:
            raise ValueError("a data set of sounds has its rate and length; give rate and seconds where it is loaded")
        return source
    check_sound(rate, seconds, channels)
    if isinstance(source, str) and source in NAMED_SOUNDS:
        given = {"rate": rate, "seconds": seconds}
        return NAMED_SOUNDS[source](**{name: value for name, value in given.items() if value is not None})
    if not isinstance(source, (str, os.PathLike)) or source in NAMED:
        raise ValueError("rate and seconds are for a folder of sounds or a named set of sounds; leave them out")
    path = expanded(source)
    if not path.is_dir():
        reason = "is not a folder of sounds" if path.exists() else "is not there"
        raise ValueError(f"{str(source)!r} {reason}; rate and seconds are for sounds")
    return load_sounds(path, rate, seconds, channels, wanted.limit, wanted.split)


def _is_pillow(source) -> bool:
    return type(source).__module__.startswith("PIL.")


def _fitted(dataset: Dataset, wanted: Asked) -> Dataset:
    """The data set at the requested size and number of channels, with notes on what that changed."""
    before: Any = dataset.shape
    if wanted.size is not None and len(before) >= 3:
        pixels = dataset.images.size // (before[-3] * before[-2]) * wanted.size[0] * wanted.size[1]
        wanted.limit.check(pixels * dataset.images.itemsize, dataset.name)
    fitted, notes = dataset.resized(wanted.size, wanted.channels), []
    if fitted is dataset:
        return dataset
    if fitted.shape[-1] != before[-1]:
        notes.append(f"{plural(before[-1], 'channel')} made {fitted.shape[-1]}, as asked for")
    if fitted.shape[-3:-1] != before[-3:-1]:
        (height, width), (h, w) = before[-3:-1], fitted.shape[-3:-1]
        notes.append(f"resized and cropped from {height} x {width} to {h} x {w}")
    return dataclasses.replace(fitted, notes=[*dataset.notes, *notes])

"""Training data: shipped sets, folders of pictures or sounds, .npz, .npy and .parquet files and arrays all become a
Dataset: (N, H, W, C) pictures or (N, 1, L, C) sounds, with their classes and captions where there are any.

`load` recognises the source; each kind has its own small module. The rest of pydiff sees only `Dataset`,
`batch_indices`, `flip` and the two functions at the edge between uint8 and [-1, 1].
"""

import dataclasses
import os
from pathlib import Path

from pydiff.data.arrays import from_array, load_arrays_file
from pydiff.data.clip_files import holds_clips, load_clips
from pydiff.data.clips import RATE, Clips
from pydiff.data.dataset import Dataset
from pydiff.data.describe import describe
from pydiff.data.digits import load_digits
from pydiff.data.emoji import load_emoji
from pydiff.data.faces import load_faces
from pydiff.data.fashion import holds_idx, load_fashion
from pydiff.data.folder import load_folder
from pydiff.data.moving import SIZE, moving_shapes
from pydiff.data.order import batch_indices, flip, pick_captions
from pydiff.data.parquet import holds_parquet, load_parquet
from pydiff.data.pixels import check_size, from_uint8, to_uint8
from pydiff.data.points import Points, swiss_roll
from pydiff.data.sounds import Sounds, check_sound, holds_sounds, load_sounds
from pydiff.data.stream import load_streamed
from pydiff.data.tones import load_tones

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
NAMED |= {"moving-shapes": moving_shapes, "swiss-roll": swiss_roll}
NAMED_SOUNDS = {"tones": load_tones}


def load(
    source,
    size=None,
    channels: int | None = None,
    labels=None,
    captions=None,
    *,
    frames=None,
    frame_rate=None,
    rate: int | None = None,
    seconds: float | None = None,
    cache_gb: float = 0,
) -> Dataset:
    """A data set from almost anything.

    source    "digits" (8 x 8, shipped), "emoji" (32 x 32 with captions, shipped), "faces" (25 x 25, needs
              scikit-image), "fashion" (28 x 28, needs Debian's dataset-fashion-mnist), "tones" (sounds, made by
              formula; docs/sound.md has the other named sounds), a folder of pictures, of sounds, of MNIST's
              IDX files or of .parquet files, a .npz, .npy or .parquet file, an array (N, H, W), (N, H, W, C) or
              (N, C, H, W), or a Dataset; "./digits" is a folder of that name
    size      an integer or (height, width): pictures are resized by their shorter side and cropped in the middle
    channels  1 (grey), 3 (RGB) or 4 (RGBA); None reads it from the data
    labels    (N,) integers or strings, for arrays only: folders and files bring their own
    captions  N strings or sequences of strings, or {language: those}, for arrays only, too
    rate, seconds   of sounds: samples a second, and how long each is made; a folder is then read for its sounds
    frames, frame_rate  of clips: how many frames of each are taken, 8 if None, at how many a second
    cache_gb  above 0, pictures of a folder, a .zip, .tar or .parquet file are decoded when they are needed, and this
              many GB of them are kept: for data larger than memory, see stream.py

    Raises ValueError for data that cannot be used, FileNotFoundError, and ImportError where a library is missing.
    """
    if rate is not None or seconds is not None or _is_sound(source):
        if cache_gb:
            raise ValueError("cache_gb is for pictures; leave it out for sounds")
        return _load_sounds(source, size, channels, labels, captions, rate, seconds)
    size = check_size(size)
    given = "labels" if labels is not None else "captions" if captions is not None else None
    if cache_gb:
        if given or not isinstance(source, (str, os.PathLike)) or source in NAMED:
            raise ValueError("cache_gb is for a folder, a .zip, .tar or .parquet file; leave it out")
        return load_streamed(Path(source).expanduser(), size, channels, cache_gb)
    if isinstance(source, (str, os.PathLike)):
        if given:
            raise ValueError(f"{given} were given with {source!r}, which brings its own; {given}= belongs to arrays")
        if isinstance(source, str) and source in NAMED:
            dataset = NAMED[source]()
            if source == "moving-shapes" and (size or frames or frame_rate):
                return moving_shapes(frames=frames, size=(size or (SIZE,))[0], rate=frame_rate or RATE)
        elif (path := Path(source).expanduser()).is_dir():
            if frames is not None or frame_rate is not None or holds_clips(path):
                return load_clips(path, frames, frame_rate, size, channels)
            if not holds_idx(path):
                return load_parquet(path, size, channels) if holds_parquet(path) else load_folder(path, size, channels)
            dataset = load_fashion(path)
        elif path.suffix.lower() == ".parquet" and path.is_file():
            return load_parquet(path, size, channels)
        else:
            dataset = load_arrays_file(_arrays_path(path))
    elif isinstance(source, Dataset):
        if given:
            raise ValueError(f"{given} were given with a Dataset, which brings its own; {given}= belongs to arrays")
        dataset = source
    elif hasattr(source, "__array__"):
        dataset = from_array(source, labels, captions, rate=frame_rate)
    else:
        raise TypeError(f"cannot load data from {type(source).__name__}; {_EXPECTED}")
    return _of_length(dataset, frames, frame_rate).resized(size, channels)


def _of_length(dataset, frames, frame_rate):
    """A data set that is there, with so many frames a clip. ValueError where it has none or too few."""
    if frames is None and frame_rate is None:
        return dataset
    if not isinstance(dataset, Clips):
        raise ValueError(f"{dataset.name} holds {dataset.noun}s, which have no frames; leave frames and frame_rate out")
    have = dataset.shape[0]
    if frames is not None and frames > have:
        raise ValueError(f"{frames} frames were asked for, and the clips have {have}")
    cut = dataset.images if frames is None else dataset.images[:, :frames]
    return dataclasses.replace(dataset, images=cut, rate=frame_rate or dataset.rate)


def _is_sound(source) -> bool:
    """Whether a source is one of sounds: by its name, by its class, or a folder with more sounds than pictures."""
    if isinstance(source, str) and (source in NAMED or source in NAMED_SOUNDS):
        return source in NAMED_SOUNDS
    if isinstance(source, (str, os.PathLike)):
        return holds_sounds(Path(source).expanduser())
    return isinstance(source, Sounds)


def _load_sounds(source, size, channels, labels, captions, rate, seconds) -> Sounds:
    if size is not None or labels is not None or captions is not None:
        given = "size" if size is not None else "labels" if labels is not None else "captions"
        raise ValueError(
            f"{given} was given with sounds, which have rate and seconds, and their folders' names as classes"
        )
    if isinstance(source, Sounds):
        if (rate or source.rate, channels or source.shape[2]) != (source.rate, source.shape[2]) or seconds is not None:
            raise ValueError("a data set of sounds has its rate and length; give rate and seconds where it is loaded")
        return source
    check_sound(rate, seconds, channels)
    if isinstance(source, str) and source in NAMED_SOUNDS:
        given = {"rate": rate, "seconds": seconds}
        return NAMED_SOUNDS[source](**{name: value for name, value in given.items() if value is not None})
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError("rate and seconds are for a folder of sounds or a named set of sounds; leave them out")
    path = Path(source).expanduser()
    if not path.is_dir():
        reason = "is not a folder of sounds" if path.exists() else "is not there"
        raise ValueError(f"{str(source)!r} {reason}; rate and seconds are for sounds")
    return load_sounds(path, rate, seconds, channels)


_EXPECTED = f"expected {', '.join(map(repr, NAMED))}, a folder of pictures, a .npz, .npy or .parquet file, or an array"


def _arrays_path(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"there is no {str(path)!r}; {_EXPECTED}")
    if path.suffix.lower() not in (".npz", ".npy"):
        raise ValueError(f"cannot load data from {str(path)!r}; {_EXPECTED}")
    return path

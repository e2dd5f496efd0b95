"""Training data: shipped sets, folders and archives of pictures, files of arrays, and what somebody holds in Python all
become a Dataset: (N, H, W, C) pictures, with their classes and captions where there are any.

`load` recognises the source; each kind has its own small module, in the tables of sources.py. The rest of pydiff sees
only `Dataset`, `batch_indices`, `flip` and the two functions at the edge between uint8 and [-1, 1].
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydiff.data.arrays import from_array
from pydiff.data.asked import Asked, asked
from pydiff.data.dataset import Dataset, plural
from pydiff.data.describe import describe
from pydiff.data.digits import load_digits
from pydiff.data.emoji import load_emoji
from pydiff.data.faces import load_faces
from pydiff.data.fashion import load_fashion
from pydiff.data.lists import is_pair, load_list, load_mapping, load_pair
from pydiff.data.order import batch_indices, flip, pick_captions
from pydiff.data.pixels import from_uint8, resize, to_channels, to_uint8
from pydiff.data.sources import EXPECTED, load_path

__all__ = [
    "Dataset",
    "batch_indices",
    "describe",
    "flip",
    "from_uint8",
    "load",
    "pick_captions",
    "to_uint8",
]

NAMED = {"digits": load_digits, "emoji": load_emoji, "faces": load_faces, "fashion": load_fashion}
_NAMES = ", ".join(map(repr, NAMED))


def load(
    source,
    size=None,
    channels: int | None = None,
    labels=None,
    captions=None,
    *,
    layout: str | None = None,
    frames: str | None = None,
    split: str | None = None,
    bits: int | None = None,
    limit: float | None = None,
) -> Dataset:
    """A data set from almost anything. What was decided, converted or left out is in its `notes` and `skipped`.

    source    "digits" (8 x 8, shipped), "emoji" (32 x 32 with captions, shipped), "faces" (25 x 25, needs
              scikit-image), "fashion" (28 x 28, needs Debian's dataset-fashion-mnist); a folder of pictures, of MNIST's
              IDX files, of CIFAR's batches or of .parquet files, or a .zip or .tar of one; a .npz, .npy or .parquet
              file; an array (N, H, W), (N, H, W, C) or (N, C, H, W); a list of arrays, Pillow images, paths or
              (image, label); a pair (x, y); a dict of arrays; or a Dataset. "./digits" is a folder of that name
    size      an integer or (height, width): pictures are resized by their shorter side and cropped in the middle
    channels  1 (grey), 3 (RGB) or 4 (RGBA); None reads it from the data
    labels    (N,) integers or strings, for arrays and lists only: folders and files bring their own
    captions  N strings or sequences of strings, or {language: those}, for arrays only
    layout    of an array: "NHWC", "NCHW" or "NHW"; None goes by its shape
    frames    of files that hold several: "first" or "all"
    split     where folders are called train, val and test: one of these, or "all"; None is train
    bits      8, 10, 12, 14 or 16: how many bits of deeper grey are used; None is as few as hold the values
    limit     GiB of memory that the data may take, 4 if None

    Raises ValueError for data that cannot be used, FileNotFoundError, and ImportError where a library is missing.
    """
    wanted = asked(size, channels, layout, frames, split, bits, limit)
    dataset = _loaded(source, labels, captions, wanted)
    return _fitted(dataset, wanted)


def _loaded(source, labels, captions, wanted: Asked) -> Dataset:
    given = "labels" if labels is not None else "captions" if captions is not None else None
    if isinstance(source, (str, os.PathLike)):
        if given:
            raise ValueError(f"{given} were given with {source!r}, which brings its own; {given}= belongs to arrays")
        if isinstance(source, str) and source in NAMED:
            return NAMED[source]()
        return load_path(Path(source).expanduser(), wanted, _NAMES)
    if isinstance(source, Dataset):
        if given:
            raise ValueError(f"{given} were given with a Dataset, which brings its own; {given}= belongs to arrays")
        return source
    if is_pair(source) or isinstance(source, Mapping):
        if given:
            raise ValueError(f"{given} were given with data that bring their own; {given}= belongs to arrays")
        return (load_mapping if isinstance(source, Mapping) else load_pair)(source, wanted)
    if hasattr(source, "__array__") and not _is_pillow(source):
        return from_array(source, labels, captions, asked=wanted)
    if isinstance(source, Sequence) and not isinstance(source, bytes | bytearray):
        return load_list(source, labels, captions, wanted)
    hint = "; give a list of images, [image]" if _is_pillow(source) else ""
    raise TypeError(f"cannot load data from {type(source).__name__}; expected {_NAMES}, {EXPECTED}{hint}")


def _is_pillow(source) -> bool:
    return type(source).__module__.startswith("PIL.")


def _fitted(dataset: Dataset, wanted: Asked) -> Dataset:
    """With the size and the number of channels that are asked for; what that changes is noted."""
    images, notes = dataset.images, []
    if wanted.channels is not None and images.shape[-1] != wanted.channels:
        images = to_channels(images, wanted.channels)
        notes.append(f"{plural(dataset.shape[-1], 'channel')} made {wanted.channels}, as asked for")
    if wanted.size is not None and images.shape[1:3] != wanted.size:
        height, width = images.shape[1:3]
        wanted.limit.check(
            len(images) * wanted.size[0] * wanted.size[1] * images.shape[-1] * images.itemsize, dataset.name
        )
        images = resize(images, wanted.size)
        notes.append(f"resized and cropped from {height} x {width} to {wanted.size[0]} x {wanted.size[1]}")
    return dataset if not notes else dataclasses.replace(dataset, images=images, notes=[*dataset.notes, *notes])

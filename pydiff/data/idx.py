"""IDX files of MNIST, and of data sets in the same format: train-images-idx3-ubyte, t10k-labels-idx1-ubyte, ..

With or without .gz, in a folder or in an archive, or a single file.
"""

import io
import math
import os
from pathlib import Path

import numpy as np

from pydiff.data.asked import NOTHING_ASKED, Asked
from pydiff.data.dataset import Dataset
from pydiff.data.limits import USUAL, Limit, check_system
from pydiff.printed import printable

PARTS = {"train": "train", "test": "t10k"}


def load_idx(root, asked: Asked = NOTHING_ASKED) -> Dataset:
    """The training set (or that of asked.split) in a folder or archive: grey, (N, H, W, 1) uint8, with its classes.

    Raises ValueError for damaged files.
    """
    split = asked.split or "train"
    parts = ["train", "test"] if split == "all" else [split]
    found = [_part(root, PARTS.get(part, part), asked.limit) for part in parts if _pair(root, PARTS.get(part, part))]
    if not found:
        raise ValueError(_lacking(root, split))
    images, labels = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    notes, other = [], [part for part in ("train", "test") if part not in parts and _pair(root, PARTS[part])]
    if other:
        notes.append(f"IDX files for {split} taken, those for {other[0]} left out (split={other[0]!r}, 'all')")
    classes = [str(i) for i in range(int(labels.max(initial=0)) + 1)]
    name = printable(root.name)
    dataset = Dataset(name, images[..., None], labels.astype(np.int64), classes, notes=notes)
    if "fashion" not in str(root).lower():
        return dataset
    from pydiff.data.fashion import named_clothes

    return named_clothes(dataset)


def _lacking(root, split) -> str:
    """Why a folder with files of MNIST's has none that can be read."""
    where = printable(str(root))
    for part in PARTS.values():
        images, labels = _files(root, part)
        if images and not labels and split in ("train", "all"):
            return f"{where} has {images[0]} without its labels; put them beside it, or give that file itself"
        if labels and not images and split in ("train", "all"):
            return f"{where} has {labels[0]} without its images; put them beside it"
    return f"{where} has no IDX files for split={split!r}; leave it out"


def load_idx_file(path: Path, asked: Asked = NOTHING_ASKED) -> Dataset:
    """One file of images, (N, H, W) or (N, H, W, C), without labels."""
    images = read_idx(path, asked.limit)
    if images.ndim not in (3, 4):
        raise ValueError(f"{printable(str(path))} holds {images.shape}, expected images; give the folder that it is in")
    images = images[..., None] if images.ndim == 3 else images
    return Dataset(printable(path.name), images, notes=["one IDX file alone: no labels; give its folder for both"])


def holds_idx(root) -> bool:
    """Whether a folder or an archive holds files named as MNIST's, images or labels in IDX format."""
    return any(any(_files(root, part)) for part in PARTS.values())


def _pair(root, part: str):
    """(images, labels), the (name, file) of both for a part; None if one of them is missing."""
    found = _files(root, part)
    return None if None in found else tuple(found)


def _files(root, part: str) -> list:
    """[images, labels], the (name, file) of each for a part, or None."""
    files = {path.split("/")[-1]: path for path in root.paths()[0]} if hasattr(root, "paths") else None
    found = []
    for kind in ("images", "labels"):
        axes = 3 if kind == "images" else 1
        stems = [f"{part}-{kind}{mark}idx{axes}-ubyte" for mark in "-."]
        names = [stem + end for stem in stems for end in ("", ".gz")]
        if files is None:
            paths = [(name, root / name) for name in names if (root / name).is_file()]
        else:
            paths = [(name, root / files[name]) for name in names if name in files]
        found.append(paths[0] if paths else None)
    return found


def _part(root, part, limit):
    images, labels = (read_idx(file, limit, f"{root}/{name}") for name, file in _pair(root, part) or ())
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        where = printable(str(root))
        raise ValueError(f"{where} holds images {images.shape} and labels {labels.shape}, which do not fit together")
    return images, labels


def read_idx(file, limit: Limit = USUAL, where=None) -> np.ndarray:
    """The uint8 array in an IDX file, given as a path or its contents, plain or compressed by gzip.

    Format: the bytes 0, 0, 8 and the number of axes, then their lengths as big-endian 32-bit numbers, then the data.
    Raises ValueError for anything else, and if the file is longer or shorter than its header says.
    """
    import gzip
    import zlib

    where = printable(str(file if where is None else where))
    try:
        with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as raw:
            size = raw.seek(0, os.SEEK_END)
            raw.seek(0)
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            shape, data = _read(stream, size, limit, where)
    except (OSError, EOFError, zlib.error, _Wrong) as error:
        check_system(error)
        raise ValueError(f"{where} cannot be read ({error}); fetch it again") from error
    return np.frombuffer(data, np.uint8).reshape(shape)


class _Wrong(ValueError):
    """The contents are not those of an IDX file."""


def _read(stream, packed, limit, where):
    magic = stream.read(4)
    if len(magic) < 4 or magic[:3] != b"\0\0\x08" or magic[3] == 0:
        raise _Wrong("it does not begin like an IDX file of bytes")
    if magic[3] > 8:
        raise _Wrong(f"it claims {magic[3]} axes")
    shape = tuple(int.from_bytes(stream.read(4), "big") for _ in range(magic[3]))
    size = math.prod(shape)
    if size > 1100 * packed:  # more than gzip can expand to
        raise _Wrong(f"it claims {size:,} bytes, which {packed:,} cannot hold")
    limit.check_unfolding(size, packed, where)
    data = stream.read(size + 1)
    if len(data) != size:
        raise _Wrong(f"its header promises {size:,} bytes")
    return shape, data

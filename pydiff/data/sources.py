"""Every kind of data that `load` opens: one small reader per kind, in two tables.

A reader takes a path, or an object that acts as a folder, and the requested options (asked.py), and returns a Dataset.
`load` then brings images to the requested size and number of channels, whichever reader they come from.
"""

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pydiff.data import archives, arrays, cifar, folder, idx, parquet
from pydiff.data.asked import CONCERNS, Asked
from pydiff.data.clip_files import FILMS
from pydiff.data.dataset import Dataset
from pydiff.data.image import SUFFIXES
from pydiff.data.sounds import SUFFIXES as SOUNDS
from pydiff.data.unreadable import advice_on, readable
from pydiff.printed import meant, printable, typed


class Kind(NamedTuple):
    """holds: whether a folder (or archive) is of this kind. load: reads it. serves: the options that apply to it."""

    name: str
    holds: Callable[..., bool]
    load: Callable[..., Dataset]
    serves: tuple[str, ...]


# The kinds of folders and archives; the first that fits is taken.
TREES = [
    Kind("MNIST's IDX files", idx.holds_idx, idx.load_idx, ("split",)),
    Kind("CIFAR's batches", cifar.holds_cifar, cifar.load_cifar, ("split",)),
    Kind(".parquet files", parquet.holds_parquet, parquet.load_parquet, ("pages", "split", "bits")),
    Kind("archives", archives.holds_archives, archives.load_archives, ("pages", "split", "bits")),
    Kind("images", lambda _: True, folder.load_folder, ("pages", "split", "bits")),
]
# The ending of a file's name -> its reader and the options that apply; for an archive, those of its contents.
FILES: dict[str, tuple[Callable[[Path, Asked], Dataset], tuple[str, ...]]] = {
    ".npz": (arrays.load_npz, ("layout", "bits")),
    ".npy": (arrays.load_npy, ("layout", "bits")),
    ".parquet": (parquet.load_parquet, ("pages", "bits")),
    "-ubyte": (idx.load_idx_file, ()),
    "-ubyte.gz": (idx.load_idx_file, ()),
    **dict.fromkeys(archives.SUFFIXES, (archives.load_archive, tuple(CONCERNS))),
}
BATCHES = ("data_batch_", "test_batch")  # how names of CIFAR's begin
EXPECTED = (
    "a folder of images, sounds or clips, an archive of images, a .npz, .npy or .parquet file, files of MNIST or "
    "CIFAR, an array, or a list"
)


def load_tree(root, asked: Asked) -> Dataset:
    """The data in a folder or an archive."""
    kind = next(kind for kind in TREES if kind.holds(root))
    return kind.load(root, asked.only(f"{printable(str(root))} ({kind.name})", *kind.serves))


def refuse_run(path: Path):
    """Raises ValueError if a folder is that of a run or of a model, whose images are not data but samples."""
    if (path / "config.json").is_file() and ((path / "pipeline").is_dir() or (path / "checkpoints").is_dir()):
        what = "run"
    elif (path / "pydiff.json").is_file() or (path / "model_index.json").is_file():
        what = "model"
    else:
        return
    shown = printable(str(path))
    raise ValueError(f"{shown} is the folder of a {what}, not of data; pydiff sample {typed(path)} draws with it")


def load_path(path: Path, asked: Asked, known: Sequence[str]) -> Dataset:
    """The data at a path. known: the names of shipped sets, for the message if nothing is there."""
    if path.is_dir():
        if not os.access(path, os.R_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        refuse_run(path)
        return load_tree(path, asked)
    shown = printable(str(path))
    if not path.exists():
        if any(c in path.name for c in "*?["):
            raise FileNotFoundError(
                f"there is no {shown!r}; give the folder, or in Python the list glob.glob({shown!r})"
            )
        near = meant(path.name, known) or f"; expected {', '.join(map(repr, known))}, {EXPECTED}"
        raise FileNotFoundError(f"there is no {shown!r}{near}")
    if not path.is_file():
        raise ValueError(f"{shown} is neither a file nor a folder; expected {EXPECTED}")
    name = path.name.lower()
    reader, serves = next((found for end, found in FILES.items() if name.endswith(end)), (None, ()))
    if reader is None and name.startswith(BATCHES):
        reader = cifar.load_batch
    if reader is not None:
        return reader(path, asked.only(shown, *serves))
    suffix = path.suffix.lower()
    if suffix in SUFFIXES | readable()[0]:
        raise ValueError(f"{shown} is one image; give the folder that it is in, or a list of images in Python")
    if (what := "sound" if suffix in SOUNDS else "clip" if suffix in FILMS else None) is not None:
        raise ValueError(f"{shown} is one {what}; give the folder that it is in")
    if suffix in (".pkl", ".pickle"):
        raise ValueError(f"{shown} is a pickle, which could run anything; save its arrays with numpy.savez")
    if suffix in (".csv", ".tsv", ".jsonl", ".json", ".txt"):
        raise ValueError(
            f"{shown} is a file of text; to describe images, name it metadata.csv or metadata.jsonl, put it into their "
            "folder, with a column file_name, and give the folder"
        )
    advice = advice_on(suffix.removeprefix("."))
    names = ", ".join(map(repr, known))
    raise ValueError(f"cannot load data from {shown!r}{f' ({advice})' if advice else ''}; expected {names}, {EXPECTED}")

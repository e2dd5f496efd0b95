"""Every kind of data that `load` opens: one small reader a kind, in two tables.

A reader takes a path, or what stands for a folder, and what is asked for (asked.py), and gives a Dataset. Images that
have another size or number of channels than what is asked for are brought to it by `load`, whoever read them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pydiff.data import archives, arrays, cifar, folder, idx, parquet
from pydiff.data.asked import CONCERNS, Asked
from pydiff.data.clip_files import FILMS
from pydiff.data.dataset import Dataset
from pydiff.data.image import SUFFIXES
from pydiff.data.sounds import SUFFIXES as SOUNDS
from pydiff.data.unreadable import advice_on, readable
from pydiff.printed import printable


class Kind(NamedTuple):
    """holds: whether a folder (or archive) is of this kind. load: reads it. serves: wishes that concern it."""

    name: str
    holds: Callable[..., bool]
    load: Callable[..., Dataset]
    serves: tuple[str, ...]


# What a folder or an archive may be, the first that fits.
TREES = [
    Kind("MNIST's IDX files", idx.holds_idx, idx.load_idx, ("split",)),
    Kind("CIFAR's batches", cifar.holds_cifar, cifar.load_cifar, ("split",)),
    Kind(".parquet files", parquet.holds_parquet, parquet.load_parquet, ("pages", "split", "bits")),
    Kind("archives", archives.holds_archives, archives.load_archives, ("pages", "split", "bits")),
    Kind("images", lambda _: True, folder.load_folder, ("pages", "split", "bits")),
]
# How the name of a file ends -> its reader, and the wishes that concern it; an archive goes by what is in it.
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
    """What is in a folder or an archive."""
    kind = next(kind for kind in TREES if kind.holds(root))
    return kind.load(root, asked.only(f"{printable(str(root))} ({kind.name})", *kind.serves))


def load_path(path: Path, asked: Asked, known: str) -> Dataset:
    """What is at a path. known: the names of shipped sets, for the message where there is nothing."""
    if path.is_dir():
        return load_tree(path, asked)
    shown = printable(str(path))
    if not path.exists():
        raise FileNotFoundError(f"there is no {shown!r}; expected {known}, {EXPECTED}")
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
    advice = advice_on(suffix.removeprefix("."))
    raise ValueError(f"cannot load data from {shown!r}{f' ({advice})' if advice else ''}; expected {known}, {EXPECTED}")

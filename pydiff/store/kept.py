"""A few arrays and some JSON in a sealed folder: the samples of its data that a run keeps."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pydiff.formats import safetensors as tensorfile
from pydiff.formats.safetensors import CheckpointError
from pydiff.store import sealed

SEAL, KIND, ARRAYS = "manifest.json", "pydiff data", "samples.safetensors"


def write(folder: Path, arrays: Mapping[str, np.ndarray], about: dict) -> None:
    """Writes the folder, replacing an existing one. arrays: {name: array}. about: a dict that JSON can hold.

    Raises CheckpointError if the disk write fails.
    """
    files = [(ARRAYS, tensorfile.encode(arrays))]
    folder = folder.absolute()
    sealed.write(folder, folder.with_name(f".{folder.name}.pydiff-partial"), files, SEAL, KIND, about)


def read(folder: Path) -> tuple[dict[str, np.ndarray], dict] | None:
    """(arrays, about) as written, every byte checked; None if there is no such folder.

    Raises CheckpointError if it is damaged.
    """
    folder = sealed.resolve(folder.absolute())
    if not folder.is_dir():
        return None
    about, files = sealed.read(folder, SEAL, KIND)
    if ARRAYS not in files:
        raise CheckpointError(f"{folder} has no {ARRAYS}: remove the folder, and the next training writes it anew.")
    return tensorfile.decode(files[ARRAYS], folder / ARRAYS), about

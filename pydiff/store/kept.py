"""A few arrays and some JSON in a sealed folder: what a run keeps of its data."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pydiff.formats import safetensors as tensorfile
from pydiff.formats.safetensors import CheckpointError
from pydiff.store import sealed

SEAL, KIND, ARRAYS = "manifest.json", "pydiff data", "samples.safetensors"


def write(folder: Path, arrays: Mapping[str, np.ndarray], about: dict) -> None:
    """Writes the folder, in place of one that is there. arrays: {name: array}. about: what JSON can hold.

    CheckpointError, in one sentence, where the disk refuses.
    """
    files = [(ARRAYS, tensorfile.encode(arrays))]
    folder = folder.absolute()
    sealed.write(folder, folder.with_name(f".{folder.name}.pydiff-partial"), files, SEAL, KIND, about)


def read(folder: Path) -> tuple[dict[str, np.ndarray], dict] | None:
    """(arrays, about) as written, every byte checked; None where there is no such folder.

    CheckpointError, in one sentence, for a damaged one.
    """
    folder = sealed.resolve(folder.absolute())
    if not folder.is_dir():
        return None
    about, files = sealed.read(folder, SEAL, KIND)
    if ARRAYS not in files:
        raise CheckpointError(f"{folder} has no {ARRAYS}: remove the folder, and the next training writes it anew.")
    return tensorfile.decode(files[ARRAYS], folder / ARRAYS), about

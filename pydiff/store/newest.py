"""Reads the newest checkpoint while the training may still be writing new ones and removing old ones at any moment.

Nothing is locked: if the folder that is being read disappears, the reader looks again and finds a newer one.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pydiff.formats import safetensors as tensorfile
from pydiff.formats.files import RegularFile
from pydiff.formats.safetensors import CheckpointError
from pydiff.store import checkpoint, sealed

ATTEMPTS = 100  # in case folders keep being replaced


class Newest(NamedTuple):
    """array: one array of the checkpoint. state: its state. passed_over: (path, reason) for each newer, damaged one."""

    path: Path
    array: np.ndarray
    state: dict
    passed_over: list[tuple[Path, str]]


def newest_step(directory: Path) -> int | None:
    """The step of the newest checkpoint by its name, whether or not it is damaged; None if there is none."""
    found = checkpoint.listed(directory)
    return checkpoint.step_of(found[0].name) if found else None


def read_newest(directory: Path, group: str, name: str) -> Newest | None:
    """The array arrays[group][name] and the state of the newest valid checkpoint; None if there are no checkpoints.

    Every byte of these two files is checked, and no other array is read. Raises CheckpointError if there are
    checkpoints but none is valid.
    """
    refused: dict[Path, str] = {}
    doubted = None  # a folder that failed once: it may have just been replaced by another of that name
    for _ in range(ATTEMPTS):
        path = next((path for path in checkpoint.listed(directory) if path not in refused), None)
        if path is None:
            break
        try:
            return Newest(path, *_read(path, group, name), list(refused.items()))
        except CheckpointError as error:
            if path == doubted and os.path.lexists(path):
                refused[path] = str(error)
            doubted = path
    if refused:
        checkpoint.survey(directory)  # raises with the right message
        first = next(iter(refused.values()))
        raise CheckpointError(f"{directory} has no checkpoint that can be read ({first.rstrip('.')}).")
    return None


def _read(path: Path, group: str, name: str) -> tuple[np.ndarray, dict]:
    info, entries = sealed.inspect(path, checkpoint.MANIFEST, "pydiff checkpoint")
    if info.get("step") != checkpoint.step_of(path.name):
        raise CheckpointError(f"{path} holds the checkpoint of step {info.get('step')}: give the folder its name back.")
    file_name = f"{group}.safetensors"
    for needed in (file_name, checkpoint.STATE):
        if needed not in entries:
            raise tensorfile.damaged(path, f"the file {needed!r} is missing")
    state = tensorfile.parse_json(
        sealed.read_checked(path / checkpoint.STATE, entries[checkpoint.STATE]).tobytes(), path / checkpoint.STATE
    )
    with RegularFile(path / file_name) as file:
        sealed.check(file, entries[file_name])
        arrays = tensorfile.contents(file, file.path)
        if name not in arrays:
            raise tensorfile.damaged(file.path, f"it has no array {name!r}")
        return arrays[name].read(), state

"""Checkpoints of a training run, and the model folder that diffusers can open. No pickle: safetensors and JSON.

    DIRECTORY/step-00000150/    model.safetensors, optimizer.safetensors, ..., state.json, manifest.json (the seal)
    MODEL/                      config.json, diffusion_pytorch_model.safetensors, pydiff.json (the seal)

Loading checks every byte against the seal's SHA-256 before parsing any, and gives exactly what was saved or a
CheckpointError. sealed.py says how a folder is written so that no crash costs the one before; docs/checkpoints.md says
what is promised and how it was tested.
"""

import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pydiff.formats import safetensors as tensorfile
from pydiff.formats.safetensors import CheckpointError
from pydiff.store import sealed

MANIFEST = "manifest.json"
STATE = "state.json"
CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"  # this and CONFIG are the names that diffusers looks for
SEAL = "pydiff.json"
MODEL_CLASS = "UNet2DModel"

Arrays = dict[str, np.ndarray]


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was passed over in favour of an older one."""


class Survey(NamedTuple):
    """newest: the newest valid checkpoint.  passed_over: (path, reason) for each newer, damaged one."""

    newest: Path | None
    passed_over: list[tuple[Path, str]]


def save(directory: str | os.PathLike, step: int, arrays: dict[str, Arrays], state: dict) -> Path:
    """Write the checkpoint of `step` and return its folder; one of the same step is replaced.

    arrays: a file for each entry, {"model": {name: array}, "optimizer": {...}}; for the dtypes see tensorfile.EXACT.
    state: everything else, as JSON that reads back equal (so no tuples, no integer keys, no NaN).
    Raises CheckpointError when the disk refuses; the checkpoints before are untouched, and the next save cleans up.
    """
    if type(step) is not int or not 0 <= step < 1 << 63:
        raise ValueError(f"got the step {step!r}, expected an int of at least 0.")
    for name in arrays:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise ValueError(f"got {name!r} as the name of a group of arrays, expected ASCII letters, digits and _.")
    state_json = _json(state, "the state")

    def files() -> Iterator[tuple[str, bytes]]:  # encoded one at a time, to hold one of them in memory, not all
        for name, group in arrays.items():
            yield f"{name}.safetensors", tensorfile.encode(group)
        yield STATE, state_json

    directory = Path(directory).absolute()
    target = directory / f"step-{step:08d}"
    sealed.write(target, _partial(directory), files(), MANIFEST, "pydiff checkpoint", {"step": step})
    return target


def load(path: str | os.PathLike) -> tuple[dict[str, Arrays], dict]:
    """(arrays, state) as saved, bit for bit; CheckpointError for whatever is missing, added, damaged or renamed."""
    path = Path(path).absolute()
    info, files = sealed.read(path, MANIFEST, "pydiff checkpoint")
    if _step(path.name) not in (None, info.get("step")):
        raise CheckpointError(f"{path} holds the checkpoint of step {info.get('step')}: give the folder its name back.")
    if STATE not in files:
        raise tensorfile.damaged(path, f"the file {STATE!r} is missing")
    state = tensorfile.parse_json(files.pop(STATE).tobytes(), path / STATE)
    arrays = {}
    for name, buffer in files.items():
        if not name.endswith(".safetensors"):
            raise CheckpointError(f"{path} holds {name!a}, expected .safetensors: use the pydiff that wrote it.")
        arrays[name.removesuffix(".safetensors")] = tensorfile.decode(buffer, path / name)
    return arrays, state


def survey(directory: str | os.PathLike) -> Survey:
    """The newest valid checkpoint in a directory, every byte of it checked, and the newer ones that are damaged.

    Raises CheckpointError if there are checkpoints and none is valid: starting again is for the user to decide.
    """
    passed_over = []
    for path in _checkpoints(Path(directory)):
        try:
            load(path)
        except CheckpointError as error:
            passed_over.append((path, str(error)))
        else:
            return Survey(path, passed_over)
    if passed_over:
        raise CheckpointError(
            f"{directory} has {len(passed_over)} checkpoints, none of them valid: restore a copy, or remove the folder "
            f"to start again (the newest: {passed_over[0][1].rstrip('.')})."
        )
    return Survey(None, [])


def latest(directory: str | os.PathLike) -> Path | None:
    """The newest valid checkpoint, or None if there is none of any kind; a CheckpointWarning for each passed over."""
    newest, passed_over = survey(directory)
    for path, reason in passed_over:
        warnings.warn(f"Passed over the checkpoint {path.name}: {reason}", CheckpointWarning, stacklevel=2)
    return newest


def prune(directory: str | os.PathLike, keep: int = 3) -> list[Path]:
    """Remove all checkpoints but the newest `keep`, and never the newest valid one; returns those removed."""
    if type(keep) is not int or keep < 1:
        raise ValueError(f"got keep={keep!r}, expected an int of at least 1.")
    surplus = _checkpoints(Path(directory))[keep:]
    if surplus:
        newest = survey(directory).newest
        surplus = [path for path in surplus if path != newest]
    for path in surplus:
        sealed.discard(path, _partial(path.parent))
    return surplus


class Model(NamedTuple):
    """A model folder. config: the network's options, without diffusers' bookkeeping. extra: what pydiff.json says, or
    None where diffusers wrote the folder. class_name: of the network, as diffusers calls it.
    """

    config: dict
    arrays: Arrays
    extra: dict | None
    class_name: str


def save_model(
    directory: str | os.PathLike, config: dict, arrays: Arrays, extra: dict, class_name: str = MODEL_CLASS
) -> None:
    """Write a model folder that diffusers' UNet2DModel.from_pretrained opens, replacing the one that is there.

    config: the U-Net's options.  arrays: its parameters, as diffusers names and lays them out.  extra: JSON for pydiff.
    Raises CheckpointError when the disk refuses (the old model is then still there), and when the folder holds other
    files, because replacing it would lose them.
    """
    target = Path(directory).resolve()
    _json(extra, "extra")
    config_json = _json({"_class_name": class_name, **config}, "the config")
    if os.path.lexists(target):
        others = set(_names(target)) - {CONFIG, WEIGHTS, SEAL}
        if others:
            raise CheckpointError(f"{target} holds {min(others)!a}, expected a model alone: choose another folder.")

    def files() -> Iterator[tuple[str, bytes]]:
        yield CONFIG, config_json
        yield WEIGHTS, tensorfile.encode(arrays, {"format": "pt"})  # without this entry diffusers refuses the file

    partial = target.with_name(f".{target.name}.pydiff-partial")
    sealed.write(target, partial, files(), SEAL, "pydiff model", {"extra": extra})


def holds_model(directory: str | os.PathLike) -> bool:
    """Whether there is a folder for load_model, be it under its temporary name after an interrupted replacement."""
    return sealed.resolve(Path(directory).resolve()).is_dir()


def load_model(directory: str | os.PathLike, known: Iterable[str] = (MODEL_CLASS,)) -> Model:
    """What is in a folder written by save_model or by diffusers, for a network of one of the `known` classes.

    config comes without its underscored keys, which are diffusers' bookkeeping. Half-precision arrays come as float32.
    A folder without pydiff.json carries no checksums: its structure is checked, its numbers cannot be.
    """
    path = sealed.resolve(Path(directory).resolve())
    names = _names(path)
    if SEAL in names:
        info, files = sealed.read(path, SEAL, "pydiff model", {CONFIG, WEIGHTS})
        extra = info.get("extra")
    elif CONFIG in names and WEIGHTS in names:
        files = {
            CONFIG: sealed.read_file(path / CONFIG, limit=tensorfile.MAX_HEADER),
            WEIGHTS: sealed.read_file(path / WEIGHTS),
        }
        extra = None
    else:
        raise CheckpointError(f"{path} holds {sorted(names)!a:.200}, expected {CONFIG} and {WEIGHTS}.")
    config = tensorfile.parse_json(files[CONFIG].tobytes(), path / CONFIG)
    found, known = config.get("_class_name"), list(known)
    if found not in known:
        raise CheckpointError(
            f"{path / CONFIG} is for the class {found!a:.60}, expected {' or '.join(known)}: use another."
        )
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    return Model(config, tensorfile.decode(files[WEIGHTS], path / WEIGHTS), extra, found)


def _checkpoints(directory: Path) -> list[Path]:
    """The folders of checkpoints, newest first; of one step, the interrupted replacement before the replaced."""
    if not os.path.lexists(directory):
        return []
    found = [(step, name.startswith("."), name) for name in _names(directory) if (step := _step(name)) is not None]
    return [directory / name for _, _, name in sorted(found, reverse=True)]


def _step(name: str) -> int | None:
    """The step in the name of a checkpoint's folder, None for any other name."""
    match = re.fullmatch(r"step-(\d{8,19})|\.step-(\d{8,19})\.pydiff-new", name, re.ASCII)
    return int(match[1] or match[2]) if match else None


def _partial(directory: Path) -> Path:
    return directory / ".partial"


def _names(directory: Path) -> list[str]:
    with sealed.disk(f"list {directory}"):
        return os.listdir(directory)


def _json(value: dict, what: str) -> bytes:
    """`value` as JSON, once it is sure that reading it gives `value` back."""
    if not isinstance(value, dict):
        raise TypeError(f"{what} is a {type(value).__name__}, expected a dict.")
    try:
        data = (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
        equal = tensorfile.parse_json(data, what) == value
    except (TypeError, ValueError, RecursionError, CheckpointError) as error:
        raise TypeError(f"{what} does not fit into JSON ({error}): use finite numbers, str, list and dict.") from error
    if not equal:
        raise TypeError(f"{what} would read back from JSON as something else: use lists for tuples, strings for keys.")
    return data

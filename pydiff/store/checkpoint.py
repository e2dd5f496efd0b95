"""Checkpoints of a training run, and the model folder that diffusers can open. No pickle: safetensors and JSON.

    DIRECTORY/step-00000150/    model.safetensors, optimizer.safetensors, ..., state.json, manifest.json (the seal)
    MODEL/                      model_index.json, unet/config.json, unet/diffusion_pytorch_model.safetensors,
                                scheduler/scheduler_config.json, pydiff.json (the seal), and, for a network beside the
                                U-Net, text_encoder/ or vae/ with config.json and weights

A model folder is a diffusers pipeline folder, but without model_index.json and scheduler/ if diffusers has no
equivalent of the process. In pydiff 0.1 it had config.json and the weights beside the seal; that is still read. Loading
checks every byte against the seal's SHA-256 before using it, and returns exactly what was saved or raises
CheckpointError. sealed.py says how a folder is written so that no crash loses the previous one; docs/checkpoints.md
says what is guaranteed and how it was tested.
"""

import contextlib
import functools
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pydiff.formats import safetensors as tensorfile
from pydiff.formats.files import RegularFile, disk, folder_path
from pydiff.formats.safetensors import CheckpointError, Made, Weight
from pydiff.mistakes import callers_level
from pydiff.store import sealed

MANIFEST = "manifest.json"
STATE = "state.json"
INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"  # these four are diffusers' names
CONFIG, WEIGHTS = "unet/config.json", "unet/diffusion_pytorch_model.safetensors"
FLAT = {Path(name).name: name for name in (CONFIG, WEIGHTS)}  # names in pydiff 0.1 -> names now
# Networks beside the U-Net, one folder each: the names that diffusers and transformers give their files.
BESIDE = {"text_encoder": "model.safetensors", "vae": "diffusion_pytorch_model.safetensors"}
BESIDE_CONFIGS = {name: f"{name}/config.json" for name in BESIDE}
BESIDE_WEIGHTS = {name: f"{name}/{file}" for name, file in BESIDE.items()}
SEAL = "pydiff.json"
MODEL_CLASS = "UNet2DModel"
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}

_KNOWN = {INDEX, SCHEDULER, CONFIG, WEIGHTS, *BESIDE_CONFIGS.values(), *BESIDE_WEIGHTS.values()}

Arrays = dict[str, np.ndarray]


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was skipped in favour of an older one."""


class Survey(NamedTuple):
    """newest: the newest valid checkpoint.  passed_over: (path, reason) for each newer, damaged one."""

    newest: Path | None
    passed_over: list[tuple[Path, str]]


def save(directory: str | os.PathLike, step: int, arrays: dict[str, Arrays], state: dict) -> Path:
    """Writes the checkpoint of `step` and returns its folder; a checkpoint of the same step is replaced.

    arrays: one file per entry, {"model": {name: array}, "optimizer": {...}}; for the dtypes see tensorfile.EXACT.
    state: everything else, as JSON that reads back equal (so no tuples, no integer keys, no NaN). Raises
    CheckpointError if the disk write fails; earlier checkpoints are then untouched, and the next save cleans up.
    """
    if type(step) is not int or not 0 <= step < 1 << 63:
        raise ValueError(f"got the step {step!r}, expected an int of at least 0.")
    for name in arrays:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise ValueError(f"got {name!r} as the name of a group of arrays, expected ASCII letters, digits and _.")
    state_json = _json(state, "the state")

    def files() -> Iterator[tuple[str, sealed.Content]]:  # in pieces: at most one array is copied in memory at a time
        for name, group in arrays.items():
            yield f"{name}.safetensors", tensorfile.pieces(group)
        yield STATE, state_json

    directory = Path(directory).absolute()
    target = directory / f"step-{step:08d}"
    sealed.write(target, _partial(directory), files(), MANIFEST, "pydiff checkpoint", {"step": step})
    return target


def load(path: str | os.PathLike) -> tuple[dict[str, Arrays], dict]:
    """(arrays, state) as saved, bit for bit. Raises CheckpointError for anything missing, added, damaged or renamed."""
    path = Path(path).absolute()
    info, files = sealed.read(path, MANIFEST, "pydiff checkpoint")
    if step_of(path.name) not in (None, info.get("step")):
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

    Raises CheckpointError if there are checkpoints but none is valid: starting again is for the user to decide.
    """
    passed_over = []
    for path in listed(Path(directory)):
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
    """The newest valid checkpoint, or None if there are no checkpoints; emits a CheckpointWarning for each one
    skipped.
    """
    newest, passed_over = survey(directory)
    for path, reason in passed_over:
        said = f"Passed over the checkpoint {path.name}: {reason}"
        warnings.warn(said, CheckpointWarning, stacklevel=callers_level())
    return newest


def prune(directory: str | os.PathLike, keep: int = 3) -> list[Path]:
    """Removes all checkpoints but the newest `keep`, but never the newest valid one; returns those removed."""
    if type(keep) is not int or keep < 1:
        raise ValueError(f"got keep={keep!r}, expected an int of at least 1.")
    surplus = listed(Path(directory))[keep:]
    if surplus:
        newest = survey(directory).newest
        surplus = [path for path in surplus if path != newest]
    for path in surplus:
        sealed.discard(path, _partial(path.parent))
    return surplus


class Model(NamedTuple):
    """A model folder. config: the network's options, without diffusers' bookkeeping. extra: the contents of
    pydiff.json. class_name: of the network, as in diffusers.
    """

    config: dict
    arrays: Arrays
    extra: dict
    class_name: str


class OpenModel:
    """A Model whose weights are still in their files, readable while the folder is open.

    What its JSON files say, config, extra and class_name, is there at once. The files of weights are as large as the
    model, and are compared with the seal when weights are first asked for, all of them: what the JSON files rule out is
    refused without reading on.
    """

    def __init__(self, config: dict, extra: dict, class_name: str, contents: Callable[[], tuple[Mapping, dict]]):
        self.config, self.extra, self.class_name, self._contents = config, extra, class_name, contents

    @functools.cached_property
    def _checked(self):
        return self._contents()

    @property
    def weights(self) -> Mapping[str, Weight]:
        """{name: weight} of the U-Net. Raises CheckpointError if a file of the folder is damaged."""
        return self._checked[0]

    @property
    def beside(self) -> dict[str, tuple[dict, dict[str, Weight]]]:
        """{folder: (config, weights)} of the networks beside the U-Net, see BESIDE. Raises as `weights` does."""
        return self._checked[1]

    def network(self, folder: str) -> tuple[dict, Arrays] | None:
        """(config, arrays) of the network in this folder beside the U-Net, read into memory; None if there is none."""
        if folder not in self.beside:
            return None
        config, weights = self.beside[folder]
        return config, {name: weight.read() for name, weight in weights.items()}


def save_model(
    directory: str | os.PathLike,
    config: dict,
    arrays: Mapping[str, np.ndarray | Made] | None,
    extra: dict,
    class_name: str = MODEL_CLASS,
    *,
    index: dict | None = None,
    scheduler: dict | None = None,
    beside: Mapping[str, tuple[dict, Mapping[str, np.ndarray | Made]]] | None = None,
    dtype: str | None = None,
) -> None:
    """Writes a model folder that diffusers can open, replacing an existing one.

    config: the U-Net's options. arrays: its parameters, with diffusers' names and layouts, all floating-point; a Made
    is computed when it is written, so that only one is in memory; None leaves them out, for a network whose weights are
    elsewhere, see `open_model`. extra: JSON for pydiff. index, scheduler: contents of model_index.json and
    scheduler_config.json. beside: {folder: (config, arrays)} of further networks, see BESIDE. dtype: of the files, a
    name in DTYPES; None keeps float32 or float64. Raises CheckpointError if the disk write fails (the old model is then
    still there), or if the folder holds other files, which replacing it would delete; ValueError for another
    dtype.
    """
    beside = dict(beside or {})
    if unknown := beside.keys() - BESIDE.keys():
        raise ValueError(f"got a network for the folder {min(unknown)!r}, expected {' or '.join(BESIDE)}")
    if dtype is None:
        made = (arrays or {}).values()
        dtype = "float64" if any(getattr(a, "dtype", None) == np.float64 for a in made) else "float32"
    if dtype not in DTYPES:
        raise ValueError(f"got dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    target = folder_path(directory).resolve()
    _json(extra, "extra")
    texts = {INDEX: index, SCHEDULER: scheduler, CONFIG: {"_class_name": class_name, **config}}
    texts |= {BESIDE_CONFIGS[name]: config for name, (config, _) in beside.items()}
    texts = {name: _json(value, name) for name, value in texts.items() if value is not None}
    if os.path.lexists(target):
        others = _files(target) - _KNOWN - {SEAL, *FLAT}
        if others:
            raise CheckpointError(f"{target} holds {min(others)!a}, expected a model alone: choose another folder.")

    def files() -> Iterator[tuple[str, sealed.Content]]:
        yield from texts.items()
        parts = {WEIGHTS: arrays} | {BESIDE_WEIGHTS[name]: part for name, (_, part) in beside.items()}
        for name, part in parts.items():
            if part is not None:  # with an entry that diffusers requires
                yield name, tensorfile.pieces(part, DTYPES[dtype], {"format": "pt"})

    partial = target.with_name(f".{target.name}.pydiff-partial")
    sealed.write(target, partial, files(), SEAL, "pydiff model", {"extra": extra})


def holds_model(directory: str | os.PathLike) -> bool:
    """Whether there is a folder for load_model, possibly under its temporary name after an interrupted replacement."""
    return sealed.resolve(Path(directory).resolve()).is_dir()


def is_ours(directory: str | os.PathLike) -> bool:
    """Whether save_model wrote this folder, going by its seal."""
    return SEAL in _names(sealed.resolve(Path(directory).resolve()))


def load_model(directory: str | os.PathLike, known: Iterable[str] = (MODEL_CLASS,)) -> Model:
    """The Model in a folder written by save_model, read into memory; see `open_model`."""
    with open_model(directory, known) as model:
        arrays = {name: weight.read() for name, weight in model.weights.items()}
        return Model(model.config, arrays, model.extra, model.class_name)


def extra_of(directory: str | os.PathLike) -> dict:
    """The contents of pydiff.json in a folder written by save_model, without reading its other files."""
    return _extra(path := sealed.resolve(Path(directory).resolve()), sealed.inspect(path, SEAL, "pydiff model")[0])


@contextlib.contextmanager
def open_model(
    directory: str | os.PathLike,
    known: Iterable[str] = (MODEL_CLASS,),
    elsewhere: Callable[[dict], Mapping[str, Mapping[str, Weight]]] | None = None,
) -> Iterator[OpenModel]:
    """Opens a folder written by save_model whose network is of one of the `known` classes; every byte is checked before
    it is used, see OpenModel.

    config comes without its underscored keys, which are diffusers' bookkeeping. Half-precision arrays come as float32.
    elsewhere: a function of `extra` that returns weights that were left out: {WEIGHTS or one of BESIDE_WEIGHTS: {name:
    weight}}.
    """
    path = sealed.resolve(Path(directory).resolve())
    names = _names(path)
    if SEAL not in names:
        raise CheckpointError(f"{path} holds {sorted(names)!a:.200}, expected {SEAL}, {CONFIG} and {WEIGHTS}.")
    info, entries = sealed.inspect(path, SEAL, "pydiff model")
    place, extra = {FLAT.get(name, name): name for name in entries}, _extra(path, info)
    left_out = {} if elsewhere is None else dict(elsewhere(extra))
    for name in sorted({CONFIG, WEIGHTS} - place.keys() - left_out.keys()):
        raise tensorfile.damaged(path, f"the file {name!a} is not in its seal")
    for name in sorted(place.keys() - _KNOWN):
        raise tensorfile.damaged(path, f"its seal has the file {name!a:.80}, which no model has")
    arrays = {name for name in place if name in (WEIGHTS, *BESIDE_WEIGHTS.values())}
    texts = {name: sealed.read_checked(path / place[name], entries[place[name]]) for name in place.keys() - arrays}
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(RegularFile(path / place[name])) for name in sorted(arrays)}
        source = path / place[CONFIG]
        config = tensorfile.parse_json(texts[CONFIG].tobytes(), source)
        found, known = config.get("_class_name"), list(known)
        if found not in known:
            raise CheckpointError(
                f"{source} is for the class {found!a:.60}, expected {' or '.join(known)}: use another."
            )
        config = {key: value for key, value in config.items() if not key.startswith("_")}

        def contents():
            for name, file in files.items():
                sealed.check(file, entries[place[name]])
            weights = {name: tensorfile.contents(file, file.path) for name, file in files.items()} | left_out
            return weights[WEIGHTS], _beside(path, texts, weights)

        yield OpenModel(config, extra, found, contents)


def _beside(path, texts, arrays):
    """{folder: (config, weights)} of the networks beside the U-Net."""
    found = {}
    for name in BESIDE:
        config, weights = BESIDE_CONFIGS[name], BESIDE_WEIGHTS[name]
        if (config in texts) != (weights in arrays):
            raise tensorfile.damaged(path, f"of {config} and {weights!a} one is missing")
        if config in texts:
            found[name] = tensorfile.parse_json(texts[config].tobytes(), path / config), arrays[weights]
    return found


def _extra(path: Path, info: dict) -> dict:
    if not isinstance(info.get("extra"), dict):
        raise tensorfile.damaged(path / SEAL, "it says nothing about the process")
    return info["extra"]


def listed(directory: Path) -> list[Path]:
    """The folders of checkpoints, newest first; for the same step, an interrupted replacement before the one it
    replaces.
    """
    if not os.path.lexists(directory):
        return []
    found = [(step, name.startswith("."), name) for name in _names(directory) if (step := step_of(name)) is not None]
    return [directory / name for _, _, name in sorted(found, reverse=True)]


def step_of(name: str) -> int | None:
    """The step in the name of a checkpoint's folder, None for any other name."""
    match = re.fullmatch(r"step-(\d{8,19})|\.step-(\d{8,19})\.pydiff-new", name, re.ASCII)
    return int(match[1] or match[2]) if match else None


def _partial(directory: Path) -> Path:
    return directory / ".partial"


def _names(directory: Path) -> list[str]:
    with disk(f"list {directory}"):
        return os.listdir(directory)


def _files(directory: Path) -> set[str]:
    """The files in a folder and in the subfolders of a model folder; any other subfolder counts as a file."""
    found = set(_names(directory))
    for folder in {Path(name).parent.name for name in _KNOWN} & found:
        if (directory / folder).is_dir() and not (directory / folder).is_symlink():
            found = found - {folder} | {f"{folder}/{name}" for name in _names(directory / folder)}
    return found


def _json(value: dict, what: str) -> bytes:
    """`value` as JSON, after checking that it reads back equal. Raises TypeError if it does not."""
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

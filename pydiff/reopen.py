"""Opens a folder: a model, or a run that is finished, unfinished, or still in progress.

A finished run is opened from its model. Any other run is opened from the averaged weights in its newest checkpoint and
from pipeline/, which was written when it began. Nothing is locked, so a training in progress is not disturbed.
"""

import contextlib
import logging
from pathlib import Path
from typing import NamedTuple

from pydiff.data.dataset import Dataset
from pydiff.data.origin import Origin, from_files, to_files
from pydiff.formats import opened as model_files
from pydiff.formats.diffusers import pipeline as pipeline_folder
from pydiff.formats.safetensors import CheckpointError
from pydiff.pipeline import Pipeline
from pydiff.printed import printable
from pydiff.store import checkpoint, kept
from pydiff.store.folder import RunDirectory, trained_in
from pydiff.store.log import Log
from pydiff.store.newest import Newest, newest_step, read_newest


class Opened(NamedTuple):
    """options, step: of the training, as far as known. log: of a run, else None. notes: sentences for the user."""

    pipeline: Pipeline
    options: dict
    step: int
    origin: Origin
    log: Log | None
    notes: list[str]


# What the run of something that draws nothing is good for.
ELSEWHERE = {
    "a segmenter": "pydiff.segment.load opens it, and its page is segmentation.html",
    "a word": "it goes with the model that it was learned for: pydiff sample MODEL --embedding FILE",
}


def is_run(directory: Path) -> bool:
    """Whether a folder is that of a training run, rather than a model."""
    if any((directory / name).exists() for name in ("log.jsonl", "checkpoints", "pipeline")):
        return True
    with contextlib.suppress(ValueError, OSError):
        return "fingerprint" in RunDirectory(directory).config()  # a run that has taken no step yet
    return False


def open_folder(directory: Path, wishes=pipeline_folder.NOTHING) -> Opened:
    """The model in a folder or file, with what is known about its training.

    Raises FileNotFoundError or CheckpointError if there is none or it is damaged.
    """
    if is_run(directory):
        return _open_run(RunDirectory(directory), wishes)
    pipeline, history, notes = model_files.load(directory, wishes)
    try:
        origin = Origin.from_config(history.get("origin", {"name": history.get("data", "")}))
    except ValueError as error:
        raise CheckpointError(f"{directory / checkpoint.SEAL}: {error}.") from error
    return Opened(pipeline, history.get("options", {}), history.get("step", 0), origin, None, notes)


def _open_run(folder, wishes) -> Opened:
    model, config, notes = folder.path / "model", {}, []
    done = checkpoint.extra_of(model).get("step", 0) if checkpoint.holds_model(model) else None
    try:
        config = folder.config()
    except (ValueError, OSError) as error:
        if done is None:
            raise CheckpointError(str(error)) from error
        notes.append(str(error))
    if (what := trained_in(config)) in ELSEWHERE:
        raise CheckpointError(
            f"{folder.path} holds the run of {what}, which draws nothing by itself; {ELSEWHERE[what]}."
        )
    found = newer(folder, config, done, notes)
    if found is not None:
        described = folder.path / "pipeline"
        if not checkpoint.holds_model(described):
            raise CheckpointError(
                f"{folder.path} is unfinished, and the pydiff that began it did not write down what model it is: let "
                "the same command go on with it, and ask again."
            )
        step, loaded = found.state["step"], pipeline_folder.load(described, wishes, found.array)
    elif done is not None:
        step, loaded = done, _twice(lambda: pipeline_folder.load(model, wishes))
    else:
        raise nothing_yet(folder, config)
    notes += how_far(folder, config, step)
    for note in notes:
        logging.getLogger("pydiff").warning("%s", note)
    options = config.get("options") or loaded.history.get("options", {})
    return Opened(loaded.pipeline, options, step, origin_of(folder, config), folder.log, [*notes, *loaded.notes])


def newer(folder: RunDirectory, config: dict, done: int | None, notes: list[str]) -> Newest | None:
    """The averaged weights in the newest checkpoint of a run, if that is later than the finished model, of step `done`;
    else None.

    config: the run's. notes: damaged checkpoints that are skipped are added. Raises CheckpointError for one of another
    run.
    """
    newest = newest_step(folder.checkpoints)
    if done is not None and not (config and newest is not None and newest > done):
        return None
    found = read_newest(folder.checkpoints, "optimizer", "ema")
    if found is None:
        return None
    notes += [f"passed over the checkpoint {path.name}: {why}" for path, why in found.passed_over]
    if done is not None and found.state["step"] <= done:
        return None
    if not folder.owns(found.state, config):
        raise CheckpointError(f"{found.path} is a checkpoint of another run than the one in {folder.path}: remove it.")
    return found


def nothing_yet(folder: RunDirectory, config: dict) -> FileNotFoundError:
    """The error for a run that has neither a model nor a checkpoint."""
    every = config["options"].get("checkpoint_every")
    return FileNotFoundError(
        f"{folder.path} has no checkpoint yet; the first is written after step {every}, or at Ctrl-C"
    )


def how_far(folder: RunDirectory, config: dict, step: int) -> list[str]:
    """[a sentence on a run that is unfinished], else []."""
    steps = config.get("options", {}).get("steps", step)
    return [f"{folder.path} is unfinished: step {step:,} of {steps:,}"] if step < steps else []


def _twice(load):
    """Tries again if a training replaced the folder while it was being read."""
    try:
        return load()
    except CheckpointError:
        return load()


# ---- what a run writes about itself when it begins -------------------------------------------------------------------


def describe(folder: RunDirectory, pipeline: Pipeline, origin: Origin, trained):
    """Writes pipeline/, if it is missing or damaged, and data/ into a run's folder; see `keep_data`.

    trained: the pipeline's parameters in the order of the optimiser's.
    """
    described = folder.path / "pipeline"
    try:
        there = checkpoint.holds_model(described) and checkpoint.extra_of(described)
    except CheckpointError:
        there = False
    if not there:
        pipeline_folder.save(described, pipeline, {}, trained=trained)
    keep_data(folder, origin)


def keep_data(folder: RunDirectory, origin: Origin):
    """Writes data/, what is known about the data, if it is missing or damaged, or if the data were moved."""
    try:
        known = kept.read(folder.path / "data")
    except CheckpointError:
        known = None
    if known is None or known[1].get("origin") != origin.to_config():
        arrays, words = to_files(origin.samples)  # pyright: ignore[reportArgumentType]
        kept.write(folder.path / "data", arrays, {"origin": origin.to_config(), "words": words})


def finish(folder: RunDirectory, save):
    """Writes the finished model by save(path). Raises CheckpointError if the disk write fails."""
    folder.follow()
    try:
        save(folder.path / "model")
    except CheckpointError as error:
        step = newest_step(folder.checkpoints)
        if step is None:
            raise
        raise CheckpointError(
            f"{str(error).rstrip('.')}; the same command goes on from step {step} once there is room"
        ) from error


def origin_of(folder: RunDirectory, config: dict) -> Origin:
    """The Origin stored in a run's folder or, for a run by an older pydiff, from its config.json."""
    said = {"name": config.get("data", ""), "fingerprint": config.get("fingerprint")}
    try:
        known = kept.read(folder.path / "data")
        if known is not None:
            arrays, about = known
            return Origin.from_config(about["origin"], from_files(arrays, about["words"]))
    except CheckpointError as error:
        logging.getLogger("pydiff").warning("%s", error)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        logging.getLogger("pydiff").warning("%s is not used: %s", printable(str(folder.path / "data")), reason)
    if (samples := config.get("samples")) is not None:
        said |= {"count": samples[0], "shape": samples[1:]}
    return Origin.from_config(said)


def all_or_some(origin: Origin, read, given=None) -> tuple[Dataset | None, bool, str]:
    """(the training data, whether they are complete, a sentence if not): from where they were or from `given`; else the
    few kept with the run, or None.
    """
    try:
        return origin.load(read, given), True, ""
    except ValueError as error:
        if given is not None:
            raise
        return origin.samples, False, str(error)

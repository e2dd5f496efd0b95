"""The folder of a training run on disk.

DIR/config.json        options, data set and its fingerprint: what the same command must match to go on
DIR/log.jsonl          one line a step: loss, learning rate, gradient norm, pictures per second (log.py)
DIR/checkpoints/       the last few, hashed (checkpoint.py)
DIR/samples.png        what the average of the weights draws, now and then
DIR/model/             the finished model: a folder that diffusers' UNet2DModel.from_pretrained opens
"""

import contextlib
import json
import os
import warnings
from pathlib import Path

from pydiff.backend import arithmetic
from pydiff.store import checkpoint, sealed
from pydiff.store.files import write_atomic
from pydiff.store.log import Log

SCHEMA = 2  # of config.json; 1, without the number, was pydiff 0.1's
# Options that do not change what is computed: a run may be resumed with other values of these.
WITHOUT_EFFECT = ("checkpoint_every", "sample_every", "keep", "recompute")
# Options younger than the checkpoints of some runs: at None they say nothing, and those runs go on.
YOUNG = ("frames", "frame_rate", "image_share")


class KernelWarning(UserWarning):
    """A run goes on with kernels whose arithmetic is not the one it began with."""


class RunDirectory:
    """The folder of a training run; see the top of this file. log: its Log."""

    def __init__(self, path):
        self.path = Path(path).expanduser()
        self.checkpoints = self.path / "checkpoints"
        self.log = Log(self.path / "log.jsonl")

    @contextlib.contextmanager
    def locked(self):
        """Keeps a second process from training in the same folder; the lock dies with the process.

        The folder itself is locked, so that nothing can be deleted or linked away. RuntimeError, in one sentence, where
        somebody else has it, and on systems without such locks.
        """
        try:
            import fcntl
        except ImportError as error:
            raise RuntimeError(
                "this system cannot lock a folder (fcntl is missing), so that two trainings could destroy each other; "
                "train in memory (out=None) and save the model"
            ) from error
        sealed.make_folders(self.path.absolute())
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise RuntimeError(
                f"another process is training in {self.path}; wait for it or choose another folder"
            ) from None
        finally:
            os.close(descriptor)

    def open(self, identity, options):
        """Starts a new run here, or finds the one that is here if it is the same: (arrays, state) of its newest
        checkpoint, or None where there is none.

        identity: JSON of what is learned from what, see `Task.identity`. options: LoopOptions. ValueError or
        FileExistsError, in one sentence, for another run's folder. A KernelWarning says that bits will differ.
        """
        config = {"schema": SCHEMA, **identity, "options": options.to_config()}
        file = self.path / "config.json"
        if not file.exists():
            strangers = sorted(p.name for p in self.path.iterdir() if p.name != ".lock" and p.suffix != ".tmp")
            if strangers:
                raise FileExistsError(
                    f"{self.path} is not empty and holds no run (it has {strangers[0]}); choose another folder"
                )
            write_atomic(file, json.dumps(config, indent=1).encode())
            return None
        before = self._compare(file, config, options)
        newest = checkpoint.latest(self.checkpoints)
        arrays, state = (None, {"step": 0}) if newest is None else checkpoint.load(newest)
        if newest is not None:
            self._compare_checkpoint(newest, state, before)
        self.log.cut(state["step"])
        return None if newest is None else (arrays, state)

    def saved_options(self):
        """The options of the run that is here, as they were written; None where there is none that can be read."""
        try:
            options = json.loads((self.path / "config.json").read_text())["options"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return options if isinstance(options, dict) else None

    def _compare(self, file, config, options):
        """What the file says, if it is the same run."""
        try:
            before = json.loads(file.read_text())
            if before.get("schema", 1) > SCHEMA:
                raise ValueError(f"it is of schema {before['schema']}, and this pydiff knows up to {SCHEMA}")
            old_options = type(options).from_keywords(before["options"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{file} cannot be read ({error}); choose another folder") from error
        differing = [
            (name, getattr(old_options, name), getattr(options, name)) for name in options.changed(old_options)
        ]
        if before.get("fingerprint") != config.get("fingerprint"):
            what = "".join(f", {name} = {old}, not {new}" for name, old, new in differing)  # a size, it may be
            raise ValueError(
                f"{self.path} holds a run on other data ({before.get('data')}{what}); choose another folder"
            )
        identity = ("codec", "model", "text_encoder")
        differing += [(n, before[n], config.get(n)) for n in identity if n in before and before[n] != config.get(n)]
        for name, old, new in differing:
            raise ValueError(
                f"{self.path} holds a run with {name} = {old}, not {new}; use that, or choose another folder"
            )
        return before

    def _compare_checkpoint(self, path, state, config):
        """Whether a checkpoint belongs to this run, and to this arithmetic."""
        if state.get("run", digest(config)) != digest(config):
            raise ValueError(
                f"{path} is a checkpoint of another run than the one in {self.path}; remove one of the two"
            )
        now = arithmetic()
        before = {"generation": 1} | state.get("arithmetic", {})
        changed = [f"{name} {old} then, {now[name]} now" for name, old in before.items() if now.get(name) != old]
        if changed:
            warnings.warn(
                f"{self.path} goes on with other arithmetic than it was trained with ({'; '.join(changed)}): its last "
                "bits may not be those of an uninterrupted run",
                KernelWarning,
                stacklevel=4,
            )

    def save_checkpoint(self, step, arrays, keep):
        """The log up to here is on disk before the checkpoint that counts on it."""
        self.log.sync()
        config = json.loads((self.path / "config.json").read_text())
        state = {"step": step, "run": digest(config), "arithmetic": arithmetic()}
        checkpoint.save(self.checkpoints, step, arrays, state)
        checkpoint.prune(self.checkpoints, keep)

    def save_preview(self, step, png):
        """Writes the bytes of a picture as samples.png and, numbered by step, into samples/."""
        (self.path / "samples").mkdir(exist_ok=True)
        for file in (self.path / "samples" / f"step-{step:08d}.png", self.path / "samples.png"):
            write_atomic(file, png)


def digest(config):
    """SHA-256 of what a run computes: its config.json without the options that change nothing."""
    import hashlib

    silent = {name for name in YOUNG if config["options"].get(name) is None}
    options = {name: value for name, value in config["options"].items() if name not in {*WITHOUT_EFFECT, *silent}}
    what = {name: config.get(name) for name in ("fingerprint", "codec", "model")} | {"options": options}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

"""The folder of a training run on disk.

DIR/config.json        options, data set and its fingerprint, which a command must match to resume; changes of options
DIR/pipeline/          the model without its weights, so that it can be used before it is finished
DIR/data/              where the data are, and a few of the samples (kept.py)
DIR/log.jsonl          one line per step: loss, learning rate, gradient norm, images per second (log.py)
DIR/checkpoints/       the last few, hashed (checkpoint.py)
DIR/samples.png        samples drawn during training, with the averaged weights
DIR/model/             the finished model: a pipeline folder of diffusers
"""

import contextlib
import json
import os
import warnings

from pydiff.backend import arithmetic
from pydiff.formats.files import folder_path
from pydiff.mistakes import callers_level
from pydiff.store import checkpoint, sealed
from pydiff.store.files import write_atomic
from pydiff.store.log import Log

SCHEMA = 3  # of config.json; 1, without the number, was pydiff 0.1's; 2 had no changes
# Options that do not change what is computed: a run may be resumed with other values of these.
WITHOUT_EFFECT = ("checkpoint_every", "sample_every", "keep", "recompute", "cache_gb", "limit")
# Options that may change from one step to the next; what was changed, and after which step, is kept in config.json.
CHANGEABLE = ("steps", "batch_size", "shards", "lr", "warmup", "lr_schedule", "weight_decay", "clip", "ema")
# Options younger than the checkpoints of some runs: at None they count as absent, so that those runs can resume.
BEFORE = (".lock", "shipped.png")  # allowed in the folder of a new run: `pydiff demo` draws first
YOUNG = ("frames", "frame_rate", "image_share", "init_from", "image_channels", "layout", "pages", "split", "bits")


class KernelWarning(UserWarning):
    """A run resumes with kernels whose arithmetic differs from the one it began with."""


def trained_in(config: dict) -> str:
    """What the run with this config.json trains, in words: an autoencoder, a classifier, a segmenter, a word, or else a
    diffusion model.
    """
    model = str(config.get("model"))  # not stored by pydiff 0.1, which had none of the others
    if model.endswith(", segmenting"):
        return "a segmenter"
    if model.startswith("the word "):
        return "a word"
    return {"AutoencoderKL": "an autoencoder", "NoisyClassifier": "a classifier"}.get(model, "a diffusion model")


class RunDirectory:
    """The folder of a training run; see the top of this file. log: its Log."""

    def __init__(self, path):
        self._is_at(folder_path(path, "out"))
        self.log = Log(self.path / "log.jsonl")
        self._descriptor: int | None = None  # of the folder, while it is locked

    def _is_at(self, path):
        self.path, self.checkpoints = path, path / "checkpoints"

    @contextlib.contextmanager
    def locked(self):
        """Keeps a second process from training in the same folder; the lock is released when the process ends.

        The folder itself is locked, so that no lock file can be deleted or replaced. Raises RuntimeError if another
        process has the lock, and on systems without such locks.
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
            self._descriptor = descriptor
            yield
        except BlockingIOError:
            raise RuntimeError(
                f"another process is training in {self.path}; wait for it or choose another folder"
            ) from None
        finally:
            self._descriptor = None
            os.close(descriptor)

    def follow(self):
        """Returns where the folder is now if it was moved or renamed while it is locked, or the process changed its
        current folder; from then on everything is written there. None if it is where it was, or if it is gone.
        """
        if self._descriptor is None or _same(self.path, self._descriptor):
            return None
        path = sealed.path_of(self._descriptor)
        if path is None or not _same(path, self._descriptor):
            return None
        self._is_at(path)
        self.log.path = path / "log.jsonl"
        return path

    def open(self, identity, options):
        """Starts a new run here, or resumes the one here if it is the same: returns (arrays, state) of its newest
        checkpoint, or None if there is none.

        identity: JSON that identifies the task and its data, see `Task.identity`. options: LoopOptions, of which those
        in CHANGEABLE may differ: `changed` says which, {name: [before, now]}, and config.json records it. Raises
        ValueError or FileExistsError if the folder belongs to another run. A KernelWarning says that bits will differ.
        """
        self.changed = {}
        config = {"schema": SCHEMA, **identity, "options": options.to_config(), "changes": []}
        file = self.path / "config.json"
        strangers = sorted(p.name for p in self.path.iterdir() if p.name not in BEFORE and p.suffix != ".tmp")
        if not file.exists() or strangers == [file.name]:  # a run that never began may have been asked for wrongly
            if not file.exists() and strangers:
                raise FileExistsError(
                    f"{self.path} is not empty and holds no run (it has {strangers[0]}); choose another folder"
                )
            write_atomic(file, json.dumps(config, indent=1).encode())
            return None
        before = self.config()
        old_options = self._compare(before, config, options)
        newest = checkpoint.latest(self.checkpoints)
        arrays, state = (None, {"step": 0}) if newest is None else checkpoint.load(newest)
        step = state["step"]
        if newest is not None:
            self._compare_checkpoint(newest, state, before)
        if options.steps < step:
            raise ValueError(
                f"{self.path} has taken {step} steps, and steps = {options.steps} are fewer; use steps = {step} or "
                "more, or choose another folder"
            )
        names = [name for name in options.changed(old_options) if name in CHANGEABLE]
        was, now = old_options.to_config(), options.to_config()
        self.changed = {name: [was[name], now[name]] for name in names}
        if self.changed and step == options.steps:
            told = ", ".join(f"{name} = {now[name]}" for name in names)
            raise ValueError(
                f"{self.path} is complete after {step} steps, where {told} would change nothing; use more steps, too, "
                "or choose another folder"
            )
        config["changes"] = changes_after(before.get("changes", []), self.changed, step)
        self.log.cut(step)
        if self.changed or config["changes"] != before.get("changes", config["changes"]):
            kept = {**before["options"], **{name: now[name] for name in names}}  # the others are part of its digest
            after = {**before, "schema": SCHEMA, "options": kept, "changes": config["changes"]}
            write_atomic(file, json.dumps(after, indent=1).encode())
        return None if newest is None else (arrays, state)

    def config(self):
        """The contents of config.json. Raises ValueError if it cannot be read."""
        file = self.path / "config.json"
        try:
            config = json.loads(file.read_text())
            if not isinstance(config, dict) or not isinstance(config["options"], dict):
                raise ValueError("it has no options")
            if not isinstance(steps := config["options"].get("steps", 1), int):
                raise ValueError(f"its steps are {steps!r:.40}")
            if config.get("schema", 1) > SCHEMA:
                raise ValueError(f"it is of schema {config['schema']}, and this pydiff knows up to {SCHEMA}")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{file} cannot be read ({error}); choose another folder") from error
        return config

    def saved_options(self):
        """The options of the run in this folder, as written; None if there is none that can be read."""
        try:
            return self.config()["options"]
        except (OSError, ValueError):
            return None

    def noted(self, name, value):
        """The value under this name in config.json; if there is none, writes `value` and returns it."""
        config = self.config()
        if name not in config:
            write_atomic(self.path / "config.json", json.dumps({**config, name: value}, indent=1).encode())
        return config.get(name, value)

    def _compare(self, before, config, options):
        """The options that the run had. Raises ValueError if it is another run."""
        if (then := trained_in(before)) != (now := trained_in(config)):
            raise ValueError(f"{self.path} holds the run of {then}, and this is one of {now}; choose another folder")
        try:
            old_options = type(options).from_keywords(before["options"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{self.path / 'config.json'} cannot be read ({error}); choose another folder") from error
        differing = [
            (name, getattr(old_options, name), getattr(options, name))
            for name in options.changed(old_options)
            if name not in CHANGEABLE
        ]
        if before.get("fingerprint") != config.get("fingerprint"):
            what = "".join(f", {name} = {old}, not {new}" for name, old, new in differing)  # such as a size
            if (then := before.get("samples")) and (now := config.get("samples")):
                told = [f"{n} of {' x '.join(map(str, shape))}" for n, *shape in (then, now)]
                what += f": {told[0]} then, {told[1]} now" if then != now else ": as many, and not the same"
            raise ValueError(
                f"{self.path} holds a run on other data ({before.get('data')}{what}); choose another folder"
            )
        identity = ("codec", "model", "text_encoder")
        differing += [(n, before[n], config.get(n)) for n in identity if n in before and before[n] != config.get(n)]
        for name, old, new in differing:
            raise ValueError(
                f"{self.path} holds a run with {name} = {old}, not {new}; use that, or choose another folder (with "
                "init_from = this one, to begin with its weights)"
            )
        return old_options

    def _compare_checkpoint(self, path, state, config):
        """Raises ValueError if a checkpoint belongs to another run; warns if it is of other arithmetic."""
        if not self.owns(state, config):
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
                stacklevel=callers_level(),
            )

    @staticmethod
    def owns(state, config):
        """Whether the state of a checkpoint belongs to the run with this config.json; pydiff 0.1 did not record it."""
        return "run" not in state or state["run"] in (digest(config), digest(config, ()))  # () before schema 3

    def save_checkpoint(self, step, arrays, keep):
        """Writes a checkpoint and removes all but the newest `keep`; the log is synced to disk first."""
        self.log.sync()
        state = {"step": step, "run": digest(self.config()), "arithmetic": arithmetic()}
        checkpoint.save(self.checkpoints, step, arrays, state)
        checkpoint.prune(self.checkpoints, keep)

    def save_preview(self, step, png):
        """Writes a PNG, as bytes, to samples.png and, numbered by step, to samples/."""
        (self.path / "samples").mkdir(exist_ok=True)
        for file in (self.path / "samples" / f"step-{step:08d}.png", self.path / "samples.png"):
            write_atomic(file, png)


def _same(path, descriptor) -> bool:
    """Whether this is the path of an open folder."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def changes_after(changes, changed, step):
    """The list of changes with another one after this step. Changes recorded after this or a later step, of which no
    checkpoint is left, took effect here too, and are merged into it.

    changes: dicts {"after": step, name: [before, now], ..}. changed: {name: [before, now]}.
    """
    kept = [change for change in changes if change["after"] < step]
    merged = {}
    for change in [*(c for c in changes if c["after"] >= step), changed]:
        for name, (before, now) in ((name, pair) for name, pair in change.items() if name != "after"):
            merged[name] = [merged.get(name, [before])[0], now]
    merged = {name: pair for name, pair in merged.items() if pair[0] != pair[1]}
    return [*kept, {"after": step, **merged}] if merged else kept


def digest(config, apart_from=CHANGEABLE):
    """SHA-256 that identifies a run: its config.json without the options that may change."""
    import hashlib

    silent = {name for name in YOUNG if config["options"].get(name) is None}
    left_out = {*WITHOUT_EFFECT, *silent, *apart_from}
    options = {name: value for name, value in config["options"].items() if name not in left_out}
    what = {name: config.get(name) for name in ("fingerprint", "codec", "model")} | {"options": options}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

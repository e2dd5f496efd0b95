"""The folder of a training run on disk.

DIR/config.json        options, data set and its fingerprint: what the same command must match to go on
DIR/log.jsonl          one line a step: loss, learning rate, gradient norm, pictures per second
DIR/checkpoints/       the last few, hashed (checkpoint.py)
DIR/samples.png        what the average of the weights draws, now and then
DIR/model/             the finished model: a folder that diffusers' UNet2DModel.from_pretrained opens
"""

import contextlib
import json
import os
from pathlib import Path

from pydiff import checkpoint


class RunDirectory:
    """The folder of a training run; see the top of this file."""

    def __init__(self, path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"

    @contextlib.contextmanager
    def locked(self):
        """Keeps a second process from training in the same folder; the lock dies with the process."""
        import fcntl

        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(
                    f"another process is training in {self.path}; wait for it or choose another folder"
                ) from None
            yield

    def open(self, trainer):
        """Starts a new run here, or continues the one that is here if it is the same run."""
        config = {
            "data": trainer.dataset.name,
            "fingerprint": trainer.dataset.fingerprint(),
            "options": trainer.options.to_config(),
        }
        file = self.path / "config.json"
        if not file.exists():
            strangers = sorted(p.name for p in self.path.iterdir() if p.name not in (".lock", "config.json.tmp"))
            if strangers:
                raise FileExistsError(
                    f"{self.path} is not empty and holds no run (it has {strangers[0]}); choose another folder"
                )
            _write(file, json.dumps(config, indent=1))
            return
        try:
            before = json.loads(file.read_text())
            options = type(trainer.options).from_keywords(before["options"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file} cannot be read ({error}); choose another folder") from error
        if before["fingerprint"] != config["fingerprint"]:
            raise ValueError(f"{self.path} holds a run on other data ({before['data']}); choose another folder")
        for name in trainer.options.changed(options):
            old, new = getattr(options, name), getattr(trainer.options, name)
            raise ValueError(
                f"{self.path} holds a run with {name} = {old}, not {new}; use that, or choose another folder"
            )
        newest = checkpoint.latest(self.checkpoints)
        if newest is not None:
            arrays, state = checkpoint.load(newest)
            trainer.restore(arrays, state["step"])
        self._cut_log(trainer.step)

    def save_checkpoint(self, trainer):
        """The log up to here is on disk before the checkpoint that counts on it."""
        with (self.path / "log.jsonl").open("a") as file:
            os.fsync(file.fileno())
        checkpoint.save(self.checkpoints, trainer.step, trainer.arrays(), {"step": trainer.step})
        checkpoint.prune(self.checkpoints, trainer.options.keep)

    def save_samples(self, run):
        """Draws a few pictures into samples.png and, numbered by step, samples/."""
        from pydiff.report.grid import grid, save_png

        picture = grid(run.sample(16, steps=min(25, run.process.schedule.T)))
        (self.path / "samples").mkdir(exist_ok=True)
        save_png(self.path / "samples" / f"step-{run.step:08d}.png", picture)
        save_png(self.path / "samples.png", picture)

    def finish(self, run):
        """Writes the finished model, unless an earlier call already did."""
        run.save(self.path / "model")

    def read_log(self):
        """The log's lines as dicts; a last line cut short by a crash is left out."""
        file = self.path / "log.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}\n")]

    def _cut_log(self, step):
        """Forgets what was logged after the checkpoint: those steps are about to be taken again."""
        kept = [entry for entry in self.read_log() if entry["step"] <= step]
        _write(self.path / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in kept))


def _write(path, text):
    """Replaces a text file at once: a crash leaves the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

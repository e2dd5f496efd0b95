"""The loop: takes optimiser steps on whatever a Task provides, logs and saves them, and stops in good order. It knows
nothing about diffusion.

Everything random in step s is a pure function of (seed, s): the samples, their noise, what is dropped. A run that was
stopped, by Ctrl-C or by a power cut, and started again by the same call therefore ends bitwise equal to one that was
not.
"""

import contextlib
import functools
import logging
import math
import time
from typing import NamedTuple

import numpy as np

from pydiff import backend, nn, optim
from pydiff.arrays import array_module, to_host
from pydiff.store.folder import RunDirectory
from pydiff.store.log import Log
from pydiff.training.changes import told, undrawn
from pydiff.training.distributed import Group, join, settled
from pydiff.training.gradient import Gradient
from pydiff.training.interrupt import Interrupted, stop_request
from pydiff.training.keeping import Keeper
from pydiff.training.precision import low_precision
from pydiff.training.progress import Progress
from pydiff.training.rate import learning_rate

GIVE_UP_AFTER = 50  # non-finite steps in a row


class StepState(NamedTuple):
    """What one training step did. bad: None, or why the step was skipped; the parameters are then unchanged."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    bad: str | None
    traffic: dict = {}  # noqa: RUF012 - never written to; the traffic between processes, for the log


class Trainer:
    """Task, optimiser and the number of steps done: all that a training run consists of.

    options: LoopOptions. device: where the steps are computed, see backend.py. It is not part of the state of a run: a
    checkpoint can be continued on any device. group: the processes that share the steps, a distributed.Group; None:
    this process alone.
    """

    def __init__(self, task, options, device="cpu", group=None):
        self.task, self.options, self.device, self.notes = task, options.check(), device, []
        self.group = Group() if group is None else group
        low = low_precision(options, device)
        with backend.use_device(device) as xp:
            task.to(xp)
            self.optimizer = optim.AdamW(task.model, weight_decay=options.weight_decay, low=low)
        self.step = 0

    @property
    def model(self):
        """The network being trained."""
        return self.task.model

    def ema_model(self):
        """A network whose weights are views of the averaged weights, so that it follows the training."""
        model = self.task.twin()
        for p, average in zip(model.parameters(), self.optimizer.views(self.optimizer.ema), strict=True):
            p.data = average
        return model

    def live(self):
        """Everything that changes in training, the arrays themselves: {group: {name: array}}."""
        return {
            "optimizer": {name: getattr(self.optimizer, name) for name in ("p", "m", "v", "ema")},
            **self.task.state(),
        }

    def arrays(self):
        """The same as `live`, copied for a checkpoint: NumPy arrays, whatever the device."""
        return {g: {name: to_host(a) for name, a in part.items()} for g, part in self.live().items()}

    def restore(self, arrays, step):
        """Continues from `arrays`, as the method `arrays` returned them after that step, possibly on another device.

        Raises ValueError if an array is missing, or has another shape or dtype.
        """
        for group, name, target in [(g, *item) for g, part in self.live().items() for item in part.items()]:
            if name not in arrays.get(group, {}):
                raise ValueError(f"the checkpoint has no {group} {name}, which these options need; train anew")
            source = arrays[group][name]
            if source.shape != target.shape or source.dtype != target.dtype:
                raise ValueError(
                    f"the checkpoint's {name} is {source.dtype} {source.shape}, expected {target.dtype} {target.shape}"
                )
            target[...] = array_module(target).asarray(source)
        self.optimizer.round_copy()
        self.step = step

    def begin(self, weights):
        """Starts from these weights, a state_dict of such a model, instead of randomly initialised ones."""
        for p, master in zip(self.optimizer.parameters, self.optimizer.masters, strict=True):
            p.data = master  # so that these are written to, and not their rounded copy
        self.model.load_state_dict(weights)
        self.optimizer.adopt()
        self.optimizer.round_copy()
        self.optimizer.ema[...] = self.optimizer.p

    def share(self):
        """Copies the state of the group's first process to all the others."""
        if self.group.size > 1:
            arrays = self.arrays()
            self.group.spread([array for part in arrays.values() for array in part.values()])
            self.restore(arrays, self.group.agree(self.step))


def training_steps(trainer):
    """A generator that trains, one step per iteration, until options.steps: for state in training_steps(trainer): ...

    A step whose loss or gradient is not finite changes nothing; state.bad then says so and names the first module that
    produced such a value. Raises RuntimeError after 50 of these in a row.
    """
    return backend.on_device(trainer.device, _steps(trainer))


def _steps(trainer):
    task, options, optimizer, bad_in_a_row = trainer.task, trainer.options, trainer.optimizer, 0
    gradient = Gradient(task, options, optimizer, trainer.group, first_bad_module)
    while trainer.step < options.steps:
        step = trainer.step + 1
        lr, decay = learning_rate(step, options), optim.ema_decay(step, options.ema)
        update = functools.partial(optimizer.step, step, lr, decay, options.clip)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what is checked anyway
            loss, norm2, bad, seen, traffic = gradient.of_step(step, update)
        if bad is None:
            task.learned(seen)
        bad_in_a_row = bad_in_a_row + 1 if bad else 0
        if bad_in_a_row == GIVE_UP_AFTER:
            raise RuntimeError(
                f"{GIVE_UP_AFTER} steps in a row were not finite ({bad}); a smaller lr than {options.lr} may help"
            )
        trainer.step = step
        yield StepState(step, loss, lr, math.sqrt(norm2), bad, traffic)


def first_bad_module(task, batch):
    """A sentence naming the first module whose output is not finite, found by repeating the step's forward pass."""
    names = {id(module): name for name, module in task.model.named_modules()}
    bad = []

    def check(module, output):
        outputs = [output[0], *output[1]] if isinstance(output, tuple) else [output]
        if not bad and not all(task.xp.isfinite(o.data).all() for o in outputs):
            bad.append(names[id(module)] or "the model")

    with nn.observe(check):
        task.losses(batch)
    return f"the first output that is not finite is that of {bad[0]}" if bad else "every module's output is finite"


def fit(trainer, log, folder=None, preview=None, progress=True):
    """Takes the steps, logs them, saves checkpoints and previews, shows progress; stops in good order on Ctrl-C.

    log: store.Log. folder: store.RunDirectory, locked, or None. preview: called every options.sample_every steps if
    there is a folder; returns the bytes of a PNG that shows what was learned. Raises Interrupted after Ctrl-C, with a
    checkpoint written. Returns sentences on what went wrong during training; a file that cannot be written does not
    stop it, see keeping.py.
    """
    options, group = trainer.options, trainer.group
    with (
        Progress(options.steps, trainer.step, f"on {trainer.device}", progress) as bar,
        stop_request() as stop,
    ):
        keeper = Keeper(trainer, log, folder, preview, bar.write)
        began, smooth = time.perf_counter(), None
        for state in training_steps(trainer):
            now = time.perf_counter()
            rate, began = options.batch_size / max(now - began, 1e-9), now
            keeper.took(log_entry(state, rate, trainer.device))
            last, stopping = state.step == options.steps, group.any(stop.is_set())
            if state.bad:
                bar.write(f"step {state.step} skipped: {state.bad}")
                bar.step()
            else:
                smooth = state.loss if smooth is None else 0.98 * smooth + 0.02 * state.loss
                bar.step(f"loss {smooth:.4f}, {rate:,.0f} {trainer.task.unit}/s")
            keeper.save(last, stopping)
            if stopping and not last:
                raise Interrupted(trainer.step, keeper.unsaved())
    return keeper.health.sentences(options.lr)


@contextlib.contextmanager
def opened(task, options, out=None, device="cpu", group=None, begin=None):
    """(trainer, folder) for a training in the folder `out`, locked meanwhile; a run already there is continued.

    out: None keeps everything in memory; folder is then None. group: see `Trainer`; only its first process has the
    folder. begin: called in the first process with (trainer, folder) before the first step of a new run. trainer.notes
    are sentences on what has changed since the run began.
    """
    trainer = Trainer(task, options, device, group)
    trainer.group.compare(task.identity() | {"options": options.to_config()})
    if out is None or not trainer.group.first:
        if begin and trainer.group.first:
            begin(trainer, None)
        trainer.notes += undrawn(task.model)
        trainer.share()
        yield trainer, None
        return
    folder = RunDirectory(out)
    with folder.locked():
        if found := folder.open(task.identity(), options):
            arrays, state = found
            trainer.restore(arrays, state["step"])
        elif begin:
            begin(trainer, folder)
        trainer.notes += undrawn(task.model)
        trainer.notes += told(folder.path, folder.changed, trainer.step, options)
        trainer.share()
        yield trainer, folder


def train_task(task, options, out=None, *, device="cpu", progress=True, distributed="auto"):
    """Trains any Task to the end; with a folder, it keeps checkpoints and a log, and can be resumed. Returns the
    Trainer.

    options: LoopOptions. distributed: see distributed.py. `pydiff.train` does this for diffusion models and returns a
    Run.
    """
    group = join(distributed)
    with group.together(), group.own_processors(device):
        options = settled(options, out, group)
        with opened(task, options, out, device, group) as (trainer, folder):
            log = Log() if folder is None else folder.log
            trainer.notes += fit(trainer, log, folder, progress=progress and group.first)
        for note in trainer.notes if group.first else ():
            logging.getLogger("pydiff").warning("%s", note)
    return trainer


def log_entry(state, images_per_second, device):
    """A step as a dict for the log. Values that are not finite become None, since JSON has no NaN or infinity."""
    entry = {"step": state.step, "loss": state.loss, "lr": state.lr, "grad_norm": state.grad_norm}
    entry |= {"images_per_second": round(images_per_second, 1), "time": round(time.time(), 3), "device": device}
    entry |= ({"skipped": state.bad} if state.bad else {}) | state.traffic
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}

"""Training: one generator of steps, and `train`, which drives it to the end.

Everything random in step s is a pure function of (seed, s): the pictures, their noise levels, their noise, what is
dropped. So a run that was stopped, by Ctrl-C or by a power cut, and started again by the same call ends with the same
bits as one that was not.
"""

import contextlib
import math
import time
from typing import NamedTuple

import numpy as np

from pydiff import backend, nn, ops, optim, random
from pydiff.data import load
from pydiff.data.order import batch_indices, flip
from pydiff.diffusion.objective import LossAware, conditioned, draw_timesteps, example_losses, loss_weight
from pydiff.interrupt import Interrupted, stop_request
from pydiff.options import Options, build_process, build_unet
from pydiff.run import Run
from pydiff.rundir import RunDirectory

GIVE_UP_AFTER = 50  # non-finite steps in a row
VLB = 0.001  # share of the variational bound, where the variance is learned (Nichol and Dhariwal 2021, section 3.1)


class StepState(NamedTuple):
    """What one training step did. bad: None, or why the step was skipped; the parameters are then as before."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    bad: str | None


class Trainer:
    """Model, optimiser, data and the number of steps done: all that a training run consists of.

    device: where the steps are computed, see backend.py. It is no part of what the run is: a checkpoint goes on on any.
    """

    def __init__(self, dataset, options, device="cpu"):
        if options.conditional and dataset.labels is None:
            raise ValueError(f"conditional training needs classes, but {dataset.name} has none; leave out conditional")
        self.dataset, self.options = dataset, options.check()
        self.process = build_process(options)
        self.classes = len(dataset.classes) if options.conditional else None
        self.device = device
        with backend.use_device(device) as self.xp:
            self.model = build_unet(options, dataset.shape, self.classes).to(self.xp)
            self.optimizer = optim.AdamW(self.model, weight_decay=options.weight_decay)
        self.history = LossAware(options.timesteps) if options.timestep_sampling == "loss_aware" else None
        self.step = 0

    def ema_model(self):
        """A U-Net whose weights are the average's: views, so it follows the training."""
        model = build_unet(self.options, self.dataset.shape, self.classes)
        for p, average in zip(model.parameters(), self.optimizer.views(self.optimizer.ema), strict=True):
            p.data = average
        return model

    def live(self):
        """Everything that changes in training, where it lives: {group: {name: array}}."""
        live = {"optimizer": {name: getattr(self.optimizer, name) for name in ("p", "m", "v", "ema")}}
        if self.history is not None:
            live["timesteps"] = {name: getattr(self.history, name) for name in ("losses", "seen")}
        return live

    def arrays(self):
        """The same for a checkpoint: NumPy arrays, whatever the device."""
        return {g: {name: backend.to_host(a) for name, a in part.items()} for g, part in self.live().items()}

    def restore(self, arrays, step):
        """Continues from what `arrays` gave after that step, on whatever device."""
        for group, name, target in [(g, *item) for g, part in self.live().items() for item in part.items()]:
            if name not in arrays.get(group, {}):
                raise ValueError(f"the checkpoint has no {group} {name}, which these options need; train anew")
            source = arrays[group][name]
            if source.shape != target.shape or source.dtype != target.dtype:
                raise ValueError(
                    f"the checkpoint's {name} is {source.dtype} {source.shape}, expected {target.dtype} {target.shape}"
                )
            target[...] = backend.array_module(target).asarray(source)
        self.step = step


def batch(trainer, step):
    """The training examples of one step: x0 (B, H, W, C) on the device; t (B,), the noise key, labels (B,) or None."""
    options, data = trainer.options, trainer.dataset
    n, seed = np.arange(options.batch_size), options.seed
    chosen = batch_indices(len(data), options.batch_size, step - 1, seed)
    x0 = data.normalized(chosen)
    x0 = flip(x0, step, seed) if options.flip else x0
    if trainer.history is not None:
        t, _ = trainer.history.draw(seed, step, options.batch_size)
    else:
        t = draw_timesteps(options.timestep_sampling, trainer.process.schedule, seed, step, options.batch_size)
    labels = None
    if options.conditional:
        withheld = random.uniform(random.key(seed, random.CONDITION, n, step)) < options.label_drop
        labels = np.where(withheld, trainer.classes, data.labels[chosen])
    return trainer.xp.asarray(x0), t, random.key(seed, random.NOISE, n, step), labels


def training_steps(trainer):
    """Trains, one step per iteration, until options.steps: for state in training_steps(trainer): ...

    A step whose loss or gradient is not finite changes nothing and says so in state.bad, with the first module that
    went wrong; RuntimeError after 50 of those in a row.
    """
    return backend.on_device(trainer.device, _steps(trainer))


def _steps(trainer):
    options, optimizer, bad_in_a_row = trainer.options, trainer.optimizer, 0
    while trainer.step < options.steps:
        step = trainer.step + 1
        x0, t, noise, labels = batch(trainer, step)
        optimizer.zero_grad()
        # NumPy would warn about what is checked here anyway
        with (
            nn.training(options.seed, step, noise.sample),
            np.errstate(over="ignore", invalid="ignore", divide="ignore"),
        ):
            loss, losses = loss_of(trainer, x0, t, noise, labels)
            lr, bad, norm = learning_rate(step, options), None, math.nan
            if not math.isfinite(loss.item()):
                bad = f"the loss is {loss.item()}; {first_bad_module(trainer, x0, t, noise, labels)}"
            else:
                loss.backward()
                norm2 = ops.squared_norm(optimizer.gather())
                norm = math.sqrt(norm2.item())
                if not math.isfinite(norm):
                    bad = f"the gradient of {optimizer.first_bad_gradient()} is not finite"
        if bad is None:
            optimizer.step(step, lr, optim.ema_decay(step, options.ema), options.clip, norm2)
            if losses is not None:
                trainer.history.update(t, losses)
        bad_in_a_row = bad_in_a_row + 1 if bad else 0
        if bad_in_a_row == GIVE_UP_AFTER:
            raise RuntimeError(
                f"{GIVE_UP_AFTER} steps in a row were not finite ({bad}); a smaller lr than {options.lr} may help"
            )
        trainer.step = step
        yield StepState(step, loss.item(), lr, norm, bad)


def loss_of(trainer, x0, t, noise, labels):
    """What one step minimises, and the losses (B,) of its examples if the draw of t goes by them, else None."""
    options, model, history = trainer.options, trainer.model, trainer.history
    weights = None if options.loss_weight == "simple" else loss_weight(options.loss_weight, trainer.process, t)
    if options.self_conditioning:
        model = conditioned(model, trainer.process, options.seed, trainer.step + 1)
    arguments = (model, x0, t, noise, labels, weights, options.offset_noise)
    if options.variance == "fixed" and history is None:
        return trainer.process.loss(*arguments), None
    losses = example_losses(trainer.process, *arguments, vlb=VLB if options.variance == "learned" else None)
    if history is None:
        return losses.mean(), None
    return (losses * trainer.xp.asarray(history.weights(t), x0.dtype)).mean(), backend.to_host(losses.data)


def learning_rate(step, options):
    """The learning rate of one step, as a function of the step alone."""
    if options.lr_schedule == "constant":
        return options.lr * min(1.0, step / max(options.warmup, 1))
    return optim.warmup_cosine(step, options.steps, options.lr, min(options.warmup, options.steps - 1))


def first_bad_module(trainer, x0, t, noise, labels):
    """Which module's output is the first that is not finite, found by computing the step's forward pass again."""
    names = {id(module): name for name, module in trainer.model.named_modules()}
    bad = []

    def check(module, output):
        outputs = [output[0], *output[1]] if isinstance(output, tuple) else [output]
        if not bad and not all(trainer.xp.isfinite(o.data).all() for o in outputs):
            bad.append(names[id(module)] or "the model")

    with nn.observe(check):
        loss_of(trainer, x0, t, noise, labels)
    return f"the first output that is not finite is that of {bad[0]}" if bad else "every module's output is finite"


@backend.trimmed()
def train(data, *, out=None, progress=True, device="cpu", **options):
    """Trains a diffusion model on pictures and returns the finished `Run`.

    data: "digits", "faces", a folder of pictures, an .npz or .npy file, an array (N, H, W, C), or a Dataset.
    out: folder for checkpoints, log, samples and the finished model in out/model; the same call on the same folder
    goes on where the last one stopped, and gives the same bits as an uninterrupted one. None keeps all in memory.
    progress: show a bar. device: "cpu", "cuda" (a GPU, through CuPy) or "simt" (the emulator); a run may go on on
    another than it began on, to other bits. Every other keyword is a field of pydiff.Options.

    Raises ValueError or TypeError, in one sentence, for data or options that cannot work; RuntimeError for a device
    that cannot be used; Interrupted (a KeyboardInterrupt) after Ctrl-C, with a checkpoint written.
    """
    options = Options.from_keywords(options)
    with backend.use_device(device):  # a missing GPU is reported before a large data set is read
        dataset = load(data, size=options.size)
    trainer = Trainer(dataset, options, device)
    directory = None if out is None else RunDirectory(out)
    with contextlib.nullcontext() if directory is None else directory.locked():
        if directory is not None:
            directory.open(trainer)
        run = Run.of_trainer(trainer, directory)
        _drive(trainer, directory, run, progress)
        if directory is not None:
            directory.finish(run)
    return run


def _drive(trainer, directory, run, progress):
    """Takes the steps, logs them, saves checkpoints, shows progress; leaves in good order on Ctrl-C."""
    from tqdm import tqdm

    options = trainer.options
    bar = tqdm(total=options.steps, initial=trainer.step, unit="step", disable=not progress, dynamic_ncols=True)
    bar.set_description(f"on {trainer.device}")
    with bar, stop_request() as stop:
        began, smooth = time.perf_counter(), None
        for state in training_steps(trainer):
            now = time.perf_counter()
            rate, began = options.batch_size / max(now - began, 1e-9), now
            run.record(state, rate)
            if state.bad:
                bar.write(f"step {state.step} skipped: {state.bad}")
            else:
                smooth = state.loss if smooth is None else 0.98 * smooth + 0.02 * state.loss
                bar.set_postfix_str(f"loss {smooth:.4f}, {rate:,.0f} images/s", refresh=False)
            bar.update()
            last = state.step == options.steps
            if directory is not None:
                if options.sample_every and (last or state.step % options.sample_every == 0):
                    directory.save_samples(run)
                if last or stop.is_set() or state.step % options.checkpoint_every == 0:
                    directory.save_checkpoint(trainer)
            if stop.is_set() and not last:
                raise Interrupted(run)

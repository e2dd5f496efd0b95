"""Classifiers: `train_classifier` trains one on noisy samples; ClassifierRun predicts classes, and steers runs that
were trained without classes.

    judge = pydiff.train("synthetic-digits", model="classifier", codec="spectrogram", out="runs/digits")
    judge.accuracy(data)                             fraction of samples classified correctly
    run.steered(judge).sample(4, labels=["seven"])   see steering.py
"""

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from pydiff import backend, codec, ops, random
from pydiff.arrays import to_host
from pydiff.condition import LABELS, Conditioning
from pydiff.data import load as load_data
from pydiff.data.origin import Origin
from pydiff.formats.diffusers import own_networks
from pydiff.formats.diffusers.extra import check_codec
from pydiff.formats.diffusers.parameters import fill, ways_to_write
from pydiff.formats.files import folder_path
from pydiff.formats.safetensors import CheckpointError
from pydiff.formats.schema import UNFIT
from pydiff.models import build, name_of
from pydiff.nn import room_for
from pydiff.printed import all_printable, printable
from pydiff.reopen import finish, is_run
from pydiff.store import checkpoint
from pydiff.store.folder import RunDirectory
from pydiff.store.log import Log
from pydiff.tensor import Tensor, no_grad
from pydiff.training import ClassifyTask, Interrupted, Options, fit, join, opened, reading, settled
from pydiff.training.changes import heard
from pydiff.training.config import build_process

CLASS = "NoisyClassifier"
BATCH = 64


class ClassifierRun:
    """A trained (or half-trained) classifier of noisy samples.

    model: the network with averaged weights. codec, process: of the samples and of the noise that it was trained with.
    classes: their names. options: dict. step: training steps done. directory: the run's Path, or None. data_name: what
    it was trained on.
    """

    draws = False  # from noise

    def __init__(self, model, codec, process, classes, options, *, origin=None, step=0, directory=None, log=()):
        self.model, self.codec, self.process, self.classes = model, codec, process, list(classes)
        self.options, self.directory, self.step = options, directory, step
        self.origin = Origin() if origin is None else origin
        self._log = log if isinstance(log, Log) else Log(entries=log)

    data_name = property(lambda self: self.origin.name)
    parameters = property(lambda self: sum(p.size for p in self.model.parameters()))

    @property
    def name(self):
        """The folder's name if the run has one, else the name of the data set."""
        return printable(self.directory.name) if self.directory is not None else self.data_name

    def log(self):
        """One dict per training step: step, loss, lr, grad_norm, images_per_second, time, device."""
        return list(self._log.entries)

    def to(self, device):
        """Moves the model to a device, where it then computes. Returns the run."""
        with backend.use_device(device) as xp:
            self.model.to(xp)
        return self

    def log_probabilities(self, samples, t=0, seed=0):
        """log p(class | x_t) of samples: (N, K) float32. t: the noise level that is added to them, 0 is the lowest."""
        x, found = self.codec.encode(samples), []
        for first in range(0, len(x), BATCH):
            part = x[first : first + BATCH]
            numbers, steps = np.arange(first, first + len(part)), np.full(len(part), t)
            noisy, _ = self.process.q_sample(part, steps, random.key(seed, random.NOISE, numbers))
            with no_grad():
                found.append(to_host(ops.log_softmax(self.model(Tensor(noisy), steps)).data))
        return np.concatenate(found)

    def predict(self, samples, t=0, seed=0):
        """The most likely class of each sample: numbers (N,)."""
        return self.log_probabilities(samples, t, seed).argmax(1)

    def accuracy(self, data, t=0, seed=0):
        """The fraction of a Dataset's samples that are classified correctly. Raises ValueError if its classes
        differ.
        """
        if data.classes != self.classes:
            raise ValueError(f"{data.name} has other classes than {self.name} knows; give data with the same names")
        chosen = np.arange(len(data))
        wanted = data.condition(chosen, Conditioning(data.classes))[LABELS]
        return float((self.predict(data.samples(chosen), t, seed) == wanted).mean())

    def sample(self, *_, **__):
        """Raises ValueError: a classifier does not generate samples."""
        raise ValueError(
            f"{self.name} is a classifier, which draws nothing by itself; it steers a run that was trained without "
            f"classes: pydiff sample RUN --classifier {self.directory or 'FOLDER'}"
        )

    inpaint = image_to_image = variations = interpolate = report = sample
    pipeline = property(sample)

    def save(self, directory, dtype=None):
        """Writes a folder that pydiff.load opens. dtype: of the weights, "float16" or "bfloat16"; None keeps theirs."""
        told = {"classes": self.classes, "codec": self.codec.to_config(), "step": self.step}
        told["options"] = all_printable(self.options)
        told["origin"] = self.origin.to_config(place=False)
        arrays = ways_to_write(self.model)
        checkpoint.save_model(
            directory, self.model.config, arrays, {"classifier": told}, name_of(self.model), dtype=dtype
        )

    def __repr__(self):
        return f"ClassifierRun({self.name!r}, {self.step} steps on {self.data_name!r}, {self.parameters:,} parameters)"


def train_classifier(
    data, *, out=None, progress=True, device="cpu", announce=None, distributed="auto", **options
):  # fmt: skip
    """Trains a classifier of noisy samples and returns the finished ClassifierRun; arguments and errors as for
    pydiff.train. Raises ValueError for options that apply only to diffusion models.
    """
    group = join(distributed)
    with group.together(), group.own_processors(device):
        announce, tell = heard(announce, group.first)
        options = settled(Options.from_keywords({"sample_every": 0, **options}), out, group)
        with backend.use_device(device):
            dataset = load_data(data, **reading(options.to_config()))
            announce(f"{dataset.summary()}; training a classifier on {device}{group.described()}")
            task = ClassifyTask(dataset, options)
        with opened(task, options, out, device, group) as (trainer, folder):
            log = Log() if folder is None else folder.log
            history = {"origin": Origin.of(dataset, data), "log": log}
            history |= {} if folder is None else {"directory": folder.path}
            made = ClassifierRun(
                trainer.ema_model(), task.codec, task.process, dataset.classes, options.to_config(), **history
            )
            tell(trainer.notes)
            try:
                tell(fit(trainer, log, folder, progress=progress and group.first))
            except Interrupted as interrupted:
                interrupted.run = made
                raise
            finally:
                made.step, made.directory = trainer.step, None if folder is None else folder.path
            if folder is not None:
                finish(folder, made.save)
    return made


def holds_classifier(directory) -> bool:
    """Whether a folder is the run of a classifier, finished or not, or holds a classifier."""
    directory = Path(directory)
    with contextlib.suppress(ValueError, OSError):
        if is_run(directory):
            return RunDirectory(directory).config().get("model") == CLASS
    with contextlib.suppress(CheckpointError, OSError):
        return checkpoint.holds_model(directory) and "classifier" in checkpoint.extra_of(directory)
    return False


def opened_classifier(classifier) -> ClassifierRun:
    """The ClassifierRun given, or the one in this folder. Raises ValueError for anything else."""
    if isinstance(classifier, str | os.PathLike):
        return load_classifier(classifier)
    if not isinstance(classifier, ClassifierRun):
        raise ValueError(f"a classifier is a ClassifierRun or its folder, got {type(classifier).__name__}")
    return classifier


def load_classifier(directory) -> ClassifierRun:
    """Opens a classifier's run, or a folder written by ClassifierRun.save.

    Raises FileNotFoundError or CheckpointError if there is none, or if it is unfinished or damaged.
    """
    directory = folder_path(directory, "classifier")
    if not holds_classifier(directory):
        raise FileNotFoundError(
            f"{directory} holds no classifier; train one: pydiff train DATA --model classifier --out {directory}"
        )
    training = is_run(directory)
    folder = directory / "model" if training else directory
    if not checkpoint.holds_model(folder):
        raise FileNotFoundError(f"{directory} is unfinished; the command that began it goes on from its checkpoint")
    with checkpoint.open_model(folder, [CLASS]) as found:
        told: Any = found.extra.get("classifier")
        try:
            config = own_networks.read_config(found.config, CLASS, folder)
            model = build(CLASS, config, room_for(found.weights))
            fill(model, found.weights)
            options = Options.from_keywords(told["options"])
            check_codec(told["codec"], folder)
            made = ClassifierRun(
                model, codec.from_config(told["codec"]), build_process(options), told["classes"], told["options"],
                origin=Origin.from_config(told["origin"]), step=told["step"],
            )  # fmt: skip
        except UNFIT as error:
            raise CheckpointError(f"{folder} cannot be followed ({error!a:.200}).") from error
    if model.config["classes"] != len(made.classes):
        raise CheckpointError(f"{folder} names {len(made.classes)} classes, and its network knows another number.")
    if training:
        made.directory, made._log = directory, RunDirectory(directory).log
    return made

"""What training leaves behind: `Run`, a model that can be sampled, saved and shown (rundir.py: its folder on disk)."""

import json
import math
import time
from pathlib import Path

import numpy as np

from pydiff import backend, checkpoint, edit
from pydiff.data import load as load_data
from pydiff.data.pixels import to_uint8
from pydiff.diffusion import Process, path, samplers
from pydiff.diffusion.samplers import SAMPLERS
from pydiff.diffusion.schedule import from_config as schedule_from_config
from pydiff.models import UNet2D
from pydiff.predict import check_sampler, predictor
from pydiff.rundir import RunDirectory


class Run:
    """A trained (or half-trained) diffusion model with everything needed to use it and to look at it.

    model: the U-Net with averaged weights. process: its diffusion process. options: dict of the training options.
    classes: names of the classes of a conditional model, else None. step: training steps done.
    directory: the run's Path, or None. data_name: what it was trained on. variance ("fixed" or "learned") and
    self_conditioning: what the model's channels are for besides pictures, see Options. device: where the model is and
    where it draws, "cpu", "cuda" or "simt"; `to` moves it.
    """

    def __init__(
        self,
        model,
        process,
        options,
        *,
        classes=None,
        data_name="",
        step=0,
        directory=None,
        dataset=None,
        log=(),
        variance="fixed",
        self_conditioning=False,
        device="cpu",
    ):
        self.model, self.process, self.options, self.classes = model, process, options, classes
        self.device = device
        self.variance, self.self_conditioning = variance, self_conditioning
        self.data_name, self.step, self.directory = data_name, step, directory
        self._dataset, self._log = dataset, list(log)

    @classmethod
    def of_trainer(cls, trainer, directory):
        """The live view of a training in progress."""
        classes = trainer.dataset.classes if trainer.options.conditional else None
        return cls(
            trainer.ema_model(),
            trainer.process,
            trainer.options.to_config(),
            classes=classes,
            data_name=trainer.dataset.name,
            step=trainer.step,
            directory=None if directory is None else directory.path,
            dataset=trainer.dataset,
            log=() if directory is None else directory.read_log(),
            variance=trainer.options.variance,
            self_conditioning=trainer.options.self_conditioning,
            device=trainer.device,
        )

    def to(self, device):
        """Moves the model to a device, where everything is drawn from then on. Returns the run.

        A model that was in training elsewhere follows it no longer. ValueError or RuntimeError, in one sentence, for a
        device that does not exist or cannot be used here.
        """
        with backend.use_device(device) as xp:
            self.model.to(xp)
        self.device = device
        return self

    def record(self, state, images_per_second):
        """Takes note of a training step, in memory and in the run's log."""
        entry = {"step": state.step, "loss": state.loss, "lr": state.lr, "grad_norm": state.grad_norm}
        entry |= {"images_per_second": round(images_per_second, 1), "time": round(time.time(), 3)}
        entry |= {"device": self.device}
        entry |= {"skipped": state.bad} if state.bad else {}
        entry = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
        self._log.append(entry)
        self.step = state.step
        if self.directory is not None:
            with (self.directory / "log.jsonl").open("a") as file:
                file.write(json.dumps(entry) + "\n")

    @property
    def name(self):
        """The folder's name, or the data set's."""
        return self.directory.name if self.directory is not None else self.data_name

    @property
    def shape(self):
        """(H, W, C) of a picture."""
        size = self.model.config["sample_size"]
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return height, width, self.model.config["in_channels"] // (2 if self.self_conditioning else 1)

    @property
    def parameters(self):
        """Number of trained parameters."""
        return sum(p.size for p in self.model.parameters())

    def dataset(self):
        """The training data, loaded again if need be."""
        if self._dataset is None:
            self._dataset = load_data(self.data_name, size=self.options.get("size"))
        return self._dataset

    def log(self):
        """One dict a step: step, loss, lr, grad_norm, images_per_second, time, device."""
        return list(self._log)

    def sample(
        self,
        n=16,
        seed=0,
        sampler="ddim",
        steps=50,
        labels=None,
        guidance=1.0,
        eta=0.0,
        *,
        spacing="trailing",
        interval=None,
        rescale=0.0,
        batch_size=64,
        progress=False,
        device=None,
        **options,
    ):
        """Draws n new pictures: (n, H, W, C) uint8. Picture i depends on (seed, i) alone, not on n or batch_size.

        sampler: a name in pydiff.diffusion.samplers.SAMPLERS, docs/samplers.md has the choice; steps: how many of the T
        noise levels to visit, spacing: which ones ("trailing", "leading", "linspace", "karras", "exponential").
        eta: fresh noise in ddim and dpm2, 0 to 1.
        labels: class numbers (n,), for a conditional model; left out, the classes take turns. guidance: how much more
        than the network says to follow the class (Ho & Salimans 2022), 1 for plain; interval: (low, high), noise levels
        sigma / alpha where that is done; rescale: 0 to 1, how far contrast is brought back. progress: show a bar.
        device: None for where the model is; "cpu", "cuda" or "simt" move it there first, to stay.
        Every other keyword is an option of the sampler, such as order, churn, clip or threshold; see its docstring.
        """
        from tqdm import tqdm

        if n < 1 or batch_size < 1:
            raise ValueError(f"n and batch_size must be at least 1, got {n} and {batch_size}")
        labels = self.checked_labels(labels, np.arange(n))
        self.to(device or self.device)
        more = {"spacing": spacing, "interval": interval, "rescale": rescale} | options
        parts = []
        with tqdm(total=n * steps, unit="picture step", unit_scale=True, disable=not progress, delay=1) as bar:
            for first in range(0, n, batch_size):
                numbers = np.arange(first, min(first + batch_size, n))
                part = None if labels is None else labels[numbers]
                for state in self.sample_states(numbers, seed, sampler, steps, part, guidance, eta, **more):
                    x = state.x
                    bar.update(len(numbers))
                parts.append(to_uint8(backend.to_host(x).clip(-1, 1)))
        return np.concatenate(parts)

    def sample_states(
        self,
        n=16,
        seed=0,
        sampler="ddim",
        steps=50,
        labels=None,
        guidance=1.0,
        eta=0.0,
        spacing="trailing",
        interval=None,
        rescale=0.0,
        **options,
    ):
        """The reverse process as a generator of SamplerState, one a step. n: number of pictures, or their numbers.

        The arrays are where the model is.
        """
        check_sampler(self, sampler, options, interval, rescale)
        if eta and sampler not in ("ddim", "dpm2"):
            raise ValueError(f"eta {eta} is for ddim and dpm2, and the sampler is {sampler!r}; leave eta out")
        numbers = np.arange(n) if np.ndim(n) == 0 else np.asarray(n)
        way = path(self.process.schedule, steps, spacing)
        if sampler == "ddpm" and self.variance == "learned":
            options = {"variance": "learned_range"} | options
        learned = options.get("variance") == "learned_range"
        labels = self.checked_labels(labels, numbers)
        if labels is None and guidance != 1:
            raise ValueError("guidance needs a model with classes (train with conditional=True)")
        predict, guidance = predictor(self, labels, guidance, interval, rescale, learned)
        with backend.use_device(self.device) as xp:
            x = xp.asarray(samplers.initial_noise(self.shape, seed, numbers))
            scale = samplers.start_scale(way)
            x = x if scale == 1.0 else x * x.dtype.type(scale)
        arguments = {"seed": seed, "sample": numbers, "guidance": guidance} | ({"eta": eta} if eta else {}) | options
        return backend.on_device(self.device, SAMPLERS[sampler](predict, x, self.process, way, **arguments))

    def inpaint(self, images, mask, **options):
        """Draws anew where mask is 1, keeps the pictures where it is 0: (N, H, W, C) uint8. See `edit.inpaint`."""
        return edit.inpaint(self, images, mask, **options)

    def image_to_image(self, images, strength=0.5, **options):
        """Draws pictures anew from some way to noise: (N, H, W, C) uint8. See `edit.image_to_image`."""
        return edit.image_to_image(self, images, strength, **options)

    def variations(self, images, strength=0.3, **options):
        """Pictures like these: (N, H, W, C) uint8. See `edit.variations`."""
        return edit.variations(self, images, strength, **options)

    def interpolate(self, seed_a, seed_b, shares, **options):
        """Pictures between those of two seeds: (K, H, W, C) uint8. See `edit.interpolate`."""
        return edit.interpolate(self, seed_a, seed_b, shares, **options)

    def unlabelled(self, n):
        """Labels (n,) that say "class withheld"; None for a model without classes."""
        return None if self.classes is None else np.full(n, len(self.classes))

    def checked_labels(self, labels, numbers):
        """Class numbers for these pictures, checked; None for a model without classes."""
        if self.classes is None:
            if labels is not None:
                raise ValueError("this model was trained without classes, so labels cannot be given")
            return None
        count, n = len(self.classes), len(numbers)
        labels = numbers % count if labels is None else np.asarray(labels)
        if labels.shape != (n,) or labels.dtype.kind not in "iu" or not ((labels >= 0) & (labels < count)).all():
            raise ValueError(f"labels must be {n} whole numbers from 0 to {count - 1}, got {labels!r}")
        return labels

    def save(self, directory):
        """Writes the model as a folder that pydiff.load and diffusers' UNet2DModel.from_pretrained open."""
        extra = {
            "options": self.options,
            "data": self.data_name,
            "classes": self.classes,
            "step": self.step,
            "schedule": self.process.schedule.to_config(),
            "prediction": self.process.prediction,
            "variance": self.variance,
            "self_conditioning": self.self_conditioning,
        }
        checkpoint.save_model(directory, self.model.config, self.model.state_dict(), extra)

    def report(self, directory=None, **options):
        """Writes report.html, samples.png and the film beside the run, or into `directory`; returns the page's path."""
        from pydiff.report import write_report

        return write_report(self, directory, **options)

    def _repr_html_(self):
        from pydiff.report import html_summary

        return html_summary(self)

    def __repr__(self):
        return f"Run({self.name!r}, {self.step} steps on {self.data_name!r}, {self.parameters:,} parameters)"


def load(directory):
    """Opens a run's folder, or a model folder written by Run.save or by diffusers. Returns a Run.

    FileNotFoundError or CheckpointError, in one sentence, if it is neither or damaged.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a folder; give the folder of a run or of a saved model")
    is_run = (directory / "log.jsonl").exists()
    folder = directory / "model" if is_run else directory
    if is_run and not checkpoint.holds_model(folder):
        raise FileNotFoundError(f"{directory} holds no finished model yet; train it to the end first")
    config, arrays, extra = checkpoint.load_model(folder)
    model = UNet2D(**config).load_state_dict(arrays)
    if extra is None:  # written by diffusers: its pipelines' most common process
        extra = {
            "options": {},
            "data": "",
            "classes": None,
            "step": 0,
            "schedule": {"name": "linear", "T": 1000},
            "prediction": "eps",
            "variance": "learned" if config["out_channels"] == 2 * config["in_channels"] else "fixed",
        }
    run = Run(
        model,
        Process(schedule_from_config(extra["schedule"]), extra["prediction"]),
        extra["options"],
        classes=extra["classes"],
        data_name=extra["data"],
        step=extra["step"],
        directory=directory if folder != directory else None,
        variance=extra.get("variance", "fixed"),
        self_conditioning=extra.get("self_conditioning", False),
    )
    if run.directory is not None:
        run._log = RunDirectory(directory).read_log()
    return run

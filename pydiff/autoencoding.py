"""Autoencoders: `train_autoencoder` trains one; AutoencoderRun encodes, decodes and reports on it.

made = pydiff.train("emoji", model="autoencoder", out="small")
x = made.encode(images)                       latents (N, h, w, C), of std 1
made.decode(x)                                and back
pydiff.train("emoji", latent="small")         a diffusion model in these latents
"""

import contextlib
import logging
from pathlib import Path
from typing import Any

import numpy as np

from pydiff import backend
from pydiff.data import load as load_data
from pydiff.data.origin import Origin
from pydiff.formats.diffusers import autoencoder as autoencoder_folder
from pydiff.formats.safetensors import CheckpointError
from pydiff.formats.schema import UNFIT, checked, listed, whole
from pydiff.latent_space import LatentSpace, open_autoencoder
from pydiff.preview import preview_png
from pydiff.printed import all_printable, printable
from pydiff.reopen import finish, how_far, is_run, keep_data, newer, nothing_yet, origin_of
from pydiff.store import sealed
from pydiff.store.folder import RunDirectory
from pydiff.store.log import Log
from pydiff.training import AutoencoderOptions, AutoencoderTask, Interrupted, fit, join, opened, settled
from pydiff.training.autoencoder import network_for
from pydiff.training.changes import heard
from pydiff.training.forecast import check_room

HISTORY = {"shape": listed(whole(1, 65536), 3, 3)}


class AutoencoderRun:
    """A trained (or half-trained) autoencoder with everything needed to use it and to look at it.

    autoencoder: the network with averaged weights. codec: LatentSpace of images of the training data's size. options:
    dict. step: training steps done, or a function that returns them. directory: the run's Path, or None. data_name:
    what it was trained on. notes: sentences on what was assumed or ignored when it was opened.
    """

    def __init__(
        self, autoencoder, shape, options, *, origin=None, step: Any = 0, directory=None, dataset=None, log=()
    ):
        self.autoencoder, self.codec = autoencoder, LatentSpace(autoencoder, shape[:2])
        self.options, self.directory, self._step = options, directory, step
        self.origin = Origin() if origin is None else origin
        self._dataset, self._log, self.notes = dataset, log if isinstance(log, Log) else Log(entries=log), ()

    draws = False  # from noise
    model = property(lambda self: self.autoencoder)
    data_name = property(lambda self: self.origin.name)
    parameters = property(lambda self: sum(p.size for p in self.autoencoder.parameters()))

    step = property(lambda self: self._step() if callable(self._step) else self._step)

    @property
    def name(self):
        """The folder's name if the run has one, else the name of the data set."""
        return printable(self.directory.name) if self.directory is not None else self.data_name

    def dataset(self, data=None):
        """The training data, loaded again if not in memory, from where they were or from `data`. Raises ValueError if
        they are missing there, or have changed.
        """
        if self._dataset is None or data is not None:
            self._dataset = self.origin.load(lambda place: load_data(place, size=self.options.get("size")), data)
        return self._dataset

    def log(self):
        """One dict per training step: step, loss, lr, grad_norm, images_per_second, time, device."""
        return list(self._log.entries)

    def encode(self, images):
        """uint8 (N, H, W, C) -> latents (N, h, w, C') float32, of mean 0 and std 1 for images like the
        training data.
        """
        return self.codec.encode_given(images)

    def decode(self, x):
        """Latents (N, h, w, C') -> uint8 images (N, H, W, C)."""
        return self.codec.decode(x)

    def reconstruct(self, images):
        """Encodes images (N, H, W, C) uint8 and decodes them again, for comparison."""
        return self.decode(self.encode(images))

    def psnr(self, images):
        """Peak signal-to-noise ratio of the reconstructions of images (N, H, W, C) uint8, in dB: (N,); infinite if
        exact.
        """
        from pydiff.report.autoencoder import psnr

        return psnr(images, self.reconstruct(images))

    def preview(self):
        """Some images of the data, followed by their reconstructions: (16, H, W, C) uint8, or fewer."""
        data = self.dataset()
        images = data.samples(np.unique(np.linspace(0, len(data) - 1, 8).round().astype(int)))
        made = self.codec.decode(self.codec.encode(images))
        return np.concatenate([self.codec.show(images), made])

    def sample(self, *_, **__):
        """Raises ValueError: an autoencoder alone does not generate images."""
        raise ValueError(
            f"{self.name or 'this'} is an autoencoder, which draws nothing by itself; train a diffusion model in its "
            f"latents: pydiff train DATA --latent {self.directory or 'FOLDER'}"
        )

    inpaint = image_to_image = variations = interpolate = sample
    pipeline = property(sample)

    def to(self, device):
        """Moves the network to a device. Returns the run."""
        with backend.use_device(device) as xp:
            self.autoencoder.to(xp)
        return self

    def save(self, directory, dtype=None):
        """Writes a folder with vae/, which pydiff.load and diffusers' AutoencoderKL.from_pretrained(subfolder="vae")
        open. dtype: of the weights in the file, "float16" or "bfloat16"; None keeps their dtype.
        """
        history = {"options": all_printable(self.options), "origin": self.origin.to_config(), "step": self.step}
        history["shape"] = list(self.codec.pixels.shape)
        autoencoder_folder.save(directory, self.autoencoder, history, dtype)

    def report(self, directory=None, data=None, **options):
        """Writes report.html to the run's folder or `directory`; returns its path. See report.autoencoder. data: where
        the training data are, if they have moved.
        """
        from pydiff.report.autoencoder import write_autoencoder_report

        directory = self.directory if directory is None else directory
        if directory is None:
            raise ValueError("this run has no directory of its own; say where the page shall be, directory= (--out)")
        history = {"name": self.name, "log": self.log(), "step": self.step, "options": self.options}
        return write_autoencoder_report(self.codec, self.dataset(data), directory, **history, **options)

    def __repr__(self):
        return f"AutoencoderRun({self.name!r}, {self.step} steps on {self.data_name!r}, {self.parameters:,} parameters)"


def train_named(model, data, latent, codec, **arguments):
    """Trains the model of this name in place of a diffusion model: an autoencoder. Raises ValueError for any other."""
    if model != "autoencoder" or latent is not None or codec is not None:
        raise ValueError(
            f"model is {model!r}, expected a network, 'classifier' without a latent, or 'autoencoder', "
            "which has no latent and no codec"
        )
    return train_autoencoder(data, **arguments)


def train_autoencoder(
    data, *, out=None, progress=True, device="cpu", announce=None, watch=None, distributed="auto", **options
):  # fmt: skip
    """Trains an autoencoder and returns the finished AutoencoderRun; arguments and errors as for pydiff.train.

    All other keywords are fields of AutoencoderOptions.
    """
    group = join(distributed)
    with group.together(), group.own_processors(device):
        announce, tell = heard(announce, group.first, watch)
        options = settled(AutoencoderOptions.from_keywords(options), out, group)
        with backend.use_device(device):
            dataset = load_data(data, size=options.size)
            announce(f"{dataset.summary()}; training an autoencoder on {device}{group.described()}")
            task = AutoencoderTask(dataset, options)
        with opened(task, options, out, device, group) as (trainer, folder):
            log, average = Log() if folder is None else folder.log, trainer.ema_model()
            history = {"origin": Origin.of(dataset, data), "dataset": dataset, "log": log}
            history |= {} if folder is None else {"directory": folder.path}
            live = AutoencoderRun(average, dataset.shape, options.to_config(), **history, step=lambda: trainer.step)
            if folder is not None:
                keep_data(folder, live.origin)
            tell(trainer.notes)
            check_room(trainer)
            try:
                tell(fit(trainer, log, folder, lambda: preview_png(live, watch), progress and group.first))
            except Interrupted as interrupted:
                interrupted.run = live
                raise
            with backend.use_device(device):
                finished = task.finished(average).to(np)
            made = AutoencoderRun(finished, dataset.shape, options.to_config(), **history, step=trainer.step)
            if folder is not None:
                finish(folder, made.save)
                made.directory = folder.path  # it may have been moved
    return made


def holds_autoencoder(directory) -> bool:
    """Whether a folder is the run of an autoencoder, finished or not, or holds only an autoencoder."""
    directory = Path(directory)
    if not is_run(directory):
        return autoencoder_folder.holds_autoencoder(directory)
    saved = None
    with contextlib.suppress(ValueError, OSError):
        saved = RunDirectory(directory).config().get("model")
    return saved in autoencoder_folder.RULES or (
        saved is None and autoencoder_folder.holds_autoencoder(directory / "model")
    )


def load_autoencoder(directory) -> AutoencoderRun:
    """Opens a run's folder, a folder written by AutoencoderRun.save, or an autoencoder of diffusers.

    A run that is unfinished, or still in progress, is opened from its newest checkpoint, which its notes say.
    """
    directory, config, notes = Path(directory), {}, []
    folder = RunDirectory(directory) if is_run(directory) else None
    source = directory if folder is None else folder.path / "model"
    history = None
    if folder is None or sealed.resolve(source.absolute()).is_dir():
        history = autoencoder_folder.history(sealed.resolve(source.resolve()))
    if folder is not None:
        try:
            config = folder.config()
        except ValueError as error:
            if history is None:
                raise CheckpointError(f"{error}.") from error
            notes.append(str(error))
        found = newer(folder, config, None if history is None else history.get("step", 0), notes)
        if found is not None:
            return _followed(*_unfinished(folder, config, found, notes), folder, notes)
        if history is None:
            raise nothing_yet(folder, config)
    assert history is not None
    return _followed(open_autoencoder(directory), history, folder, notes)


def _unfinished(folder, config, found, notes):
    """(autoencoder, history) of a run in training, with the averaged weights of a checkpoint."""
    try:
        options, shape = AutoencoderOptions.from_keywords(config["options"]), config["codec"]["shape"]
        model = network_for(options, shape)
        flat, parameters = found.array, model.parameters()
        if flat.shape != (sum(p.size for p in parameters),):
            raise ValueError(f"its checkpoint has {flat.size:,} weights, and its network {model.config}")
        for p, part in zip(parameters, np.split(flat, np.cumsum([p.size for p in parameters])[:-1]), strict=True):
            p.data = part.reshape(p.shape).copy()
    except UNFIT as error:
        raise CheckpointError(f"{folder.path} cannot be followed ({error!a:.200}).") from error
    step = found.state["step"]
    notes += [*how_far(folder, config, step), "its latents are not scaled yet: that is measured when training ends"]
    origin = origin_of(folder, config).to_config()
    return model, {"options": config["options"], "step": step, "shape": shape, "origin": origin}


def _followed(model, history, folder, notes):
    """The AutoencoderRun of this model, with this history."""
    size, channels = model.config.get("sample_size") or 8 * model.factor, model.config["in_channels"]
    sides = size if isinstance(size, list) else [size, size]
    checked(history, HISTORY, "the autoencoder's history")
    shape = history.get("shape") or [*(max(1, side // model.factor) * model.factor for side in sides), channels]
    for note in notes:
        logging.getLogger("pydiff").warning("%s", note)
    try:
        beside = {"origin": Origin.from_config(history.get("origin", {})), "step": history.get("step", 0)}
        beside |= {} if folder is None else {"directory": folder.path, "log": folder.log}
        made = AutoencoderRun(model, shape, history.get("options", {}), **beside)
    except UNFIT as error:
        raise CheckpointError(f"the autoencoder cannot be followed ({error!a:.200}).") from error
    made.notes = tuple(notes)
    return made

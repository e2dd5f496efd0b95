"""Latents: what an autoencoder makes of images, as the thing that is diffused (Rombach et al. 2022).

    codec = Latents(autoencoder, (64, 64, 3))
    x = codec.encode(images)     uint8 (N, 64, 64, 3) -> float32 (N, 16, 16, 4), of about unit standard deviation
    codec.decode(x)              and back

Nothing that trains, draws or edits knows of it: it is a Codec. What is diffused is the most likely latent of each
image; the autoencoder's own uncertainty is far smaller than the noise that is added to it.
"""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np

from pydiff.arrays import array_module, to_host
from pydiff.codec import NOISE_RANGE, Codec, Pixels, register, to_uint8
from pydiff.formats import safetensors
from pydiff.formats.diffusers import autoencoder as autoencoder_folder
from pydiff.formats.safetensors import CheckpointError
from pydiff.models import Autoencoder, name_of
from pydiff.store import sealed
from pydiff.tensor import no_grad

BATCH = 32  # images that are encoded or decoded at a time; no sample depends on it
COPY = "autoencoder"  # in the folder of a run: the autoencoder that it was trained in
CACHE, SEAL, TABLE = "latents", "manifest.json", "latents.safetensors"  # beside it: the data, encoded


@register
class Latents(Codec):
    """Images (H, W, C) as the latents of an autoencoder. limits is None: nobody cuts latents.

    autoencoder: models.Autoencoder, by whose factor H and W can be divided, or ValueError in one sentence. Whatever is
    encoded or decoded goes to where it is; `to` moves it.
    """

    kind = "latents"

    def __init__(self, autoencoder: Autoencoder, shape):
        self.autoencoder, self.pixels = autoencoder, Pixels(shape)
        self._digest, self._folder = None, None
        (height, width, channels), factor, config = self.pixels.shape, autoencoder.factor, autoencoder.config
        if config["in_channels"] != channels or config["out_channels"] != channels:
            raise ValueError(
                f"this autoencoder takes images of {config['in_channels']} channels and gives {config['out_channels']},"
                f" and these have {channels}; use one that was trained on such images"
            )
        if height % factor or width % factor:
            near = " x ".join(str(max(factor, round(side / factor) * factor)) for side in (height, width))
            raise ValueError(
                f"this autoencoder takes images whose sides can be divided by {factor}, and these are {height} x "
                f"{width} pixels; give size={max(factor, round(min(height, width) / factor) * factor)} (--size), or "
                f"images of {near}"
            )

    @property
    def shape(self):
        """(h, w, C) of a latent."""
        height, width, _ = self.pixels.shape
        factor = self.autoencoder.factor
        return height // factor, width // factor, self.autoencoder.config["latent_channels"]

    def to(self, xp):
        """Moves the autoencoder to the device of this array library. Returns the codec."""
        self.autoencoder.to(xp)
        return self

    @property
    def beside(self):
        """The autoencoder, for the folder of a model."""
        return {"vae": self.autoencoder}

    def encode(self, samples):
        """uint8 or float32 images (N, H, W, C) -> float32 (N, h, w, latent channels)."""
        return self._encoded(self.pixels.encode(samples))

    def encode_given(self, samples):
        """uint8 alone, as of Pixels."""
        return self._encoded(self.pixels.encode_given(samples))

    def _encoded(self, images):
        made, model = np.empty((len(images), *self.shape), np.float32), self.autoencoder
        with no_grad():
            for first in range(0, len(images), BATCH):
                z = model.encode(self._here(images[first : first + BATCH])).mode().data
                made[first : first + BATCH] = to_host(model.scaled(z))
        return made

    def _here(self, array):
        """An array where the autoencoder is, as precise as it."""
        like = self.autoencoder.parameters()[0].data
        xp = array_module(like)
        return xp.asarray(array if xp is array_module(array) else to_host(array), like.dtype)

    def decode(self, x):
        """Latents (N, h, w, C), on any device -> uint8 images (N, H, W, C)."""
        model, parts = self.autoencoder, []
        with no_grad():
            for first in range(0, len(x), BATCH):
                z = model.unscaled(self._here(x[first : first + BATCH]))
                parts.append(self.pixels.decode(model.decode(z).data))
        return np.concatenate(parts) if parts else np.empty((0, *self.pixels.shape), np.uint8)

    def show(self, samples):
        """Images are shown as they are."""
        return self.pixels.show(samples)

    def show_noise(self, eps):
        """A channel of the latent as one of the image, each of its numbers as a square."""
        factor, channels = self.autoencoder.factor, self.pixels.shape[-1]
        eps = to_host(eps)[..., np.arange(channels) % self.shape[-1]]
        return to_uint8(eps.repeat(factor, axis=1).repeat(factor, axis=2) / NOISE_RANGE)

    def encode_mask(self, mask):
        """Drawn anew where any of a latent's pixels is, in any channel."""
        n, (h, w, _), factor = len(mask), self.shape, self.autoencoder.factor
        return mask.reshape(n, h, factor, w, factor, mask.shape[-1]).max((2, 4, 5))[..., None]

    def kept(self, drawn, samples, mask):
        """The pixels that were to be kept, which latents keep in general but not in every pixel."""
        mixed = mask * drawn.astype(np.float32) + (1 - mask) * np.asarray(samples).astype(np.float32)
        return np.rint(mixed).astype(np.uint8)

    # ---- in files ----

    def digest(self) -> str:
        """SHA-256 (64 hex digits) of the autoencoder: class, options and weights."""
        if self._digest is None:
            model = self.autoencoder
            said = json.dumps([name_of(model), model.config], sort_keys=True)
            made = hashlib.sha256(said.encode())
            for name, array in sorted(model.state_dict().items()):
                made.update(f"{name} {array.dtype.name} {array.shape}".encode())
                made.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")))
            self._digest = made.hexdigest()
        return self._digest

    def to_config(self):
        """Its image shape and the autoencoder's digest; the autoencoder itself is beside the network."""
        return {"kind": self.kind, "shape": list(self.pixels.shape), "autoencoder": self.digest()}

    @classmethod
    def from_config(cls, config, beside=None):
        """With the autoencoder that is beside the network. ValueError where there is none, or another one."""
        autoencoder = (beside or {}).get("vae")
        if autoencoder is None:
            raise ValueError("its latents need an autoencoder, and there is no vae/ beside the network")
        return cls(autoencoder, config["shape"])

    def keep_in(self, folder):
        """Copies the autoencoder into the folder of a run, where the encoded data are kept from then on, too."""
        self._folder = Path(folder)
        copy = self._folder / COPY
        if not sealed.resolve(copy).is_dir():
            autoencoder_folder.save(copy, self.autoencoder, {})

    def reader(self, dataset, flip=False):
        """A function (indices (n,), which of them are mirrored (n,) or None) -> x (n, *shape) of a data set, which is
        encoded once, when it is first called. flip: whether there will be mirrored ones.
        """
        return Encoded(self, dataset, flip)


class Encoded:
    """A data set in latents, encoded when the first of them is asked for, and kept beside the run if there is one."""

    def __init__(self, codec: Latents, dataset, flip: bool):
        self.codec, self.dataset, self.flip, self.table = codec, dataset, flip, None

    def __call__(self, indices, mirrored=None):
        if self.table is None:
            self.table = self._kept() if self.codec._folder else self._made()
        indices = np.asarray(indices)
        return self.table[indices if mirrored is None else indices + len(self.dataset) * mirrored]

    def _made(self):
        """Latents of all images, and of all mirrored ones behind them: (N or 2 N, *shape)."""
        n, codec = len(self.dataset), self.codec
        table = np.empty((n * (1 + self.flip), *codec.shape), np.float32)
        for first in range(0, n, BATCH):
            rows = np.arange(first, min(first + BATCH, n))
            samples = self.dataset.samples(rows)
            table[rows] = codec.encode(samples)
            if self.flip:
                table[n + rows] = codec.encode(samples[:, :, ::-1])
        return table

    def _kept(self):
        """Those in the run's folder, if they are of these data and this autoencoder; else they are made and written."""
        folder, kind = self.codec._folder / CACHE, "pydiff latents"
        info = {"data": self.dataset.fingerprint(), "autoencoder": self.codec.digest(), "flip": bool(self.flip)}
        path = sealed.resolve(folder)
        if path.is_dir():
            try:
                found, files = sealed.read(path, SEAL, kind, {TABLE})
                if found == info:
                    return safetensors.decode(files[TABLE], path / TABLE)["x"]
            except (CheckpointError, KeyError) as error:
                logging.getLogger("pydiff").warning("the data are encoded again, because %s", error)
        table = self._made()
        content = safetensors.pieces({"x": table})
        sealed.write(folder, folder.with_name(f".{CACHE}.pydiff-partial"), [(TABLE, content)], SEAL, kind, info)
        return table


def open_autoencoder(source, beside=None) -> Autoencoder:
    """The autoencoder in the folder of a run, of a model or of a pipeline that has one, or a vae/ of diffusers.

    beside: the folder of a run that has a copy of it, which serves where `source` is no more. A model, or whatever has
    one as its `autoencoder`, is taken as it is. FileNotFoundError or CheckpointError, in one sentence, where there is
    none.
    """
    if isinstance(source, Autoencoder):
        return source
    if isinstance(getattr(source, "autoencoder", None), Autoencoder):
        return source.autoencoder
    path = Path(source).expanduser()
    copy = None if beside is None else sealed.resolve((Path(beside).expanduser() / COPY).absolute())
    if not path.is_dir():
        if copy is None or not copy.is_dir():
            raise FileNotFoundError(f"{path} is not a folder; give the folder of an autoencoder's run, or a vae/")
        path = copy
    if (path / "log.jsonl").exists():
        if not sealed.resolve((path / "model").absolute()).is_dir():
            raise FileNotFoundError(f"{path} holds no finished autoencoder yet; train it to the end first")
        path = path / "model"
    model, notes = autoencoder_folder.open_folder(path)
    for note in notes:
        logging.getLogger("pydiff").warning("%s", note)
    return model


def previewer(source):
    """A function x -> uint8 images (N, H, W, C), to look at latents on their way: x or x0 of a SamplerState, say.

    source: the folder of an autoencoder, an AutoencoderTiny for speed, or one at hand. It must be one for the same
    latents: TAESD is for those of Stable Diffusion.
    """
    model = open_autoencoder(source)
    factor, channels = model.factor, model.config["out_channels"]

    def preview(x):
        if x.ndim != 4 or x.shape[-1] != model.config["latent_channels"]:
            expected = model.config["latent_channels"]
            raise ValueError(f"previews need latents (N, h, w, {expected}), got {x.shape}; use another autoencoder")
        codec = Latents(model, (x.shape[1] * factor, x.shape[2] * factor, channels))
        return codec.decode(x)

    return preview

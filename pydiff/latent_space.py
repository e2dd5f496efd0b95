"""The latents of images that a model is trained on: encoded once, kept, and shown as the images they represent.

    codec = LatentSpace(autoencoder, (64, 64))
    x = codec.encode(images)     uint8 (N, 64, 64, 3) -> float32 (N, 16, 16, 4), of about unit standard deviation
    codec.decode(x)              and back

Training, sampling and editing do not know about it: it is a Codec, that of latents.py plus what training needs. What is
diffused is the most likely latent of each image; the autoencoder's own uncertainty is far smaller than the noise that
is added to it.
"""

import hashlib
import json
import logging
import time
from pathlib import Path

import numpy as np

from pydiff.arrays import to_host
from pydiff.codec import NOISE_RANGE, Pixels, register, to_uint8
from pydiff.formats import safetensors
from pydiff.formats.diffusers import autoencoder as autoencoder_folder
from pydiff.formats.files import folder_path
from pydiff.formats.safetensors import CheckpointError
from pydiff.latents import Latents
from pydiff.models import Autoencoder, name_of
from pydiff.printed import expanded
from pydiff.store import sealed

AT_ONCE = 1 << 17  # pixels that are encoded or decoded at a time; samples do not depend on it
COPY = "autoencoder"  # in the folder of a run: its autoencoder
CACHE, SEAL, TABLE = "latents", "manifest.json", "latents.safetensors"  # beside it: the data, encoded


@register
class LatentSpace(Latents):
    """Images as the latents of an autoencoder with as many output as input channels. limits is None: latents are not
    clipped.

    autoencoder: models.Autoencoder, whose factor must divide both sides, else ValueError. Arrays are encoded and
    decoded on its device; `to` moves it.
    """

    kind = "latent space"

    def __init__(self, autoencoder: Autoencoder, size):
        super().__init__(autoencoder, size)
        config = autoencoder.config
        if config["in_channels"] != config["out_channels"]:
            raise ValueError(
                f"this autoencoder takes images of {config['in_channels']} channels and gives "
                f"{config['out_channels']}; use one that gives back what it takes"
            )
        self.pixels = Pixels((*self.size, config["in_channels"]))
        self._digest, self._folder = None, None

    def encode(self, samples):
        """uint8, or float32 in [-1, 1], images (N, H, W, C) of this size -> float32 (N, h, w, latent channels)."""
        return self._encoded(self.pixels.encode(samples))

    def encode_given(self, samples):
        """Like `encode`, but takes uint8 only, as Pixels does."""
        return self._encoded(self.pixels.encode_given(samples))

    def _encoded(self, images):
        made = np.empty((len(images), *self.shape), np.float32)
        for here in self._batches(len(images)):
            made[here] = self.encode_floats(images[here])
        return made

    def decode(self, x):
        """Latents (N, h, w, C), on any device -> uint8 images (N, H, W, C)."""
        made = np.empty((len(x), *self.pixels.shape), np.uint8)
        for here in self._batches(len(x)):
            made[here] = self.pixels.decode(self.decode_floats(x[here]))
        return made

    def _batches(self, n):
        count = max(1, AT_ONCE // (self.size[0] * self.size[1]))
        return [slice(first, first + count) for first in range(0, n, count)]

    def show(self, samples):
        """Images (N, H, W, C), uint8 or floats in [-1, 1], as uint8."""
        return self.pixels.show(samples)

    def show_noise(self, eps):
        """Noise with each latent channel as an image channel and each number as a square."""
        eps = to_host(eps)[..., np.arange(self.pixels.shape[-1]) % self.shape[-1]]
        return to_uint8(eps.repeat(self.factor, axis=1).repeat(self.factor, axis=2) / NOISE_RANGE)

    def encode_mask(self, mask):
        """A latent is redrawn if any of its pixels is, in any channel."""
        n, (h, w, _) = len(mask), self.shape
        return mask.reshape(n, h, self.factor, w, self.factor, mask.shape[-1]).max((2, 4, 5))[..., None]

    def kept(self, drawn, samples, mask):
        """`drawn` where the mask is 1, else the given pixels, which latents reproduce only approximately."""
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
        """A dict for JSON: the size and the autoencoder's digest; the autoencoder itself is saved beside the
        network.
        """
        return {**super().to_config(), "autoencoder": self.digest()}

    def keep_in(self, folder):
        """Copies the autoencoder into the folder of a run, where the encoded data are then kept too."""
        self._folder = Path(folder)
        copy = self._folder / COPY
        if not sealed.resolve(copy).is_dir():
            autoencoder_folder.save(copy, self.autoencoder, {})

    def reader(self, dataset, flip=False):
        """A function (indices (n,), which of them to mirror (n,) or None) -> x (n, *shape) of a data set, which is
        encoded once, at the first call. flip: whether any samples will be mirrored.
        """
        return Encoded(self, dataset, flip)


class Encoded:
    """A data set in latents, encoded at first use, and stored in the run's folder if there is one."""

    def __init__(self, codec: LatentSpace, dataset, flip: bool):
        self.codec, self.dataset, self.flip, self.table = codec, dataset, flip, None

    def __call__(self, indices, mirrored=None):
        if self.table is None:
            self.table = self._kept() if self.codec._folder else self._made()
        indices = np.asarray(indices)
        return self.table[indices if mirrored is None else indices + len(self.dataset) * mirrored]

    def _made(self):
        """Latents of all images, followed by those of the mirrored ones if `flip`: (N or 2 N, *shape)."""
        n, codec = len(self.dataset), self.codec
        table = np.empty((n * (1 + self.flip), *codec.shape), np.float32)
        for here in codec._batches(n):
            rows = np.arange(n)[here]
            samples = self.dataset.samples(self.dataset.usable(rows))
            table[rows] = codec.encode(samples)
            if self.flip:
                table[n + rows] = codec.encode(samples[:, :, ::-1])
        return table

    def _kept(self):
        """The latents in the run's folder, if they are of these data and this autoencoder; otherwise computed and
        stored.
        """
        folder, kind = self.codec._folder / CACHE, "pydiff latents"  # pyright: ignore[reportOptionalOperand]
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


class EncodedFew(Encoded):
    """The first few images of a data set, encoded, in place of all of them, for the forecast of a training.

    seconds, bytes: estimates for encoding all of them.
    """

    def __init__(self, whole: Encoded, count: int):
        count = min(count, len(whole.dataset))
        super().__init__(whole.codec, whole.dataset.subset(np.arange(count)), whole.flip)
        began = time.perf_counter()
        self.table = self._made()
        self.seconds = (time.perf_counter() - began) * len(whole.dataset) / count
        self.bytes = self.table.nbytes / count * len(whole.dataset)

    def __call__(self, indices, mirrored=None):
        return super().__call__(np.asarray(indices) % len(self.dataset), mirrored)


def opened_in(latent, dataset, beside=None) -> LatentSpace:
    """The codec for a data set in the latents of an autoencoder; latent, beside: see open_autoencoder.

    Raises ValueError if images and autoencoder do not fit together.
    """
    if dataset.noun != "image":
        raise ValueError(f"latents are those of images, and {dataset.name} holds {dataset.noun}s; leave latent out")
    autoencoder = open_autoencoder(latent, beside)
    height, width, channels = dataset.shape
    if autoencoder.config["in_channels"] != channels:
        raise ValueError(
            f"this autoencoder takes images of {autoencoder.config['in_channels']} channels, and those of "
            f"{dataset.name} have {channels}; use one that was trained on such images"
        )
    return LatentSpace(autoencoder, (height, width))


def open_autoencoder(source, beside=None) -> Autoencoder:
    """The autoencoder in the folder of a run, of a model or of a pipeline, or in a vae/ of diffusers.

    beside: the folder of a run that has a copy of it, used if `source` no longer exists. A model, or an object that has
    one as its `autoencoder`, is used directly. Raises FileNotFoundError or CheckpointError if there is none.
    """
    if isinstance(source, Autoencoder):
        return source
    if isinstance(getattr(source, "autoencoder", None), Autoencoder):
        return source.autoencoder
    path = folder_path(source, "latent")
    copy = None if beside is None else sealed.resolve((expanded(beside) / COPY).absolute())
    if not path.is_dir():
        if copy is None or not copy.is_dir():
            raise FileNotFoundError(f"{path} is not a folder; give the folder of an autoencoder's run, or a vae/")
        path = copy
    if any((path / name).exists() for name in ("log.jsonl", "checkpoints", "model")):
        if not sealed.resolve((path / "model").absolute()).is_dir():
            raise FileNotFoundError(f"{path} holds no finished autoencoder yet; train it to the end first")
        path = path / "model"
    model, notes = autoencoder_folder.open_folder(path)
    for note in notes:
        logging.getLogger("pydiff").warning("%s", note)
    return model


def previewer(source):
    """A function x -> uint8 images (N, H, W, C), to look at latents during sampling: x or x0 of a SamplerState, say.

    source: the folder of an autoencoder, an AutoencoderTiny for speed, or a model. It must be for the same latents:
    TAESD is for those of Stable Diffusion.
    """
    autoencoder = open_autoencoder(source)
    expected = autoencoder.config["latent_channels"]

    def preview(x):
        if x.ndim != 4 or x.shape[-1] != expected:
            raise ValueError(f"previews need latents (N, h, w, {expected}), got {x.shape}; use another autoencoder")
        size = [n * autoencoder.factor for n in x.shape[1:3]]
        return Latents(autoencoder, size).decode(x)

    return preview

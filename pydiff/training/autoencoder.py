"""Training an autoencoder: its options, and the Task.

The loss is the mean absolute error per pixel, plus a very small part of the Kullback-Leibler divergence of the latents
from a standard normal (Rombach et al. 2022, appendix G, without its perceptual and adversarial losses, whose networks
would have to be downloaded): enough to keep the latents together, but far from enough to make them normal.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pydiff import ops, random
from pydiff.arrays import array_module, to_host
from pydiff.codec import Pixels
from pydiff.models import AutoencoderKL, name_of
from pydiff.models.registry import build
from pydiff.tensor import Tensor, no_grad
from pydiff.training.config import LoopOptions, Options, _at_least, _between
from pydiff.training.task import Task

MEASURED = 1024  # images on which the scale of the latents is measured
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class AutoencoderOptions(LoopOptions):
    """Every option of the training of an autoencoder."""

    size: int | None = None
    """Side length of the images in pixels; left out, what the data has."""
    channels: tuple[int, ...] = (32, 64, 64)
    """Channels of every level, from the top; every level but the last halves the resolution."""
    latent_channels: int = 4
    """Channels of the latents."""
    layers: int = 1
    """Residual blocks per level, one more in the decoder."""
    groups: int = 8
    """Groups of every normalisation; must divide all channels."""
    kl_weight: float = 1e-6
    """Share of the divergence of the latents from a standard normal; 1e-6 to 5e-6 is usual."""
    flip: bool = False
    """Mirror half of the images left to right."""
    recompute: bool = False
    """Compute every block's inner values again for the gradient instead of keeping them: less memory, more time."""

    def __post_init__(self):
        if isinstance(self.channels, list):
            object.__setattr__(self, "channels", tuple(self.channels))

    def check(self):
        """Returns these options, or raises ValueError for values that cannot work."""
        super().check()
        for name in ("layers", "groups", "latent_channels"):
            _at_least(self, name, 1)
        if self.size is not None:
            _at_least(self, "size", 1)
        _between(self, "kl_weight", 0, 1)
        if not self.channels or not all(type(c) is int and c > 0 for c in self.channels):
            raise ValueError(f"channels must be a whole number a level, got {self.channels}")
        return self

    @classmethod
    def of_diffusion(cls, options: Options, **more):
        """The options of a diffusion model that an autoencoder shares. Raises ValueError if any other is set.

        more: options that only an autoencoder has.
        """
        plain, said = Options(), {}
        for name in (field.name for field in dataclasses.fields(options)):
            value = getattr(options, name)
            if value == getattr(plain, name):
                continue
            if name not in cls.__dataclass_fields__:
                raise ValueError(f"{name} is an option of diffusion models; an autoencoder is trained without it")
            said[name] = value
        return cls(**said, **{name: value for name, value in more.items() if value is not None}).check()


class Shown(NamedTuple):
    """A batch: images x0 (N, H, W, C) in [-1, 1], and the noise (N, h, w, latent channels) that samples their
    latents.
    """

    x0: np.ndarray
    noise: np.ndarray

    def corner(self, side):
        """This batch with only the first side x side pixels of every image."""
        x, few = self.x0[:, :side, :side], side * self.noise.shape[1] // self.x0.shape[1]
        return Shown(np.ascontiguousarray(x), np.ascontiguousarray(self.noise[:, :few, :few]))


class AutoencoderTask(Task):
    """Training an autoencoder to reconstruct its input.

    dataset: data.Dataset. Raises ValueError for images whose sides cannot be halved as often as the network requires.
    """

    unit = "images"

    def __init__(self, dataset, options: AutoencoderOptions):
        if dataset.noun != "image":
            raise ValueError(f"autoencoders are for images, and {dataset.name} holds {dataset.noun}s")
        self.dataset, self.options, self.codec = dataset, options.check(), Pixels(dataset.shape)
        self.model = network_for(options, dataset.shape).recompute_blocks(options.recompute)
        height, width, _ = dataset.shape
        factor = self.model.factor
        if height % factor or width % factor:
            raise ValueError(
                f"{len(options.channels)} levels need images whose sides can be divided by {factor}, and these are "
                f"{height} x {width} pixels; give a size, or fewer channels"
            )
        self.read = self.codec.reader(dataset)

    def batch(self, step, numbers):
        """A Shown, a pure function of (seed, step, numbers)."""
        options, seed, numbers = self.options, self.options.seed, np.asarray(numbers)
        _, x = self.shown(step, numbers)
        (height, width, _), factor = self.dataset.shape, self.model.factor
        shape = (height // factor, width // factor, options.latent_channels)
        noise = random.normal(random.key(seed, random.NOISE, numbers, step), shape, np.float32)
        return Shown(self.xp.asarray(x), self.xp.asarray(noise))

    def losses(self, batch):
        """Mean absolute error per number of an image, plus kl_weight times the divergence per number, (N,)."""
        x, noise = batch
        posterior = self.model.encode(x)
        made = self.model.decode(posterior.sample(noise.astype(x.dtype, copy=False)))
        error = ops.absolute(made - Tensor(x)).mean(axis=(1, 2, 3))
        return error + (self.options.kl_weight / x[0].size) * posterior.kl()

    def identity(self):
        """Name and fingerprint of the data, and the network's class."""
        return {
            "data": self.dataset.name,
            "fingerprint": self.dataset.fingerprint(),
            "codec": self.codec.to_config(),
            "model": name_of(self.model),
        }

    def finished(self, average):
        """An autoencoder with these averaged weights, whose latents have mean 0 and standard deviation 1 in every
        channel, as measured on (at most MEASURED of) the data.
        """
        model = build(name_of(average), {**average.config, **measured(average, self.dataset)})
        for p, trained in zip(model.parameters(), average.parameters(), strict=True):
            p.data = trained.data.copy()
        return model


def network_for(options: AutoencoderOptions, shape) -> AutoencoderKL:
    """The network for these options and images of this shape (H, W, C)."""
    (height, width, c), channels = shape, options.channels
    return AutoencoderKL(
        in_channels=c,
        out_channels=c,
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        block_out_channels=list(channels),
        layers_per_block=options.layers,
        latent_channels=options.latent_channels,
        norm_num_groups=options.groups,
        sample_size=height if height == width else [height, width],
        scaling_factor=1.0,
        seed=options.seed,
    )


def measured(model, dataset) -> dict:
    """Options of an autoencoder with the means and standard deviations of its latents of these data."""
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(MEASURED, len(dataset))).round().astype(np.int64))
    channels = model.config["latent_channels"]
    count, total, squares = 0, np.zeros(channels), np.zeros(channels)
    codec, parameter = Pixels(dataset.shape), model.parameters()[0].data
    xp = array_module(parameter)
    with no_grad():
        for first in range(0, len(indices), BATCH):
            x = xp.asarray(codec.encode(dataset.samples(dataset.usable(indices[first : first + BATCH]))))
            z = to_host(model.encode(x).mode().data).astype(np.float64).reshape(-1, channels)
            count, total, squares = count + len(z), total + z.sum(0), squares + (z * z).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean * mean, 0))
    if not (np.isfinite(std).all() and (std > 0).all()):
        raise ValueError(
            f"the latents of {dataset.name} do not differ in every channel, so that they cannot be scaled; train the "
            "autoencoder for longer"
        )
    return {"scaling_factor": 1.0, "latents_mean": mean.tolist(), "latents_std": std.tolist()}

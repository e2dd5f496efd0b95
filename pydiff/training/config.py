"""Every option of a training run, once: the keywords of `pydiff.train` and the flags of `pydiff train`.

`LoopOptions` are the options of the training loop, whatever it trains; `Options` adds those of diffusion models.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pydiff.diffusion import Process, schedule
from pydiff.mistakes import refuse_misnamed, refuse_unknown
from pydiff.models import UNet2D, UNet2DCondition
from pydiff.printed import expanded
from pydiff.store.folder import WITHOUT_EFFECT
from pydiff.text import kinds
from pydiff.training.reading import ReadingOptions

ALSO_CALLED = {"accumulate": "shards"}  # in one process, shards are gradient accumulation
# What `pydiff.train` takes beside options, which a misspelt name may mean.
BESIDE = ("out", "progress", "device", "model", "images", "latent", "announce", "watch", "distributed")


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """Options of the training loop, independent of what is trained."""

    def __new__(cls, **options):
        refuse_misnamed(cls, options)
        return super().__new__(cls)

    steps: int = 2000
    """Optimiser steps."""
    batch_size: int = 64
    """Images per step."""
    seed: int = 0
    """Seed of everything random: weights, data order, noise. Same seed, same bits."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    warmup: int = 100
    """Steps over which the learning rate rises to its peak."""
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up: down to zero at the last step, or not at all."""
    weight_decay: float = 1e-2
    """Decoupled weight decay of AdamW."""
    clip: float = 1.0
    """Largest global norm of the gradient; 0 for any."""
    ema: float = 0.9995
    """Longest memory of the average of the weights, which is what the finished model is made of."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    sample_every: int = 500
    """Steps between images of samples; 0 for none."""
    keep: int = 2
    """Checkpoints kept on disk."""
    shards: int = 0
    """Parts of a batch, which as many processes can share; 0: as the run was begun, 8 under mpiexec, else 1."""
    reduce: Literal["exact", "fast"] = "exact"
    """How several processes add their gradients: to the same bits for any number of them, or as MPI does it."""

    def __post_init__(self):
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, _plain(getattr(self, name)))

    def check(self):
        """Returns these options, or raises ValueError for values that cannot work."""
        least = {
            "steps": 1,
            "batch_size": 1,
            "seed": 0,
            "warmup": 0,
            "checkpoint_every": 1,
            "sample_every": 0,
            "keep": 1,
            "shards": 0,
        }
        for name, value in least.items():
            _at_least(self, name, value)
        for name in ("lr", "clip", "weight_decay"):
            _between(self, name, 0, math.inf)
        _between(self, "ema", 0, 1)
        if self.seed >= 2**64:
            raise ValueError(f"seed must be below 2**64, got {self.seed}")
        for name, field in self.__dataclass_fields__.items():
            if field.type is bool and not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
            allowed = getattr(field.type, "__args__", ())
            if getattr(field.type, "__origin__", None) is Literal and getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        return self

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any]):
        """Checked options from a dict. An unknown name is a TypeError that suggests the nearest known one."""
        for name, other in ALSO_CALLED.items():
            if name in keywords:
                count = _plain(keywords[name])
                if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                    raise ValueError(f"{name} must be a whole number of at least 0, got {count!r}")
                if other in keywords:
                    raise TypeError(f"{name} and {other} are the same option; give one of them")
        paths = {name: os.fspath(value) for name, value in keywords.items() if isinstance(value, os.PathLike)}
        keywords = {ALSO_CALLED.get(name, name): value for name, value in {**keywords, **paths}.items()}
        for name in keywords:
            if name in ("labels", "captions") and Options in cls.__mro__:
                raise TypeError(f"{name} belong to the data: train(pydiff.data.load(images, {name}={name}), ..)")
        refuse_unknown(keywords, cls.__dataclass_fields__, (*ALSO_CALLED, *BESIDE))
        return cls(**keywords).check()

    def to_config(self):
        """These options as a dict for JSON: from_keywords(to_config()) gives equal options."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    def changed(self, other):
        """Names of the options whose difference would make two runs compute different results."""
        return [
            n for n in self.__dataclass_fields__ if n not in WITHOUT_EFFECT and getattr(self, n) != getattr(other, n)
        ]


@dataclass(frozen=True, kw_only=True)
class Options(ReadingOptions, LoopOptions):
    """Every option of the training of a diffusion model."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; bfloat16 keeps float32 weights beside it, and needs device cuda."""
    init_from: str | None = None
    """Folder of a run or of a model to begin with the weights of; left out, they are drawn."""
    codec: Literal["auto", "waveform", "spectrogram"] = "auto"
    """What sounds are diffused as: their samples (auto), or the image of their spectrum."""
    prediction: Literal["eps", "x0", "v", "flow", "edm", "edm_v"] = "eps"
    """What the network learns to say: the noise, the clean image, v = alpha eps - sigma x0, flow = eps - x0, ..."""
    schedule: Literal["linear", "scaled_linear", "cosine", "sigmoid", "sigmoid_beta", "edm", "exponential", "flow"] = (
        "cosine"
    )
    """How the noise grows with the step number t."""
    zero_snr: bool = False
    """Rescale the schedule so that the last x_t is noise alone; needs prediction v, x0 or flow."""
    loss_weight: Literal["simple", "min_snr", "edm"] = "simple"
    """How much each noise level counts."""
    timestep_sampling: Literal["uniform", "stratified", "lognormal", "logit_normal", "loss_aware"] = "uniform"
    """Which t are drawn: all alike, evenly in every batch, more of the middle, or more where the loss is large."""
    timestep_shift: float = 1.0
    """Factor on sigma / alpha of the t that are drawn: more than 1 teaches noisier levels, as clips need."""
    variance: Literal["fixed", "learned"] = "fixed"
    """Also learn the variance of a step back, by the variational bound; sampler ddpm then uses it."""
    self_conditioning: bool = False
    """Show the network its last guess of the clean image beside the noisy one; training takes half as long again."""
    offset_noise: float = 0.0
    """Noise that all pixels of a channel share, which teaches very dark and very bright images; 0.1 is usual."""
    timesteps: int = 1000
    """Number of noise levels T."""
    conditional: bool = False
    """Also tell the network the class of each image; needs data with classes."""
    text: str = "auto"
    """Text encoder for captions: glove, learned, minilm, a folder, none, or auto: glove if it knows the words."""
    label_drop: float = 0.1
    """Share of images whose class and caption are withheld, so that guidance can compare with and without."""
    flip: bool = False
    """Mirror half of the images left to right."""
    channels: tuple[int, ...] = ()
    """Channels of every level of the U-Net, from the top; left out, chosen by image size, and narrower for clips."""
    layers: int = 1
    """Residual blocks per level."""
    attention: tuple[int, ...] | None = None
    """Levels with attention (0 is the top); left out, those up to 16 x 16 pixels but the top; for clips the last."""
    head_dim: int = 8
    """Channels of an attention head."""
    groups: int = 8
    """Groups of every normalisation; must divide all channels."""
    dropout: float = 0.0
    """Share of activations dropped in every residual block."""
    image_share: float | None = None
    """Of clips that are learned together with images: the share of the steps that show images; left out, 0.5."""
    recompute: bool = False
    """Compute every block's inner values again for the gradient instead of keeping them: less memory, more time."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("channels", "attention", "size"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))

    def check(self):
        """Returns these options, or raises ValueError for values that cannot work."""
        super().check()
        for name, value in {"timesteps": 2, "layers": 1, "head_dim": 1, "groups": 1}.items():
            _at_least(self, name, value)
        self.check_reading()
        if self.frames is not None:
            _at_least(self, "frames", 1)
        if self.frame_rate is not None:
            _between(self, "frame_rate", 1e-3, 1e4)
        if self.image_share is not None:
            _between(self, "image_share", 0, 1)
        for name in ("channels", "attention"):
            _several(self, name, 1 if name == "channels" else 0)
        _between(self, "offset_noise", 0, math.inf)
        _between(self, "timestep_shift", 1e-3, 1e3)
        if self.timestep_shift != 1 and self.timestep_sampling == "loss_aware":
            raise ValueError("timestep_shift has no say where timestep_sampling='loss_aware'; leave one of them out")
        _between(self, "cache_gb", 0, math.inf)
        if not isinstance(self.text, str | os.PathLike):
            raise ValueError(f"text must be a name or a folder, got {self.text!r}; 'none' for no captions")
        if self.text not in (known := ("auto", "none", *kinds())) and not expanded(self.text).is_dir():
            raise ValueError(f"text must be one of {', '.join(known)}, or the folder of an encoder; got {self.text!r}")
        for name in ("dropout", "label_drop"):
            _between(self, name, 0, 1)
        if build_process(self).schedule.alpha[-1] == 0 and self.prediction not in ("x0", "v", "flow"):
            raise ValueError(
                f"schedule {self.schedule!r} ends in noise alone, where prediction {self.prediction!r} tells nothing "
                "of the image; use prediction v, x0 or flow"
            )
        for name, used in (("self_conditioning", self.self_conditioning), ("variance", self.variance == "learned")):
            if used and self.prediction in ("edm", "edm_v"):
                raise ValueError(f"{name} does not go with prediction {self.prediction!r}; use eps, x0, v or flow")
        if self.variance == "learned" and not build_process(self).schedule.sigma[0] > 0:
            raise ValueError(
                f"schedule {self.schedule!r} has no noise at t = 0, which a learned variance needs; use another"
            )
        return self


def _at_least(options, name, least):
    value = getattr(options, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _several(options, name, least):
    """Raises ValueError unless this option is a tuple of whole numbers, or None where that is the default."""
    value = getattr(options, name)
    numbers = isinstance(value, tuple) and all(isinstance(n, int) and not isinstance(n, bool) for n in value)
    if value is not None and not (numbers and all(n >= least for n in value)):
        example = "(32, 64)" if name == "channels" else "(1, 2)"
        raise ValueError(
            f"{name} must be whole numbers of at least {least}, one a level, such as {example}; got {value!r}"
        )


def _plain(value):
    """NumPy scalars as Python numbers, also inside a list or tuple; an array becomes a tuple of them."""
    if isinstance(value, np.ndarray):
        value = tuple(value.tolist()) if value.ndim else value[()]
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _between(options, name, low, high):
    value = getattr(options, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
        raise ValueError(f"{name} must be a number from {low} up to, but not, {high}; got {value!r}")


def build_process(options):
    """The diffusion process that these options describe."""
    return Process(schedule(options.schedule, options.timesteps, options.zero_snr), options.prediction)


def build_unet(options, shape, embeddings=None, context=None):
    """The U-Net that these options describe. shape: (H, W, C) of what is diffused. embeddings: rows of the class
    embedding table, or None.

    context: channels of a text encoder's states; the U-Net then has cross-attention to them wherever it has
    self-attention. None: no text encoder.
    """
    height, width, c = shape
    channels = options.channels or default_channels(min(height, width))
    if odd := [n for n in channels if n % options.groups]:
        raise ValueError(
            f"groups={options.groups} does not divide {odd[0]} channels; choose groups or channels that fit"
        )
    attention = levels_with_attention(options, channels, min(height, width))
    kind = "Attn" if context is None else "CrossAttn"
    common = {
        "sample_size": height if height == width else [height, width],
        "in_channels": 2 * c if options.self_conditioning else c,
        "out_channels": 2 * c if options.variance == "learned" else c,
        "block_out_channels": list(channels),
        "layers_per_block": options.layers,
        "down_block_types": [f"{kind * (i in attention)}DownBlock2D" for i in range(len(channels))],
        "up_block_types": [f"{kind * (i in attention)}UpBlock2D" for i in reversed(range(len(channels)))],
        "norm_num_groups": options.groups,
        "dropout": options.dropout,
        "num_class_embeds": embeddings,
        "seed": options.seed,
    }
    if context is None:
        made = UNet2D(**common, attention_head_dim=options.head_dim, num_train_timesteps=options.timesteps)
    else:  # in UNet2DCondition, attention_head_dim is the number of heads
        heads = [max(1, width // options.head_dim) for width in channels]
        made = UNet2DCondition(**common, attention_head_dim=heads, cross_attention_dim=context)
    return made.recompute_blocks(options.recompute)


def levels_with_attention(options, channels, size):
    """Numbers of the levels with attention, for images whose shorter side has `size` pixels.

    Raises ValueError if options.attention names a level that the model does not have.
    """
    resolutions = [math.ceil(size / 2**i) for i in range(len(channels))]
    attention = options.attention
    if attention is None:
        attention = [i for i, r in enumerate(resolutions) if i > 0 and r <= 16]
    if any(not 0 <= i < len(channels) for i in attention):
        raise ValueError(
            f"attention names levels 0 to {len(channels) - 1} (the model has {len(channels)}), got {attention}"
        )
    return attention


def default_channels(size):
    """Channels per level for images of this side length: about as much work as a CPU can do in reasonable time."""
    if size <= 16:
        return (32, 64)
    return (32, 64, 128) if size <= 32 else (32, 64, 128, 256)

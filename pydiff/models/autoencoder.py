"""The autoencoder of latent diffusion models (Rombach et al. 2022, "High-Resolution Image Synthesis with Latent
Diffusion Models", section 3.1): images to latents that are smaller by a power of two per side, and back.

For every number of the latent, the encoder outputs a distribution, as a mean and a variance (Kingma & Welling 2014,
"Auto-Encoding Variational Bayes"). Structure, option names and parameter names are those of diffusers' AutoencoderKL,
so checkpoints are interchangeable.
"""

from typing import NamedTuple

import numpy as np

from pydiff import ops
from pydiff.arrays import array_module
from pydiff.models import bands
from pydiff.models.activations import ACTIVATIONS
from pydiff.models.blocks import Downsample, MidBlock, ResnetBlock, Upsample
from pydiff.models.registry import register
from pydiff.nn import Attention, Conv2d, GroupNorm, Module
from pydiff.tensor import Tensor, as_tensor, grad_enabled

# For every block name: does it attend?
_DOWN = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
_UP = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
EPS = 1e-6  # of every normalisation
LOGVAR = (-30.0, 20.0)  # to which logarithms of variances are clipped


class Posterior(NamedTuple):
    """The distribution of the latents of some images: independent normals. mean: Tensor (N, h, w, C). logvar: the
    logarithms of the variances, of the same shape, or None if the encoder outputs a single latent without a
    distribution.
    """

    mean: Tensor
    logvar: Tensor | None

    def sample(self, noise):
        """mean + std noise, for standard normal noise of the same shape."""
        return self.mean if self.logvar is None else self.mean + ops.exp(0.5 * self.logvar) * noise

    def mode(self):
        """The most likely latents: the means."""
        return self.mean

    def kl(self):
        """Kullback-Leibler divergence from the standard normal, summed over a sample's numbers: (N,), in nats."""
        if self.logvar is None:
            return 0 * self.mean.sum(axis=(1, 2, 3))
        return 0.5 * (self.mean * self.mean + ops.exp(self.logvar) - 1 - self.logvar).sum(axis=(1, 2, 3))


class Autoencoder(Module):
    """Base of autoencoders: converts between z, the encoder's output, and the latents that are diffused, of about unit
    std.

    config has in_channels, out_channels, latent_channels, scaling_factor, shift_factor and, if known for every channel,
    latents_mean and latents_std. factor: pixels per latent along each side.
    """

    factor: int
    in_bands = False

    def encode(self, x) -> Posterior:
        """x: images (N, H, W, in_channels) in [-1, 1], arrays or a Tensor. Sides are rounded down to a multiple of the
        factor.
        """
        raise NotImplementedError

    def decode(self, z) -> Tensor:
        """z: latents (N, h, w, latent_channels) as `encode` gives them. Returns images (N, h factor, w factor, ..)."""
        raise NotImplementedError

    def forward(self, x, noise=None):
        """Images to latents and back; uses the most likely latents, or those sampled with this noise."""
        posterior = self.encode(x)
        return self.decode(posterior.mode() if noise is None else posterior.sample(noise))

    def scaled(self, z):
        """Latents as a diffusion model takes them: (z - shift) scale."""
        shift, scale = self._shift_and_scale(z)
        return (z - shift) * scale

    def unscaled(self, x):
        """The inverse of `scaled`."""
        shift, scale = self._shift_and_scale(x)
        return x / scale + shift

    def _shift_and_scale(self, like):
        """Numbers, or one for every channel (C,), in the dtype of `like`."""
        config, xp = self.config, array_module(getattr(like, "data", like))
        scale, shift = config["scaling_factor"], config["shift_factor"] or 0.0
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            shift, scale = config["latents_mean"], scale / np.asarray(config["latents_std"], np.float64)
        return tuple(xp.asarray(np.asarray(value, like.dtype)) for value in (shift, scale))

    def _checked(self, x, option, what):
        """x as a Tensor, after checking that it has as many channels as this option says."""
        x = as_tensor(x)
        if x.ndim != 4 or x.shape[3] != self.config[option]:
            raise ValueError(f"this autoencoder takes {what} (N, H, W, {self.config[option]}), got {x.shape}")
        return x

    def _checked_images(self, x):
        x = self._checked(x, "in_channels", "images")
        if min(x.shape[1:3]) < self.factor:
            raise ValueError(f"this autoencoder takes images of at least {self.factor} pixels a side, got {x.shape}")
        return x

    def work_in_bands(self, on=True):  # noqa: ARG002
        """Sets whether calls without gradients compute in bands of rows, which takes less memory and gives the same
        bits, in networks that support it; `in_bands` then says so. Returns self.
        """
        return self

    def recompute_blocks(self, on=True):
        """Sets whether residual blocks and attention store nothing for backward and recompute it there.
        Returns self.
        """
        for _, module in self.named_modules():
            if isinstance(module, ResnetBlock | Attention):
                module.recompute = on
        return self


class EncoderBlock(Module):
    """One level of the encoder: residual blocks, each followed by attention if it attends, then half the resolution."""

    def __init__(self, cin, cout, layers, attends, downsample, resnet):
        self.resnets, self.attentions = _layers(cin, cout, layers, attends, resnet)
        self.downsamplers = [Downsample(cout, padding=0)] if downsample else []

    def forward(self, x):
        return _through(x, self.resnets, self.attentions, self.downsamplers)


class DecoderBlock(Module):
    """One level of the decoder: like EncoderBlock, with twice the resolution at its end."""

    def __init__(self, cin, cout, layers, attends, upsample, resnet):
        self.resnets, self.attentions = _layers(cin, cout, layers, attends, resnet)
        self.upsamplers = [Upsample(cout)] if upsample else []

    def forward(self, x):
        return _through(x, self.resnets, self.attentions, self.upsamplers)


def _layers(cin, cout, layers, attends, resnet):
    """(residual blocks, attention after each) of one level; one head has all channels."""
    resnets = [ResnetBlock(cin if i == 0 else cout, cout, **resnet) for i in range(layers)]
    return resnets, [Attention(cout, cout, resnet["groups"], EPS) for _ in range(layers if attends else 0)]


def _through(x, resnets, attentions, resamplers):
    for i, resnet in enumerate(resnets):
        x = resnet(x)
        x = attentions[i](x) if attentions else x
    for resampler in resamplers:
        x = resampler(x)
    return x


class Encoder(Module):
    """Images (N, H, W, cin) to (N, H / 2^(levels - 1), .., cout)."""

    def __init__(self, cin, cout, channels, layers, attends, mid_attends, resnet):
        self.conv_in = Conv2d(cin, channels[0], 3, padding=1)
        inputs, last = [channels[0], *channels], len(channels) - 1
        self.down_blocks = [
            EncoderBlock(inputs[i], channels[i], layers, attends[i], i < last, resnet) for i in range(len(channels))
        ]
        self.mid_block = _mid_block(channels[-1], mid_attends, resnet)
        self.conv_norm_out = GroupNorm(resnet["groups"], channels[-1], EPS, activation="silu")
        self.conv_out = Conv2d(channels[-1], cout, 3, padding=1)

    def forward(self, x):
        h = self.conv_in(x)
        for block in self.down_blocks:
            h = block(h)
        return self.conv_out(self.conv_norm_out(self.mid_block(h)))


class Decoder(Module):
    """Latents (N, h, w, cin) to (N, h 2^(levels - 1), .., cout). channels: from the top, as everywhere."""

    def __init__(self, cin, cout, channels, layers, attends, mid_attends, resnet):
        channels, last = channels[::-1], len(channels) - 1
        self.conv_in = Conv2d(cin, channels[0], 3, padding=1)
        self.mid_block = _mid_block(channels[0], mid_attends, resnet)
        inputs = [channels[0], *channels]
        self.up_blocks = [
            DecoderBlock(inputs[i], channels[i], layers, attends[i], i < last, resnet) for i in range(len(channels))
        ]
        self.conv_norm_out = GroupNorm(resnet["groups"], channels[-1], EPS, activation="silu")
        self.conv_out = Conv2d(channels[-1], cout, 3, padding=1)

    def forward(self, z):
        h = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            h = block(h)
        return self.conv_out(self.conv_norm_out(h))


def _mid_block(channels, attends, resnet):
    return MidBlock(channels, channels if attends else None, resnet["groups"], 1, **resnet)


@register("AutoencoderKL", part=True)
class AutoencoderKL(Autoencoder):
    """Images to latents and back.

    Options are those of AutoencoderKL, with its defaults (`config` holds them all). The main ones:
    block_out_channels: channels of every level, from the top; every level but the last halves the resolution.
    layers_per_block: residual blocks per level, one more in the decoder. latent_channels: of the latents.
    down_block_types, up_block_types: one name per level, with attention or not. use_quant_conv, use_post_quant_conv: a
    1 x 1 convolution behind the encoder and before the decoder. mid_block_add_attention: attention at the bottom.
    scaling_factor, shift_factor, latents_mean, latents_std: see Autoencoder.scaled. sample_size and force_upcast are
    kept for diffusers; here everything is computed in the weights' precision. seed: of the initial weights.
    Raises ValueError for unsupported options.
    """

    def __init__(
        self,
        *,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(64,),
        layers_per_block=1,
        act_fn="silu",
        latent_channels=4,
        norm_num_groups=32,
        sample_size=32,
        scaling_factor=0.18215,
        shift_factor=None,
        latents_mean=None,
        latents_std=None,
        force_upcast=True,
        use_quant_conv=True,
        use_post_quant_conv=True,
        mid_block_add_attention=True,
        seed=0,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "seed", "__class__")}
        self.config = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}  # as JSON gives it back
        _check(self.config)
        channels, self.factor = list(block_out_channels), 2 ** (len(block_out_channels) - 1)
        act = "silu" if act_fn == "swish" else act_fn
        resnet = {"temb_dim": None, "groups": norm_num_groups, "eps": EPS, "act": act}
        down, up = [_DOWN[name] for name in down_block_types], [_UP[name] for name in up_block_types]
        common = {"channels": channels, "mid_attends": mid_block_add_attention, "resnet": resnet}
        self.encoder = Encoder(in_channels, 2 * latent_channels, layers=layers_per_block, attends=down, **common)
        self.decoder = Decoder(latent_channels, out_channels, layers=layers_per_block + 1, attends=up, **common)
        self.quant_conv = Conv2d(2 * latent_channels, 2 * latent_channels, 1) if use_quant_conv else None
        self.post_quant_conv = Conv2d(latent_channels, latent_channels, 1) if use_post_quant_conv else None
        self.initialize(seed)

    def work_in_bands(self, on=True):
        """See Autoencoder.work_in_bands, and bands.py."""
        self.in_bands = on
        return self

    def encode(self, x):
        """x: images (N, H, W, in_channels) in [-1, 1]. Returns a Posterior of latents (N, H / factor, .., C)."""
        h = self._worked(self.encoder, bands.encoder, self._checked_images(x))
        h = self.quant_conv(h) if self.quant_conv else h
        c = self.config["latent_channels"]
        return Posterior(h[..., :c], ops.clip(h[..., c:], *LOGVAR))

    def decode(self, z):
        """z: latents (N, h, w, latent_channels). Returns a Tensor (N, h factor, w factor, out_channels)."""
        z = self._checked(z, "latent_channels", "latents")
        return self._worked(self.decoder, bands.decoder, self.post_quant_conv(z) if self.post_quant_conv else z)

    def _worked(self, network, banded, x):
        """network(x), or its counterpart in bands.py, one sample at a time."""
        if not self.in_bands or grad_enabled() or not bands.serves(x.data) or not len(x):
            return network(x)
        return Tensor(np.concatenate([banded(network, one[None]) for one in x.data]))


def _check(config):
    """One sentence for every configuration this class cannot build."""
    levels = len(config["block_out_channels"])
    for option, known in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        unknown = [name for name in config[option] if name not in known]
        if unknown or len(config[option]) != levels:
            raise ValueError(
                f"{option} needs {levels} of {', '.join(known)} (as many as block_out_channels), got {config[option]}"
            )
    if config["act_fn"] not in ACTIVATIONS:
        raise ValueError(f"act_fn must be one of {', '.join(ACTIVATIONS)}, got {config['act_fn']!r}")
    if config["layers_per_block"] < 1 or levels < 1:
        raise ValueError("an autoencoder needs at least one level and one layer per block")
    check_scale(config)


def check_scale(config):
    """Raises ValueError unless these options define an invertible scaling of latents."""
    if not config["scaling_factor"] or not np.isfinite(config["scaling_factor"]):
        raise ValueError(f"scaling_factor must be a number other than 0, got {config['scaling_factor']}")
    for option in ("latents_mean", "latents_std"):
        values = config.get(option)
        if values is not None and (len(values) != config["latent_channels"] or not np.isfinite(values).all()):
            raise ValueError(f"{option} needs a number for each of {config['latent_channels']} channels, got {values}")
    if config.get("latents_std") is not None and not np.all(config["latents_std"]):
        raise ValueError(f"latents_std must not be 0, got {config['latents_std']}")

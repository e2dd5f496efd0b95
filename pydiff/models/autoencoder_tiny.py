"""A small autoencoder for the latents of a large one: TAESD (madebyollin, 2023), good enough for previews at every
step.

Only convolutions and ReLU: no normalisation, no attention, one latent in place of a distribution. Structure, option
names and parameter names are those of diffusers' AutoencoderTiny, so checkpoints are interchangeable.
"""

from pydiff import ops
from pydiff.models.activations import ACTIVATIONS
from pydiff.models.autoencoder import Autoencoder, Posterior, check_scale
from pydiff.models.registry import register
from pydiff.nn import Conv2d, Module


class TinyBlock(Module):
    """Three 3 x 3 convolutions around a shortcut: relu(conv(x) + x)."""

    def __init__(self, channels, act):
        self.conv = [_conv(channels, channels), act, _conv(channels, channels), act, _conv(channels, channels)]

    def forward(self, x):
        h = x
        for layer in self.conv[:-1]:
            h = layer(h)
        return ops.relu(self.conv[-1](h, add=x))


def _conv(cin, cout, stride=1, bias=True):
    return Conv2d(cin, cout, 3, stride=stride, padding=1, bias=bias)


class TinyEncoder(Module):
    """Images in [-1, 1] to latents; every stage but the first halves the resolution."""

    def __init__(self, cin, cout, channels, blocks, act):
        self.layers = []
        for i, count in enumerate(blocks):
            self.layers.append(_conv(channels, channels, stride=2, bias=False) if i else _conv(cin, channels))
            self.layers += [TinyBlock(channels, act) for _ in range(count)]
        self.layers.append(_conv(channels, cout))

    def forward(self, x):
        h = (x + 1) * 0.5  # the layers see [0, 1]
        for layer in self.layers:
            h = layer(h)
        return h


class TinyDecoder(Module):
    """Latents, bent into (-3, 3), to images in [-1, 1]; every stage but the last doubles the resolution."""

    def __init__(self, cin, cout, channels, blocks, act):
        self.layers = [_conv(cin, channels), act]
        for i, count in enumerate(blocks):
            self.layers += [TinyBlock(channels, act) for _ in range(count)]
            if i < len(blocks) - 1:
                self.layers += [ops.upsample_nearest, _conv(channels, channels, bias=False)]
        self.layers.append(_conv(channels, cout))

    def forward(self, z):
        h = 3 * ops.tanh(z * (1 / 3))
        for layer in self.layers:
            h = layer(h)
        return 2 * h - 1


@register("AutoencoderTiny", part=True)
class AutoencoderTiny(Autoencoder):
    """Images to latents and back, quickly.

    Options are those of AutoencoderTiny, with its defaults (`config` holds them all). The main ones:
    encoder_block_out_channels, decoder_block_out_channels: channels of every stage, all the same, as the layout has no
    place for a change. num_encoder_blocks, num_decoder_blocks: blocks of every stage. act_fn: inside the blocks.
    latent_magnitude, latent_shift: how diffusers stores latents in bytes. seed: of the initial weights.
    Raises ValueError for options that are not supported.
    """

    def __init__(
        self,
        *,
        in_channels=3,
        out_channels=3,
        encoder_block_out_channels=(64, 64, 64, 64),
        decoder_block_out_channels=(64, 64, 64, 64),
        act_fn="relu",
        upsample_fn="nearest",
        latent_channels=4,
        upsampling_scaling_factor=2,
        num_encoder_blocks=(1, 3, 3, 3),
        num_decoder_blocks=(3, 3, 3, 1),
        latent_magnitude=3,
        latent_shift=0.5,
        force_upcast=False,
        scaling_factor=1.0,
        shift_factor=0.0,
        seed=0,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "seed", "__class__")}
        self.config = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}  # as JSON gives it back
        _check(self.config)
        act, self.factor = ACTIVATIONS[act_fn], 2 ** (len(num_encoder_blocks) - 1)
        encoder = encoder_block_out_channels[0], num_encoder_blocks, act
        decoder = decoder_block_out_channels[0], num_decoder_blocks, act
        self.encoder = TinyEncoder(in_channels, latent_channels, *encoder)
        self.decoder = TinyDecoder(latent_channels, out_channels, *decoder)
        self.initialize(seed)

    def encode(self, x):
        """x: images (N, H, W, in_channels) in [-1, 1]. Returns a Posterior that has only means."""
        return Posterior(self.encoder(self._checked_images(x)), None)

    def decode(self, z):
        """z: latents (N, h, w, latent_channels). Returns a Tensor (N, h factor, w factor, out_channels)."""
        return self.decoder(self._checked(z, "latent_channels", "latents"))


def _check(config):
    """Raises ValueError for configurations that this class does not support."""
    for side in ("encoder", "decoder"):
        channels, blocks = config[f"{side}_block_out_channels"], config[f"num_{side}_blocks"]
        if len(channels) != len(blocks) or len(set(channels)) != 1:
            raise ValueError(
                f"{side}_block_out_channels must be the same number for each of {len(blocks)} stages, got {channels}"
            )
        if min(blocks) < 0:
            raise ValueError(f"num_{side}_blocks must not be negative, got {blocks}")
    stages = len(config["num_encoder_blocks"])
    if len(config["num_decoder_blocks"]) != stages:
        raise ValueError(f"num_decoder_blocks must have {stages} stages as the encoder has, got other sizes back")
    for option, only in (("upsample_fn", "nearest"), ("upsampling_scaling_factor", 2)):
        if config[option] != only:
            raise ValueError(f"{option} must be {only!r}, got {config[option]!r}")
    if config["act_fn"] not in ACTIVATIONS:
        raise ValueError(f"act_fn must be one of {', '.join(ACTIVATIONS)}, got {config['act_fn']!r}")
    check_scale(config)

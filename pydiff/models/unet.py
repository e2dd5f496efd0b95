"""The U-Net of diffusion models (Ronneberger et al. 2015; Ho et al. 2020, appendix B; Dhariwal & Nichol 2021).

It sees a noisy image and the step number, and predicts what in the image is noise. On the way down it looks at ever
larger parts of the image in ever less detail; on the way up it restores the detail, with the help of the skip
connections from the way down. Structure, option names and parameter names are those of diffusers' UNet2DModel, so
checkpoints are interchangeable.
"""

from typing import Any

import numpy as np

from pydiff import ops
from pydiff.arrays import array_module, to_host
from pydiff.models.activations import ACTIVATIONS
from pydiff.models.blocks import DownBlock, MidBlock, ResnetBlock, UpBlock
from pydiff.models.registry import register
from pydiff.nn import Attention, Conv2d, Embedding, GroupNorm, Linear, Module, Parameter
from pydiff.tensor import Tensor, as_tensor

# For every block name in a configuration: whether it attends, and how it changes the resolution (None: by *_type).
_DOWN = {"DownBlock2D": (False, "conv"), "AttnDownBlock2D": (True, None), "ResnetDownsampleBlock2D": (False, "resnet")}
_UP = {"UpBlock2D": (False, "conv"), "AttnUpBlock2D": (True, None), "ResnetUpsampleBlock2D": (False, "resnet")}


class TimestepEmbedding(Module):
    """Two linear layers that turn the sinusoids of a step number into the context every residual block gets."""

    def __init__(self, cin, dim):
        self.linear_1 = Linear(cin, dim)
        self.linear_2 = Linear(dim, dim)

    def forward(self, x):
        return self.linear_2(ops.silu(self.linear_1(x)))


def sinusoids(t, dim, flip_sin_to_cos=True, freq_shift=0, max_period=10000):
    """The position encoding of Vaswani et al. 2017, sect. 3.5, for step numbers, whole or fractional.

    t: (N,). Returns (N, dim) float64: sin(t w_i) and cos(t w_i) for w_i = max_period^(-i / (dim//2 - freq_shift)),
    cosines first if flip_sin_to_cos; an odd dim gets a zero at the end.
    """
    half = dim // 2
    frequencies = max_period ** (-np.arange(half) / (half - freq_shift))
    angles = np.asarray(t, np.float64)[:, None] * frequencies  # (N, half)
    parts = [np.cos(angles), np.sin(angles)] if flip_sin_to_cos else [np.sin(angles), np.cos(angles)]
    return np.concatenate([*parts, np.zeros((len(angles), dim % 2))], axis=1)


class FourierProjection(Module):
    """Sinusoids of log t with fixed random frequencies (Tancik et al. 2020; Song et al. 2021, "Score-based"), for
    networks that take noise levels instead of step numbers.

    (N,) positive -> (N, 2 count) float64: sin(2 pi w log t), then the cosines; weight (count,) is w, and is not
    learned.
    """

    def __init__(self, count):
        self.weight = Parameter(np.zeros(count, np.float32), bound=16.0)

    def forward(self, t):
        with np.errstate(divide="ignore", invalid="ignore"):  # t = 0 gives NaN, as in diffusers
            angles = np.log(t)[:, None] * (2.0 * np.pi * to_host(self.weight.data).astype(np.float64))
            return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


@register("UNet2DModel")
class UNet2D(Module):
    """Predicts the process's target from (x_t, t): the noise, the clean image or v.

    Options are those of UNet2DModel, with its defaults (`config` holds them all). The main ones:
    in_channels, out_channels: of the image. block_out_channels: channels of every level, from the top.
    layers_per_block: residual blocks a level. down_block_types, up_block_types: one name per level, with attention or
    not. attention_head_dim: channels of a head (None: one head). norm_num_groups: groups of every normalisation.
    resnet_time_scale_shift: "default" (added) or "scale_shift". downsample_type, upsample_type: "conv" or "resnet", for
    the blocks with attention. act_fn: a name in ACTIVATIONS. num_class_embeds: number of classes, if any;
    class_embed_type: None for these, "timestep" for numbers, "identity" for vectors (temb_dim,). time_embedding_type:
    "positional"; "learned", a table of num_train_timesteps; "fourier", of noise levels, by which the output is then
    divided. seed: of the initial weights.
    """

    def __init__(
        self,
        *,
        sample_size=None,
        in_channels=3,
        out_channels=3,
        center_input_sample=False,
        time_embedding_type="positional",
        time_embedding_dim=None,
        freq_shift=0,
        flip_sin_to_cos=True,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type="UNetMidBlock2D",
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(224, 448, 672, 896),
        layers_per_block=2,
        mid_block_scale_factor=1,
        downsample_padding=1,
        downsample_type="conv",
        upsample_type="conv",
        dropout=0.0,
        act_fn="silu",
        attention_head_dim=8,
        norm_num_groups=32,
        attn_norm_num_groups=None,
        norm_eps=1e-5,
        resnet_time_scale_shift="default",
        add_attention=True,
        class_embed_type=None,
        num_class_embeds=None,
        num_train_timesteps=None,
        seed=0,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "seed", "__class__")}
        self.config = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}  # as JSON gives it back
        _check(self.config)
        channels, levels = list(block_out_channels), len(block_out_channels)
        temb_dim = time_embedding_dim or 4 * channels[0]
        scale_shift = resnet_time_scale_shift == "scale_shift"
        resnet = {
            "temb_dim": temb_dim,
            "groups": norm_num_groups,
            "eps": norm_eps,
            "dropout": dropout,
            "scale_shift": scale_shift,
            "act": "silu" if act_fn == "swish" else act_fn,
        }

        self.conv_in = Conv2d(in_channels, channels[0], 3, padding=1)
        self.time_proj: Any = None
        time_dim = channels[0]
        if time_embedding_type == "fourier":
            time_dim, self.time_proj = 2 * channels[0], FourierProjection(channels[0])
        elif time_embedding_type == "learned":
            self.time_proj = Embedding(num_train_timesteps, channels[0])
        self.time_embedding = TimestepEmbedding(time_dim, temb_dim)
        self.class_embedding: Any = None
        if class_embed_type == "timestep":
            self.class_embedding = TimestepEmbedding(time_dim, temb_dim)
        elif class_embed_type is None and num_class_embeds is not None:
            self.class_embedding = Embedding(num_class_embeds, temb_dim)

        skips = [channels[0]]  # channels of all skip connections
        self.down_blocks = []
        for i, name in enumerate(down_block_types):
            attends, resample = _DOWN[name]
            resample = (resample or downsample_type) if i < levels - 1 else None
            head_dim = (attention_head_dim or channels[i]) if attends else None
            cin = channels[max(i - 1, 0)]
            self.down_blocks.append(
                DownBlock(cin, channels[i], layers_per_block, head_dim, resample, downsample_padding, **resnet)
            )
            skips += [channels[i]] * (layers_per_block + (resample is not None))

        self.mid_block = None
        if mid_block_type is not None:
            head_dim = (attention_head_dim or channels[-1]) if add_attention else None
            # diffusers omits the normalisation here in scale_shift mode, unless its group count is given
            groups = attn_norm_num_groups or (None if scale_shift else norm_num_groups)
            self.mid_block = MidBlock(channels[-1], head_dim, groups, mid_block_scale_factor, **resnet)

        self.up_blocks = []
        cin = channels[-1]
        for i, name in enumerate(up_block_types):
            attends, resample = _UP[name]
            resample = (resample or upsample_type) if i < levels - 1 else None
            cout = channels[levels - 1 - i]
            head_dim = (attention_head_dim or cout) if attends else None
            taken = [skips.pop() for _ in range(layers_per_block + 1)]
            self.up_blocks.append(UpBlock(cin, cout, taken, head_dim, resample, **resnet))
            cin = cout

        self.conv_norm_out = GroupNorm(norm_num_groups, channels[0], norm_eps, activation="silu")
        self.conv_out = Conv2d(channels[0], out_channels, 3, padding=1)
        self.initialize(seed)

    def forward(self, x, t, class_labels=None):
        """x: (N, H, W, in_channels) array or Tensor; t: step numbers (N,) or one for all; class_labels: (N,) integers,
        or as class_embed_type requires.

        Returns a Tensor (N, H, W, out_channels).
        """
        x = self.checked(x)
        return self.body(x, **self.encoded(x.data, t, class_labels))

    def checked(self, x):
        """x as a Tensor. Raises ValueError for images that this network cannot take."""
        x = as_tensor(x)
        if x.ndim != 4 or x.shape[3] != self.config["in_channels"]:
            raise ValueError(f"the U-Net takes images (N, H, W, {self.config['in_channels']}), got {x.shape}")
        return x

    @property
    def told_classes(self) -> bool:
        """Whether the network takes class_labels."""
        return self.class_embedding is not None or self.config["class_embed_type"] == "identity"

    def encoded(self, like, t, class_labels=None):
        """t and class_labels encoded for the body: Tensors by name for images `like` (N, ..), of the same dtype.

        step: the input of the time embedding, (N, D). label, if there are classes: the same for the classes, or rows
        (N, temb_dim) of the class embedding table, or the given vectors. level: t (N, 1, 1, 1), if the output is
        divided by it.
        """
        check_told(self.told_classes, class_labels)
        made = {"step": self._numbers(t, like, "step numbers")}
        if self.config["time_embedding_type"] == "fourier":
            level = np.asarray(for_each(t, len(like), "step numbers"), like.dtype).reshape(-1, 1, 1, 1)
            made["level"] = Tensor(array_module(like).asarray(level))
        if class_labels is None:
            return made
        kind, name = self.config["class_embed_type"], "class labels"
        if kind == "timestep":
            return {**made, "label": self._numbers(to_host(class_labels), like, name)}
        if kind == "identity":
            vectors = as_tensor(array_module(like).asarray(class_labels, like.dtype))
            if vectors.shape != (len(like), self.time_embedding.linear_2.weight.shape[1]):
                expected = (len(like), self.time_embedding.linear_2.weight.shape[1])
                raise ValueError(f"this model takes class vectors {expected}, got {vectors.shape}")
            return {**made, "label": vectors}
        return {**made, "label": self.class_embedding(for_each(class_labels, len(like), name))}

    def body(self, x, step, label=None, level=None):
        """Everything between the encoded inputs and the result. Only operations on Tensors: graph.py records them."""
        temb = self.time_embedding(step)
        if label is not None:
            temb = temb + (self.class_embedding(label) if self.config["class_embed_type"] == "timestep" else label)
        temb = ACTIVATIONS[self.config["act_fn"]](temb)  # once for all blocks
        x = 2 * x - 1 if self.config["center_input_sample"] else x
        h = self.conv_in(x)
        skips = [h]
        for block in self.down_blocks:
            h, seen = block(h, temb)
            skips += seen
        h = self.mid_block(h, temb) if self.mid_block else h
        for block in self.up_blocks:
            h = block(h, skips, temb)
        h = self.conv_out(self.conv_norm_out(h))
        return h if level is None else h / level

    def recompute_blocks(self, on=True):
        """Whether residual blocks and attention are recomputed in backward instead of keeping values. Returns self."""
        for _, module in self.named_modules():
            if isinstance(module, ResnetBlock | Attention):
                module.recompute = on
        return self

    def _numbers(self, values, like, name):
        """Step numbers, or class labels embedded like them: (N, D), a Tensor."""
        values = for_each(values, len(like), name)
        if self.config["time_embedding_type"] == "learned":
            return self.time_proj(_whole(values))
        if self.config["time_embedding_type"] == "fourier":
            encoded = self.time_proj(np.asarray(values, np.float64))
        else:
            order = self.config["flip_sin_to_cos"], self.config["freq_shift"]
            encoded = sinusoids(values, self.config["block_out_channels"][0], *order)
        return Tensor(array_module(like).asarray(encoded.astype(like.dtype)))


def check_told(told: bool, class_labels):
    """Raises ValueError unless class labels were given exactly if the network takes them."""
    if told != (class_labels is not None):
        has, given = ("a", "are missing") if told else ("no", "were given")
        raise ValueError(f"this model has {has} class embedding, but class labels {given}")


def for_each(values, n, name):
    """One value per image, (n,), from (n,) values or a single one. Raises ValueError for other shapes, TypeError for
    what is no number.
    """
    if np.shape(values) not in ((), (1,), (n,)):
        raise ValueError(f"{n} images need {n} {name} or a single one, got an array of shape {np.shape(values)}")
    values = np.asarray(values)
    if values.dtype.kind not in "iufb":
        raise TypeError(f"{name} must be numbers, got {values.tolist()!r:.60}")
    return np.broadcast_to(values, (n,))


def _whole(t):
    """Step numbers for a table, as integers. Raises ValueError for fractional ones."""
    t = np.asarray(t)
    if t.dtype.kind == "f" and not (t == np.rint(t)).all():
        raise ValueError(f"this model has a table of whole step numbers, got {t.tolist()[:4]}; use another spacing")
    return t.astype(np.int64)


def _check(config):
    """Raises ValueError for configurations that this class does not support."""
    levels = len(config["block_out_channels"])
    for option, known in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        unknown = [name for name in config[option] if name not in known]
        if unknown or len(config[option]) != levels:
            raise ValueError(
                f"{option} needs {levels} of {', '.join(known)} (as many as block_out_channels), got {config[option]}"
            )
    allowed = {
        "time_embedding_type": ("positional", "learned", "fourier"),
        "mid_block_type": ("UNetMidBlock2D", None),
        "act_fn": tuple(ACTIVATIONS),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "downsample_type": ("conv", "resnet"),
        "upsample_type": ("conv", "resnet"),
        "class_embed_type": (None, "timestep", "identity"),
    }
    for option, values in allowed.items():
        if config[option] not in values:
            raise ValueError(f"{option} must be one of {', '.join(map(repr, values))}, got {config[option]!r}")
    if config["time_embedding_type"] == "learned" and not config["num_train_timesteps"]:
        raise ValueError("a learned time embedding needs num_train_timesteps, the number of its rows")
    if config["layers_per_block"] < 1 or levels < 1:
        raise ValueError("a U-Net needs at least one level and one layer per block")

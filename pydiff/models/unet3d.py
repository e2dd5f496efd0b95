"""The U-Net for clips: an image network with additional layers along time only between its layers (Singer et al. 2022,
"Make-A-Video", section 3.2; Ho et al. 2022, "Video diffusion models", section 3).

A residual block sees each frame separately, then a temporal convolution each pixel separately; attention works in the
same way. This is far cheaper than filters over space and time at once, and because the temporal layers start as the
identity, an image network can be widened to clips (`widened`) and trained further. An image (N, H, W, C) skips them, so
the same network learns from images and clips.

Structure, option names and parameter names are those of diffusers' UNet3DConditionModel, so checkpoints are
interchangeable; ClipUNet adds options that diffusers does not have.
"""

import math
from typing import Any

import numpy as np

from pydiff import ops
from pydiff.arrays import array_module, to_host
from pydiff.models.blocks import Downsample, ResnetBlock
from pydiff.models.registry import register
from pydiff.models.unet import UNet2D, check_told, for_each, sinusoids
from pydiff.models.unet_condition import ConditionedTimestepEmbedding, UNet2DCondition, Upsample
from pydiff.nn import (
    Attention,
    Conv2d,
    Embedding,
    GroupNorm,
    LayerNorm,
    Linear,
    Module,
    MultiHeadAttention,
    Transformer2DModel,
)
from pydiff.nn.temporal import TemporalConvLayer, TransformerTemporalModel
from pydiff.tensor import Tensor, as_tensor

_DOWN = {"CrossAttnDownBlock3D": True, "DownBlock3D": False}  # name: does it attend?
_UP = {"CrossAttnUpBlock3D": True, "UpBlock3D": False}


class ClipBlock(Module):
    """Residual blocks, each followed by a temporal convolution and, if it attends, by attention in space and in time.

    widths: pairs of channels in and out of the residual blocks. make: see `ClipUNet._maker`; None without attention.
    """

    def __init__(self, widths, make, resnet, dropout, behind_first=False):
        cout, groups = widths[0][1], resnet["groups"]
        self.resnets = [ResnetBlock(*pair, **resnet) for pair in widths]
        self.temp_convs = [TemporalConvLayer(cout, groups, dropout) for _ in widths]
        count = 0 if make is None else len(widths) - behind_first
        self.attentions = [make(cout)[0] for _ in range(count)]  # pyright: ignore[reportOptionalCall]
        self.temp_attentions = [make(cout)[1] for _ in range(count)]  # pyright: ignore[reportOptionalCall]

    def layer(self, i, x, temb, frames):
        """The i-th residual block and its temporal convolution; frames None: of images."""
        x = self.resnets[i](x, temb)
        return x if frames is None else self.temp_convs[i](x, frames)

    def attend(self, i, x, context, mask, frames):
        """The i-th attention in space and in time, if the block has one."""
        if not self.attentions:
            return x
        x = self.attentions[i](x) if context is None else self.attentions[i](x, context, mask)
        return x if frames is None else self.temp_attentions[i](x, frames)


class ClipDownBlock(ClipBlock):
    """One level of the descent, then half the resolution of every frame. Returns x and what the ascent will see."""

    def __init__(self, cin, cout, layers, make, downsample, padding, resnet, dropout):
        super().__init__([(cin if i == 0 else cout, cout) for i in range(layers)], make, resnet, dropout)
        self.downsamplers = [Downsample(cout, padding)] if downsample else []

    def forward(self, x, temb, context, mask, frames):
        skips = []
        for i in range(len(self.resnets)):
            x = self.attend(i, self.layer(i, x, temb, frames), context, mask, frames)
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x, temb)
            skips.append(x)
        return x, skips


class ClipMidBlock(ClipBlock):
    """The bottom of the U: a residual block, attention, a residual block."""

    def __init__(self, channels, make, resnet, dropout):
        super().__init__([(channels, channels)] * 2, make, resnet, dropout, behind_first=True)

    def forward(self, x, temb, context, mask, frames):
        x = self.attend(0, self.layer(0, x, temb, frames), context, mask, frames)
        return self.layer(1, x, temb, frames)


class ClipUpBlock(ClipBlock):
    """One level of the ascent: each residual block first sees its frames from the descent, as more channels."""

    def __init__(self, cin, cout, skip_channels, make, upsample, resnet, dropout):
        widths = [((cin if i == 0 else cout) + skip, cout) for i, skip in enumerate(skip_channels)]
        super().__init__(widths, make, resnet, dropout)
        self.upsamplers = [Upsample(cout)] if upsample else []

    def forward(self, x, skips, temb, context, mask, frames):
        for i in range(len(self.resnets)):
            x = self.layer(i, ops.concatenate(x, skips.pop()), temb, frames)
            x = self.attend(i, x, context, mask, frames)
        for upsampler in self.upsamplers:
            x = upsampler(x, skips[-1].shape[1:3])
        return x


WAVES = 8  # of an axis of the clip


def half_waves(count) -> np.ndarray:
    """Where `count` pixels or frames in a row are, (count, 2 WAVES) float64: cos(pi k u / 2), then the sines, for k =
    1 .. WAVES and u from 0 at one edge to 1 at the other.
    """
    angles = (np.arange(count)[:, None] + 0.5) / count * (np.pi / 2 * np.arange(1, WAVES + 1))
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def _loud(cin, cout, gain):
    """A linear layer whose outputs, at initialisation, are `gain` times as large as its inputs in the mean square.

    With the image network's layers, which start at a gain of 1 / sqrt(3), the effect of one word in ten is too weak
    after four layers, and it takes a thousand steps to grow.
    """
    layer = Linear(cin, cout)
    layer.weight.bound = gain * math.sqrt(3 / cin)
    if gain == 0 and layer.bias is not None:
        layer.bias.bound = 0.0
    return layer


class PooledContext(Module):
    """The mean of a context's states (N, D), brought to unit variance, for the step embedding: (N, dim)."""

    def __init__(self, width, dim):
        self.norm = LayerNorm(width)
        self.linear = _loud(width, dim, math.sqrt(3.0))

    def forward(self, x):
        return self.linear(self.norm(x))


@register("ClipUNet")
class ClipUNet(Module):
    """Predicts the process's target from clips (x_t, t, context).

    The main options: in_channels, out_channels: of a frame. block_out_channels: channels of every level, from the top.
    down_block_types, up_block_types: one name per level, with attention or not. layers_per_block: residual blocks per
    level. attention_head_dim: channels of a head, a number or one per level. cross_attention_dim: channels of a
    context; None for a network without one, whose frames attend as UNet2D's images do. num_class_embeds: rows of the
    class embedding, added to the step embedding. use_linear_projection: see UNet2DCondition. transformer_in: whether
    the first layer is attention in time. activation: of the transformers' inner layers. temporal_dropout: in the
    temporal convolutions. frame_positions: whether every frame's number is embedded next to the step number; otherwise
    only the ends of the clip tell frames apart. pooled_context: whether the mean of the context is also added to the
    step embedding (Saharia et al. 2022, "Imagen", section 2.3), with one more layer after the sum, so that every layer
    knows in which direction the object in frame f moves. resnet_time_scale_shift: see UNet2D. pixel_positions: whether
    conv_in also gets the position of each pixel in the clip. seed: of the initial weights. Raises ValueError for
    options that cannot be built.
    """

    fixed = ("context",)  # see graph.py

    def __init__(
        self,
        *,
        sample_size=None,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        downsample_padding=1,
        mid_block_scale_factor=1,
        norm_num_groups=8,
        norm_eps=1e-5,
        cross_attention_dim=None,
        attention_head_dim=8,
        time_cond_proj_dim=None,
        num_class_embeds=None,
        use_linear_projection=True,
        transformer_in=False,
        activation="gelu-approximate",
        temporal_dropout=0.0,
        frame_positions=False,
        pooled_context=False,
        resnet_time_scale_shift="default",
        pixel_positions=False,
        seed=0,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "seed", "__class__")}
        self.config = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
        self._build(self.config)
        self.initialize(seed)

    def _build(self, config):
        """The network in the order of the data's flow."""
        _check(config)
        self.options = config
        channels, groups, layers = config["block_out_channels"], config["norm_num_groups"], config["layers_per_block"]
        levels, heads, dropout = len(channels), _heads(config), config["temporal_dropout"]
        temb_dim = 4 * channels[0]
        scale_shift = config["resnet_time_scale_shift"] == "scale_shift"
        resnet = {"temb_dim": temb_dim, "groups": groups, "eps": config["norm_eps"], "scale_shift": scale_shift}

        self.conv_in = Conv2d(config["in_channels"], channels[0], 3, padding=1)
        self.time_embedding = ConditionedTimestepEmbedding(channels[0], temb_dim, config["time_cond_proj_dim"])
        classes = config["num_class_embeds"]
        self.class_embedding: Any = None if classes is None else Embedding(classes, temb_dim)
        self.frame_embedding: Any = None
        if config["frame_positions"]:
            # it starts at zero, like every temporal layer, unless it must be visible next to the context
            self.frame_embedding = _loud(channels[0], temb_dim, 1.0 if config["pooled_context"] else 0.0)
        self.context_embedding: Any = None
        self.mixing: Any = None
        if config["pooled_context"]:
            self.context_embedding = PooledContext(config["cross_attention_dim"], temb_dim)
            self.mixing = _loud(temb_dim, temb_dim, math.sqrt(2.0))
        self.position_embedding: Any = None
        if config["pixel_positions"]:
            self.position_embedding = [Linear(2 * WAVES, channels[0]) for _ in range(3)]  # frame, down, right
        self.transformer_in = None
        if config["transformer_in"]:
            self.transformer_in = TransformerTemporalModel(channels[0], 8, heads[0], groups, config["activation"])

        self.down_blocks, skips = [], [channels[0]]  # channels of all skip connections
        for i, name in enumerate(config["down_block_types"]):
            make = self._maker(heads[i]) if _DOWN[name] else None
            shrink, padding = i < levels - 1, config["downsample_padding"]
            block = ClipDownBlock(channels[max(i - 1, 0)], channels[i], layers, make, shrink, padding, resnet, dropout)
            self.down_blocks.append(block)
            skips += [channels[i]] * (layers + shrink)

        scale = config["mid_block_scale_factor"]
        make = self._maker(heads[-1], scale)
        self.mid_block = ClipMidBlock(channels[-1], make, {**resnet, "output_scale": scale}, dropout)

        self.up_blocks, cin = [], channels[-1]
        for i, name in enumerate(config["up_block_types"]):
            cout, make = channels[levels - 1 - i], self._maker(heads[levels - 1 - i]) if _UP[name] else None
            taken = [skips.pop() for _ in range(layers + 1)]
            self.up_blocks.append(ClipUpBlock(cin, cout, taken, make, i < levels - 1, resnet, dropout))
            cin = cout

        self.conv_norm_out = GroupNorm(groups, channels[0], config["norm_eps"], activation="silu")
        self.conv_out = Conv2d(channels[0], config["out_channels"], 3, padding=1)

    def _maker(self, head_dim, output_scale=1.0):
        """channels -> (attention in space, attention in time)."""
        config = self.options
        groups, context, act = config["norm_num_groups"], config["cross_attention_dim"], config["activation"]

        def make(channels):
            heads = channels // head_dim
            in_time = TransformerTemporalModel(channels, heads, head_dim, groups, act)
            if context is None:
                return Attention(channels, head_dim, groups, config["norm_eps"], output_scale), in_time
            linear = config["use_linear_projection"]
            return Transformer2DModel(channels, heads, head_dim, 1, context, groups, linear, activation=act), in_time

        return make

    def forward(self, x, t, **condition):
        """x: clips (N, F, H, W, in_channels) or images (N, H, W, in_channels), array or Tensor; t: step numbers (N,) or
        one for all; condition: see `encoded`. Returns a Tensor of x's shape with out_channels.
        """
        x = self.checked(x)
        return self.body(x, **self.encoded(x.data, t, **condition))

    def checked(self, x):
        """The samples as a Tensor, after checking their shape."""
        x, c = as_tensor(x), self.options["in_channels"]
        if x.ndim not in (4, 5) or x.shape[-1] != c or 0 in x.shape[1:]:
            raise ValueError(f"this U-Net takes clips (N, F, H, W, {c}) or images (N, H, W, {c}), got {x.shape}")
        return x

    def encoded(
        self, like, t, *, encoder_hidden_states=None, encoder_attention_mask=None, class_labels=None, timestep_cond=None
    ):
        """The inputs of the body: Tensors by name for samples `like` (N, ..), in their dtype.

        encoder_hidden_states: (N, T, cross_attention_dim), the context, the same for all frames.
        encoder_attention_mask: (N, T), 0 for states to be ignored. class_labels: (N,). timestep_cond: (N,
        time_cond_proj_dim).
        """
        n, xp, width = len(like), array_module(like), self.options["cross_attention_dim"]
        order = sinusoids(for_each(t, n, "step numbers"), self.options["block_out_channels"][0])
        made = {"step": Tensor(xp.asarray(order.astype(like.dtype)))}
        if (encoder_hidden_states is None) != (width is None):
            told = "no encoder_hidden_states" if width is None else "encoder_hidden_states, a text encoder's say"
            raise ValueError(f"this model takes {told}, and was given {'some' if width is None else 'none'}")
        if width is not None:
            made["context"] = _vectors("encoder_hidden_states", encoder_hidden_states, like, (n, None, width))
        seen = None
        if encoder_attention_mask is not None and width is not None:
            seen = mask = np.asarray(to_host(encoder_attention_mask)) != 0
            if mask.shape != made["context"].shape[:2]:
                raise ValueError(f"encoder_attention_mask must be {made['context'].shape[:2]}, got {mask.shape}")
            made["mask"] = Tensor(xp.asarray(mask))
        if self.context_embedding is not None:
            made["pooled"] = _mean(made["context"], seen)
        if like.ndim == 5 and self.frame_embedding is not None:
            places = sinusoids(np.arange(like.shape[1]), self.options["block_out_channels"][0])
            made["places"] = Tensor(xp.asarray(places.astype(like.dtype)))
        if self.position_embedding is not None:
            for name, count in zip(("right", "down", "along"), like.shape[-2:0:-1], strict=False):
                made[name] = Tensor(xp.asarray(half_waves(count).astype(like.dtype)))
        check_told(self.class_embedding is not None, class_labels)
        if class_labels is not None:
            made["label"] = self.class_embedding(for_each(to_host(class_labels), n, "class labels"))
        if timestep_cond is not None:
            if self.options["time_cond_proj_dim"] is None:
                raise ValueError("this model takes no timestep_cond")
            made["timestep_cond"] = _vectors(
                "timestep_cond", timestep_cond, like, (n, self.options["time_cond_proj_dim"])
            )
        return made

    def body(
        self, x, step, context=None, mask=None, label=None, timestep_cond=None, places=None, pooled=None,
        right=None, down=None, along=None,
    ):  # fmt: skip
        """Everything between what is encoded and the result. Only operations on Tensors: graph.py records them."""
        temb = self.time_embedding(step, timestep_cond)
        temb = temb if label is None else temb + label
        temb = temb if pooled is None else temb + self.context_embedding(pooled)
        frames, shape = None, x.shape
        if x.ndim == 5:
            frames = shape[1]
            x = x.reshape((shape[0] * frames, *shape[2:]))
            if places is not None:  # (N, 1, D) + (F, D)
                temb = temb.reshape((len(temb), 1, temb.shape[1])) + self.frame_embedding(places)
                temb = temb.reshape((len(x), temb.shape[2]))
            else:
                temb = each_frame(temb, frames)
            context, mask = (each_frame(a, frames) for a in (context, mask))
        temb = ops.silu(temb)
        temb = temb if pooled is None else ops.silu(self.mixing(temb))
        h = self.conv_in(x)
        if right is not None:
            h = (h.reshape((shape[0], *shape[1:-1], h.shape[-1])) + self.position(right, down, along)).reshape(h.shape)
        h = h if frames is None or self.transformer_in is None else self.transformer_in(h, frames)
        skips = [h]
        for block in self.down_blocks:
            h, seen = block(h, temb, context, mask, frames)
            skips += seen
        h = self.mid_block(h, temb, context, mask, frames)
        for block in self.up_blocks:
            h = block(h, skips, temb, context, mask, frames)
        h = self.conv_out(self.conv_norm_out(h))
        return h if frames is None else h.reshape((*shape[:-1], h.shape[-1]))

    def position(self, right, down, along=None):
        """The embedding of every pixel's position, ([F,] H, W, C), added after conv_in; from the half waves (count, 2
        WAVES) of each axis.
        """
        in_time, below, beside = self.position_embedding
        below, beside = below(down), beside(right)
        where = below.reshape((len(below), 1, below.shape[1])) + beside
        if along is None:
            return where
        in_time = in_time(along)
        return in_time.reshape((len(in_time), 1, 1, in_time.shape[1])) + where

    def recompute_blocks(self, on=True):
        """Sets whether blocks and attention store nothing for backward and recompute it there. Returns self."""
        for _, module in self.named_modules():
            if isinstance(module, ResnetBlock | MultiHeadAttention):
                module.recompute = on
        return self


DIFFUSERS = {  # what UNet3DConditionModel cannot choose
    "num_class_embeds": None, "use_linear_projection": True, "transformer_in": True, "activation": "geglu",
    "temporal_dropout": 0.1, "frame_positions": False, "pooled_context": False,
    "resnet_time_scale_shift": "default", "pixel_positions": False,
}  # fmt: skip


@register("UNet3DConditionModel")
class UNet3D(ClipUNet):
    """diffusers' UNet3DConditionModel, with its options and defaults: always with a context, attention in time after
    conv_in, and geglu.
    """

    def __init__(
        self,
        *,
        sample_size=None,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        downsample_padding=1,
        mid_block_scale_factor=1,
        act_fn="silu",
        norm_num_groups=32,
        norm_eps=1e-5,
        cross_attention_dim=1024,
        attention_head_dim=64,
        num_attention_heads=None,
        time_cond_proj_dim=None,
        seed=0,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "seed", "__class__")}
        self.config = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
        if act_fn not in ("silu", "swish") or num_attention_heads is not None:
            raise ValueError("act_fn must be silu and num_attention_heads None; nothing else is built")
        if not isinstance(cross_attention_dim, int) or not isinstance(attention_head_dim, int):
            raise ValueError("cross_attention_dim and attention_head_dim must be one whole number each")
        same = {k: v for k, v in self.config.items() if k not in ("act_fn", "num_attention_heads")}
        self._build(same | DIFFUSERS)
        self.initialize(seed)


def each_frame(a, frames):
    """(N, ...) -> (N F, ...): every row once for each frame. None stays None."""
    if a is None:
        return None
    rest = a.shape[1:]
    wide = ops.broadcast_to(a.reshape((len(a), 1, *rest)), (len(a), frames, *rest))
    return wide.reshape((len(a) * frames, *rest))


OF_TIME = ("temp_", "transformer_in", "frame_embedding")  # in names of parameters that no image network has


def widened(image_model, temporal_dropout=0.0, seed=0) -> ClipUNet:
    """The clip network with the weights of an image network, a UNet2D or UNet2DCondition; initially, its output for
    each frame is the image network's. seed: of the temporal layers' inner weights.

    Raises ValueError for an image network with options that ClipUNet does not have.
    """
    theirs = image_model.config
    if not isinstance(image_model, UNet2D | UNet2DCondition):
        raise ValueError(f"a {type(image_model).__name__} cannot be widened to clips; use a UNet2D or UNet2DCondition")
    more = {"temporal_dropout": temporal_dropout, "frame_positions": True, "seed": seed}
    model = ClipUNet(**_widened_config(image_model, theirs), **more)
    own, given = dict(model.named_parameters()), dict(image_model.named_parameters())
    strange = sorted(name for name in given if name not in own or own[name].shape != given[name].shape)
    left_out = sorted(name for name in own if name not in given and not any(part in name for part in OF_TIME))
    if strange or left_out:
        raise ValueError(f"this image model cannot be widened to clips: {(strange + left_out)[0]} has no counterpart")
    for name, p in given.items():
        own[name].data = p.data.copy()
    return model


def _widened_config(image_model, theirs):
    """Options of the ClipUNet around this image network."""
    plain = {
        "center_input_sample": False, "time_embedding_type": "positional", "freq_shift": 0, "flip_sin_to_cos": True,
        "resnet_time_scale_shift": "default", "class_embed_type": None, "dropout": 0.0, "add_attention": True,
        "attn_norm_num_groups": None, "time_embedding_dim": None, "only_cross_attention": False,
        "transformer_layers_per_block": 1, "encoder_hid_dim": None, "addition_embed_type": None,
    }  # fmt: skip
    for name, value in plain.items():
        if theirs.get(name, value) != value:
            raise ValueError(f"an image model with {name} = {theirs[name]!r} cannot be widened to clips")
    unknown = [n for n in (*theirs["down_block_types"], *theirs["up_block_types"]) if "Resnet" in n]
    if unknown:
        raise ValueError(f"an image model with {unknown[0]} cannot be widened to clips")
    channels, with_context = theirs["block_out_channels"], isinstance(image_model, UNet2DCondition)
    types = {
        option: [f"{'Cross' * ('Attn' in n and 'Cross' not in n)}{n}".replace("2D", "3D") for n in theirs[option]]
        for option in ("down_block_types", "up_block_types")
    }
    heads = theirs["attention_head_dim"]
    if with_context:  # there it is the number of heads
        counts = heads if isinstance(heads, list) else [heads] * len(channels)
        heads = [c // n for c, n in zip(channels, counts, strict=True)]
        heads = heads[0] if len(set(heads)) == 1 else heads
    same = (
        "sample_size", "in_channels", "out_channels", "layers_per_block", "downsample_padding",
        "mid_block_scale_factor", "norm_num_groups", "norm_eps", "num_class_embeds", "block_out_channels",
    )  # fmt: skip
    more = {"cross_attention_dim": theirs["cross_attention_dim"]} if with_context else {"cross_attention_dim": None}
    more |= {"use_linear_projection": theirs["use_linear_projection"], "activation": "geglu"} if with_context else {}
    return {name: theirs[name] for name in same} | types | more | {"attention_head_dim": heads}


def _mean(context, seen):
    """The mean (N, D) of the states (N, T, D) that are seen, (N, T) bool, None for all; 0 if none is."""
    seen = np.ones(context.shape[:2]) if seen is None else seen
    share = seen / np.maximum(seen.sum(axis=1, keepdims=True), 1)  # (N, T)
    return (context * Tensor(array_module(context.data).asarray(share[..., None], context.dtype))).sum(axis=1)


def _vectors(name, value, like, expected):
    made = value if isinstance(value, Tensor) else Tensor(array_module(like).asarray(value, like.dtype))
    if made.ndim != len(expected) or any(s not in (None, m) for s, m in zip(expected, made.shape, strict=True)):
        told = ", ".join("T" if s is None else str(s) for s in expected)
        raise ValueError(f"{name} must have shape ({told}), got {made.shape}")
    return made


def _heads(config):
    """Channels of a head, one number per level."""
    heads = config["attention_head_dim"]
    return heads if isinstance(heads, list) else [heads] * len(config["block_out_channels"])


def _check(config):
    """One sentence for every configuration this class cannot build."""
    channels = config["block_out_channels"]
    for option, known in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        if any(name not in known for name in config[option]) or len(config[option]) != len(channels) or not channels:
            raise ValueError(
                f"{option} needs {len(channels)} of {', '.join(known)} (as many as block_out_channels), got "
                f"{config[option]}"
            )
    heads = _heads(config)
    if len(heads) != len(channels) or any(not 1 <= h <= c for h, c in zip(heads, channels, strict=True)):
        raise ValueError(
            f"attention_head_dim must be one number, or one a level, from 1 to the level's channels, got {heads}"
        )
    if config["cross_attention_dim"] is not None and not isinstance(config["cross_attention_dim"], int):
        raise ValueError("cross_attention_dim is one number for all levels, or None")
    if config["resnet_time_scale_shift"] not in ("default", "scale_shift"):
        raise ValueError(
            f"resnet_time_scale_shift must be 'default' or 'scale_shift', got {config['resnet_time_scale_shift']!r}"
        )
    if config["pooled_context"] and config["cross_attention_dim"] is None:
        raise ValueError("pooled_context needs a context; give cross_attention_dim")
    if config["layers_per_block"] < 1:
        raise ValueError("a U-Net needs at least one layer per block")

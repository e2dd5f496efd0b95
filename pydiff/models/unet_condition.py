"""The U-Net with a context, such as the states of a text encoder, by cross-attention at its lower levels
(Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.3): Stable Diffusion's.

Structure, option names and parameter names are those of diffusers' UNet2DConditionModel, so checkpoints are
interchangeable. What it shares with UNet2D is in blocks.py, attention to the context in nn/transformer.py.
"""

from typing import Any

import numpy as np

from pydiff import ops
from pydiff.arrays import array_module, to_host
from pydiff.models.blocks import Downsample, ResnetBlock
from pydiff.models.registry import register
from pydiff.models.unet import TimestepEmbedding, check_told, for_each, sinusoids
from pydiff.nn import (
    Conv2d,
    Embedding,
    GroupNorm,
    Linear,
    Module,
    MultiHeadAttention,
    Transformer2DModel,
    once_for_each,
)
from pydiff.tensor import Tensor, as_tensor

# For every block name: whether it attends to the context, and whether a residual block changes the resolution.
_DOWN = {
    "CrossAttnDownBlock2D": (True, False), "DownBlock2D": (False, False), "ResnetDownsampleBlock2D": (False, True),
}  # fmt: skip
_UP = {"CrossAttnUpBlock2D": (True, False), "UpBlock2D": (False, False), "ResnetUpsampleBlock2D": (False, True)}
_MID = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)


class Upsample(Module):
    """Repeats pixels up to a size (H, W), about twice as many, then a 3 x 3 convolution."""

    def __init__(self, channels):
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, size):
        if size == (2 * x.shape[1], 2 * x.shape[2]):
            return self.conv(x, upsample=2)
        return self.conv(ops.upsample_nearest(x)[:, : size[0], : size[1]])


class ContextDownBlock(Module):
    """One level of the descent: residual blocks, each followed by a transformer if there is one, then half the
    resolution. Returns x and the list of skip connections for the ascent.
    """

    def __init__(self, cin, cout, layers, transformer, downsample, padding, resnet: dict[str, Any]):
        self.resnets = [ResnetBlock(cin if i == 0 else cout, cout, **resnet) for i in range(layers)]
        self.attentions = [transformer(cout, i) for i in range(layers)] if transformer else []
        if downsample == "resnet":
            self.downsamplers = [ResnetBlock(cout, cout, **resnet, resample="down")]
        else:
            self.downsamplers = [Downsample(cout, padding)] if downsample else []

    def forward(self, x, temb, context, mask):
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, once_for_each(temb, x))
            x = self.attentions[i](x, context, mask) if self.attentions else x
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x, once_for_each(temb, x))
            skips.append(x)
        return x, skips


class ContextMidBlock(Module):
    """The bottom of the U: a residual block, and a transformer and another residual block if it attends."""

    def __init__(self, channels, transformer, resnet: dict[str, Any]):
        self.resnets = [ResnetBlock(channels, channels, **resnet) for _ in range(2 if transformer else 1)]
        self.attentions = [transformer(channels, 0)] if transformer else []

    def forward(self, x, temb, context, mask):
        x = self.resnets[0](x, once_for_each(temb, x))
        if not self.attentions:
            return x
        x = self.attentions[0](x, context, mask)
        return self.resnets[1](x, once_for_each(temb, x))


class ContextUpBlock(Module):
    """One level of the ascent: each residual block gets the matching skip connection of the descent as further
    channels.
    """

    def __init__(self, cin, cout, skip_channels, transformer, upsample, resnet: dict[str, Any]):
        widths = [(cin if i == 0 else cout) + skip for i, skip in enumerate(skip_channels)]
        self.resnets = [ResnetBlock(width, cout, **resnet) for width in widths]
        self.attentions = [transformer(cout, i) for i in range(len(widths))] if transformer else []
        self.by_resnet = upsample == "resnet"
        if self.by_resnet:
            self.upsamplers = [ResnetBlock(cout, cout, **resnet, resample="up")]
        else:
            self.upsamplers = [Upsample(cout)] if upsample else []

    def forward(self, x, skips, temb, context, mask):
        for i, resnet in enumerate(self.resnets):
            skip = skips.pop()
            rows = max(x, skip, key=len)
            x = ops.concatenate(once_for_each(x, rows), once_for_each(skip, rows))
            x = resnet(x, once_for_each(temb, x))
            x = self.attentions[i](x, context, mask) if self.attentions else x
        for upsampler in self.upsamplers:
            x = upsampler(x, once_for_each(temb, x)) if self.by_resnet else upsampler(x, skips[-1].shape[1:3])
        return x


class ConditionedTimestepEmbedding(TimestepEmbedding):
    """TimestepEmbedding with another vector (N, cond_dim) added to its input, such as a guidance scale's sinusoids."""

    def __init__(self, cin, dim, cond_dim=None):
        super().__init__(cin, dim)
        self.cond_proj: Any = None if cond_dim is None else Linear(cond_dim, cin, bias=False)

    def forward(self, x, condition=None):
        return super().forward(x if condition is None else self.cond_proj(condition, add=x))


@register("UNet2DConditionModel")
class UNet2DCondition(Module):
    """Predicts the process's target from (x_t, t, context): the noise, the clean sample or v.

    Options are those of UNet2DConditionModel, with its defaults (`config` holds them all). The main ones:
    block_out_channels: channels of every level, from the top. down_block_types, up_block_types: one name per level,
    with attention to the context or not. layers_per_block, transformer_layers_per_block, cross_attention_dim (channels
    of the context), attention_head_dim: a number for all levels or one per level; attention_head_dim is the number of
    *heads*, an old mistake that the checkpoints share. class_embed_type: None with num_class_embeds for class numbers,
    "timestep" for numbers, "projection", "simple_projection" and "identity" for vectors. addition_embed_type
    "text_time": Stable Diffusion XL's pooled text and sizes. time_cond_proj_dim: of a vector given beside the step
    number. encoder_hid_dim: of a context that is projected first. seed: of the initial weights. Raises ValueError for
    options that are not supported.
    """

    fixed = ("context",)  # the same in all steps, so its keys and values are computed once, see graph.py
    several = ("encoder_hidden_states", "encoder_attention_mask")  # may have several rows for every x

    def __init__(
        self,
        *,
        sample_size=None,
        in_channels=4,
        out_channels=4,
        center_input_sample=False,
        flip_sin_to_cos=True,
        freq_shift=0,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        only_cross_attention=False,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        downsample_padding=1,
        mid_block_scale_factor=1,
        dropout=0.0,
        act_fn="silu",
        norm_num_groups=32,
        norm_eps=1e-5,
        cross_attention_dim=1280,
        transformer_layers_per_block=1,
        reverse_transformer_layers_per_block=None,
        encoder_hid_dim=None,
        encoder_hid_dim_type=None,
        attention_head_dim=8,
        num_attention_heads=None,
        dual_cross_attention=False,
        use_linear_projection=False,
        class_embed_type=None,
        addition_embed_type=None,
        addition_time_embed_dim=None,
        num_class_embeds=None,
        upcast_attention=False,
        resnet_time_scale_shift="default",
        resnet_skip_time_act=False,
        resnet_out_scale_factor=1.0,
        time_embedding_type="positional",
        time_embedding_dim=None,
        time_embedding_act_fn=None,
        timestep_post_act=None,
        time_cond_proj_dim=None,
        conv_in_kernel=3,
        conv_out_kernel=3,
        projection_class_embeddings_input_dim=None,
        attention_type="default",
        class_embeddings_concat=False,
        mid_block_only_cross_attention=None,
        cross_attention_norm=None,
        addition_embed_type_num_heads=64,
        seed=0,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "seed", "__class__")}
        self.config = {k: _as_json(v) for k, v in config.items()}
        check(self.config)
        channels, levels = list(block_out_channels), len(block_out_channels)
        temb_dim = time_embedding_dim or 4 * channels[0]

        self.conv_in = Conv2d(in_channels, channels[0], conv_in_kernel, padding=(conv_in_kernel - 1) // 2)
        self.time_embedding = ConditionedTimestepEmbedding(channels[0], temb_dim, time_cond_proj_dim)
        self.encoder_hid_proj = None
        if encoder_hid_dim is not None:
            self.encoder_hid_proj = Linear(encoder_hid_dim, cross_attention_dim)
        self.class_embedding: Any = _class_embedding(self.config, channels[0], temb_dim)
        self.add_embedding: Any = None
        if addition_embed_type == "text_time":
            self.add_embedding = TimestepEmbedding(projection_class_embeddings_input_dim, temb_dim)

        resnet: dict[str, Any] = {
            "temb_dim": 2 * temb_dim if class_embeddings_concat else temb_dim,
            "groups": norm_num_groups,
            "eps": norm_eps,
            "dropout": dropout,
            "scale_shift": resnet_time_scale_shift == "scale_shift",
        }
        down, up = self._plan(levels)
        self.down_blocks, skips = [], [channels[0]]  # channels of all skip connections
        for i, (name, level) in enumerate(zip(down_block_types, down, strict=True)):
            attends, by_resnet = _DOWN[name]
            resample = None if i == levels - 1 else "resnet" if by_resnet else "conv"
            scaled = {**resnet, "output_scale": resnet_out_scale_factor} if by_resnet else resnet
            block = ContextDownBlock(
                channels[max(i - 1, 0)], channels[i], level["layers"], self._transformer(level) if attends else None,
                resample, downsample_padding, scaled,
            )  # fmt: skip
            self.down_blocks.append(block)
            skips += [channels[i]] * (level["layers"] + (resample is not None))

        self.mid_block = None
        if mid_block_type is not None:
            attends = mid_block_type == "UNetMidBlock2DCrossAttn"
            transformer = self._transformer({**down[-1], "only_cross": False}) if attends else None
            self.mid_block = ContextMidBlock(
                channels[-1], transformer, {**resnet, "output_scale": mid_block_scale_factor}
            )

        self.up_blocks, cin = [], channels[-1]
        for i, (name, level) in enumerate(zip(up_block_types, up, strict=True)):
            attends, by_resnet = _UP[name]
            resample = None if i == levels - 1 else "resnet" if by_resnet else "conv"
            scaled = {**resnet, "output_scale": resnet_out_scale_factor} if by_resnet else resnet
            cout = channels[levels - 1 - i]
            taken = [skips.pop() for _ in range(level["layers"] + 1)]
            transformer = self._transformer(level) if attends else None
            self.up_blocks.append(ContextUpBlock(cin, cout, taken, transformer, resample, scaled))
            cin = cout

        self.conv_norm_out = GroupNorm(norm_num_groups, channels[0], norm_eps, activation="silu")
        self.conv_out = Conv2d(channels[0], out_channels, conv_out_kernel, padding=(conv_out_kernel - 1) // 2)
        self.initialize(seed)

    def _plan(self, levels):
        """The options that differ between levels, on the way down and on the way up: two lists of dicts."""
        names = {
            "layers": "layers_per_block", "transformers": "transformer_layers_per_block", "heads": "attention_head_dim",
            "context": "cross_attention_dim", "only_cross": "only_cross_attention",
        }  # fmt: skip
        values = {short: _for_levels(self.config[name], levels) for short, name in names.items()}
        down = [{short: value[i] for short, value in values.items()} for i in range(levels)]
        up = [dict(level) for level in reversed(down)]
        if self.config["reverse_transformer_layers_per_block"] is not None:
            for level, layers in zip(up, self.config["reverse_transformer_layers_per_block"], strict=True):
                level["transformers"] = layers
        return down, up

    def _transformer(self, level):
        """A function (channels, number of the layer) -> the transformer after a residual block of this level."""
        config, layers = self.config, level["transformers"]

        def transformer(channels, i):
            return Transformer2DModel(
                channels, level["heads"], channels // level["heads"], layers[i] if isinstance(layers, list) else layers,
                level["context"], config["norm_num_groups"], config["use_linear_projection"],
                only_cross_attention=level["only_cross"],
            )  # fmt: skip

        return transformer

    def forward(self, x, t, **condition):
        """x: (N, H, W, in_channels) array or Tensor; t: step numbers (N,) or one for all; condition: see `encoded`.

        Returns a Tensor (N, H, W, out_channels), or (k N, ..) for k contexts per x, one after the other.
        """
        x = self.checked(x)
        return self.body(x, **self.encoded(x.data, t, **condition))

    def checked(self, x):
        """x as a Tensor. Raises ValueError for samples that this network cannot take."""
        x = as_tensor(x)
        if x.ndim != 4 or x.shape[3] != self.config["in_channels"]:
            raise ValueError(f"the U-Net takes samples (N, H, W, {self.config['in_channels']}), got {x.shape}")
        return x

    def encoded(
        self, like, t, *, encoder_hidden_states=None, encoder_attention_mask=None, class_labels=None,
        timestep_cond=None, text_embeds=None, time_ids=None,
    ):  # fmt: skip
        """The inputs encoded for the body: Tensors by name for samples `like` (N, ..), of the same dtype.

        encoder_hidden_states: (N, T, cross_attention_dim), the context; or (k N, ..), k of them for every x: what does
        not depend on the context is then computed once. encoder_attention_mask: (N or k N, T), 0 for masked positions.
        class_labels: (N,) or vectors (N, D), as class_embed_type requires. timestep_cond: (N, time_cond_proj_dim).
        text_embeds (N, D) and time_ids (N, K): for addition_embed_type "text_time". Arrays, or Tensors if a gradient is
        needed.
        """
        n, config = len(like), self.config

        def vectors(name, value, *shape):
            made = value if isinstance(value, Tensor) else Tensor(array_module(like).asarray(value, like.dtype))
            rows = _times(made, n) * n if name in self.several else n
            fits = made.ndim == len(shape) + 1 and all(
                s in (None, m) for s, m in zip((rows, *shape), made.shape, strict=True)
            )
            if not fits:
                expected = ", ".join("T" if s is None else str(s) for s in (n, *shape))
                raise ValueError(f"{name} must have shape ({expected}), got {made.shape}")
            return made

        made = {"step": self._sinusoids(t, like, config["block_out_channels"][0], "step numbers")}
        if encoder_hidden_states is None:
            raise ValueError("this model needs encoder_hidden_states, the context, such as a text encoder's states")
        width = config["encoder_hid_dim"] or None
        made["context"] = vectors("encoder_hidden_states", encoder_hidden_states, None, width or self._context_width())
        if encoder_attention_mask is not None:
            mask = np.asarray(to_host(encoder_attention_mask)) != 0
            if mask.shape != made["context"].shape[:2]:
                raise ValueError(f"encoder_attention_mask must be {made['context'].shape[:2]}, got {mask.shape}")
            made["mask"] = Tensor(array_module(like).asarray(mask))
        self._encode_class(made, like, class_labels, vectors)
        for name, given, wanted in (
            ("timestep_cond", timestep_cond, config["time_cond_proj_dim"] is not None),
            ("text_embeds", text_embeds, self.add_embedding is not None),
            ("time_ids", time_ids, self.add_embedding is not None),
        ):
            if given is None and wanted and name != "timestep_cond":
                raise ValueError(f"this model needs {name}, and got none")
            if given is not None and not wanted:
                raise ValueError(f"this model takes no {name}")
        if timestep_cond is not None:
            made["timestep_cond"] = vectors("timestep_cond", timestep_cond, config["time_cond_proj_dim"])
        if text_embeds is not None:
            ids = np.asarray(to_host(time_ids), np.float64)
            sines = self._sines(ids.ravel(), config["addition_time_embed_dim"]).reshape(n, -1)
            pooled = vectors(
                "text_embeds", text_embeds, config["projection_class_embeddings_input_dim"] - sines.shape[1]
            )
            made["pooled"], made["sizes"] = pooled, Tensor(array_module(like).asarray(sines.astype(like.dtype)))
        return made

    def _context_width(self):
        widths = self.config["cross_attention_dim"]
        return widths if isinstance(widths, int) else None

    def _encode_class(self, made, like, labels, vectors):
        kind = self.config["class_embed_type"]
        check_told(self.class_embedding is not None or kind == "identity", labels)
        if labels is None:
            return
        if kind is None:
            made["label"] = self.class_embedding(for_each(to_host(labels), len(like), "class labels"))  # pyright: ignore[reportOptionalCall]
        elif kind == "timestep":
            made["label"] = self._sinusoids(to_host(labels), like, self.config["block_out_channels"][0], "class labels")
        else:
            width = self.config["projection_class_embeddings_input_dim"] if kind != "identity" else None
            width = width or self.time_embedding.linear_2.weight.shape[1]
            made["label"] = vectors("class_labels", labels, width)

    def body(self, x, step, context, mask=None, label=None, timestep_cond=None, pooled=None, sizes=None):
        """Everything between the encoded inputs and the result. Only operations on Tensors: graph.py records them."""
        config = self.config
        temb = self.time_embedding(step, timestep_cond)
        if label is not None:
            label = label if config["class_embed_type"] in (None, "identity") else self.class_embedding(label)
            temb = ops.concatenate(temb, label) if config["class_embeddings_concat"] else temb + label
        if pooled is not None:
            temb = temb + self.add_embedding(ops.concatenate(pooled, sizes))
        temb = ops.silu(temb)  # once for all blocks
        if self.encoder_hid_proj is not None:
            context = self.encoder_hid_proj(context)
        h = self.conv_in(2 * x - 1 if config["center_input_sample"] else x)
        skips = [h]
        for block in self.down_blocks:
            h, seen = block(h, temb, context, mask)
            skips += seen
        h = self.mid_block(h, temb, context, mask) if self.mid_block else h
        for block in self.up_blocks:
            h = block(h, skips, temb, context, mask)
        return self.conv_out(self.conv_norm_out(once_for_each(h, context)))

    def recompute_blocks(self, on=True):
        """Whether residual blocks and attention are recomputed in backward instead of keeping values. Returns self."""
        for _, module in self.named_modules():
            if isinstance(module, ResnetBlock | MultiHeadAttention):
                module.recompute = on
        return self

    def _sines(self, values, dim):
        return sinusoids(values, dim, self.config["flip_sin_to_cos"], self.config["freq_shift"])

    def _sinusoids(self, values, like, dim, name):
        encoded = self._sines(for_each(values, len(like), name), dim)
        return Tensor(array_module(like).asarray(encoded.astype(like.dtype)))


def _times(contexts, n):
    """The number of contexts for each of n samples, at least 1."""
    return max(1, len(contexts) // max(1, n)) if contexts.ndim else 1


def _class_embedding(config, sinusoid_dim, temb_dim):
    kind, width = config["class_embed_type"], config["projection_class_embeddings_input_dim"]
    if kind is None:
        return None if config["num_class_embeds"] is None else Embedding(config["num_class_embeds"], temb_dim)
    if kind == "identity":
        return None
    if kind == "simple_projection":
        return Linear(width, temb_dim)
    return TimestepEmbedding(sinusoid_dim if kind == "timestep" else width, temb_dim)


def _as_json(value):
    """Tuples as JSON reads them back: as lists, also nested ones."""
    return [_as_json(v) for v in value] if isinstance(value, list | tuple) else value


def _for_levels(value, levels):
    """One value per level, from a list or from one value for all."""
    return value if isinstance(value, list) else [value] * levels


def check(config: dict) -> None:
    """Raises ValueError for configurations that this class does not support."""
    levels = len(config["block_out_channels"])
    for option, known in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        if any(name not in known for name in config[option]) or len(config[option]) != levels or not levels:
            raise ValueError(
                f"{option} needs {levels} of {', '.join(known)} (as many as block_out_channels), got {config[option]}"
            )
    for option in (
        "layers_per_block", "transformer_layers_per_block", "reverse_transformer_layers_per_block",
        "attention_head_dim", "cross_attention_dim", "only_cross_attention",
    ):  # fmt: skip
        if isinstance(config[option], list) and len(config[option]) != levels:
            raise ValueError(f"{option} needs one value a level, {levels} of them, got {config[option]}")
    allowed = {
        "mid_block_type": _MID,
        "act_fn": ("silu", "swish"),
        "encoder_hid_dim_type": (None, "text_proj"),
        "num_attention_heads": (None,),
        "dual_cross_attention": (False,),
        "class_embed_type": (None, "timestep", "identity", "projection", "simple_projection"),
        "addition_embed_type": (None, "text_time"),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "resnet_skip_time_act": (False,),
        "time_embedding_type": ("positional",),
        "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,),
        "attention_type": ("default",),
        "cross_attention_norm": (None,),
    }
    for option, values in allowed.items():
        if config[option] not in values:
            raise ValueError(f"{option} must be one of {', '.join(map(repr, values))}, got {config[option]!r}")
    needs_width = config["class_embed_type"] in ("projection", "simple_projection") or config["addition_embed_type"]
    if needs_width and config["projection_class_embeddings_input_dim"] is None:
        raise ValueError("this class or addition embedding needs projection_class_embeddings_input_dim")
    if config["encoder_hid_dim_type"] and config["encoder_hid_dim"] is None:
        raise ValueError("encoder_hid_dim_type needs encoder_hid_dim, the channels of what is projected")

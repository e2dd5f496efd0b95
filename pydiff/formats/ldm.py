"""Stable Diffusion in one file, in the names of the CompVis and Stability code, and diffusers' names for the same.

model.diffusion_model.      the U-Net                  cond_stage_model.transformer.   CLIP-L, of versions 1
first_stage_model.          the autoencoder            cond_stage_model.model.         OpenCLIP-H, of versions 2
model_ema.                  the U-Net's averaged weights, their names without dots

Such a file has no configuration, so sizes are read from the shapes. What shapes do not show, heads and groups, is taken
from the published models; a file of other sizes is refused unless a folder's configuration is given.
"""

from collections.abc import Mapping
from typing import NamedTuple

from pydiff.formats.safetensors import CheckpointError, Weight

UNET, VAE, EMA = "model.diffusion_model.", "first_stage_model.", "model_ema."
CLIP, OPENCLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
HEADS, HEAD_DIM, GROUPS = 8, 64, 32  # version 1 has 8 heads everywhere, version 2 and CLIP heads of 64
CONTEXT = {1: 768, 2: 1024}  # channels of the context, which tell the versions apart
FEW = 100  # more averaged weights than that are a whole U-Net

_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "time_embed.cond_proj": "time_embedding.cond_proj", "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out",
    "out.2": "conv_out",
}  # fmt: skip
_VAE_RESNET = {"nin_shortcut": "conv_shortcut"}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OPENCLIP = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip

Weights = Mapping[str, Weight]


class Found(NamedTuple):
    """version: 1 or 2, from the text encoder. unet, vae, text: (configuration, {name: Weight}), with diffusers' and
    transformers' names. betas: those the model was trained with if the file has them, else None.
    """

    version: int
    unet: tuple[dict, dict[str, Weight]]
    vae: tuple[dict, dict[str, Weight]]
    text: tuple[dict, dict[str, Weight]]
    betas: Weight | None


OTHERS = {  # a name in files of other families -> what they are
    "conditioner.embedders.1.": "Stable Diffusion XL",
    "conditioner.embedders.0.model.": "Stable Diffusion XL",
    "text_encoders.": "a newer family than Stable Diffusion 2",
    "control_model.": "a ControlNet",
    "lora_": "a LoRA, which changes another model",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.": "Flux",
    "double_blocks.": "Flux",
    "model.diffusion_model.label_emb.": "a model that is told more than words (XL or unCLIP)",
    "down_blocks.": "a network without the rest",
    "encoder.down.": "an autoencoder without the rest",
}


def recognised(weights: Weights, source: object, averaged: bool = False, inferred: bool = True) -> Found:
    """The parts of a file with these names. averaged: use the U-Net's averaged weights.

    inferred: whether to derive configurations; if not, they are {}. Raises CheckpointError for other families and for
    missing parts.
    """
    for beginning, kind in OTHERS.items():
        if any(name.startswith(beginning) for name in weights):
            raise CheckpointError(f"{source} is {kind}: pydiff opens Stable Diffusion 1 and 2, use one of these.")
    if any(".lora_" in name or name.endswith(".lora_down.weight") for name in weights):
        raise CheckpointError(f"{source} is a LoRA, which changes another model: pydiff does not apply them.")
    unet = _below(weights, UNET)
    if averaged:
        unet = _averaged(weights, unet, source)
    parts = {"U-Net": unet, "autoencoder": _below(weights, VAE)}
    clip, openclip = _below(weights, CLIP), _below(weights, OPENCLIP)
    parts["text encoder"] = clip or openclip
    missing = [name for name, part in parts.items() if not part]
    if len(missing) == 3:
        raise CheckpointError(
            f"{source} holds {sorted(weights)[:3]!a:.150} .., no names of a Stable Diffusion model: use another."
        )
    if missing:
        raise CheckpointError(
            f"{source} has no {' and no '.join(missing)}: use the whole model, or a folder that has all parts."
        )
    version, text = (1, _clip(clip)) if clip else (2, _openclip(openclip, source))
    try:
        made = _unet(unet, version, source, inferred), _vae(parts["autoencoder"], source, inferred)
        config = _clip_config(text, version, source) if inferred else {}
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"{source} lacks parts of a Stable Diffusion model ({str(error)!a:.80}).") from error
    return Found(version, *made, (config, text), weights.get("betas"))


def _below(weights: Weights, prefix: str) -> dict[str, Weight]:
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def _averaged(weights, unet, source):
    kept = _below(weights, EMA)
    short = {f"diffusion_model{name.replace('.', '')}": name for name in unet}
    if len(kept) <= FEW and not short.keys() <= kept.keys():
        raise CheckpointError(f"{source} has no averaged weights: leave out the variant 'ema'.")
    missing = sorted(short.keys() - kept.keys())
    if missing:
        raise CheckpointError(f"{source} lacks the averaged weight {missing[0]!a:.80}: leave out the variant 'ema'.")
    return {name: kept[key] for key, name in short.items()}


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """Replaces the start of a name by the table, whole words only."""
    for old, new in table.items():
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    return name


# ---- U-Net -----------------------------------------------------------------------------------------------------------


def _unet(weights, version, source, inferred):
    """input_blocks.i to down_blocks.level, and so on; a level is a number of residual blocks and then a change
    of size.
    """
    names, config = dict(_UNET_ENDS), {}
    levels = _levels(weights)
    layers = len(levels[0])
    for level, blocks in enumerate(levels):
        for layer, (i, attends) in enumerate(blocks):
            names[f"input_blocks.{i}.0"] = f"down_blocks.{level}.resnets.{layer}"
            if attends:
                names[f"input_blocks.{i}.1"] = f"down_blocks.{level}.attentions.{layer}"
        if level + 1 < len(levels):
            names[f"input_blocks.{blocks[-1][0] + 1}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    for i, part in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        names[f"middle_block.{i}"] = f"mid_block.{part}"
    for i in range(len(levels) * (layers + 1)):
        level, layer = divmod(i, layers + 1)
        names[f"output_blocks.{i}.0"] = f"up_blocks.{level}.resnets.{layer}"
        for place in (1, 2):
            if f"output_blocks.{i}.{place}.conv.weight" in weights:
                names[f"output_blocks.{i}.{place}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
            elif f"output_blocks.{i}.{place}.norm.weight" in weights:
                names[f"output_blocks.{i}.{place}"] = f"up_blocks.{level}.attentions.{layer}"
    found = {}
    for name, weight in weights.items():
        new = _longest(name, names)
        head, _, rest = new.partition(".resnets.")
        if rest:
            number, _, inner = rest.partition(".")
            new = f"{head}.resnets.{number}.{_renamed(inner, _RESNET)}"
        found[new] = weight
    if inferred:
        config = _unet_config(weights, levels, version, source)
    return config, found


def _longest(name: str, table: Mapping[str, str]) -> str:
    """Replaces the longest start of a name that is in the table, in whole words."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        if (new := table.get(".".join(parts[:count]))) is not None:
            return ".".join([new, *parts[count:]])
    return name


def _levels(weights) -> list[list[tuple[int, bool]]]:
    """For every level, [(number of the input block, whether it has attention), ..]."""
    levels, i = [[]], 1
    while any(f"input_blocks.{i}.{key}" in weights for key in ("0.op.weight", "0.in_layers.0.weight")):
        if f"input_blocks.{i}.0.op.weight" in weights:
            levels.append([])
        else:
            levels[-1].append((i, f"input_blocks.{i}.1.norm.weight" in weights))
        i += 1
    if not all(levels) or len({len(level) for level in levels}) > 1:
        raise ValueError("its levels are not of residual blocks, as many each")
    return levels


def _unet_config(weights, levels, version, source) -> dict:
    channels = [weights[f"input_blocks.{blocks[0][0]}.0.out_layers.3.weight"].shape[0] for blocks in levels]
    attends = [blocks[0][1] for blocks in levels]
    first = f"input_blocks.{next(b[0][0] for b in levels if b[0][1])}.1"
    context = weights[f"{first}.transformer_blocks.0.attn2.to_k.weight"].shape[1]
    cin, cout = weights["input_blocks.0.0.weight"].shape[1], weights["out.2.weight"].shape[0]
    depth = 1
    while f"{first}.transformer_blocks.{depth}.norm1.weight" in weights:
        depth += 1
    by_channel = version == 2
    if any(c % GROUPS or c % (HEAD_DIM if by_channel else HEADS) for c in channels):
        raise unknown_sizes(source, "its U-Net", channels)
    config = {
        "in_channels": cin,
        "out_channels": cout,
        "block_out_channels": channels,
        "layers_per_block": len(levels[0]),
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "cross_attention_dim": context,
        "transformer_layers_per_block": depth,
        "attention_head_dim": [c // HEAD_DIM for c in channels] if by_channel else HEADS,
        "use_linear_projection": len(weights[f"{first}.proj_in.weight"].shape) == 2,
        "norm_num_groups": GROUPS,
    }
    if "time_embed.cond_proj.weight" in weights:
        config["time_cond_proj_dim"] = weights["time_embed.cond_proj.weight"].shape[1]
    return config


def unknown_sizes(source, what, sizes) -> CheckpointError:
    """The error for a model whose shapes alone do not determine its structure."""
    return CheckpointError(
        f"{source}: {what} has the channels {sizes}, those of no published model, so that its heads and groups are not "
        "known: give the folder that has its configuration with config= (--config)."
    )


# ---- autoencoder -----------------------------------------------------------------------------------------------------


def _vae(weights, source, inferred):
    """encoder.down.i.block.j and so on; the decoder's levels are counted from the other end."""
    levels = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.down."))
    found = {}
    for name, weight in weights.items():
        if name.startswith(("loss.", "model_ema.")):
            continue
        found[_vae_name(name, levels)] = weight
    config = {}
    if inferred:
        widths = [weights[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
        if any(c % GROUPS for c in widths):
            raise unknown_sizes(source, "its autoencoder", widths)
        layers = 1 + max(int(n.split(".")[4]) for n in weights if n.startswith("encoder.down.0.block."))
        config = {
            "in_channels": weights["encoder.conv_in.weight"].shape[1],
            "out_channels": weights["decoder.conv_out.weight"].shape[0],
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "block_out_channels": widths,
            "layers_per_block": layers,
            "latent_channels": weights["decoder.conv_in.weight"].shape[1],
            "norm_num_groups": GROUPS,
            "scaling_factor": 0.18215,
        }
    return config, found


def _vae_name(name: str, levels: int) -> str:
    parts = name.split(".")
    if len(parts) < 3:
        return name
    side, place = parts[0], parts[1]
    if place in ("down", "up") and len(parts) > 4:
        level = int(parts[2]) if place == "down" else levels - 1 - int(parts[2])
        start = f"{side}.{place}_blocks.{level}"
        if parts[3] == "block":
            return f"{start}.resnets.{parts[4]}.{_renamed('.'.join(parts[5:]), _VAE_RESNET)}"
        if parts[3] == "attn":
            return f"{start}.attentions.{parts[4]}.{_renamed('.'.join(parts[5:]), _VAE_ATTENTION)}"
        return f"{start}.{place}samplers.0.{'.'.join(parts[4:])}"
    if place == "mid":
        rest = ".".join(parts[3:])
        if parts[2].startswith("attn_"):
            return f"{side}.mid_block.attentions.{int(parts[2][5:]) - 1}.{_renamed(rest, _VAE_ATTENTION)}"
        return f"{side}.mid_block.resnets.{int(parts[2][6:]) - 1}.{_renamed(rest, _VAE_RESNET)}"
    return ".".join([side, "conv_norm_out" if place == "norm_out" else place, *parts[2:]])


# ---- text encoder ----------------------------------------------------------------------------------------------------


def _clip(weights):
    return dict(weights)


def _openclip(weights, source):
    """OpenCLIP's names to transformers'. The last layer is omitted: Stable Diffusion 2 was trained with the states of
    the one before.
    """
    places = [int(name.split(".")[2]) for name in weights if name.startswith("transformer.resblocks.")]
    if not places or "positional_embedding" not in weights or "token_embedding.weight" not in weights:
        raise CheckpointError(f"{source} has a text encoder that is neither CLIP's nor OpenCLIP's: use another.")
    last, found = max(places), {}
    ends = {"positional_embedding": "embeddings.position_embedding.weight"}
    ends |= {"token_embedding.weight": "embeddings.token_embedding.weight"}
    ends |= {f"ln_final.{kind}": f"final_layer_norm.{kind}" for kind in ("weight", "bias")}
    for name, weight in weights.items():
        if name in ends:
            found[ends[name]] = weight
        elif name.startswith("transformer.resblocks."):
            _, _, layer, rest = name.split(".", 3)
            start = f"encoder.layers.{layer}"
            if int(layer) == last:
                continue
            if rest.startswith("attn.in_proj_"):
                for i, kind in enumerate("qkv"):
                    found[f"{start}.self_attn.{kind}_proj.{rest.removeprefix('attn.in_proj_')}"] = _third(weight, i)
            else:
                found[f"{start}.{_renamed(rest, _OPENCLIP)}"] = weight
    return found


def _third(weight: Weight, i: int) -> Weight:
    """The i-th third of a weight's rows."""
    rows = weight.shape[0] // 3
    third = slice(i * rows, (i + 1) * rows)
    return weight._replace(shape=(rows, *weight.shape[1:]), read=lambda: weight.read()[third], part=None)


def _clip_config(weights, version, source) -> dict:
    bare = {name.removeprefix("text_model."): weight for name, weight in weights.items()}
    vocabulary, width = bare["embeddings.token_embedding.weight"].shape
    if width % HEAD_DIM:
        raise unknown_sizes(source, "its text encoder", [width])
    layers = 1 + max(int(name.split(".")[2]) for name in bare if name.startswith("encoder.layers."))
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": bare["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD_DIM,
        "max_position_embeddings": bare["embeddings.position_embedding.weight"].shape[0],
        "hidden_act": "quick_gelu" if version == 1 else "gelu",
        "eos_token_id": 49407,
    }

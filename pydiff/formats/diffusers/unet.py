"""A UNet2DModel from its config.json and weights, of any version of diffusers, checked before anything is built.

Sizes in the configuration are compared with the shapes in the file first: a configuration alone could ask for any
amount of memory and time. What the network is made of then follows from names and shapes that are really there.
"""

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pydiff.formats.safetensors import CheckpointError, Made, Weight
from pydiff.formats.schema import NULL, TEXT, TRUTH, checked, either, listed, number, one_of, whole
from pydiff.models import MODELS, build
from pydiff.nn import Module

CLASS = "UNet2DModel"
OLD_CLASSES = ("UNetUnconditionalModel", "UNetModel", "UNet2D")  # what it was called in diffusers 0.0 and 0.1
OLD_OPTIONS = {  # how its options were called then
    "image_size": "sample_size",
    "num_res_blocks": "layers_per_block",
    "block_channels": "block_out_channels",
    "down_blocks": "down_block_types",
    "up_blocks": "up_block_types",
    "downscale_freq_shift": "freq_shift",
    "resnet_num_groups": "norm_num_groups",
    "resnet_act_fn": "act_fn",
    "resnet_eps": "norm_eps",
    "num_head_channels": "attention_head_dim",
}
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # inside an attention
OLD_BEGINNINGS = {"downsample_blocks": "down_blocks", "upsample_blocks": "up_blocks", "mid": "mid_block"}
NOT_BUILT = ("FirDown", "FirUp", "SkipDown", "AttnSkipDown", "SkipUp", "AttnSkipUp", "KDown", "KUp", "KCross")

_SIZE = whole(1, 65536)
_BLOCKS = listed(TEXT, 1, 16)
RULES = {
    "sample_size": either(NULL, _SIZE, listed(_SIZE, 2, 2)),
    "in_channels": _SIZE,
    "out_channels": _SIZE,
    "center_input_sample": TRUTH,
    "time_embedding_type": one_of("positional", "learned", "fourier"),
    "time_embedding_dim": either(NULL, _SIZE),
    "freq_shift": number(0, 64),
    "flip_sin_to_cos": TRUTH,
    "down_block_types": _BLOCKS,
    "mid_block_type": one_of("UNetMidBlock2D", None),
    "up_block_types": _BLOCKS,
    "block_out_channels": listed(_SIZE, 1, 16),
    "layers_per_block": whole(1, 256),
    "mid_block_scale_factor": number(1e-6, 1e6),
    "downsample_padding": whole(0, 1),
    "downsample_type": one_of("conv", "resnet"),
    "upsample_type": one_of("conv", "resnet"),
    "dropout": number(0, 0.999),
    "act_fn": one_of("silu", "swish", "mish", "gelu", "relu"),
    "attention_head_dim": either(NULL, _SIZE),
    "norm_num_groups": _SIZE,
    "attn_norm_num_groups": either(NULL, _SIZE),
    "norm_eps": number(0, 1),
    "resnet_time_scale_shift": one_of("default", "scale_shift"),
    "add_attention": TRUTH,
    "class_embed_type": one_of(None, "timestep", "identity"),
    "num_class_embeds": either(NULL, whole(1, 10_000_000)),
    "num_train_timesteps": either(NULL, whole(1, 10_000_000)),
}


class Checked(NamedTuple):
    """config: the options of the class, all of them allowed. notes: sentences on what was passed over."""

    class_name: str
    config: dict
    notes: list[str]


def read_config(config: Mapping, source: Path, known_class: str | None = None) -> Checked:
    """The options in a config.json. known_class: what the model_index.json says, for a config.json that does not.

    CheckpointError, in one sentence, for another class, for options of which pydiff has nothing, and for values out of
    range. Classes that were registered are taken with their options as they are.
    """
    found = config.get("_class_name", known_class)
    notes = []
    if found is None:
        notes.append(f"{source} does not say of which class it is and is read as {CLASS}'s")
        found = CLASS
    if found in OLD_CLASSES:
        config = {OLD_OPTIONS.get(name, name): value for name, value in config.items()}
        found = CLASS
    if not isinstance(found, str) or found not in MODELS:
        raise CheckpointError(f"{source} is for the class {found!a:.60}, expected {' or '.join(MODELS)}: use another.")
    if found != CLASS:
        return Checked(found, {key: value for key, value in config.items() if not key.startswith("_")}, notes)
    config = dict(config)
    for option in ("down_block_types", "up_block_types"):
        if _BLOCKS.allows(config.get(option)):
            config[option] = [name.removeprefix("UNetRes") for name in config[option]]
            unbuilt = next((name for name in config[option] if name.startswith(NOT_BUILT)), None)
            if unbuilt is not None:
                raise CheckpointError(
                    f"{source} asks for {unbuilt[:60]}, a block that pydiff does not have: use another."
                )
    config, unknown = checked(config, RULES, source)
    if unknown:
        notes.append(
            f"{source} has options that {CLASS} does not know, and they are ignored: {', '.join(unknown):.200}"
        )
    return Checked(CLASS, config, notes)


def read_model(checked_config: Checked, weights: Mapping[str, Weight], source: Path) -> Module:
    """The network with these weights. One array of the file is held at a time, besides the network.

    CheckpointError, in one sentence, where configuration and weights do not go together.
    """
    class_name, config, _ = checked_config
    try:
        if class_name == CLASS:
            weights = renamed(weights)
            _compare(MODELS[CLASS], config, weights, source)
        model = build(class_name, config)
        _fill(model, weights)
    except (ValueError, TypeError, MemoryError, OverflowError, AttributeError) as error:
        raise CheckpointError(f"{source}: {str(error) or type(error).__name__}: use another.") from error
    return model


def renamed(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """With the names that diffusers has given parameters since 2023."""
    return {_renamed(name): weight for name, weight in weights.items()}


def _renamed(name: str) -> str:
    parts = name.split(".")
    parts[0] = OLD_BEGINNINGS.get(parts[0], parts[0])
    if len(parts) > 3 and "attentions" in parts:
        parts[-2] = OLD_NAMES.get(parts[-2], parts[-2])
    return ".".join(parts)


def _compare(cls, config, weights, source):
    """Every size in the configuration against a shape in the file, so that nothing larger than the file is built."""
    full = {n: p.default for n, p in inspect.signature(cls).parameters.items()} | config
    channels, layers = full["block_out_channels"], int(full["layers_per_block"])
    temb = full["time_embedding_dim"] or 4 * channels[0]
    expected = {
        "conv_in.weight": (channels[0], full["in_channels"], 3, 3),
        "conv_out.weight": (full["out_channels"], channels[0], 3, 3),
        "time_embedding.linear_2.weight": (temb, temb),
    }
    if full["time_embedding_type"] == "learned":
        expected["time_proj.weight"] = (full["num_train_timesteps"], channels[0])
    if full["class_embed_type"] is None and full["num_class_embeds"] is not None:
        expected["class_embedding.weight"] = (full["num_class_embeds"], temb)
    for level, width in enumerate(channels):
        for layer in range(layers):
            expected[f"down_blocks.{level}.resnets.{layer}.conv2.weight"] = (width, width, 3, 3)
    for name, shape in expected.items():
        if name not in weights:
            raise CheckpointError(f"{source} describes another network than the weights beside it: {name} is missing.")
        if tuple(weights[name].shape) != tuple(shape):
            found = weights[name].shape
            raise CheckpointError(
                f"{source} describes another network than the weights beside it: {name} has shape {found}, not {shape}."
            )


def _fill(model: Module, weights: Mapping[str, Weight]):
    """Reads every array into its parameter; names and shapes are compared before the first is read."""
    parameters = dict(model.named_parameters())
    missing, extra = sorted(parameters.keys() - weights.keys()), sorted(weights.keys() - parameters.keys())
    if missing or extra:
        raise ValueError(
            f"the weights do not fit this model: missing {missing[:3] or 'none'}, unknown {extra[:3] or 'none'}"
        )
    for name, p in parameters.items():
        expected = tuple(p.shape[i] for i in p.file_axes)
        if tuple(weights[name].shape) != expected:
            raise ValueError(f"{name} must have shape {expected}, got {tuple(weights[name].shape)}")
    for name, p in parameters.items():
        array = weights[name].read()
        if array.dtype.kind != "f":
            raise ValueError(f"{name} is {array.dtype}, expected floating numbers")
        p.data[...] = array.transpose(tuple(np.argsort(p.file_axes)))


def ways_to_write(model: Module) -> dict:
    """The parameters as checkpoint.save_model takes them: made one by one, in the layout of the file."""

    def made(p):
        shape = tuple(p.shape[i] for i in p.file_axes)
        return Made(shape, lambda: p.numpy().transpose(p.file_axes), p.dtype)

    return {name: made(p) for name, p in model.named_parameters()}


def places(model: Module) -> dict[str, list]:
    """{name: [first, shape, file_axes]}: where in the optimiser's flat arrays each parameter is. JSON."""
    found, end = {}, 0
    for p in model.parameters():
        found[id(p)], end = [end, list(p.shape), list(p.file_axes)], end + p.size
    return {name: found[id(p)] for name, p in model.named_parameters()}


def placed(described: object, flat: np.ndarray, source: Path) -> dict[str, Weight]:
    """The weights in such a flat array (P,) by name, as a file has them. CheckpointError where it has others."""
    weights = {}
    for name, place in described.items() if isinstance(described, dict) else ():
        try:
            first, shape, axes = place
            part = flat[first : first + math.prod(shape)].reshape(shape).transpose(axes)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{source} describes another network than the checkpoints beside it.") from error
        weights[name] = Weight(part.shape, lambda part=part: part)
    if not weights or sum({place[0]: math.prod(place[1]) for place in described.values()}.values()) != flat.size:
        raise CheckpointError(f"{source} describes another network than the checkpoints beside it.")
    return weights

"""A UNet2DModel from its config.json and weights, of any version of diffusers, checked before anything is built.

Sizes in the configuration are compared with the shapes in the file first: a configuration alone could demand any amount
of memory and time. The network's structure then follows from names and shapes that the file really contains.
"""

from collections.abc import Mapping
from pathlib import Path

from pydiff.formats.diffusers import own_networks, unet_condition
from pydiff.formats.diffusers.parameters import Checked, attention_renamed, fill, misfits, with_defaults
from pydiff.formats.safetensors import CheckpointError, Weight
from pydiff.formats.schema import NULL, TEXT, TRUTH, checked, either, listed, number, one_of, whole
from pydiff.models import MODELS, build
from pydiff.models.registry import PARTS
from pydiff.nn import Module, room_for

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


def read_config(config: Mapping, source: Path, known_class: str | None = None) -> Checked:
    """The options in a config.json. known_class: what the model_index.json says, for a config.json that does not.

    Raises CheckpointError for another class, for options that pydiff does not have, and for values out of range. The
    options of classes that somebody else registered are not checked.
    """
    found = config.get("_class_name", known_class)
    notes = []
    if found is None:
        notes.append(f"{source} does not say of which class it is and is read as {CLASS}'s")
        found = CLASS
    if found in OLD_CLASSES:
        config = {OLD_OPTIONS.get(name, name): value for name, value in config.items()}
        found = CLASS
    networks = [name for name in MODELS if name not in PARTS]
    if not isinstance(found, str) or found not in networks:
        raise CheckpointError(
            f"{source} is for the class {found!a:.60}, expected {' or '.join(networks)}: use another."
        )
    if found == unet_condition.CLASS:
        return unet_condition.read_config(config, source)
    if found != CLASS:
        return Checked(found, own_networks.read_config(config, found, source), notes)
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
    """The network with these weights. Besides the network, only one array of the file is in memory at a time.

    Raises CheckpointError if configuration and weights do not match.
    """
    weights = compared(checked_config, weights, source)
    with misfits(source):
        model = build(checked_config.class_name, checked_config.config, room_for(weights))
        fill(model, weights)
    return model


def compared(checked_config: Checked, weights: Mapping[str, Weight], source: object) -> Mapping[str, Weight]:
    """The weights, under the names of today, of a network that has these sizes. Reads and builds nothing.

    Raises CheckpointError if they are of another network.
    """
    if checked_config.class_name == unet_condition.CLASS:
        return unet_condition.compared(checked_config, weights, source)
    if checked_config.class_name != CLASS:
        return weights
    weights = renamed(weights)
    with misfits(source):
        _compare(with_defaults(MODELS[CLASS], checked_config.config), weights, source)
    return weights


def renamed(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """The weights under the parameter names that diffusers has used since 2023."""
    return {_renamed(name): weight for name, weight in weights.items()}


def _renamed(name: str) -> str:
    parts = name.split(".")
    parts[0] = OLD_BEGINNINGS.get(parts[0], parts[0])
    return attention_renamed(".".join(parts))


def _compare(full, weights, source):
    """Checks every size in the configuration against a shape in the file, so that nothing larger than the file is
    built.
    """
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

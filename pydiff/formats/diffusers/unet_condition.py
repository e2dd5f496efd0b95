"""A UNet2DConditionModel from its config.json and weights, checked before anything is built, as in unet.py."""

from collections.abc import Mapping

from pydiff.formats.diffusers.parameters import (
    Checked,
    attention_renamed,
    fill,
    misfits,
    reshaped,
    with_defaults,
)
from pydiff.formats.safetensors import CheckpointError, Weight
from pydiff.formats.schema import ANYTHING, NULL, TEXT, TRUTH, checked, either, listed, number, one_of, whole
from pydiff.models import MODELS, build
from pydiff.models.unet_condition import check
from pydiff.nn import Module, room_for

CLASS = "UNet2DConditionModel"

_SIZE, _BLOCKS = whole(1, 65536), listed(TEXT, 1, 16)
_LAYERS, _SOME = whole(1, 256), either(NULL, _SIZE)
_FLAGS = either(TRUTH, listed(TRUTH, 1, 16))
RULES = {
    "sample_size": either(NULL, _SIZE, listed(_SIZE, 2, 2)),
    "in_channels": _SIZE,
    "out_channels": _SIZE,
    "center_input_sample": TRUTH,
    "flip_sin_to_cos": TRUTH,
    "freq_shift": number(0, 64),
    "down_block_types": _BLOCKS,
    "mid_block_type": either(NULL, TEXT),
    "up_block_types": _BLOCKS,
    "only_cross_attention": _FLAGS,
    "block_out_channels": listed(_SIZE, 1, 16),
    "layers_per_block": either(_LAYERS, listed(_LAYERS, 1, 16)),
    "downsample_padding": whole(0, 1),
    "mid_block_scale_factor": number(1e-6, 1e6),
    "dropout": number(0, 0.999),
    "act_fn": TEXT,
    "norm_num_groups": _SIZE,
    "norm_eps": number(0, 1),
    "cross_attention_dim": either(_SIZE, listed(_SIZE, 1, 16)),
    "transformer_layers_per_block": either(_LAYERS, listed(either(_LAYERS, listed(_LAYERS, 1, 256)), 1, 16)),
    "reverse_transformer_layers_per_block": either(NULL, listed(either(_LAYERS, listed(_LAYERS, 1, 256)), 1, 16)),
    "encoder_hid_dim": _SOME,
    "encoder_hid_dim_type": either(NULL, TEXT),
    "attention_head_dim": either(_SIZE, listed(_SIZE, 1, 16)),
    "num_attention_heads": either(NULL, _SIZE, listed(_SIZE, 1, 16)),
    "dual_cross_attention": TRUTH,
    "use_linear_projection": TRUTH,
    "class_embed_type": either(NULL, TEXT),
    "addition_embed_type": either(NULL, TEXT),
    "addition_time_embed_dim": _SOME,
    "num_class_embeds": either(NULL, whole(1, 10_000_000)),
    "upcast_attention": either(NULL, TRUTH),
    "resnet_time_scale_shift": TEXT,
    "resnet_skip_time_act": TRUTH,
    "resnet_out_scale_factor": number(1e-6, 1e6),
    "time_embedding_type": TEXT,
    "time_embedding_dim": _SOME,
    "time_embedding_act_fn": either(NULL, TEXT),
    "timestep_post_act": either(NULL, TEXT),
    "time_cond_proj_dim": _SOME,
    "conv_in_kernel": whole(1, 15),
    "conv_out_kernel": whole(1, 15),
    "projection_class_embeddings_input_dim": _SOME,
    "attention_type": one_of("default"),
    "class_embeddings_concat": TRUTH,
    "mid_block_only_cross_attention": either(NULL, TRUTH),
    "cross_attention_norm": either(NULL, TEXT),
    "addition_embed_type_num_heads": ANYTHING,
}


def read_config(config: Mapping, source: object) -> Checked:
    """The options in a config.json. Raises CheckpointError for impossible values."""
    known, unknown = checked(config, RULES, source)
    known = {name: value for name, value in known.items() if value is not None or name == "mid_block_type"}
    notes = []
    if unknown:
        notes.append(
            f"{source} has options that {CLASS} does not know, and they are ignored: {', '.join(unknown):.200}"
        )
    return Checked(CLASS, known, notes)


def read_model(
    checked_config: Checked, weights: Mapping[str, Weight], source: object, deferred: bool = False
) -> Module:
    """The network with these weights; deferred: see parameters.fill.

    Raises CheckpointError if configuration and weights do not match.
    """
    weights = compared(checked_config, weights, source)
    with misfits(source):
        model = build(CLASS, checked_config.config, room_for(weights))
        fill(model, reshaped(weights, model), deferred)
    return model


def compared(checked_config: Checked, weights: Mapping[str, Weight], source: object) -> dict[str, Weight]:
    """The weights, under the names of today, of a network whose sizes they were found to have; see unet.compared."""
    weights = {attention_renamed(name): weight for name, weight in weights.items()}
    config = with_defaults(MODELS[CLASS], checked_config.config)
    with misfits(source):
        check(config)
        _compare(config, weights, source)
    return weights


def _compare(config, weights, source):
    """Checks every size in the configuration against a shape in the file, so that nothing larger than the file is
    built.
    """
    channels = config["block_out_channels"]
    temb, kernels = (
        config["time_embedding_dim"] or 4 * channels[0],
        (config["conv_in_kernel"], config["conv_out_kernel"]),
    )
    expected = {
        "conv_in.weight": (channels[0], config["in_channels"], kernels[0], kernels[0]),
        "conv_out.weight": (config["out_channels"], channels[0], kernels[1], kernels[1]),
        "time_embedding.linear_2.weight": (temb, temb),
    }
    width = config["projection_class_embeddings_input_dim"]
    if config["class_embed_type"] is None and config["num_class_embeds"] is not None:
        expected["class_embedding.weight"] = (config["num_class_embeds"], temb)
    if config["class_embed_type"] in ("projection", "simple_projection"):
        single = config["class_embed_type"] == "simple_projection"
        expected[f"class_embedding.{'weight' if single else 'linear_1.weight'}"] = (temb, width)
    if config["addition_embed_type"] is not None:
        expected["add_embedding.linear_1.weight"] = (temb, width)
    if config["time_cond_proj_dim"] is not None:
        expected["time_embedding.cond_proj.weight"] = (channels[0], config["time_cond_proj_dim"])
    for level, width in enumerate(channels):
        expected |= _expected_of_level(config, level, width)
    if config["encoder_hid_dim"] is not None:
        expected["encoder_hid_proj.weight"] = (_at(config["cross_attention_dim"], 0), config["encoder_hid_dim"])
    beginning = f"{source} describes another network than the weights beside it"
    for name, shape in expected.items():
        if name not in weights:
            raise CheckpointError(f"{beginning}: {name} is missing.")
        if tuple(weights[name].shape) != tuple(shape):
            raise CheckpointError(f"{beginning}: {name} has shape {tuple(weights[name].shape)}, not {tuple(shape)}.")


def _expected_of_level(config, level, width) -> dict[str, tuple]:
    """Shapes in a level of the downward path: enough of them to bound all the others."""
    expected = {}
    for layer in range(int(_at(config["layers_per_block"], level))):
        start = f"down_blocks.{level}"
        expected[f"{start}.resnets.{layer}.conv2.weight"] = (width, width, 3, 3)
        if config["down_block_types"][level].startswith("CrossAttn"):
            depth = _at(config["transformer_layers_per_block"], level)
            depth = depth[layer] if isinstance(depth, list | tuple) else depth
            for block in range(int(depth)):
                name = f"{start}.attentions.{layer}.transformer_blocks.{block}.attn2.to_k.weight"
                inner = width // _at(config["attention_head_dim"], level) * _at(config["attention_head_dim"], level)
                expected[name] = (inner, _at(config["cross_attention_dim"], level))
    return expected


def _at(value, level):
    return value[level] if isinstance(value, list | tuple) else value

"""The options of networks that diffusers does not have, or writes in no pipeline that pydiff opens, as rules."""

from collections.abc import Mapping

from pydiff.formats.safetensors import CheckpointError
from pydiff.formats.schema import NULL, TEXT, TRUTH, checked, either, listed, number, one_of, whole

_SIZE, _LAYERS, _SHARE = whole(1, 65536), whole(1, 256), number(0, 0.999)
_SOME, _BLOCKS, _SIZES = either(NULL, _SIZE), listed(TEXT, 1, 16), listed(_SIZE, 1, 16)
_CLASSES = either(NULL, whole(1, 10_000_000))
_LEVELS = listed(whole(0, 15), 0, 16)
_SAMPLE = either(NULL, whole(1, 1 << 31), listed(whole(1, 1 << 31), 1, 4))
_UNET = {
    "sample_size": _SAMPLE,
    "in_channels": _SIZE,
    "out_channels": _SIZE,
    "block_out_channels": _SIZES,
    "layers_per_block": _LAYERS,
    "norm_num_groups": _SIZE,
    "norm_eps": number(0, 1),
}
_CLIPS = {
    **_UNET,
    "down_block_types": _BLOCKS,
    "up_block_types": _BLOCKS,
    "downsample_padding": whole(0, 1),
    "mid_block_scale_factor": number(1e-6, 1e6),
    "cross_attention_dim": _SOME,
    "attention_head_dim": either(_SIZE, _SIZES),
    "time_cond_proj_dim": _SOME,
}
RULES = {
    "UNet1D": {
        **_UNET,
        "patch": _SIZE,
        "strides": listed(_SIZE, 0, 15),
        "kernel_size": _SIZE,
        "dilations": _SIZES,
        "attention": _LEVELS,
        "add_attention": TRUTH,
        "attention_head_dim": _SOME,
        "dropout": _SHARE,
        "act_fn": TEXT,
        "num_class_embeds": _CLASSES,
        "center_input_sample": TRUTH,
        "time_embedding_type": TEXT,
        "class_embed_type": either(NULL, TEXT),
        "flip_sin_to_cos": TRUTH,
        "freq_shift": number(0, 64),
    },
    "ClipUNet": {
        **_CLIPS,
        "num_class_embeds": _CLASSES,
        "use_linear_projection": TRUTH,
        "transformer_in": TRUTH,
        "activation": TEXT,
        "temporal_dropout": _SHARE,
        "frame_positions": TRUTH,
        "pooled_context": TRUTH,
        "resnet_time_scale_shift": one_of("default", "scale_shift"),
        "pixel_positions": TRUTH,
    },
    "UNet3DConditionModel": {**_CLIPS, "act_fn": TEXT, "num_attention_heads": _SOME},
    "PointsMLP": {
        "in_channels": _SIZE,
        "out_channels": _SIZE,
        "width": _SIZE,
        "layers": _LAYERS,
        "num_class_embeds": _CLASSES,
        "dropout": _SHARE,
    },
    "NoisyClassifier": {
        **{name: rule for name, rule in _UNET.items() if name not in ("sample_size", "out_channels")},
        "classes": whole(2, 10_000_000),
        "line": TRUTH,
        "attention": _LEVELS,
        "attention_head_dim": _SOME,
        "dropout": _SHARE,
    },
}


def read_config(config: Mapping, class_name: str, source: object) -> dict:
    """The options in a config.json of one of these classes; of a class that somebody else registered, as they are.

    Raises CheckpointError for values out of range, and for options that this pydiff does not know.
    """
    if class_name not in RULES:
        return {name: value for name, value in config.items() if not name.startswith("_")}
    known, unknown = checked(config, RULES[class_name], source)
    if unknown:
        raise CheckpointError(
            f"{source} has options that {class_name} does not know ({unknown!a:.200}): use the pydiff that wrote it."
        )
    return known

"""What pydiff.json may say about a model, checked before anything is built: process, codec, conditioning, history."""

from collections.abc import Mapping

from pydiff.codec import Codec, Pixels
from pydiff.condition import Conditioning
from pydiff.formats.diffusers.scheduler.config import MAX_T
from pydiff.formats.safetensors import CheckpointError
from pydiff.formats.schema import (
    ANYTHING,
    NULL,
    TEXT,
    TRUTH,
    checked,
    either,
    listed,
    number,
    one_of,
    table,
    text,
    whole,
)
from pydiff.nn import Module

_ANY_NUMBER = number(-1e30, 1e30)
RULES = {
    "schema": whole(1, 1 << 31),
    "options": table(ANYTHING),
    "data": text(10_000),
    "step": whole(0, 1 << 62),
    "origin": table(ANYTHING),
    "parameters": table(table(ANYTHING)),
    "variance": one_of("fixed", "learned"),
    "self_conditioning": TRUTH,
    "codec": table(ANYTHING),
    "schedule": table(either(NULL, TRUTH, TEXT, _ANY_NUMBER, listed(_ANY_NUMBER, 2, MAX_T), table(ANYTHING))),
    "prediction": TEXT,
    "scheduler": table(ANYTHING),
    "classes": either(NULL, listed(text(10_000), 1, 10_000_000)),
    "nothing": table(table(ANYTHING)),
    "text_encoder": either(NULL, table(ANYTHING)),
    "withheld": TRUTH,
}
SCHEDULE = {"name": TEXT, "T": whole(2, MAX_T)}
_SIZE = either(whole(1, 65536), listed(whole(1, 65536), 2, 2))
CODEC = {"kind": TEXT, "shape": listed(whole(1, 1 << 31), 1, 8), "size": _SIZE}
_SOUND = {"rate": whole(1, 1 << 31), "length": whole(1, 1 << 31), "channels": whole(1, 65536)}
_WINDOW = whole(1, 1 << 20)
CODECS = {  # further options by kind
    "frames": {"rate": number(1e-6, 1e9)},
    "points": {
        "mean": listed(_ANY_NUMBER, 1, 1 << 20),
        "scale": number(1e-30, 1e30),
        "reach": either(NULL, number(0, 1e30)),
    },
    "waveform": _SOUND,
    "spectrogram": {
        **_SOUND,
        "bands": either(NULL, _WINDOW),
        "window": _WINDOW,
        "hop": _WINDOW,
        "iterations": whole(0, 1 << 20),
    },
}
NULL_ROW = {"dtype": one_of("bool", "int32", "int64", "float16", "float32", "float64"), "row": ANYTHING}


def check_extra(extra: Mapping, source: object):
    """Raises CheckpointError for entries that no version of pydiff wrote. Names without a rule are assumed to come from
    a later version.
    """
    checked(extra, RULES, source)
    checked(extra.get("schedule", {}), SCHEDULE, f"{source}, schedule,")
    check_codec(extra.get("codec", {}), source)
    for name, row in extra.get("nothing", {}).items():
        if checked(row, NULL_ROW, f"{source}, nothing,")[0].keys() != NULL_ROW.keys():
            raise CheckpointError(f"{source} says of {name!a:.60} no row and dtype: correct it or use another.")


def check_codec(config: Mapping, source: object):
    """Raises CheckpointError for options that no codec of pydiff has been written with."""
    checked(config, CODEC, f"{source}, codec,")
    checked(config, CODECS.get(config.get("kind", ""), {}), f"{source}, codec,")


def check_together(model: Module, codec: Codec, conditioning: Conditioning, self_conditioning: bool, source: object):
    """Raises CheckpointError for parts that are each valid but do not belong to one model."""
    config = model.config
    if isinstance(codec, Pixels) or codec.beside:
        channels = config.get("in_channels", codec.shape[-1]) // (2 if self_conditioning else 1)
        if len(codec.shape) != 3 or codec.shape[-1] != channels:
            raise CheckpointError(
                f"{source} says that what is drawn has the shape {codec.shape}, and its network takes {channels} "
                "channels: correct it or use another."
            )
    count = config.get("num_class_embeds")
    if conditioning.classes is not None and count is not None:
        needed = len(conditioning.classes) + conditioning.withheld
        if count != needed:
            raise CheckpointError(
                f"{source} has {len(conditioning.classes)} classes, and its network has {count} rows for them, not "
                f"{needed}: correct it or use another."
            )

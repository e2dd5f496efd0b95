"""A text encoder from a folder: of a run, of a model with captions, or of a text model as transformers writes it.

text.named("runs/emoji")                     what that run was told its captions by
text.named("stable-diffusion/text_encoder")  its kind stands in config.json
"""

from pathlib import Path

from pydiff.formats import safetensors
from pydiff.formats.files import read_file
from pydiff.formats.safetensors import CheckpointError
from pydiff.models import MODELS
from pydiff.store import checkpoint
from pydiff.text import bert
from pydiff.text.encoder import TextEncoder, from_config


def read(folder: Path) -> TextEncoder:
    """The encoder in this folder, not trained any further. CheckpointError, in one sentence, if there is none."""
    for place in (folder / "model", folder):
        if place.is_dir() and checkpoint.is_ours(place):
            return _of_model(place)
    for name in (bert.CONFIG, f"text_encoder/{bert.CONFIG}"):
        if (folder / name).is_file():
            return _of_transformers((folder / name).parent)
    raise CheckpointError(
        f"{folder} holds no text encoder: expected the folder of a run that has learned from captions, or of a text "
        "model with config.json, model.safetensors and tokenizer.json"
    )


def _of_model(folder):
    with checkpoint.open_model(folder, MODELS) as found:
        config = found.extra.get("text_encoder")
        if config is None:
            raise CheckpointError(f"{folder} has not learned from captions, and holds no text encoder")
        network = found.network("text_encoder")
    try:
        return from_config(config, network).frozen()
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder} holds a text encoder that cannot be read ({error})") from error


def _of_transformers(folder):
    path = folder / bert.CONFIG
    kind = safetensors.parse_json(read_file(path, limit=bert.MAX_JSON).tobytes(), path).get("model_type")
    if kind == "bert":
        return bert.read_folder(folder)
    raise CheckpointError(f"{folder} is a text model of the kind {kind!a:.40}, and pydiff reads bert")

"""A text encoder from a folder: of a run, of a model trained with captions, or of a text model written by transformers.

text.named("runs/emoji")                     the encoder of that run's captions
text.named("stable-diffusion")               its text_encoder/ and tokenizer/; a BERT has both in one folder
"""

from pathlib import Path

from pydiff.formats import safetensors
from pydiff.formats.files import read_file
from pydiff.formats.safetensors import CheckpointError
from pydiff.formats.schema import UNFIT
from pydiff.models import MODELS
from pydiff.store import checkpoint
from pydiff.text import bert
from pydiff.text.clip import TOKENS, Clip
from pydiff.text.encoder import TextEncoder, from_config


def read(folder: Path) -> TextEncoder:
    """The encoder in this folder, with fixed weights. Raises CheckpointError if there is none."""
    for place in (folder / "model", folder):
        if place.is_dir() and checkpoint.is_ours(place):
            return _of_model(place)
    for name in (bert.CONFIG, f"text_encoder/{bert.CONFIG}"):
        if (folder / name).is_file():
            return _of_transformers((folder / name).parent)
    raise CheckpointError(
        f"{folder} holds no text encoder: expected the folder of a run that has learned from captions, or of a text "
        "model with config.json, weights and a tokenizer"
    )


def _of_model(folder):
    with checkpoint.open_model(folder, MODELS) as found:
        config = found.extra.get("text_encoder")
        if config is None:
            raise CheckpointError(f"{folder} has not learned from captions, and holds no text encoder")
        network = found.network("text_encoder")
    try:
        return from_config(config, network).frozen()
    except UNFIT as error:
        raise CheckpointError(f"{folder} holds a text encoder that cannot be read ({error})") from error


def _of_transformers(folder):
    path = folder / bert.CONFIG
    kind = safetensors.parse_json(read_file(path, limit=bert.MAX_JSON).tobytes(), path).get("model_type")
    if kind == "bert":
        return bert.read_folder(folder)
    if kind == "clip_text_model":
        return _of_clip(folder)
    raise CheckpointError(
        f"{folder} is a text model of the kind {kind!a:.40}, and pydiff reads bert and clip_text_model"
    )


def _of_clip(folder):
    """CLIP's text tower. The tokenizer's files are beside the network's, or in the folder tokenizer/ of a pipeline."""
    from pydiff.formats.diffusers import text_encoder

    network, _ = text_encoder.open_folder(folder)
    apart = folder.resolve().parent / "tokenizer"
    tokenizer, most = text_encoder.open_tokenizer(apart if apart.is_dir() else folder)
    if max(tokenizer.vocabulary.values()) >= network.config["vocab_size"]:
        raise CheckpointError(f"{folder} and its tokenizer do not belong together: it has more tokens than vectors")
    return Clip(network, tokenizer, min(most, TOKENS))

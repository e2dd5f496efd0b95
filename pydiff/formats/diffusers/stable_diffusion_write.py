"""Writes a Stable Diffusion pipeline as a complete diffusers folder, which stable_diffusion.py reads."""

import json
import os
from collections.abc import Iterator
from typing import Any

from pydiff.formats import safetensors
from pydiff.formats.diffusers import autoencoder
from pydiff.formats.diffusers.folder import CONFIG, INDEX, SCHEDULER
from pydiff.formats.diffusers.parameters import ways_to_write
from pydiff.formats.files import folder_path
from pydiff.formats.safetensors import CheckpointError, Made
from pydiff.models import name_of
from pydiff.stable_diffusion import StableDiffusion
from pydiff.store import checkpoint, sealed
from pydiff.text.bpe import Tokenizer
from pydiff.text.clip import Clip

SEAL, KIND = "pydiff-files.json", "stable diffusion"  # not pydiff.json: nothing in the folder is ours alone
OLD = "text_model."  # how transformers before 5 begin the names of a text encoder's parameters, as folders on hubs do


def save(directory, pipeline: StableDiffusion, dtype: str | None = None) -> list[str]:
    """Writes the folder, replacing one that pydiff wrote. Returns sentences on what it does not contain.

    dtype: of the weights in the files, a name in checkpoint.DTYPES; None keeps the current one. Raises ValueError for
    any other; CheckpointError if the disk write fails or the folder holds something else.
    """
    if dtype not in (None, *checkpoint.DTYPES):
        raise ValueError(f"got dtype {dtype!r}, expected one of {', '.join(checkpoint.DTYPES)}")
    target = folder_path(directory).resolve()
    encoder: Any = pipeline.conditioning.encoder
    if os.path.lexists(target) and (not target.is_dir() or (os.listdir(target) and not (target / SEAL).is_file())):
        raise CheckpointError(f"{target} holds something else than a model that pydiff wrote: choose another folder.")
    texts = {
        INDEX: _index(pipeline),
        f"scheduler/{SCHEDULER}": pipeline.scheduler.config,
        f"unet/{CONFIG}": {"_class_name": name_of(pipeline.model), **pipeline.model.config},
        f"vae/{CONFIG}": autoencoder.beside(pipeline.codec.autoencoder)[0],
        f"text_encoder/{CONFIG}": _text_config(encoder),
        **{f"tokenizer/{name}": value for name, value in _tokenizer(encoder).items()},
    }
    weights = {
        "unet/diffusion_pytorch_model.safetensors": ways_to_write(pipeline.model),
        "vae/diffusion_pytorch_model.safetensors": ways_to_write(pipeline.codec.autoencoder),
        "text_encoder/model.safetensors": _text_weights(encoder),
    }

    def files() -> Iterator[tuple[str, sealed.Content]]:
        for name, value in texts.items():
            yield name, value if isinstance(value, bytes) else (json.dumps(value, indent=1) + "\n").encode()
        for name, arrays in weights.items():
            yield name, safetensors.pieces(arrays, checkpoint.DTYPES.get(dtype), {"format": "pt"})  # pyright: ignore[reportArgumentType]

    sealed.write(target, target.with_name(f".{target.name}.pydiff-partial"), files(), SEAL, KIND, {})
    notes = []
    if encoder.learned:
        notes.append(f"words of one's own are not in the folder: keep the files of {', '.join(encoder.learned)}")
    if encoder.skip:
        notes.append(f"that {encoder.skip} layers of the text encoder are left out is not in the folder: say it again")
    return notes


def _index(pipeline) -> dict:
    kind = "StableDiffusionPipeline"
    if pipeline.told:
        kind = "LatentConsistencyModelPipeline"
    elif pipeline.seen_beside:
        kind = "StableDiffusionInpaintPipeline"
    return {
        "_class_name": kind,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", pipeline.scheduler.config["_class_name"]],
        "text_encoder": ["transformers", type(pipeline.conditioning.encoder.network).__name__],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", name_of(pipeline.model)],
        "vae": ["diffusers", name_of(pipeline.codec.autoencoder)],
    }


def _text_config(encoder: Clip) -> dict:
    config = {**encoder.network.config, "vocab_size": len(encoder.table) - encoder.own_tokens}
    return {"architectures": [type(encoder.network).__name__], "model_type": "clip_text_model", **config}


def _text_weights(encoder: Clip) -> dict[str, Made]:
    """The weights without the vectors of learned words."""
    arrays, rows, place = {}, len(encoder.table) - encoder.own_tokens, "embeddings.token_embedding.weight"
    for name, made in ways_to_write(encoder.network).items():
        whole = name if name.startswith((OLD, "text_projection.")) else OLD + name
        if whole == OLD + place:
            made = made._replace(shape=(rows, made.shape[1]), make=lambda make=made.make: make()[:rows])
        arrays[whole] = made
    return arrays


def _tokenizer(encoder: Clip) -> dict:
    """{file name: content}."""
    tokenizer: Tokenizer = encoder.tokenizer
    names = {number: text for text, number in tokenizer.vocabulary.items()}
    normalized = {n: special.normalized for special in tokenizer.specials for n in special.numbers}

    def entry(number):
        plain = {"lstrip": False, "rstrip": False, "single_word": False}
        return {"content": names[number], "normalized": normalized.get(number, True), **plain}

    special = {"bos_token": entry(tokenizer.start), "eos_token": entry(tokenizer.end)}
    special |= {"unk_token": entry(tokenizer.unknown), "pad_token": names[tokenizer.pad]}
    merges = "\n".join(" ".join(pair) for pair in sorted(tokenizer.ranks, key=tokenizer.ranks.get))  # pyright: ignore[reportCallIssue, reportArgumentType]
    said = {"tokenizer_class": "CLIPTokenizer", "model_max_length": encoder.tokens, "do_lower_case": True}
    return {
        "vocab.json": json.dumps(tokenizer.vocabulary, ensure_ascii=False).encode(),
        "merges.txt": f"#version: 0.2\n{merges}\n".encode(),
        "special_tokens_map.json": special,
        "tokenizer_config.json": {**said, "add_prefix_space": False, "errors": "replace", **special},
    }

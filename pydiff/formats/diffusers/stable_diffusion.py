"""A folder of Stable Diffusion 1.x, 2.x, turbo or LCM as a Pipeline: every part is checked, and that they match.

model_index.json        which classes the parts are
unet/ vae/              config.json and weights            text_encoder/ tokenizer/     CLIP
scheduler/              scheduler_config.json              others are ignored, or the folder refused
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pydiff import memory
from pydiff.condition import Conditioning
from pydiff.formats import embeddings, weights
from pydiff.formats.diffusers import autoencoder, text_encoder, unet_condition
from pydiff.formats.diffusers.folder import CONFIG, INDEX, SCHEDULER, read_json
from pydiff.formats.diffusers.pipeline import NOTHING, Loaded, Wishes, scheduler_for
from pydiff.formats.diffusers.scheduler.stored import StoredScheduler
from pydiff.formats.safetensors import CheckpointError
from pydiff.latents import Latents
from pydiff.nn import Module
from pydiff.stable_diffusion import StableDiffusion
from pydiff.text.bpe import Tokenizer
from pydiff.text.clip import Clip

NEEDED = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
SEAL = "pydiff.json"  # of folders of ours
IGNORED = ("safety_checker", "feature_extractor", "image_encoder")
PIPELINES = (
    "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
    "StableDiffusionInpaintPipelineLegacy", "StableDiffusionPipelineSafe", "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline", "LDMTextToImagePipeline",
)  # fmt: skip
FAMILIES = {  # a part, or a word in the pipeline's class -> what the folder is
    "text_encoder_2": "Stable Diffusion XL or newer",
    "XL": "Stable Diffusion XL",
    "controlnet": "a ControlNet",
    "ControlNet": "a ControlNet",
    "transformer": "of a family with a transformer in place of the U-Net",
    "prior": "of a family with a prior",
}


class Parts(NamedTuple):
    """unet, vae, text: the networks. tokenizer; tokens: at most this many per prompt. notes: sentences."""

    unet: Module
    vae: Module
    text: Module
    tokenizer: Tokenizer
    tokens: int
    scheduler: StoredScheduler
    notes: list[str]


def is_one(directory: Path) -> bool:
    """Whether a folder is a pipeline that takes prompts, of any family."""
    if not os.path.isfile(directory / INDEX):
        return False
    index = read_json(directory / INDEX)
    if _class_of(index, "unet") == "UNet2DModel" and not _class_of(index, "text_encoder"):
        return False  # a latent model without a condition
    return any(_class_of(index, name) for name in ("text_encoder", "tokenizer", "transformer", "vae", "controlnet"))


def check_not_alone(directory: Path):
    """Raises CheckpointError for the folder of a single part, saying what is missing and where it may be."""
    alone = not os.path.isfile(directory / INDEX) and os.path.isfile(directory / CONFIG)
    kind = read_json(directory / CONFIG).get("_class_name") if alone else None
    if kind == unet_condition.CLASS and not os.path.isfile(directory / SEAL):
        above = directory.resolve().parent
        whole = (
            f"give {above}" if os.path.isfile(above / INDEX) else f"give the folder of the whole model, with {INDEX}"
        )
        raise CheckpointError(
            f"{directory} is a {kind} alone, which draws nothing without a text encoder, its tokenizer, an autoencoder "
            f"and a scheduler: {whole}."
        )


def load(directory: Path, wishes: Wishes = NOTHING) -> Loaded:
    """The pipeline in this folder; its notes are also logged.

    Raises CheckpointError for another family, for a folder that is damaged or incomplete, for parts that do not match,
    and if memory does not suffice.
    """
    index = read_json(directory / INDEX)
    check_family(index, directory)
    missing = [name for name in NEEDED if not os.path.isdir(directory / name)]
    if "scheduler" in missing and wishes.scheduler is not None:
        missing.remove("scheduler")
    if missing:
        raise CheckpointError(f"{directory} lacks {', '.join(f'{name}/' for name in missing)}: complete the folder.")
    notes = [f"{name} is not used" for name in IGNORED if _class_of(index, name)]
    path = directory / "scheduler" / SCHEDULER
    stored = (read_json(path), path) if os.path.exists(path) else None
    scheduler, about = needed_scheduler(stored, _class_of(index, "scheduler"), wishes, directory)
    tokenizer, tokens = text_encoder.open_tokenizer(directory / "tokenizer")
    if not wishes.low_memory:
        check_room(directory)
    unet, said = _unet(directory / "unet", _variant(directory / "unet", wishes, weights.STEM, notes, needed=True))
    notes += said
    variant = _variant(directory / "vae", wishes, weights.STEM, notes)
    vae, said = autoencoder.open_folder(directory / "vae", variant, _class_of(index, "vae"), deferred=True)
    notes += said
    variant = _variant(directory / "text_encoder", wishes, text_encoder.STEMS, notes)
    kind = _class_of(index, "text_encoder")
    text, said = text_encoder.open_folder(directory / "text_encoder", variant, kind, deferred=True)
    notes += [*said, *about]
    return assembled(Parts(unet, vae, text, tokenizer, tokens, scheduler, notes), wishes, directory)


def needed_scheduler(stored, known_class, wishes, source) -> tuple[StoredScheduler, list[str]]:
    """As pipeline.scheduler_for, for what cannot be drawn without one: raises CheckpointError if there is none."""
    if stored is None and wishes.scheduler is None:
        raise CheckpointError(f"{source} has no scheduler: give one with scheduler= (--scheduler).")
    return scheduler_for(stored, known_class, wishes, source)  # pyright: ignore[reportReturnType]


def assembled(parts: Parts, wishes: Wishes, source: object) -> Loaded:
    """A pipeline of these parts. Raises CheckpointError if they do not match."""
    scheduler, notes = parts.scheduler, list(parts.notes)
    check_together(parts, source)
    try:
        codec = Latents(parts.vae, _size(parts, wishes, source))  # pyright: ignore[reportArgumentType]
        encoder = Clip(parts.text, parts.tokenizer, parts.tokens, int(wishes.skip_layers))
        for path in wishes.embedding:
            for word, vectors in embeddings.read(path).items():
                encoder.learn(word, vectors)
        pipeline = StableDiffusion(
            parts.unet, scheduler.process, codec, Conditioning(encoder=encoder), scheduler=scheduler,
            few_steps=_is_turbo(scheduler.config), low_memory=wishes.low_memory,
        )  # fmt: skip
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}.") from error
    if pipeline.few_steps:
        notes.append(
            "its scheduler is that of turbo models: unless told otherwise it draws in 1 step, without guidance"
        )
    for note in notes:
        logging.getLogger("pydiff").warning("%s", note)
    return Loaded(pipeline, {}, notes)


def check_family(index: Mapping, source: object):
    """Raises CheckpointError for a model_index.json of anything but Stable Diffusion 1 and 2 and their variants."""
    name = str(index.get("_class_name"))
    found = [kind for part, kind in FAMILIES.items() if _class_of(index, part) or part in name]
    if found or name not in PIPELINES:
        kind = found[0] if found else f"for {name!a:.60}"
        raise CheckpointError(f"{source} is {kind}: pydiff opens Stable Diffusion 1 and 2, use one of these.")
    others = [part for part in index if _class_of(index, part) and part not in (*NEEDED, *IGNORED)]
    if others:
        raise CheckpointError(f"{source} needs {', '.join(others)!a:.100}, which pydiff does not have: use another.")


def check_together(parts: Parts, source: object):
    """Raises CheckpointError unless text encoder, U-Net and autoencoder are made for each other."""
    unet, vae, text = parts.unet.config, parts.vae.config, parts.text.config
    if unet["addition_embed_type"] is not None or unet["encoder_hid_dim"] is not None:
        raise CheckpointError(f"{source} is of Stable Diffusion XL or another family: pydiff opens 1 and 2.")
    widths = unet["cross_attention_dim"]
    if text["hidden_size"] not in np.atleast_1d(widths) or len(set(np.atleast_1d(widths).tolist())) > 1:
        raise CheckpointError(
            f"{source}: the text encoder gives {text['hidden_size']} numbers a token and the U-Net takes {widths}: "
            "they are of different models."
        )
    latent = vae["latent_channels"]
    if unet["out_channels"] != latent or unet["in_channels"] not in (latent, 2 * latent + 1):
        raise CheckpointError(
            f"{source}: the U-Net takes {unet['in_channels']} channels and gives {unet['out_channels']}, and latents "
            f"have {latent}: it is made for something that pydiff cannot give it."
        )
    if unet["class_embed_type"] is not None or unet["num_class_embeds"] is not None:
        raise CheckpointError(f"{source}: the U-Net is told classes or images beside the prompt, which pydiff cannot.")
    most = max((n for n in parts.tokenizer.vocabulary.values()), default=0)
    if most >= text["vocab_size"]:
        raise CheckpointError(
            f"{source}: the tokenizer has the number {most}, and the text encoder {text['vocab_size']} vectors: they "
            "are of different models."
        )


def check_room(directory: Path):
    """Raises CheckpointError if a folder's weights, as float32, need more memory than is free; reads none of them."""
    free, needed = memory.free(), 0
    for part in ("unet", "vae", "text_encoder"):
        sizes = {}
        for entry in os.scandir(directory / part):
            if entry.is_file() and entry.name.endswith((".safetensors", ".bin")):
                key = entry.name.rpartition(".")[2], ".fp16." in entry.name or "fp16" in entry.name.split("-")[0]
                sizes[key] = sizes.get(key, 0) + entry.stat().st_size * (2 if key[1] else 1)
        needed += min(sizes.values(), default=0)
    refuse_too_large(needed, free, directory)


def refuse_too_large(needed: int, free: int | None, source: object):
    """Raises CheckpointError if `needed` bytes of weights do not fit into `free`."""
    if free is not None and needed > free:
        raise CheckpointError(
            f"{source} needs {needed / 2**30:.1f} GB of memory for its weights, and {free / 2**30:.1f} GB are free: "
            "close other programs, or take --low-memory (low_memory=True), which keeps no weights."
        )


def _unet(path: Path, variant) -> tuple[Module, list[str]]:
    names = os.listdir(path)
    if CONFIG not in names:
        raise CheckpointError(
            f"{path} holds {sorted(names)!a:.200}, expected {CONFIG} and weights: complete the folder."
        )
    config = read_json(path / CONFIG)
    kind, expected = config.get("_class_name", unet_condition.CLASS), unet_condition.CLASS
    if kind != expected:
        raise CheckpointError(f"{path / CONFIG} is for the class {kind!a:.60}, expected {expected}: use another.")
    checked = unet_condition.read_config(config, path / CONFIG)
    with weights.open_folder(path, names, variant, lasting=True) as found:
        return unet_condition.read_model(checked, found.weights, path / CONFIG, deferred=True), checked.notes


def _variant(path: Path, wishes, stems, notes, needed=False):
    """The requested variant of a part that has it; a part without it is loaded as it is, and a note says so."""
    stems = (stems,) if isinstance(stems, str) else stems
    if wishes.variant is None or needed or weights.candidates(os.listdir(path), wishes.variant, stems):
        return wishes.variant
    notes.append(f"{path} has no variant {wishes.variant!r}, its plain weights are taken")
    return None


def _size(parts, wishes, source) -> tuple[int, int]:
    """(height, width) in pixels."""
    size = wishes.size
    if size is None:
        sample = parts.unet.config["sample_size"]
        if sample is None:
            raise CheckpointError(f"{source} does not say how large its images are: give size=, or --size, in pixels.")
        size = np.multiply(sample, parts.vae.factor).tolist()
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    sides = sides * 2 if len(sides) == 1 else sides
    if len(sides) != 2 or not all(isinstance(n, int | np.integer) and 1 <= n <= 65536 for n in sides):
        raise CheckpointError(f"got size {size!a:.60}, expected a side length or (height, width) in pixels.")
    return int(sides[0]), int(sides[1])


def _is_turbo(config: Mapping) -> bool:
    """Whether a scheduler is configured like those of models distilled to one step."""
    euler = config["_class_name"] in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
    noise = config.get("prediction_type", "epsilon") == "epsilon"
    return euler and noise and config.get("timestep_spacing") == "trailing"


def _class_of(index: Mapping, name: str):
    """The class of a part in model_index.json, None for an absent part."""
    value = index.get(name)
    return value[1] if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str) else None

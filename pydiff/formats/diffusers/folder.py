"""Where in a folder that diffusers wrote the parts are: whole pipelines, bare models, the flat folders of 2022.

pipeline/   model_index.json, unet/config.json and weights, scheduler/scheduler_config.json
flat/       model_index.json, config.json and weights, scheduler_config.json
unet/       config.json and weights; the scheduler is searched for in ../scheduler
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydiff.formats.files import disk, read_file
from pydiff.formats.safetensors import MAX_HEADER, CheckpointError, parse_json

AUTOENCODERS = ("vae", "vqvae")  # of latent diffusion, as LDMPipeline calls it
INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
UNUSED = ("safety_checker", "feature_extractor")  # of components: they look at finished images
CONVERTED = {"DDIMPipeline": "DDIMScheduler", "PNDMPipeline": "PNDMScheduler"}  # these make it of any other's numbers
IMPLIED = {  # diffusers leaves out what it calls deprecated, so that the pipeline alone says which scheduler it was
    **CONVERTED,
    "KarrasVePipeline": "KarrasVeScheduler",
    "ConsistencyModelPipeline": "CMStochasticIterativeScheduler",
}


class Parts(NamedTuple):
    """unet: the folder of the network, with the names in it. unet_class, scheduler_class: what model_index.json says,
    or None. config, scheduler: contents of the JSON files, with their paths; scheduler is None if missing. class_names:
    names of classes, or None. notes: sentences on anything unusual. autoencoder: (folder, class) of the one whose
    latents the U-Net generates, or None.
    """

    unet: Path
    names: list[str]
    unet_class: str | None
    config: tuple[dict, Path]
    scheduler: tuple[dict, Path] | None
    scheduler_class: str | None
    class_names: list[str] | None
    notes: list[str]
    autoencoder: tuple[Path, str] | None = None


def read_parts(directory: Path) -> Parts:
    """Finds the parts in a folder. Raises CheckpointError for a folder that has none of these layouts or contains
    further parts.
    """
    names = _names(directory)
    index = read_json(directory / INDEX) if INDEX in names else {}
    unet_class, scheduler_class = _classes(index, directory / INDEX)
    inside = directory / "unet"
    if "unet" in names and os.path.isdir(inside):
        unet, scheduler = inside, directory / "scheduler" / SCHEDULER
        scheduler = scheduler if os.path.exists(scheduler) or SCHEDULER not in names else directory / SCHEDULER
    elif CONFIG in names:
        unet, scheduler = directory, directory / SCHEDULER
        beside = directory.resolve().parent
        if SCHEDULER not in names and not index and directory.resolve().name == "unet":
            scheduler = beside / "scheduler" / SCHEDULER
            index = read_json(beside / INDEX) if os.path.exists(beside / INDEX) else {}
            unet_class, scheduler_class = _classes(index, beside / INDEX)
    else:
        expected = "its unet/" if index else f"{CONFIG} and diffusion_pytorch_model.safetensors, or {INDEX}"
        raise CheckpointError(f"{directory} holds {sorted(names)!a:.200}, expected {expected}: complete the folder.")
    names = _names(unet)
    if CONFIG not in names and "unet" in names:  # a folder that pydiff saved, put in the place of a network
        unet = unet / "unet"
        names = _names(unet)
    if CONFIG not in names:
        raise CheckpointError(
            f"{unet} holds {sorted(names)!a:.200}, expected {CONFIG} and weights: complete the folder."
        )
    found = (read_json(scheduler), scheduler) if os.path.exists(scheduler) else None
    notes, kind = [], str(index.get("_class_name"))
    if found is None and kind in IMPLIED:
        notes.append(
            f"{directory} is a {kind} without a scheduler, so it is drawn by {IMPLIED[kind]} with its usual numbers; "
            "if others were used in training, give scheduler= (--scheduler)"
        )
        found = ({"_class_name": IMPLIED[kind]}, directory / INDEX)
    if found and (wanted := CONVERTED.get(kind)):
        was = found[0].get("_class_name", scheduler_class)
        if was != wanted:
            notes.append(f"{directory} is a {kind}, which draws by {wanted} in place of {was!a:.60}")
            found = ({**found[0], "_class_name": wanted}, scheduler)
    config = (read_json(unet / CONFIG), unet / CONFIG)
    latent = _autoencoder(index, directory)
    return Parts(unet, names, unet_class, config, found, scheduler_class, _class_names(index), notes, latent)


def _autoencoder(index: Mapping, directory: Path) -> tuple[Path, str] | None:
    """The folder and class of the autoencoder that model_index.json names; None without one."""
    values = {name: index.get(name) for name in AUTOENCODERS}
    found = [
        (directory / name, value[1])
        for name, value in values.items()
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)
    ]
    if len(found) > 1:
        raise CheckpointError(f"{directory / INDEX} names two autoencoders, expected one: use another.")
    if found and not os.path.isdir(found[0][0]):
        raise CheckpointError(f"{directory} lacks {found[0][0].name}/: complete the folder.")
    return found[0] if found else None


def _classes(index: Mapping, source: Path) -> tuple[str | None, str | None]:
    """Classes of the network and of the scheduler in a model_index.json; everything else in it must be absent."""
    parts = {}
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or len(value) != 2 or name in UNUSED:
            continue
        if value[1] is not None:
            parts[{"noise_scheduler": "scheduler"}.get(name, name)] = value[1]  # as diffusers 0.0 called it
    others = sorted(parts.keys() - {"unet", "scheduler", *AUTOENCODERS})
    if others:
        kinds = ", ".join(f"{name} ({str(parts[name])[:60]})" for name in others)
        raise CheckpointError(
            f"{source} needs {kinds!a:.200}, which pydiff does not have: use a pipeline of one U-Net."
        )
    if index and "unet" not in parts:
        raise CheckpointError(f"{source} names no unet, expected one: use a pipeline of one U-Net.")
    classes = parts.get("unet"), parts.get("scheduler")
    if not all(isinstance(name, str | None) for name in classes):
        raise CheckpointError(f"{source} does not name its classes by text: correct it or use another.")
    return classes


def _class_names(index: Mapping) -> list[str] | None:
    """Class names, as diffusers' class-conditional pipelines store them: {"0": "tench, Tinca tinca", ..}."""
    table = index.get("id2label")
    if not isinstance(table, dict) or not table:
        return None
    names = [table.get(str(i)) for i in range(len(table))]
    return names if all(isinstance(name, str) for name in names) else None  # pyright: ignore[reportReturnType]


def _names(folder: Path) -> list[str]:
    with disk(f"list {folder}"):
        return os.listdir(folder)


def read_json(path: Path) -> dict:
    """The object in a JSON file of reasonable size; infinite numbers are allowed."""
    return parse_json(read_file(path, limit=MAX_HEADER).tobytes(), path, infinite=True)

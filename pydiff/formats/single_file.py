"""Stable Diffusion in one file, .safetensors or .ckpt, as a Pipeline; ldm.py knows the names in it."""

import contextlib
from pathlib import Path

import numpy as np

from pydiff import memory
from pydiff.formats import ldm, pytorch, safetensors
from pydiff.formats.diffusers import autoencoder, text_encoder, unet_condition
from pydiff.formats.diffusers.folder import CONFIG, INDEX, SCHEDULER, read_json
from pydiff.formats.diffusers.parameters import Checked
from pydiff.formats.diffusers.pipeline import NOTHING, Loaded, Wishes
from pydiff.formats.diffusers.stable_diffusion import Parts, assembled, check_family, needed_scheduler, refuse_too_large
from pydiff.formats.files import RegularFile
from pydiff.formats.safetensors import CheckpointError, Weight
from pydiff.printed import expanded
from pydiff.text import bpe

SCHEDULE = {  # of all published models of versions 1 and 2
    "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    "timestep_spacing": "leading",
}  # fmt: skip
LCM_SCHEDULE = {**SCHEDULE, "_class_name": "LCMScheduler", "set_alpha_to_one": True, "steps_offset": 0}
PADDING = {1: bpe.END, 2: "!"}
BASE_STEPS = 875_000  # of training: what the published base model of version 2 says, which predicts eps
EPS_SIDE, V_SIDE = 64, 96  # of latents


def load(path: Path, wishes: Wishes = NOTHING) -> Loaded:
    """The pipeline in this file; its notes are also logged.

    Raises CheckpointError for other families, for damaged and incomplete files, for files that would have to be
    executed, and if an option is missing that the file does not imply.
    """
    with contextlib.ExitStack() as stack:
        weights, told = _opened(path, stack)
        found = ldm.recognised(weights, path, wishes.variant == "ema", inferred=wishes.config is None)
        bytes_needed = sum(
            4 * int(np.prod(w.shape)) for part in (found.unet, found.vae, found.text) for w in part[1].values()
        )
        if not wishes.low_memory:
            refuse_too_large(bytes_needed, memory.free(), path)
        if wishes.config is not None:
            parts = _by_folder(found, expanded(wishes.config), wishes, path)
        else:
            parts = _by_itself(found, wishes, told, path)
    return assembled(parts, wishes, path)


def _opened(path, stack) -> tuple[dict[str, Weight], int | None]:
    """(weights, training steps if the file has them)."""
    file = stack.enter_context(RegularFile(path, lasting=True))
    if path.suffix == ".safetensors" or not (path.suffix in (".ckpt", ".bin", ".pt") or pytorch.is_archive(file)):
        return safetensors.contents(file, path), None
    tree = pytorch.tree(file, path)
    steps = tree.get("global_step") if isinstance(tree, dict) else None
    state = tree.get("state_dict", tree) if isinstance(tree, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds no state dict: use another.")
    found = {name: w for name, w in state.items() if isinstance(name, str) and isinstance(w, Weight)}
    return found, steps if type(steps) is int else None


def _by_folder(found, folder: Path, wishes, path) -> Parts:
    """The parts, with the configurations of a diffusers folder, which need not contain weights."""
    if not (folder / INDEX).is_file():
        raise CheckpointError(f"{folder} has no {INDEX}, expected the folder of a whole model: give another as config.")
    check_family(read_json(folder / INDEX), folder)
    source = folder / "scheduler" / SCHEDULER
    scheduler, notes = needed_scheduler((read_json(source), source), None, wishes, path)
    tokenizer, tokens = text_encoder.open_tokenizer(folder / "tokenizer")
    config = unet_condition.read_config(read_json(folder / "unet" / CONFIG), folder / "unet" / CONFIG)
    unet = unet_condition.read_model(config, found.unet[1], path, deferred=True)
    config = autoencoder.read_config(read_json(folder / "vae" / CONFIG), folder / "vae" / CONFIG)
    vae = autoencoder.read_model(config, found.vae[1], path, deferred=True)
    config = text_encoder.read_config(read_json(folder / "text_encoder" / CONFIG), folder / "text_encoder" / CONFIG)
    text = text_encoder.read_model(_bare(config), found.text[1], path, deferred=True)
    return Parts(unet, vae, text, tokenizer, tokens, scheduler, notes)


def _bare(checked: Checked) -> Checked:
    """The configuration without a projection: single files have none."""
    return checked._replace(class_name="CLIPTextModel")


def _by_itself(found, wishes, told, path) -> Parts:
    """The parts, configured from their shapes and from what is known of the published models."""
    config, weights = found.unet
    prediction, notes = _prediction(found, wishes, told, path)
    schedule = dict(LCM_SCHEDULE if config.get("time_cond_proj_dim") else SCHEDULE)
    schedule["prediction_type"] = {"v": "v_prediction"}.get(prediction, "epsilon")
    if found.betas is not None:
        notes += _checked_betas(schedule, found.betas, path)
    scheduler, about = needed_scheduler((schedule, path), None, wishes, path)
    config["sample_size"] = V_SIDE if found.version == 2 and prediction == "v" else EPS_SIDE
    unet = unet_condition.read_model(Checked(unet_condition.CLASS, config, []), weights, path, deferred=True)
    vae = autoencoder.read_model(Checked("AutoencoderKL", found.vae[0], []), found.vae[1], path, deferred=True)
    text = text_encoder.read_model(Checked("CLIPTextModel", found.text[0], []), found.text[1], path, deferred=True)
    return Parts(unet, vae, text, bpe.clip(PADDING[found.version]), 77, scheduler, [*notes, *about])


def _prediction(found, wishes, told, path) -> tuple[str, list[str]]:
    """(what the U-Net predicts, notes): eps in version 1 and in inpainting models; for version 2 no file says."""
    if wishes.prediction is not None:
        return {"v_prediction": "v"}.get(wishes.prediction, wishes.prediction), []  # pyright: ignore[reportReturnType]
    fills_in = found.unet[0]["in_channels"] > found.unet[0]["out_channels"]
    if found.version == 1 or fills_in or told == BASE_STEPS:
        return "eps", []
    if isinstance(wishes.scheduler, dict) and "prediction_type" in wishes.scheduler:
        return {"v_prediction": "v"}.get(wishes.scheduler["prediction_type"], "eps"), []
    raise CheckpointError(
        f"{path} is of Stable Diffusion 2, of which there are models that predict noise and models that predict v, and "
        "the file does not say which: give prediction='eps' (the base models of 512 pixels, turbo) or prediction='v' "
        "(those of 768), --prediction."
    )


def _checked_betas(schedule, betas: Weight, path) -> list[str]:
    """Takes the betas from the file if they differ from the schedule's."""
    values = np.asarray(betas.read(), np.float64)
    if values.shape == (1000,):
        usual = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        if np.allclose(values, usual, rtol=1e-3):
            return []
    if values.ndim != 1 or not 2 <= len(values) <= 100_000 or not ((values > 0) & (values < 1)).all():
        raise CheckpointError(f"{path} has betas that are none: use another.")
    schedule["trained_betas"] = values.tolist()
    schedule["num_train_timesteps"] = len(values)
    return [f"{path} was trained with other noise than the published models, and that is used"]

"""DDPM, DDIM and its inverse, PNDM: schedulers that step through integer t in the scale alpha^2 + sigma^2 = 1."""

import numpy as np

from pydiff.diffusion import samplers
from pydiff.diffusion.path import path_through
from pydiff.diffusion.samplers.walk import walk
from pydiff.formats.diffusers.scheduler import stages
from pydiff.formats.diffusers.scheduler.plan import BETAS, Plan, check_noisy, clipping, process_of
from pydiff.formats.diffusers.scheduler.tables import alpha_bar_of, spaced

SPACED = {**BETAS, "timestep_spacing": "leading", "steps_offset": 0}


def _whole_t(config, steps):
    t = np.round(spaced(config, steps, extra=0)).astype(np.int64)
    if not 0 <= t[-1] <= t[0] < config["num_train_timesteps"]:
        raise ValueError(f"steps_offset {config['steps_offset']} moves the first t to {t[0]}; use fewer steps")
    return t


def _plan(config, alpha_bar, timesteps, sample):
    level = stages.Levels(alpha_bar, 1.0)
    return Plan(process_of(config, alpha_bar), timesteps, None, 1.0, sample, clipping(config), level)


def ddpm(config, steps, literal=True, timesteps=None, begin=0, **_):
    """Builds the Plan of diffusers' DDPMScheduler."""
    kind = config["variance_type"].removesuffix("_log").removeprefix("fixed_")
    if kind == "learned":
        raise ValueError("variance_type 'learned' is not supported; learned_range is what published networks use")
    alpha_bar = alpha_bar_of(config, floor=False)
    t = (_whole_t(config, steps) if timesteps is None else timesteps.astype(np.int64))[begin:]
    check_noisy(1 - alpha_bar[t])
    made = stages.ddpm_stages(t.tolist(), stages.Levels(alpha_bar, 1.0), kind, noisy_end=literal)

    def sample(model, x, process, **options):
        return walk(model, x, process, made, **options)

    return _plan(config, alpha_bar, t, sample)


def ddim(config, steps, literal=True, begin=0, **_):
    """Builds the Plan of diffusers' DDIMScheduler."""
    alpha_bar, t = alpha_bar_of(config, floor=False), _whole_t(config, steps)[begin:]
    check_noisy(1 - alpha_bar[t])
    level = stages.Levels(alpha_bar, 1.0 if config["set_alpha_to_one"] else alpha_bar[0])
    stride = config["num_train_timesteps"] // steps

    def sample(model, x, process, eta=0.0, use_clipped_model_output=False, **options):
        targets = (t - stride).tolist() if literal else [*t[1:].tolist(), -1]
        made = stages.ddim_stages(t.tolist(), targets, level, eta, not use_clipped_model_output)
        return walk(model, x, process, made, **options)

    return _plan(config, alpha_bar, t, sample)


def ddim_inverse(config, steps, literal=True, **_):
    """Builds the Plan of diffusers' DDIMInverseScheduler."""
    alpha_bar, t = alpha_bar_of(config, floor=False), _whole_t(config, steps)[::-1]
    level = stages.Levels(alpha_bar, 1.0 if config["set_alpha_to_one"] else alpha_bar[0])
    stride = config["num_train_timesteps"] // steps
    sources = (t - stride).tolist() if literal else [-1, *t[:-1].tolist()]
    made = stages.inverse_stages(t.tolist(), sources, level)

    def sample(model, x, process, **options):
        return walk(model, x, process, made, **options)

    return _plan(config, alpha_bar, t, sample)


def pndm(config, steps, literal=True, begin=0, **_):
    """Builds the Plan of diffusers' PNDMScheduler."""
    if config["prediction_type"] not in ("epsilon", "v_prediction"):
        raise ValueError(f"PNDM takes epsilon or v_prediction, got prediction_type {config['prediction_type']!r}")
    alpha_bar, T = alpha_bar_of(config, floor=False), config["num_train_timesteps"]
    level = stages.Levels(alpha_bar, 1.0 if config["set_alpha_to_one"] else alpha_bar[0])
    t = _whole_t(config, steps)
    asked, warmup = stages.pndm_timesteps(t[::-1].tolist(), T, config["skip_prk_steps"])
    if begin and warmup:
        raise ValueError("PNDM with its Runge-Kutta warm-up cannot begin half way; name a sampler, such as ddim")
    asked, t = asked[begin:], t[begin:]
    prediction = "eps" if config["prediction_type"] == "epsilon" else "v"
    made = stages.pndm_stages(asked, warmup, level, T // steps, prediction)

    def sample(model, x, process, **options):
        if literal:
            return walk(model, x, process, made, **options)
        path = path_through(process.schedule, t, end="clean" if config["set_alpha_to_one"] else "first")
        return samplers.pndm(model, x, process, path, "runge_kutta" if warmup else "heun", **options)

    return _plan({**config, "clip_sample": False}, alpha_bar, np.array(asked), sample)


DDPM = {**SPACED, "variance_type": "fixed_small", "clip_sample": True}
DDIM = {**SPACED, "clip_sample": True, "set_alpha_to_one": True}
SCHEDULERS = {
    "DDPMScheduler": (ddpm, DDPM),
    "DDPMParallelScheduler": (ddpm, DDPM),
    "DDIMScheduler": (ddim, DDIM),
    "DDIMParallelScheduler": (ddim, DDIM),
    "DDIMInverseScheduler": (ddim_inverse, DDIM),
    "PNDMScheduler": (pndm, {**SPACED, "skip_prk_steps": False, "set_alpha_to_one": False}),
}

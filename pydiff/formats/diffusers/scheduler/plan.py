"""The interface that every family of schedulers implements."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pydiff.diffusion.process import Process
from pydiff.diffusion.schedule import Schedule

PREDICTION_TYPES = {
    "epsilon": "eps",
    "sample": "x0",
    "original_sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon"}


class Plan(NamedTuple):
    """A process, the numbers that diffusers exposes, and how to sample."""

    process: Process
    timesteps: np.ndarray
    sigmas: np.ndarray | None
    init_noise_sigma: float
    sample: Callable  # (model, x, process, **options) -> generator of SamplerState
    options: dict
    level_of: Callable  # t -> (alpha, sigma) of add_noise


def process_of(config, alpha_bar) -> Process:
    """The process with this table of alpha_bar."""
    kind = config["prediction_type"]
    if kind not in PREDICTION_TYPES:
        raise ValueError(f"there is no prediction_type {kind!r}; choose one of {', '.join(PREDICTION_TYPES)}")
    schedule = Schedule(str(config["beta_schedule"]), np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar))
    return Process(schedule, PREDICTION_TYPES[kind])


def clipping(config) -> dict:
    """The options of `walk` that implement thresholding and clip_sample."""
    if config.get("thresholding"):
        largest = config.get("sample_max_value", 1.0)
        return {"threshold": config.get("dynamic_thresholding_ratio", 0.995), "threshold_max": largest}
    if config.get("clip_sample"):
        limit = config.get("clip_sample_range", 1.0)
        return {"clip": (-limit, limit)}
    return {"clip": None}


def check_noisy(sigma):
    """Raises ValueError if a level (steps,) from which a step begins has no noise: the step divides by it."""
    if (np.asarray(sigma) == 0).any():
        raise ValueError("a step begins at a level without noise, by which it divides; use a beta_start above 0")


def level_by_index(timesteps, alpha, sigma) -> Callable:
    """The level of the evaluation that t belongs to; of the second one if t is evaluated twice, as in diffusers."""
    asked = np.asarray(timesteps, np.float64)

    def level(t):
        found = np.flatnonzero(np.isclose(asked, t, rtol=1e-6, atol=1e-6))
        if not found.size:
            raise ValueError(f"t = {t} is none of this scheduler's timesteps {asked.tolist()}")
        i = found[1 if found.size > 1 else 0]
        return float(alpha[i]), float(sigma[i])

    return level

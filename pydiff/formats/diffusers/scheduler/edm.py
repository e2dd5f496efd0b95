"""EDM's Euler and DPM-Solver++: sigma by formula, a preconditioned network that gets log(sigma) / 4 as t."""

import math

import numpy as np

from pydiff.diffusion import samplers
from pydiff.diffusion.path import Path
from pydiff.diffusion.process import Process
from pydiff.diffusion.schedule import exponential_sigmas, karras_sigmas, schedule
from pydiff.formats.diffusers.scheduler.plan import Plan, clipping, level_by_index
from pydiff.formats.diffusers.scheduler.solvers import KINDS, SOLVER, dpm_multistep_sampler

EDM = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "prediction_type": "epsilon",
    "rho": 7.0,
    "final_sigmas_type": "zero",
}


def _path(config, steps):
    low, high = config["sigma_min"], config["sigma_max"]
    predictions = {"epsilon": "edm", "v_prediction": "edm_v"}
    if config["prediction_type"] not in predictions or config["sigma_schedule"] not in ("karras", "exponential"):
        raise ValueError(
            f"got prediction_type {config['prediction_type']!r} and sigma_schedule {config['sigma_schedule']!r}, "
            "expected epsilon or v_prediction, and karras or exponential"
        )
    karras = config["sigma_schedule"] == "karras"
    sigma = karras_sigmas(steps, low, high, config["rho"]) if karras else exponential_sigmas(steps, low, high)
    sigma = np.append(sigma, 0.0 if config["final_sigmas_type"] == "zero" else sigma[-1])
    sigma = sigma.astype(np.float32).astype(np.float64)
    table = schedule("edm", config["num_train_timesteps"], sigma_min=low, sigma_max=high, rho=config["rho"])
    process = Process(table, predictions[config["prediction_type"]], config["sigma_data"])
    return process, Path(np.log(sigma[:-1]) / 4.0, np.ones(steps + 1), sigma)


def _plan(config, process, path, sample):
    level = level_by_index(path.t, path.alpha, path.sigma)
    start = math.hypot(config["sigma_max"], 1.0)
    return Plan(process, path.t, path.sigma, start, sample, clipping(config), level)


def euler(config, steps, **_):
    """EDMEulerScheduler: Euler in sigma with the levels of Karras et al. 2022."""
    process, path = _path(config, steps)

    def sample(model, x, process, **options):
        return samplers.euler(model, x, process, path, **options)

    return _plan(config, process, path, sample)


def dpm_multistep(config, steps, literal=True, **_):
    """EDMDPMSolverMultistepScheduler: multistep DPM-Solver++ on the same levels."""
    process, path = _path(config, steps)
    if KINDS[config["algorithm_type"]] == "data sde" and config["solver_order"] == 3:
        raise ValueError("EDM's sde-dpmsolver++ has no order 3 in diffusers; use order 2")
    return _plan(config, process, path, dpm_multistep_sampler(config, steps, path, literal))


SCHEDULERS = {
    "EDMEulerScheduler": (euler, EDM),
    "EDMDPMSolverMultistepScheduler": (dpm_multistep, {**SOLVER, **EDM}),
}

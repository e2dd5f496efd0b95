"""Euler, Euler ancestral, Heun, LMS and DPM2: schedulers that step in the scale alpha = 1, with sigma from a table."""

import numpy as np

from pydiff.diffusion import samplers
from pydiff.diffusion.path import Path
from pydiff.formats.diffusers.scheduler.plan import BETAS, Plan, check_noisy, clipping, level_by_index, process_of
from pydiff.formats.diffusers.scheduler.tables import alpha_bar_of, respaced, sigma_table, spaced, t_of_sigma

EULER = {**BETAS, "timestep_spacing": "linspace", "steps_offset": 0, "final_sigmas_type": "zero"}
HEUN = {**EULER, "beta_start": 0.00085, "beta_end": 0.012}


def _levels(config, steps, rounded, timesteps=None, sigmas=None):
    """(process, t (S,), sigma (S + 1,)); (S + 2,) for "log_linear", whose last level diffusers never reaches."""
    alpha_bar = alpha_bar_of(config, floor=True)
    table = sigma_table(alpha_bar)
    process = process_of(config, alpha_bar_of(config, floor=False))
    if sigmas is not None:
        return process, _float32(t_of_sigma(_float32(sigmas[:-1]), table)), _float32(sigmas)
    t = _float32(spaced(config, steps, extra=0) if timesteps is None else timesteps)
    sigma = np.interp(t, np.arange(len(table)), table)
    if config.get("interpolation_type") == "log_linear" and config["_class_name"] == "EulerDiscreteScheduler":
        sigma = np.exp(np.linspace(np.log(table[-1]), np.log(table[0]), steps + 1))
    if (levels := respaced(config, steps, sigma[0], sigma[-1])) is not None:
        sigma, t = levels, t_of_sigma(levels, table)
        t = np.round(t) if rounded and config.get("use_karras_sigmas") else t
    last = table[0] if config["final_sigmas_type"] == "sigma_min" else 0.0
    return process, _float32(t), _float32(np.append(sigma, last))


def _float32(values):
    return values.astype(np.float32).astype(np.float64)


def _scheduler(sampler, asked, rounded=False, **fixed):
    """A function that builds the Plan. asked: a function of (process, t, sigma) that returns ("t", sigma table) of
    every evaluation.
    """

    def build(config, steps, timesteps=None, sigmas=None, begin=0, **_):
        process, t, sigma = _levels(config, steps, rounded, timesteps, sigmas)
        t, sigma, steps = t[begin:], sigma[begin:], steps - begin
        check_noisy(sigma[:steps])
        if config.get("timestep_type") == "continuous" and config["prediction_type"] == "v_prediction":
            t = np.log(sigma[:steps]) / 4.0
        path = Path(t, np.ones(steps + 1), sigma[: steps + 1])
        timesteps, table = asked(process, t, sigma)
        start = sigma[0] if config["timestep_spacing"] != "leading" else np.hypot(sigma[0], 1.0)

        def sample(model, x, process, **options):
            return sampler(model, x, process, path, **fixed, **options)

        level = level_by_index(timesteps, np.ones(len(table)), table)
        return Plan(process, timesteps, table, float(start), sample, clipping(config), level)

    return build


def _once(_process, t, sigma):
    return t, sigma


def _twice(_process, t, sigma):
    """Heun's evaluations: both ends of every step."""
    return np.append(t[:1], np.repeat(t[1:], 2)), np.concatenate([sigma[:1], np.repeat(sigma[1:-1], 2), sigma[-1:]])


def _with_middle(ancestral):
    """DPM2's evaluations: the start of every step, and its midpoint in log sigma."""

    def asked(process, t, sigma):
        begin, end = sigma[:-2], sigma[1:-1]
        if ancestral:
            end = np.sqrt(end**2 - end**2 * (begin**2 - end**2) / begin**2)
        middle = process.schedule.t_at(1.0, np.sqrt(begin * end))
        order = np.stack([middle, t[1:]], axis=1).ravel()
        table = np.concatenate([sigma[:1], np.repeat(sigma[1:], 2), sigma[-1:]])
        return np.append(t[:1], order), table

    return asked


SCHEDULERS = {
    "EulerDiscreteScheduler": (_scheduler(samplers.euler, _once), EULER),
    "EulerAncestralDiscreteScheduler": (_scheduler(samplers.euler_ancestral, _once), EULER),
    "HeunDiscreteScheduler": (_scheduler(samplers.heun, _twice), HEUN),
    "LMSDiscreteScheduler": (_scheduler(samplers.lms, _once), EULER),
    "KDPM2DiscreteScheduler": (_scheduler(samplers.dpm2, _with_middle(False), rounded=True), HEUN),
    "KDPM2AncestralDiscreteScheduler": (_scheduler(samplers.dpm2, _with_middle(True), rounded=True, eta=1.0), HEUN),
}

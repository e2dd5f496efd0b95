"""Euler and Heun along the straight line alpha = 1 - sigma, whose network gets sigma T as t."""

import math

import numpy as np

from pydiff.diffusion import samplers
from pydiff.diffusion.path import Path
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers.walk import Stage, walk
from pydiff.diffusion.schedule import schedule, shifted
from pydiff.formats.diffusers.scheduler.plan import Plan, level_by_index
from pydiff.formats.diffusers.scheduler.tables import respaced


def _sigmas(config, steps, mu, own=None):
    """diffusers shifts twice: the ends of the table, and what is spaced between them; (S,)."""
    T, shift = config["num_train_timesteps"], config["shift"]
    dynamic = config.get("use_dynamic_shifting")
    ends = [1.0, 1.0 / T] if dynamic else [shifted(1.0, shift), shifted(1.0 / T, shift)]
    sigma = np.linspace(*ends, steps) if own is None else own.astype(np.float32).astype(np.float64)  # pyright: ignore[reportCallIssue]
    if dynamic:
        if mu is None:
            raise ValueError("use_dynamic_shifting needs mu; give from_diffusers the mu of the images' size")
        factor = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
        sigma = factor / (factor + (1.0 / sigma - 1.0))
    else:
        sigma = shifted(sigma, shift)
    if config.get("shift_terminal"):
        sigma = 1.0 - (1.0 - sigma) * (1.0 - config["shift_terminal"]) / (1.0 - sigma[-1])
    levels = respaced(config, steps, sigma[0], sigma[-1])
    return (sigma if levels is None else levels).astype(np.float32).astype(np.float64)


class FlowProcess(Process):
    """A flow whose network gets sigma T; networks trained by pydiff get sigma T - 1."""

    def network_time(self, _t, alpha, sigma):
        """The network's input in place of t: sigma T, whatever the scale of x."""
        return sigma / (alpha + sigma) * self.schedule.T


def _process(config):
    return FlowProcess(schedule("flow", config["num_train_timesteps"]), "flow")


def euler(config, steps, mu=None, sigmas=None, **_):
    """Builds the Plan of diffusers' FlowMatchEulerDiscreteScheduler."""
    sigma, T = _sigmas(config, steps, mu, sigmas), config["num_train_timesteps"]
    sigma = np.append(1.0 - sigma, 1.0) if config.get("invert_sigmas") else np.append(sigma, 0.0)
    alpha, t = 1.0 - sigma, sigma[:-1] * T
    stochastic = bool(config.get("stochastic_sampling"))
    made = [  # x0-hat and eps-hat combined at the next level, which may be a noisier one for inverted sigmas
        Stage(t[i], alpha[i], sigma[i], x0=alpha[i + 1], **{"std" if stochastic else "raw_eps": sigma[i + 1]})
        for i in range(steps)
    ]

    def sample(model, x, process, **options):
        return walk(model, x, process, made, **options)

    return Plan(_process(config), t, sigma, 1.0, sample, {"clip": None}, level_by_index(t, alpha, sigma))


def heun(config, steps, **_):
    """Builds the Plan of diffusers' FlowMatchHeunDiscreteScheduler."""
    sigma, T = np.append(_sigmas(config, steps, None), 0.0), config["num_train_timesteps"]
    path = Path(sigma[:-1] * T, 1.0 - sigma, sigma)

    def sample(model, x, process, **options):
        return samplers.flow_heun(model, x, process, path, **options)

    table = np.concatenate([sigma[:1], np.repeat(sigma[1:-1], 2), sigma[-1:]])
    t = table[:-1] * T
    return Plan(_process(config), t, table, 1.0, sample, {"clip": None}, level_by_index(t, 1.0 - table, table))


SCHEDULERS = {
    "FlowMatchEulerDiscreteScheduler": (euler, {"shift": 1.0}),
    "FlowMatchHeunDiscreteScheduler": (heun, {"shift": 1.0}),
}

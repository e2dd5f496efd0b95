"""KarrasVe and IPNDM: schedulers whose networks get a specific function of the level instead of a step number."""

import math

import numpy as np

from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers.multistep import ADAMS_BASHFORTH, weighted_stage
from pydiff.diffusion.samplers.walk import Stage, walk
from pydiff.diffusion.schedule import Schedule, exponential_sigmas
from pydiff.formats.diffusers.scheduler.plan import Plan, level_by_index


class KarrasVeProcess(Process):
    """x0-hat = x + sigma^2 / 2 F((x + 1) / 2, sigma / 2): Karras et al. 2022, eq. 213, as diffusers' pipeline has it.

    The network gets x; its wrapper computes (x + 1) / 2.
    """

    def scale(self, _alpha, sigma):
        """1: alpha is 1 throughout."""
        return np.ones_like(sigma)

    def network_time(self, _t, _alpha, sigma):
        """The network's input in place of t: sigma / 2."""
        return sigma / 2.0

    def x0_coefficients(self, _alpha, sigma):
        """(1, sigma^2 / 2)."""
        return 1.0, sigma**2 / 2.0

    def eps_coefficients(self, _alpha, sigma):
        """(0, -sigma / 2)."""
        return 0.0, -sigma / 2.0

    @property
    def preconditioned(self):
        """True: the equation above is a preconditioning."""
        return True


def karras_ve(config, steps, **_):
    """KarrasVeScheduler: Heun in sigma with churn (Karras et al. 2022, algorithm 2), on diffusers' levels: what it
    calls sigma runs from sigma_max^2 to sigma_min^2.
    """
    low, high = config["sigma_min"], config["sigma_max"]
    if steps < 2:
        raise ValueError(f"got {steps} steps, and KarrasVeScheduler needs at least 2; use more")
    sigma = exponential_sigmas(steps, low**2, high**2).astype(np.float32).astype(np.float64)
    made, gamma = [], min(config["s_churn"] / steps, math.sqrt(2.0) - 1.0)
    for i, (here, after) in enumerate(zip(sigma, [*sigma[1:], 0.0], strict=True)):
        raised, churn = here, None
        if config["s_min"] <= here <= config["s_max"]:
            raised = here + gamma * here
            churn = (math.sqrt(raised**2 - here**2) * config["s_noise"], 1.0, raised)
        step, begin = after - raised, len(made)
        made.append(Stage(steps - 1 - i, 1.0, raised, x=1.0, eps=step, churn=churn, last=after == 0))
        if after:
            past = ((begin, "x", 1.0), (begin, "eps", step / 2))
            made.append(Stage(steps - 1 - i, 1.0, after, eps=step / 2, past=past))
    table = Schedule("karras_ve", np.ones(1000), exponential_sigmas(1000, low**2, high**2)[::-1])

    def sample(model, x, process, **options):
        def shifted(x, t):
            return model((x + 1) / 2, t)

        return walk(shifted, x, process, made, **options)

    t = np.arange(steps)[::-1]
    process = KarrasVeProcess(table, "x0")
    return Plan(process, t, None, high, sample, {"clip": None}, level_by_index(t, np.ones(steps), sigma))


def ipndm(config, steps, **_):
    """IPNDMScheduler: `pndm` without warm-up (Liu et al. 2022, eq. 12), v-prediction, t from 1 to 0."""
    T = config["num_train_timesteps"]
    share = np.append(np.linspace(1.0, 0.0, steps + 1)[:-1], 0.0)
    sigma = np.sin(share * math.pi / 2.0) ** 2 if config.get("trained_betas") is None else None
    sigma = np.asarray(config["trained_betas"], np.float64) if sigma is None else sigma
    if len(sigma) != steps + 1:
        raise ValueError(f"trained_betas has {len(sigma)} levels, which are for {len(sigma) - 1} steps; use as many")
    alpha = np.sqrt(1.0 - sigma**2)
    t = np.arctan2(sigma, alpha)[:-1] / math.pi * 2.0
    made = []
    for i in range(steps):
        ends, values = (alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]), list(range(max(0, i - 3), i + 1))
        if alpha[i] == 0:  # eps-hat is x itself, and x0-hat has weight 0
            made.append(Stage(t[i], 0.0, sigma[i], eps=sigma[i + 1]))
            continue
        made.append(weighted_stage(t[i], ends, values, ADAMS_BASHFORTH[len(values) - 1]))
    steps_of_table = np.sin(np.arange(1, T + 1) / T * math.pi / 2.0) ** 2
    table = Schedule("ipndm", np.sqrt(1.0 - steps_of_table**2), steps_of_table)

    def sample(model, x, process, **options):
        return walk(model, x, process, made, **options)

    return Plan(Process(table, "v"), t, None, 1.0, sample, {"clip": None}, level_by_index(t, alpha, sigma))


KARRAS_VE = {"sigma_min": 0.02, "sigma_max": 100.0, "s_noise": 1.007, "s_churn": 80.0, "s_min": 0.05, "s_max": 50.0}
SCHEDULERS = {"KarrasVeScheduler": (karras_ve, KARRAS_VE), "IPNDMScheduler": (ipndm, {})}

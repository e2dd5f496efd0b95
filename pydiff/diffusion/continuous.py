"""The same schedules as functions of a continuous time u from 0 (image) to 1 (noise), for paths not limited to a table.

    path_of_level(schedule, level_of(schedule), 20)      levels between the steps of the schedule's table

`path(schedule, 20, "continuous")` and `--spacing continuous` use this module.

A table of T steps is the function at u = (t + 1) / T, up to the rounding of a product to an integral (Song et al. 2021,
"Score-based generative modeling through stochastic differential equations", appendix B): error 1 / T.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from pydiff.diffusion.schedule import shifted
from pydiff.diffusion.table import Schedule

Level: TypeAlias = Callable  # u, numbers or arrays in [0, 1] -> (alpha, sigma)


def linear(beta_min: float = 0.1, beta_max: float = 20.0) -> Level:
    """The variance-preserving SDE, Song et al. 2021, eq. 33: log alpha = -u^2 (beta_max - beta_min)/4 - u beta_min/2.

    beta_min and beta_max are T times DDPM's beta_start and beta_end.
    """
    return lambda u: _preserving(-0.25 * u**2 * (beta_max - beta_min) - 0.5 * u * beta_min)


def scaled_linear(beta_min: float = 0.85, beta_max: float = 12.0) -> Level:
    """sqrt(beta) linear in u: log alpha = -1/2 integral of (a + (b - a) u)^2, a and b the roots of the two ends."""
    a, b = np.sqrt(beta_min), np.sqrt(beta_max)
    return lambda u: _preserving(-0.5 * (a**2 * u + a * (b - a) * u**2 + (b - a) ** 2 * u**3 / 3.0))


def cosine(s: float = 0.008) -> Level:
    """alpha = cos((u + s) / (1 + s) pi / 2) over its value at 0 (Nichol and Dhariwal 2021, eq. 17), without
    max_beta.
    """

    def level(u):
        alpha = np.cos((u + s) / (1 + s) * np.pi / 2) / np.cos(s / (1 + s) * np.pi / 2)
        alpha = np.clip(alpha, 0.0, 1.0)
        return alpha, np.sqrt(1.0 - alpha**2)

    return level


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Level:
    """alpha = 1, sigma^(1/rho) linear in u (Karras et al. 2022, eq. 5)."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return lambda u: (np.ones_like(u * 1.0), (low + u * (high - low)) ** rho)


def exponential(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Level:
    """alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^u (Song et al. 2021, eq. 31)."""
    return lambda u: (np.ones_like(u * 1.0), sigma_min * (sigma_max / sigma_min) ** u)


def flow(shift: float = 1.0) -> Level:
    """The straight line: sigma = shift u / (1 + (shift - 1) u), alpha = 1 - sigma (Esser et al. 2024, eq. 23)."""

    def level(u):
        sigma = shifted(u * 1.0, shift)
        return 1.0 - sigma, sigma

    return level


LEVELS: dict[str, Callable[..., Level]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "edm": edm,
    "exponential": exponential,
    "flow": flow,
}


def level_of(schedule: Schedule) -> Level:
    """The function of u of which `schedule` is the table. Raises ValueError for a schedule that has none here."""
    options = dict(schedule.options or {})
    T, rescaled = options.pop("T", schedule.T), options.pop("zero_snr", False)
    if schedule.options is None or rescaled or schedule.name not in LEVELS:
        what = "rescaled to zero SNR" if rescaled else f"called {schedule.name!r}"
        raise ValueError(f"a schedule {what} has no levels between its steps; use another spacing than continuous")
    options.pop("max_beta", None)  # limits only the last steps of the table
    if "beta_start" in options:
        options = {"beta_min": T * options["beta_start"], "beta_max": T * options["beta_end"]}
    return LEVELS[schedule.name](**options)


def _preserving(log_alpha):
    return np.exp(log_alpha), np.sqrt(-np.expm1(2.0 * log_alpha))

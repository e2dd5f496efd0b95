"""Published schedules by name, as tables of alpha_t and sigma_t (see table.py for what can be done with them)."""

from collections.abc import Callable

import numpy as np

from pydiff.diffusion.table import Schedule


def from_beta(name: str, beta: np.ndarray, options: dict) -> Schedule:
    """The variance-preserving schedule with these beta (T,): alpha_bar_t = prod_{s <= t} (1 - beta_s) (DDPM eq. 4)."""
    if not ((beta > 0) & (beta <= 1)).all():
        raise ValueError(f"beta runs from {beta.min()} to {beta.max()}, expected 0 < beta <= 1; check {options}")
    alpha_bar = np.cumprod(1.0 - beta)
    return Schedule(name, np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar), options)


def linear(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """beta rises linearly (Ho et al. 2020, section 4)."""
    options = {"T": T, "beta_start": beta_start, "beta_end": beta_end}
    return from_beta("linear", np.linspace(beta_start, beta_end, T), options)


def scaled_linear(T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Schedule:
    """sqrt(beta) rises linearly: the schedule of latent diffusion (Rombach et al. 2022) and Stable Diffusion."""
    options = {"T": T, "beta_start": beta_start, "beta_end": beta_end}
    return from_beta("scaled_linear", np.linspace(beta_start**0.5, beta_end**0.5, T) ** 2, options)


def cosine(T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """alpha_bar follows a squared cosine (Nichol and Dhariwal 2021, eq. 17), with beta limited to max_beta, as in the
    paper.
    """
    f = np.cos((np.arange(T + 1) / T + s) / (1.0 + s) * np.pi / 2.0) ** 2  # at t = 0 .. T; alpha_bar_t is f_t / f_0
    return from_beta("cosine", np.minimum(1.0 - f[1:] / f[:-1], max_beta), {"T": T, "s": s, "max_beta": max_beta})


def sigmoid(T: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta=0.999) -> Schedule:
    """alpha_bar falls as a logistic curve from `start` to `end` (Jabri et al. 2023)."""
    options = {"T": T, "start": start, "end": end, "tau": tau, "max_beta": max_beta}
    x = (np.arange(T + 1) / T * (end - start) + start) / tau
    f = (_logistic(end / tau) - _logistic(x)) / (_logistic(end / tau) - _logistic(start / tau))
    return from_beta("sigmoid", np.minimum(1.0 - f[1:] / f[:-1], max_beta), options)


def sigmoid_beta(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """beta rises as a logistic curve over -6 .. 6 (Xu et al. 2022, "GeoDiff"); what diffusers calls "sigmoid"."""
    options = {"T": T, "beta_start": beta_start, "beta_end": beta_end}
    beta = _logistic(np.linspace(-6.0, 6.0, T)) * (beta_end - beta_start) + beta_start
    return from_beta("sigmoid_beta", beta, options)


def edm(T: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """Exploding: alpha = 1 and sigma^(1/rho) rises linearly (Karras et al. 2022, eq. 5)."""
    options = {"T": T, "sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
    return Schedule("edm", np.ones(T), karras_sigmas(T, sigma_min, sigma_max, rho)[::-1], options)


def exponential(T: int = 1000, sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
    """Exploding: alpha = 1 and log sigma rises linearly (the VE SDE of Song et al. 2021, "Score-based", appendix C)."""
    options = {"T": T, "sigma_min": sigma_min, "sigma_max": sigma_max}
    return Schedule("exponential", np.ones(T), exponential_sigmas(T, sigma_min, sigma_max)[::-1], options)


def flow(T: int = 1000, shift: float = 1.0) -> Schedule:
    """The straight line alpha = 1 - sigma, with sigma = (t + 1) / T (Liu et al. 2023; Lipman et al. 2023).

    shift > 1 moves the levels towards noise, as larger images need: sigma -> shift sigma / (1 + (shift - 1) sigma)
    (Esser et al. 2024, eq. 23).
    """
    sigma = shifted(np.arange(1, T + 1) / T, shift)
    return Schedule("flow", 1.0 - sigma, sigma, {"T": T, "shift": shift})


BUILDERS: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "sigmoid_beta": sigmoid_beta,
    "edm": edm,
    "exponential": exponential,
    "flow": flow,
}


def schedule(name: str, T: int = 1000, zero_snr: bool = False, **options) -> Schedule:
    """The schedule called `name` with T steps; `options` are those of its builder. Raises ValueError for an unknown
    name.

    zero_snr: rescaled so that the last x_t is pure noise, see `zero_terminal_snr`.
    """
    if name not in BUILDERS:
        raise ValueError(f"there is no schedule {name!r}; choose one of {', '.join(BUILDERS)}")
    built = BUILDERS[name](T, **options)
    return zero_terminal_snr(built) if zero_snr else built


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """The same schedule with sqrt(alpha_bar) shifted and stretched to end at 0 (Lin et al. 2024, algorithm 1).

    Raises ValueError unless it is variance preserving. The result needs prediction "v", "x0" or "flow": eps does not
    determine x0 where alpha = 0.
    """
    if not schedule.variance_preserving:
        raise ValueError(f"schedule {schedule.name!r} is not variance preserving; only those are rescaled to zero SNR")
    first, last = schedule.alpha[0], schedule.alpha[-1]
    alpha = (schedule.alpha - last) * (first / (first - last))
    options = None if schedule.options is None else {**schedule.options, "zero_snr": True}
    return Schedule(schedule.name, alpha, np.sqrt(1.0 - alpha**2), options)


def karras_sigmas(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> np.ndarray:
    """n noise levels from sigma_max down to sigma_min, evenly spaced in sigma^(1/rho) (Karras et al. 2022, eq. 5)."""
    return (sigma_max ** (1 / rho) + np.linspace(0, 1, n) * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def exponential_sigmas(n: int, sigma_min: float, sigma_max: float) -> np.ndarray:
    """n noise levels from sigma_max down to sigma_min, evenly spaced in log sigma."""
    return np.exp(np.linspace(np.log(sigma_max), np.log(sigma_min), n))


def shifted(sigma, shift: float):
    """Noise levels of a flow moved towards 1: shift sigma / (1 + (shift - 1) sigma) (Esser et al. 2024, eq. 23)."""
    return shift * sigma / (1.0 + (shift - 1.0) * sigma)


def _logistic(x):
    return 1.0 / (1.0 + np.exp(-x))


def from_config(config: dict) -> Schedule:
    """The schedule that `Schedule.to_config` described."""
    return Schedule(**config) if "alpha" in config else schedule(**config)

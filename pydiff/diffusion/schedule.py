"""Noise schedules: how much of the picture and how much noise there is in x_t = alpha_t x_0 + sigma_t eps.

Notation (t = 0 .. T-1; t = 0 is almost clean, t = T-1 almost pure noise; Ho et al. count the same steps from 1):

    here          DDPM (Ho et al. 2020)           meaning
    alpha[t]      sqrt(alpha_bar_t)               share of the picture
    sigma[t]      sqrt(1 - alpha_bar_t)           share of the noise
    beta[t]       beta_t                          variance added between t-1 and t
    snr[t]        alpha_bar_t / (1 - alpha_bar_t) signal-to-noise ratio (Kingma et al. 2021)

Everything is float64 and is cast once, where it meets the data. Only `beta` needs alpha^2 + sigma^2 = 1. Three families
say the same with another scale of x_t: variance preserving (alpha^2 + sigma^2 = 1), exploding (alpha = 1) and flow
(alpha + sigma = 1); sigma / alpha is what they have in common. t may be fractional where `at` and `t_at` are used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class Schedule:
    """alpha and sigma for every t, both (T,) float64 and read-only, T >= 2.

    `options` are the arguments of the builder called `name`, so that a schedule can be stored as a few numbers; None
    for a schedule that was made by hand. Raises ValueError for other shapes, for numbers that are negative or not
    finite, and for a signal-to-noise ratio that does not fall with every t.
    """

    name: str
    alpha: np.ndarray
    sigma: np.ndarray
    options: dict | None = None

    def __post_init__(self):
        for name in ("alpha", "sigma"):
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.ndim != 1 or len(values) < 2:
                raise ValueError(f"{name} has shape {values.shape}, expected (T,) with T >= 2; give one number a step")
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise ValueError(f"{name} of schedule {self.name!r} is negative or not finite; check its options")
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        if self.alpha.shape != self.sigma.shape:
            raise ValueError(f"alpha has {len(self.alpha)} steps and sigma {len(self.sigma)}, expected equally many")
        # alpha / sigma falls from t to t+1: said without dividing by a sigma that may be zero
        if not (self.alpha[:-1] * self.sigma[1:] > self.alpha[1:] * self.sigma[:-1]).all():
            raise ValueError(f"alpha / sigma of schedule {self.name!r} has to fall with every t; check its options")

    @property
    def T(self) -> int:
        """Number of steps."""
        return len(self.alpha)

    @property
    def variance_preserving(self) -> bool:
        """Whether alpha^2 + sigma^2 = 1 for every t."""
        return bool(np.allclose(self.alpha**2 + self.sigma**2, 1.0, rtol=0.0, atol=1e-12))

    @property
    def family(self) -> str:
        """The scale of x_t: "preserving", "exploding", "flow" or "other"."""
        if self.variance_preserving:
            return "preserving"
        if (self.alpha == 1.0).all():
            return "exploding"
        return "flow" if np.allclose(self.alpha + self.sigma, 1.0, rtol=0.0, atol=1e-12) else "other"

    def scale(self, alpha, sigma):
        """What a picture alpha x0 + sigma eps is multiplied by to be as large as this family's x_t; 1 for "other"."""
        norm = {"preserving": np.hypot, "exploding": lambda a, _: a, "flow": np.add}.get(self.family)
        return np.ones_like(alpha) if norm is None else 1.0 / norm(alpha, sigma)

    @cached_property
    def _coordinate(self):
        """What is interpolated linearly in t, as a function of (alpha, sigma), and its values at t = 0 .. T-1.

        log(sigma / alpha), as Karras et al. 2022 (appendix C.3.4) do it; where that is infinite, and for flows, whose t
        is sigma / (alpha + sigma), an expression that is finite at both ends.
        """
        if self.family == "flow":
            f = _share
        else:
            finite = (self.alpha > 0).all() and (self.sigma > 0).all()
            f = _log_ratio if finite else lambda alpha, sigma: np.arctan2(sigma, alpha)
        return f, f(self.alpha, self.sigma)

    def t_at(self, alpha, sigma):
        """The fractional t, 0 .. T-1, at which sigma / alpha is that of these; the nearest end beyond the table."""
        f, table = self._coordinate
        with np.errstate(divide="ignore"):
            return np.interp(f(np.asarray(alpha, float), np.asarray(sigma, float)), table, np.arange(self.T))

    def at(self, t):
        """(alpha, sigma) at fractional t, the inverse of `t_at`; the table's own numbers where t is whole.

        ValueError unless 0 <= t <= T-1.
        """
        t = np.asarray(t)
        if not ((t >= 0) & (t <= self.T - 1)).all():
            raise ValueError(f"t runs from {np.min(t)} to {np.max(t)}, expected 0 .. {self.T - 1}")
        if t.dtype.kind in "iu":
            return self.alpha[t], self.sigma[t]
        f, table = self._coordinate
        c, whole = np.interp(t, np.arange(self.T), table), np.rint(t).astype(np.int64)
        if f is _log_ratio:
            alpha, sigma = np.ones_like(c), np.exp(c)
        else:
            alpha, sigma = (1.0 - c, c) if f is _share else (np.cos(c), np.sin(c))
        scale = self.scale(alpha, sigma)
        if self.family == "other":  # no rule says how large x_t is between two t: interpolate that too
            scale = np.interp(t, np.arange(self.T), np.hypot(self.alpha, self.sigma)) / np.hypot(alpha, sigma)
        on = t == whole
        return np.where(on, self.alpha[whole], scale * alpha), np.where(on, self.sigma[whole], scale * sigma)

    @property
    def alpha_bar(self) -> np.ndarray:
        """alpha^2: DDPM's product of all 1 - beta up to t (eq. 4)."""
        return self.alpha**2

    @property
    def beta(self) -> np.ndarray:
        """DDPM's beta_t = 1 - alpha_bar_t / alpha_bar_{t-1} (eq. 2); ValueError unless variance preserving."""
        if not self.variance_preserving:
            raise ValueError(f"schedule {self.name!r} has no beta: alpha^2 + sigma^2 is not 1; use alpha, sigma or snr")
        return 1.0 - self.alpha_bar / np.append(1.0, self.alpha_bar[:-1])

    @property
    def snr(self) -> np.ndarray:
        """Signal-to-noise ratio alpha^2 / sigma^2 (Kingma et al. 2021, eq. 2); infinite where sigma is 0."""
        with np.errstate(divide="ignore"):
            return self.alpha**2 / self.sigma**2

    @property
    def log_snr(self) -> np.ndarray:
        """Natural logarithm of `snr`; minus infinity where alpha is 0."""
        with np.errstate(divide="ignore"):
            return 2.0 * (np.log(self.alpha) - np.log(self.sigma))

    def to_config(self) -> dict:
        """A dict for JSON from which `from_config` makes the same schedule, bit for bit."""
        if self.options is None:
            return {"name": self.name, "alpha": self.alpha.tolist(), "sigma": self.sigma.tolist()}
        return {"name": self.name, **self.options}

    @staticmethod
    def from_config(config: dict) -> "Schedule":
        """The schedule that `to_config` described."""
        return Schedule(**config) if "alpha" in config else schedule(**config)


def _log_ratio(alpha, sigma):
    return np.log(sigma) - np.log(alpha)


def _share(alpha, sigma):
    return sigma / (alpha + sigma)


# ---- builders --------------------------------------------------------------------------------------------------------


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
    """alpha_bar follows a squared cosine (Nichol and Dhariwal 2021, eq. 17), with beta cut at max_beta as there."""
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

    shift > 1 moves the levels towards noise, as larger pictures need: sigma -> shift sigma / (1 + (shift - 1) sigma)
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
    """The schedule called `name` with T steps; `options` are those of its builder. ValueError for another name.

    zero_snr: rescaled so that the last x_t is noise alone, see `zero_terminal_snr`.
    """
    if name not in BUILDERS:
        raise ValueError(f"there is no schedule {name!r}; choose one of {', '.join(BUILDERS)}")
    built = BUILDERS[name](T, **options)
    return zero_terminal_snr(built) if zero_snr else built


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """The same schedule with sqrt(alpha_bar) shifted and stretched to end at 0 (Lin et al. 2024, algorithm 1).

    ValueError unless variance preserving. The result needs prediction "v" or "x0": eps says nothing where alpha = 0.
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

"""Noise schedules: how much of the picture and how much noise there is in x_t = alpha_t x_0 + sigma_t eps.

Notation (t = 0 .. T-1; t = 0 is almost clean, t = T-1 almost pure noise; Ho et al. count the same steps from 1):

    here          DDPM (Ho et al. 2020)           meaning
    alpha[t]      sqrt(alpha_bar_t)               share of the picture
    sigma[t]      sqrt(1 - alpha_bar_t)           share of the noise
    beta[t]       beta_t                          variance added between t-1 and t
    snr[t]        alpha_bar_t / (1 - alpha_bar_t) signal-to-noise ratio (Kingma et al. 2021)

Everything is float64 and is cast once, where it meets the data. Only `beta` needs alpha^2 + sigma^2 = 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

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


BUILDERS: dict[str, Callable[..., Schedule]] = {"linear": linear, "scaled_linear": scaled_linear, "cosine": cosine}


def schedule(name: str, T: int = 1000, **options) -> Schedule:
    """The schedule called `name` with T steps; `options` are those of its builder. ValueError for another name."""
    if name not in BUILDERS:
        raise ValueError(f"there is no schedule {name!r}; choose one of {', '.join(BUILDERS)}")
    return BUILDERS[name](T, **options)


# ---- the way back ----------------------------------------------------------------------------------------------------


class Path(NamedTuple):
    """The S steps of a sampler: step i asks the model at t[i] and goes from entry i to entry i + 1."""

    t: np.ndarray  # (S,) int64, falling
    alpha: np.ndarray  # (S + 1,) float64; the last entry is the clean end, 1
    sigma: np.ndarray  # (S + 1,) float64; the last entry is the clean end, 0


SPACINGS: dict[str, Callable[[int, int], np.ndarray]] = {
    # k = 0 .. S-1, before reversing; each is strictly rising because T / S >= 1
    "leading": lambda T, S: np.arange(S) * T // S,
    "linspace": lambda T, S: np.rint(np.arange(S) * ((T - 1) / max(S - 1, 1))).astype(np.int64),
    "trailing": lambda T, S: np.rint(np.arange(1, S + 1) * (T / S)).astype(np.int64) - 1,
}


def timesteps(T: int, steps: int, spacing: str = "trailing") -> np.ndarray:
    """`steps` of the numbers T-1 .. 0, evenly spaced: (steps,) int64, strictly falling.

    "trailing" starts at T-1, where x_T really is noise, and is the default for that reason (Lin et al. 2024, section
    3.3); "leading" ends at 0 (Song et al. 2021); "linspace" does both (Nichol and Dhariwal 2021). steps == T gives
    every t in all three. A single step is T-1 in all three: it starts from noise. ValueError unless 1 <= steps <= T.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"there is no spacing {spacing!r}; choose one of {', '.join(SPACINGS)}")
    if not 1 <= steps <= T:
        raise ValueError(f"got {steps} steps for a schedule of T = {T}, expected 1 .. {T}; use fewer steps")
    if steps == 1:
        return np.array([T - 1])
    return SPACINGS[spacing](T, steps)[::-1].copy()


def path(schedule: Schedule, steps: int, spacing: str = "trailing") -> Path:
    """The path of `steps` evenly spaced steps from noise to the clean end."""
    return path_through(schedule, timesteps(schedule.T, steps, spacing))


def path_through(schedule: Schedule, t) -> Path:
    """The path through the given t (S,), integers that fall strictly, to the clean end. ValueError for others."""
    t = np.asarray(t, dtype=np.int64)
    if t.ndim != 1 or not len(t) or not ((np.diff(t) < 0).all() and t[0] < schedule.T and t[-1] >= 0):
        raise ValueError(f"got the timesteps {t.tolist()}, expected strictly falling ones from {schedule.T - 1} .. 0")
    if not (schedule.sigma[t] > 0).all():
        raise ValueError(f"schedule {schedule.name!r} has no noise at t = {t[-1]}, expected some; leave it out")
    return Path(t, np.append(schedule.alpha[t], 1.0), np.append(schedule.sigma[t], 0.0))

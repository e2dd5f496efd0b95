"""A noise schedule as a table: how much of the image and how much noise there is in x_t = alpha_t x_0 + sigma_t eps.

Notation (t = 0 .. T-1; t = 0 is almost clean, t = T-1 almost pure noise; Ho et al. count the same steps from 1):

    here          DDPM (Ho et al. 2020)           meaning
    alpha[t]      sqrt(alpha_bar_t)               share of the image
    sigma[t]      sqrt(1 - alpha_bar_t)           share of the noise
    beta[t]       beta_t                          variance added between t-1 and t
    snr[t]        alpha_bar_t / (1 - alpha_bar_t) signal-to-noise ratio (Kingma et al. 2021)

Everything is float64 and is cast once, where it meets the data. Only `beta` needs alpha^2 + sigma^2 = 1. Three families
are equivalent up to the scale of x_t: variance preserving (alpha^2 + sigma^2 = 1), exploding (alpha = 1) and flow
(alpha + sigma = 1); they share sigma / alpha. t may be fractional in `at` and `t_at`.
"""

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
        # alpha / sigma falls from t to t+1, written without dividing by a sigma that may be zero
        if not (self.alpha[:-1] * self.sigma[1:] > self.alpha[1:] * self.sigma[:-1]).all():
            raise ValueError(f"alpha / sigma of schedule {self.name!r} has to fall with every t; check its options")

    @property
    def T(self) -> int:
        """The number of noise levels."""
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
        """The factor that brings an image alpha x0 + sigma eps to the scale of this family's x_t; 1 for "other"."""
        norm = {"preserving": np.hypot, "exploding": lambda a, _: a, "flow": np.add}.get(self.family)
        return np.ones_like(alpha) if norm is None else 1.0 / norm(alpha, sigma)

    @cached_property
    def _coordinate(self):
        """(f, f at t = 0 .. T-1): the function f(alpha, sigma) that is interpolated linearly in t.

        log(sigma / alpha), as in Karras et al. 2022 (appendix C.3.4); where that is infinite, and for flows, whose t is
        sigma / (alpha + sigma), an expression that is finite at both ends.
        """
        if self.family == "flow":
            f = _share
        else:
            finite = (self.alpha > 0).all() and (self.sigma > 0).all()
            f = _log_ratio if finite else lambda alpha, sigma: np.arctan2(sigma, alpha)
        return f, f(self.alpha, self.sigma)

    def t_at(self, alpha, sigma):
        """The fractional t, 0 .. T-1, at which sigma / alpha has this value; the nearer end for values beyond."""
        f, table = self._coordinate
        with np.errstate(divide="ignore"):
            return np.interp(f(np.asarray(alpha, float), np.asarray(sigma, float)), table, np.arange(self.T))

    def at(self, t):
        """(alpha, sigma) at fractional t, the inverse of `t_at`; exactly the table's values where t is whole. Raises
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
        if self.family == "other":  # no rule gives the scale of x_t between two t: interpolate that too
            scale = np.interp(t, np.arange(self.T), np.hypot(self.alpha, self.sigma)) / np.hypot(alpha, sigma)
        on = t == whole
        return np.where(on, self.alpha[whole], scale * alpha), np.where(on, self.sigma[whole], scale * sigma)

    @property
    def alpha_bar(self) -> np.ndarray:
        """alpha^2: DDPM's product of 1 - beta over all steps up to t (eq. 4)."""
        return self.alpha**2

    @property
    def beta(self) -> np.ndarray:
        """DDPM's beta_t = 1 - alpha_bar_t / alpha_bar_{t-1} (eq. 2). Raises ValueError unless variance preserving."""
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
        """A dict for JSON from which `schedule.from_config` makes the same schedule, bit for bit."""
        if self.options is None:
            return {"name": self.name, "alpha": self.alpha.tolist(), "sigma": self.sigma.tolist()}
        return {"name": self.name, **self.options}


def _log_ratio(alpha, sigma):
    return np.log(sigma) - np.log(alpha)


def _share(alpha, sigma):
    return sigma / (alpha + sigma)

"""The diffusion process: noising, what the network predicts, the loss, and the exact posterior of one step back.

    x_t = alpha_t x0 + sigma_t eps                                    q(x_t | x0), Ho et al. 2020, eq. 4
    f   = p x0 + q eps                                                what the network learns to predict

The two lines are two equations for x0 and eps, so that every prediction turns into x0-hat and eps-hat in the same way:

    x0 = (q x_t - sigma_t f) / (alpha_t q - sigma_t p),   eps = (alpha_t f - p x_t) / (alpha_t q - sigma_t p)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pydiff import ops
from pydiff.backend import array_module
from pydiff.diffusion.schedule import Schedule
from pydiff.random import Key
from pydiff.tensor import Tensor

# The mixing weights (p, q) of f = p x0 + q eps, given alpha_t and sigma_t.
PREDICTIONS: dict[str, Callable] = {
    "eps": lambda _alpha, _sigma: (0.0, 1.0),  # the noise (Ho et al. 2020, section 3.2)
    "x0": lambda _alpha, _sigma: (1.0, 0.0),  # the picture
    "v": lambda alpha, sigma: (-sigma, alpha),  # v = alpha eps - sigma x0 (Salimans and Ho 2022, section 4)
}


@dataclass(frozen=True)
class Process:
    """A schedule and what the network predicts: "eps", "x0" or "v". ValueError for another prediction."""

    schedule: Schedule
    prediction: str = "eps"

    def __post_init__(self):
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"there is no prediction {self.prediction!r}; choose one of {', '.join(PREDICTIONS)}")

    # ---- forward ----

    def q_sample(self, x0, t, key: Key):
        """x_t and eps: x0 (N, ...) noised to t (N,) with the noise of `key`, which is for N samples (eq. 4).

        Arrays for an array, Tensors for a Tensor.
        """
        t = self._checked(t)
        x_t, eps = ops.noise(x0, self.schedule.alpha[t], self.schedule.sigma[t], key)
        return (x_t, eps) if isinstance(x0, Tensor) else (x_t.data, eps.data)

    def target(self, x0, eps, t):
        """What the network should answer for x_t = alpha_t x0 + sigma_t eps: p x0 + q eps. Arrays (N, ...), t (N,)."""
        t = self._checked(t)
        p, q = PREDICTIONS[self.prediction](self.schedule.alpha[t], self.schedule.sigma[t])
        return _column(p, x0) * x0 + _column(q, x0) * eps

    def loss(self, model, x0, t, key: Key, labels=None) -> Tensor:
        """Mean squared error of the prediction, eq. 14: a Tensor holding one number.

        model(x_t, t) or, given labels (N,), model(x_t, t, labels) -> Tensor of x_t's shape. x0: array (N, ...); t (N,).
        """
        x_t, eps = self.q_sample(x0, t, key)
        f = model(Tensor(x_t), t) if labels is None else model(Tensor(x_t), t, labels)
        return ops.mean_squared_error(f, self.target(x0, eps, t))

    # ---- backward ----

    def to_x0(self, x_t, f, t):
        """x0-hat from the network's answer f to x_t at t (N,)."""
        u, v = self.x0_coefficients(*self._at(t))
        return _column(u, x_t) * x_t + _column(v, x_t) * f

    def to_eps(self, x_t, f, t):
        """eps-hat from the network's answer f to x_t at t (N,)."""
        alpha, sigma = self._at(t)
        p, _, determinant = self._solve(alpha, sigma)
        return _column(-p / determinant, x_t) * x_t + _column(alpha / determinant, x_t) * f

    def x0_coefficients(self, alpha, sigma):
        """(u, v) in x0-hat = u x_t + v f, for one alpha and sigma or for arrays of them.

        ValueError where x_t and f do not determine x0: for "eps" where alpha = 0, for "x0" where sigma = 0.
        """
        _, q, determinant = self._solve(alpha, sigma)
        return q / determinant, -sigma / determinant

    def posterior(self, x0, x_t, t):
        """q(x_{t-1} | x_t, x0), eq. 6 and 7: mean (N, ...), variance and its clipped logarithm, both (N, 1, ...).

        At t = 0 the variance is 0; its logarithm is cut there to the value at t = 1. ValueError if sigma is 0 at t = 0.
        """
        t = self._checked(t)
        if not self.schedule.sigma[0] > 0:
            raise ValueError(f"schedule {self.schedule.name!r} has sigma = 0 at t = 0, expected noise; leave t = 0 out")
        a, b, variance = self._step_back(t)
        log_variance = np.log(self._step_back(np.maximum(t, 1))[2])
        return _column(a, x_t) * x_t + _column(b, x0) * x0, _column(variance, x_t), _column(log_variance, x_t)

    def _step_back(self, t):
        """(a, b, variance) from t to t - 1; before t = 0 lies the clean picture."""
        alpha, sigma = self.schedule.alpha, self.schedule.sigma
        alpha_s, sigma_s = np.where(t == 0, 1.0, alpha[t - 1]), np.where(t == 0, 0.0, sigma[t - 1])
        return posterior_coefficients(alpha[t], sigma[t], alpha_s, sigma_s)

    def _solve(self, alpha, sigma):
        """(p, q, determinant) of the two equations at the top of this file."""
        p, q = PREDICTIONS[self.prediction](alpha, sigma)
        determinant = alpha * q - sigma * p
        if not np.all(determinant != 0):
            raise ValueError(
                f"prediction {self.prediction!r} does not determine x0 and eps where alpha is {np.min(alpha)} and "
                f"sigma is {np.min(sigma)}; use prediction 'v', or leave that t out"
            )
        return p, q, determinant

    def _at(self, t):
        t = self._checked(t)
        return self.schedule.alpha[t], self.schedule.sigma[t]

    def _checked(self, t) -> np.ndarray:
        """t as an index array. A negative t would otherwise count from the noisy end without a word."""
        t = np.asarray(t)
        if t.ndim != 1 or t.dtype.kind not in "iu" or not ((t >= 0) & (t < self.schedule.T)).all():
            raise ValueError(f"t is {t.dtype} {t.tolist()}, expected (N,) integers; use 0 .. {self.schedule.T - 1}")
        return t


def posterior_coefficients(alpha_t, sigma_t, alpha_s, sigma_s):
    """(a, b, variance) of q(x_s | x_t, x0) = N(a x_t + b x0, variance), for s before t; numbers or float64 arrays.

    Kingma et al. 2021, "Variational diffusion models", appendix A.2, for any schedule; with s = t - 1 and
    alpha^2 + sigma^2 = 1 it is Ho et al. 2020, eq. 7, where alpha_ts^2 is 1 - beta_t and sigma_ts^2 is beta_t.
    """
    alpha_ts = alpha_t / alpha_s
    variance_ts = sigma_t**2 - alpha_ts**2 * sigma_s**2  # of q(x_t | x_s)
    a = alpha_ts * sigma_s**2 / sigma_t**2
    b = alpha_s * variance_ts / sigma_t**2
    return a, b, variance_ts * sigma_s**2 / sigma_t**2


def _column(values, like):
    """(N,) float64 -> (N, 1, ..) of like's dtype and device, to multiply every element of a sample."""
    return array_module(like).asarray(values, like.dtype).reshape((-1,) + (1,) * (like.ndim - 1))

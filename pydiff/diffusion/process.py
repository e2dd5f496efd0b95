"""The diffusion process: noising, what the network predicts, the loss, and the exact posterior of one step back.

    x_t = alpha_t x0 + sigma_t eps                                    q(x_t | x0), Ho et al. 2020, eq. 4
    f   = p x0 + q eps                                                what the network learns to predict (prediction.py)

The two lines are two equations for x0 and eps, so that every prediction turns into x0-hat and eps-hat in the same way.
Samplers may use another scale of x than the network was trained in (path.py); `scale` is the factor between the two.
"""

from dataclasses import dataclass

import numpy as np

from pydiff import ops
from pydiff.arrays import column
from pydiff.diffusion.prediction import PREDICTIONS, SIGMA_DATA, edm_coefficients
from pydiff.diffusion.schedule import Schedule
from pydiff.random import Key
from pydiff.tensor import Tensor


@dataclass(frozen=True)
class Process:
    """A schedule and what the network predicts, see prediction.py. Raises ValueError for an unknown prediction.

    sigma_data: standard deviation of the data, for the predictions "edm" and "edm_v".
    """

    schedule: Schedule
    prediction: str = "eps"
    sigma_data: float = SIGMA_DATA

    def __post_init__(self):
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"there is no prediction {self.prediction!r}; choose one of {', '.join(PREDICTIONS)}")

    # ---- forward ----

    def q_sample(self, x0, t, key: Key, keep=True):
        """(x_t, eps): x0 (N, ...) noised to t (N,) with the noise of `key`, which is for N samples (eq. 4).

        t: whole or fractional. Arrays for an array, Tensors for a Tensor. keep: False returns None in place of eps.
        """
        made = ops.noise(x0, *self._at(t), key, keep)
        return made if isinstance(x0, Tensor) else tuple(a if a is None else a.data for a in made)

    def target(self, x0, eps, t):
        """The network's ideal output for x_t = alpha_t x0 + sigma_t eps: p x0 + q eps. Arrays (N, ...), t (N,)."""
        p, q = self.mixing_weights(*self._at(t))
        return column(p, x0) * x0 + column(q, x0) * eps

    def loss(self, model, x0, t, key: Key, *, weights=None, **condition) -> Tensor:
        """Mean squared error of the prediction, eq. 14: a Tensor holding one number.

        model(x_t, t, **condition) -> Tensor of x_t's shape. x0: array (N, ...); t (N,). weights: (N,), the weight of
        each example. loss.py has further losses.
        """
        x_t, _ = self.q_sample(x0, t, key, keep=False)
        seen = self.network_input(x_t, t)
        return self.errors(model(Tensor(seen[0]), seen[1], **condition), x0, t, key, weights).mean()

    def errors(self, f, x0, t, key: Key, weights=None) -> Tensor:
        """Mean squared error of f, the network's output for the x_t of `q_sample(x0, t, key)`, for each example: (N,).

        f: Tensor of x0's shape. weights: (N,), by which the errors are multiplied.
        """
        n = len(x0)
        p, q = (np.broadcast_to(w, n) for w in self.mixing_weights(*self._at(t)))
        return ops.noise_loss(f, x0, p, q, np.ones(n) if weights is None else weights, key)

    def network_input(self, x_t, t):
        """The network's input for x_t (N, ...) at t (N,): just these, except for "edm": c_in x_t and c_noise."""
        if not self.preconditioned:
            return x_t, t
        alpha, sigma = self._at(t)
        return column(self.scale(alpha, sigma), x_t) * x_t, self.network_time(t, alpha, sigma)

    # ---- backward ----

    def to_x0(self, x_t, f, t):
        """x0-hat from the network's output f for x_t at t (N,)."""
        u, v = self.x0_coefficients(*self._at(t))
        return column(u, x_t) * x_t + column(v, x_t) * f

    def to_eps(self, x_t, f, t):
        """eps-hat from the network's output f for x_t at t (N,)."""
        alpha, sigma = self._at(t)
        p, _, determinant = self._solve(alpha, sigma)
        return column(-p / determinant, x_t) * x_t + column(alpha / determinant, x_t) * f

    @property
    def preconditioned(self) -> bool:
        """Whether the network takes c_in x and c_noise (Karras et al. 2022) in place of x and t."""
        return self.prediction in ("edm", "edm_v")

    def scale(self, alpha, sigma):
        """The factor by which x = alpha x0 + sigma eps is multiplied for the network: numbers or arrays.

        1 in the scale of the process's own schedule; c_in for "edm".
        """
        if self.preconditioned:
            return edm_coefficients(sigma / alpha, self.sigma_data)[2] / alpha
        scale = self.schedule.scale(alpha, sigma)
        return np.where(np.abs(scale - 1.0) < 1e-9, 1.0, scale)  # own scale, up to rounding: leave x unchanged

    def network_time(self, t, alpha, sigma):
        """The network's time argument: t itself, or c_noise for "edm"."""
        return edm_coefficients(sigma / alpha, self.sigma_data)[3] if self.preconditioned else t

    def x0_coefficients(self, alpha, sigma):
        """(u, v) in x0-hat = u x + v f, for one alpha and sigma or for arrays of them, in any scale. Raises ValueError
        where x and f do not determine x0: for "eps" where alpha = 0, for "x0" where sigma = 0.
        """
        s = self._frame(alpha, sigma)
        _, q, determinant = self._solve(s * alpha, s * sigma)
        return q / determinant * s, -s * sigma / determinant

    def eps_coefficients(self, alpha, sigma):
        """(u, v) in eps-hat = u x + v f; otherwise as `x0_coefficients`."""
        s = self._frame(alpha, sigma)
        p, _, determinant = self._solve(s * alpha, s * sigma)
        return -p / determinant * s, s * alpha / determinant

    def _frame(self, alpha, sigma):
        """The scale to which (p, q) refer: "v" and "flow" depend on it, "edm" is defined for alpha = 1."""
        return 1.0 / alpha if self.preconditioned else self.scale(alpha, sigma)

    def posterior(self, x0, x_t, t):
        """q(x_{t-1} | x_t, x0), eq. 6 and 7: mean (N, ...), variance and its clipped logarithm, both (N, 1, ...).

        At t = 0 the variance is 0; its logarithm is clipped there to the value at t = 1. Raises ValueError if sigma is
        0 at t = 0.
        """
        t = self._checked(t)
        if not self.schedule.sigma[0] > 0:
            raise ValueError(f"schedule {self.schedule.name!r} has sigma = 0 at t = 0, expected noise; leave t = 0 out")
        a, b, variance = self.step_back(t)
        log_variance = np.log(self.step_back(np.maximum(t, 1))[2])
        return column(a, x_t) * x_t + column(b, x0) * x0, column(variance, x_t), column(log_variance, x_t)

    def transition_variance(self, t) -> np.ndarray:
        """Variance of q(x_t | x_{t-1}), DDPM's beta_t, for t (N,): (N,). The clean image comes before t = 0."""
        alpha, sigma, t = self.schedule.alpha, self.schedule.sigma, self._checked(t)
        alpha_s, sigma_s = np.where(t == 0, 1.0, alpha[t - 1]), np.where(t == 0, 0.0, sigma[t - 1])
        return sigma[t] ** 2 - (alpha[t] / alpha_s) ** 2 * sigma_s**2

    def step_back(self, t):
        """(a, b, variance) of `posterior` from t (N,) to t - 1, (N,) each; the clean image comes before t = 0."""
        alpha, sigma = self.schedule.alpha, self.schedule.sigma
        alpha_s, sigma_s = np.where(t == 0, 1.0, alpha[t - 1]), np.where(t == 0, 0.0, sigma[t - 1])
        return posterior_coefficients(alpha[t], sigma[t], alpha_s, sigma_s)

    def _solve(self, alpha, sigma):
        """(p, q, determinant) of the two equations at the top of this file."""
        p, q = self.mixing_weights(alpha, sigma)
        determinant = alpha * q - sigma * p
        if not np.all(determinant != 0):
            raise ValueError(
                f"prediction {self.prediction!r} does not determine x0 and eps where alpha is {np.min(alpha)} and "
                f"sigma is {np.min(sigma)}; use prediction 'v', or leave that t out"
            )
        return p, q, determinant

    def mixing_weights(self, alpha, sigma):
        """(p, q) of the prediction f = p x0 + q eps, at a level of the schedule's own scale: numbers or arrays."""
        return PREDICTIONS[self.prediction](alpha, sigma, self.sigma_data)

    def _at(self, t):
        return self.schedule.at(self._checked(t, fractional=True))

    def _checked(self, t, fractional=False) -> np.ndarray:
        """t as an array. Raises ValueError for others than 0 .. T-1: a negative t would silently count from the end."""
        t, last = np.asarray(t), self.schedule.T - 1
        if t.ndim != 1 or t.dtype.kind not in ("iuf" if fractional else "iu") or not ((t >= 0) & (t <= last)).all():
            numbers = "numbers" if fractional else "integers"
            raise ValueError(f"t is {t.dtype} {t.tolist()}, expected (N,) {numbers}; use 0 .. {last}")
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

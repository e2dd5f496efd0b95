"""What a perfect network would answer, for data whose distribution is known.

The data are either normal, N(MEAN, SPREAD^2) for every element, or a finite set of points. For both E[x0 | x_t] is
known, and so are the distribution at every t and the solution of the probability-flow equation.
"""

import numpy as np

from pydiff.diffusion.prediction import PREDICTIONS
from pydiff.diffusion.samplers import ddim, ddpm, initial_noise
from pydiff.diffusion.schedule import schedule

LINEAR = schedule("linear")
SCHEDULES = {"linear": LINEAR, "cosine": schedule("cosine")}
SAMPLERS = {
    "ddpm small": lambda *a, **k: ddpm(*a, **k),
    "ddpm large": lambda *a, **k: ddpm(*a, variance="large", **k),
    "ddim": lambda *a, **k: ddim(*a, **k),
    "ddim noisy": lambda *a, **k: ddim(*a, eta=0.7, **k),
}
MEAN, SPREAD = 0.3, 0.5


def start(n, *shape, seed=0, dtype=np.float64):
    return initial_noise(shape, seed, np.arange(n), dtype)


def model_of(denoiser, process):
    """The network's exact answer, at any t: p x0 + q eps for x0 = E[x0 | x_t] and the eps that goes with it."""

    def model(x, t):
        t = t[0] if (t == t[0]).all() else t.reshape((-1,) + (1,) * (x.ndim - 1))
        if process.preconditioned:
            alpha, sigma = 1.0, np.exp(4.0 * t)
            x = x * np.hypot(sigma, process.sigma_data)  # the network sees c_in x
        else:
            alpha, sigma = process.schedule.at(t)
        x0 = denoiser(x, alpha, sigma)
        p, q = PREDICTIONS[process.prediction](alpha, sigma, process.sigma_data)
        return (p * x0 + q * (x - alpha * x0) / sigma).astype(x.dtype)

    return model


def normal_denoiser(x, alpha, sigma, mean=MEAN, spread=SPREAD):
    """E[x0 | x_t] for x0 ~ N(mean, spread^2)."""
    return mean + alpha * spread**2 * (x - alpha * mean) / (alpha**2 * spread**2 + sigma**2)


def points_denoiser(points, weights):
    """E[x0 | x_t] for x0 in points (K, ...) with the given probabilities: a softmax over the squared distances."""

    def denoiser(x, alpha, sigma):
        distance = ((x[:, None] - alpha * points) ** 2).reshape(len(x), len(points), -1).sum(-1)
        logits = np.log(weights) - distance / (2 * sigma**2)
        p = np.exp(logits - logits.max(1, keepdims=True))
        return np.einsum("nk,k...->n...", p / p.sum(1, keepdims=True), points)

    return denoiser


def last(states):
    return list(states)[-1].x

"""Samplers: from noise to pictures along a path of (t, alpha, sigma). Plain generators with nothing hidden.

    x = initial_noise((32, 32, 3), seed=0, sample=range(16))
    for state in ddim(model, x, process, path(process.schedule, 50), seed=0):
        show(state.x0)
    pictures = state.x

Notation: a step goes from t to the next, less noisy point s of the path, which at the end is the clean picture itself.

    here                     DDPM (Ho et al. 2020)              DDIM (Song et al. 2021; their alpha is DDPM's alpha_bar)
    alpha_t, sigma_t         sqrt(alpha_bar_t), sqrt(1 - ..)    sqrt(alpha_t), sqrt(1 - alpha_t)
    alpha_s, sigma_s         the same at t - 1                  the same at t - 1, or tau_{i-1}
    x0, eps                  x0, eps_theta                      "predicted x0", eps_theta
    std                      sigma_t                            sigma_t

Every update is x_s = a x_t + b x0 + std z with numbers a, b and std from one small function for each sampler. The noise
z of step i (counted from 1) is a pure function of (seed, sample, i): a picture is the same alone and in any batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pydiff import ops, random
from pydiff.diffusion.process import Process, posterior_coefficients
from pydiff.diffusion.schedule import Path


class SamplerState(NamedTuple):
    """What one step did."""

    step: int  # 1 .. steps
    steps: int
    t: int  # where the model was asked
    x: np.ndarray  # (N, ...) after the step
    x0: np.ndarray  # (N, ...) the picture predicted in this step, guided and clipped
    eps: np.ndarray  # (N, ...) the noise that goes with it: x before the step = alpha_t x0 + sigma_t eps


def initial_noise(shape: Sequence[int], seed: int, sample, dtype=np.float32) -> np.ndarray:
    """x_T ~ N(0, 1) for pictures of this shape, numbered by `sample` (N,): (N, *shape). Uses the noise of step 0."""
    return random.normal(random.key(seed, random.SAMPLE, np.asarray(sample)), shape, dtype)


def ddpm(model, x, process: Process, path: Path, seed=0, sample=None, variance="small", clip=(-1.0, 1.0), guidance=1.0):
    """Ancestral sampling, Ho et al. 2020, algorithm 2; with fewer steps as in Nichol and Dhariwal 2021, section 4.

    model: (x_t (N, ...), t (N,)) -> f, or a tuple (f, f_uncond) for guidance; arrays. Labels are the wrapper's matter.
    x: (N, ...), the start, see `initial_noise`. sample: (N,), the numbers of the pictures, 0 .. N-1 if None.
    variance: "small" is that of q(x_s | x_t, x0), right for a single known picture; "large" is that of q(x_t | x_s),
    right for white noise (Ho et al., section 3.2). clip: the range of x0-hat, or None.
    guidance: f_uncond + guidance (f - f_uncond) takes the place of f (Ho and Salimans 2022, eq. 6, with 1 + w).
    Yields a SamplerState after every step; the last x is the picture. ValueError for arguments that are not as above.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"there is no variance {variance!r}; choose one of small, large")
    return _walk(model, x, process, path, lambda *ends: ddpm_step(*ends, variance), seed, sample, clip, guidance)


def ddim(model, x, process: Process, path: Path, seed=0, sample=None, eta=0.0, clip=(-1.0, 1.0), guidance=1.0):
    """Song et al. 2021, eq. 12: deterministic for eta = 0, and for eta = 1 the same as `ddpm` with small variance.

    Arguments and results as for `ddpm`. eta: 0 .. 1, the share of the noise that is drawn afresh (eq. 16). Where x0-hat
    is clipped, eps-hat is computed from the clipped one, so that x0-hat and eps-hat always explain x_t together.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}, expected 0 (deterministic) .. 1 (as noisy as DDPM); choose a number between")
    return _walk(model, x, process, path, lambda *ends: ddim_step(*ends, eta), seed, sample, clip, guidance)


def ddpm_step(alpha_t, sigma_t, alpha_s, sigma_s, variance="small") -> tuple[float, float, float]:
    """(a, b, std): DDPM's reverse step, eq. 6 and 7, with either variance of section 3.2. The last adds no noise."""
    a, b, small = posterior_coefficients(alpha_t, sigma_t, alpha_s, sigma_s)
    large = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2 if sigma_s > 0 else 0.0
    return a, b, math.sqrt(small if variance == "small" else large)


def ddim_step(alpha_t, sigma_t, alpha_s, sigma_s, eta=0.0) -> tuple[float, float, float]:
    """(a, b, std): DDIM's step, eq. 12: x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z.

    Here eps = (x_t - alpha_t x0) / sigma_t is put in, which leaves x_t and x0.
    """
    _, _, variance = posterior_coefficients(alpha_t, sigma_t, alpha_s, sigma_s)
    std = eta * math.sqrt(variance)  # eq. 16
    a = math.sqrt(max(sigma_s**2 - std**2, 0.0)) / sigma_t  # rounding alone could make it negative, at alpha_t = 0
    return a, alpha_s - a * alpha_t, std


def _walk(model, x, process, path, coefficients: Callable, seed, sample, clip, guidance) -> Iterator[SamplerState]:
    """The loop that all samplers share: ask the model, take the step, say what happened."""
    sample = np.arange(len(x)) if sample is None else np.asarray(sample)
    low, high = (-math.inf, math.inf) if clip is None else clip
    steps = len(path.t)
    for i in range(steps):
        alpha_t, alpha_s = path.alpha[i : i + 2].tolist()
        sigma_t, sigma_s = path.sigma[i : i + 2].tolist()
        u, v = process.x0_coefficients(alpha_t, sigma_t)
        a, b, std = coefficients(alpha_t, sigma_t, alpha_s, sigma_s)
        step = ops.DenoiseStep(u, v, a, b, s=std, low=low, high=high, guidance=guidance)
        z = random.key(seed, random.SAMPLE, sample, step=i + 1) if std > 0 else None

        f = model(x, np.full(len(x), path.t[i]))
        f, f_uncond = f if isinstance(f, tuple) else (f, None)
        x_next, x0 = (output.data for output in ops.denoise(x, f, step, noise=z, f_uncond=f_uncond))
        yield SamplerState(i + 1, steps, int(path.t[i]), x_next, x0, eps=(x - alpha_t * x0) / sigma_t)
        x = x_next

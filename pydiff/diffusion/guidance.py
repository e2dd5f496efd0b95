"""Guidance: wrappers that turn one or two networks into the model that a sampler evaluates, model(x, t) -> f.

    model = classifier_free(conditional, unconditional, process, scale=3.0, interval=(0.1, 5.0), rescale=0.7)
    for state in samplers.dpm_solver(model, x, process, path): ...

Samplers also take a model that returns (f, f_uncond), together with `guidance`, for plain classifier-free guidance
inside the denoise kernel; everything beyond that is here. Noise levels are given as rho = sigma / alpha, which is
Karras et al.'s sigma. All networks are array to array: model(x (N, ...), t (N,)) -> f (N, ...).
"""

import math
from collections.abc import Callable

import numpy as np

from pydiff.arrays import array_module, column
from pydiff.diffusion.process import Process
from pydiff.mistakes import is_number
from pydiff.tensor import Tensor


def classifier_free(
    conditional: Callable,
    unconditional: Callable,
    process: Process,
    scale: float = 1.0,
    interval: tuple[float, float] = (0.0, math.inf),
    rescale: float = 0.0,
) -> Callable:
    """f_uncond + scale (f - f_uncond) (Ho and Salimans 2022, "Classifier-free diffusion guidance", eq. 6; 1 + w there).

    interval: noise levels rho, low < rho <= high, where it is applied; elsewhere only the conditional network is
    evaluated, which saves half of the work (Kynkaanniemi et al. 2024, "Applying guidance in a limited interval").
    rescale: 0 .. 1, how far each image's x0-hat is rescaled to the standard deviation of the conditional one (Lin et
    al. 2024, "Common diffusion noise schedules and sample steps are flawed", eq. 15 and 16).
    """
    check_scale(scale)
    check_limits(interval, rescale)

    def model(x, t):
        f = conditional(x, t)
        if scale == 1.0 or not interval[0] < level_of(process, t[0]) <= interval[1]:
            return f
        f_uncond = unconditional(x, t)
        guided = f_uncond + f.dtype.type(scale) * (f - f_uncond)
        return _rescaled(process, x, t, guided, f, rescale) if rescale else guided

    return model


def check_scale(scale: float):
    """Raises ValueError for a guidance scale that is not a finite number."""
    if isinstance(scale, bool | str) or np.ndim(scale) or not np.isfinite(np.asarray(scale, np.float64)):
        raise ValueError(f"guidance is {scale!r}, expected a finite number; 1 is none, and 2 to 8 are usual")


def check_limits(interval: tuple[float, float], rescale: float):
    """Raises ValueError unless rescale is in 0 .. 1 and the interval is (low, high)."""
    two = np.shape(interval) == (2,) and all(map(is_number, interval)) and interval[0] <= interval[1]
    if not (is_number(rescale) and 0.0 <= rescale <= 1.0 and two):
        raise ValueError(f"got rescale {rescale!r} and interval {interval!r:.60}, expected 0 .. 1 and (low, high)")


def autoguidance(model: Callable, bad_model: Callable, process: Process, scale: float, interval=(0.0, math.inf)):
    """Guidance by a worse version of the same network: smaller, or less trained, with the same condition.

    f_bad + scale (f - f_bad) (Karras et al. 2024, "Guiding a diffusion model with a bad version of itself", eq. 3).
    It improves quality without the loss of variety that comes with classifier-free guidance. interval: as
    `classifier_free`.
    """
    return classifier_free(model, bad_model, process, scale, interval)


def classifier_guided(
    model: Callable,
    log_probability: Callable,
    process: Process,
    scale: float = 1.0,
    norm_based: bool = False,
    interval: tuple[float, float] = (0.0, math.inf),
) -> Callable:
    """An unconditional network steered by a classifier of noisy images; the network itself knows no condition.

    eps' = eps - scale sigma grad_x log p(y | x_t) (Dhariwal and Nichol 2021, "Diffusion models beat GANs", algorithm 2;
    the principle of Guided-TTS, Kim et al. 2022, where a phoneme classifier steers an unconditional speech model).
    log_probability: (Tensor x (N, ...), t (N,)) -> Tensor (N,), log p(y | x_t) of the class wanted for each; its
    gradient is taken by pydiff's autograd, for each sample separately. norm_based: the gradient is first scaled by
    |eps| / |sigma grad|, so that `scale` means the same at all noise levels (Guided-TTS, eq. 10). interval: as
    `classifier_free`. Network and classifier see x in the network's own scale; further channels of the network's
    output, a learned variance, are left unchanged.
    """

    def guided(x, t):
        answer = model(x, t)
        if scale == 0.0 or not interval[0] < level_of(process, t[0]) <= interval[1]:
            return answer
        f = answer[..., : x.shape[-1]]
        variable = Tensor(x, requires_grad=True)
        log_probability(variable, t).sum().backward()
        alpha, sigma = process.schedule.at(t)
        push = column(sigma, x) * variable.grad
        if norm_based:
            eps = process.to_eps(x, f, t)
            push = push * _norm(eps) / _norm(push).clip(np.finfo(x.dtype).tiny)
        # f = p x0 + q eps with x held fixed: d x0 = -(sigma / alpha) d eps, so that d f = (q - p sigma / alpha) d eps
        p, q = process.mixing_weights(alpha, sigma)
        f = f - f.dtype.type(scale) * column(q - p * sigma / alpha, x) * push
        return array_module(x).concatenate([f, answer[..., x.shape[-1] :]], axis=-1)

    check_scale(scale)
    if process.preconditioned:
        raise ValueError("classifier guidance needs a network that is told t; use another prediction than edm")
    return guided


def level_of(process: Process, t) -> float:
    """rho = sigma / alpha from the network's time argument: t, or c_noise = log(rho) / 4 for "edm"."""
    if process.preconditioned:
        return math.exp(4.0 * float(t))
    alpha, sigma = process.schedule.at(np.asarray(t))
    return math.inf if alpha == 0 else float(sigma / alpha)


def _rescaled(process, x, t, guided, f, share):
    """`guided`, with the standard deviation of x0-hat set to the conditional one's, mixed with guided itself."""
    alpha, sigma = (1.0, level_of(process, t[0])) if process.preconditioned else process.schedule.at(t[0])
    scale = float(process.scale(alpha, sigma))  # x as the network sees it is scale times x at (alpha, sigma)
    u, v = (float(c) for c in process.x0_coefficients(alpha, sigma))
    u = u / scale
    x0, x0_guided = u * x + v * f, u * x + v * guided
    axes = tuple(range(1, x.ndim))
    ratio = x0.std(axes, keepdims=True) / x0_guided.std(axes, keepdims=True).clip(1e-12)
    wanted = x0_guided * (share * ratio + 1.0 - share)
    return ((wanted - u * x) / v).astype(f.dtype)


def _norm(x):
    square = (x.astype(np.float64) ** 2).sum(tuple(range(1, x.ndim)), keepdims=True)
    return array_module(x).sqrt(square).astype(x.dtype)

"""DDPM, DDIM with any amount of fresh noise, and DDIM inversion from image to noise.

Notation: a step goes from t to the next, less noisy point s of the path, which at the end is the clean image itself.

    here                     DDPM (Ho et al. 2020)              DDIM (Song et al. 2021; their alpha is DDPM's alpha_bar)
    alpha_t, sigma_t         sqrt(alpha_bar_t), sqrt(1 - ..)    sqrt(alpha_t), sqrt(1 - alpha_t)
    alpha_s, sigma_s         the same at t - 1                  the same at t - 1, or tau_{i-1}
    x0, eps                  x0, eps_theta                      "predicted x0", eps_theta
    std                      sigma_t                            sigma_t

One evaluation per step; order 1. Several published samplers are these steps under another name or in another scale of
x: `euler` is `ddim` with eta = 0, `euler_ancestral` and SDE-DPM-Solver++ of order 1 are `ddim` with eta = 1, which is
`ddpm` with the small variance.
"""

import math

from pydiff.codec import PIXEL_RANGE
from pydiff.diffusion.path import Path
from pydiff.diffusion.process import Process, posterior_coefficients
from pydiff.diffusion.samplers.walk import Stage, walk
from pydiff.mistakes import is_number

VARIANCES = ("small", "large", "learned_range")


def ddpm(
    model,
    x,
    process: Process,
    path: Path,
    seed=0,
    sample=None,
    variance="small",
    clip=PIXEL_RANGE,
    guidance=1.0,
    **more,
):
    """Ancestral sampling, Ho et al. 2020, algorithm 2; with fewer steps as in Nichol and Dhariwal 2021, section 4.

    variance: "small" is that of q(x_s | x_t, x0), right for a single known image; "large" is that of q(x_t | x_s),
    right for white noise (Ho et al., section 3.2); "learned_range": the second half of the network's output channels
    gives, from -1 to 1, the position between the logarithms of the two (Nichol and Dhariwal 2021, eq. 15). Good for:
    many steps (hundreds), where its fresh noise repairs the network's errors. Other arguments: see `walk`. Yields a
    SamplerState after every step; the last x is the image. Raises ValueError for other variances.
    """
    if variance not in VARIANCES:
        raise ValueError(f"there is no variance {variance!r}; choose one of {', '.join(VARIANCES)}")
    stages = []
    for t, ends in steps_of(path):
        a, b, std = ddpm_step(*ends, "small" if variance == "learned_range" else variance)
        log_variance = None
        if variance == "learned_range" and std > 0:
            log_variance = 2.0 * math.log(std), 2.0 * math.log(ddpm_step(*ends, "large")[2])
            std = 0.0
        split = variance == "learned_range"
        stages.append(Stage(t, ends[0], ends[1], x=a, x0=b, std=std, log_variance=log_variance, split=split))
    return walk(model, x, process, stages, seed=seed, sample=sample, clip=clip, guidance=guidance, **more)


def ddim(
    model,
    x,
    process: Process,
    path: Path,
    seed=0,
    sample=None,
    eta=0.0,
    clip=PIXEL_RANGE,
    guidance=1.0,
    raw_eps=False,
    **more,
):
    """Song et al. 2021, eq. 12: deterministic for eta = 0, and for eta = 1 the same as `ddpm` with small variance.

    eta: 0 .. 1, the fraction of the noise that is fresh (eq. 16). If x0-hat is clipped, eps-hat is computed from the
    clipped one, so that x0-hat and eps-hat always add up to x_t; raw_eps: keep the eps-hat that the network predicted.
    Good for: a fixed map from noise to image (interpolation, inversion); 50 steps and more. Other arguments: see
    `walk`.
    """
    if not (is_number(eta) and 0.0 <= eta <= 1.0):
        raise ValueError(f"eta is {eta!r}, expected 0 (deterministic) .. 1 (as noisy as DDPM); choose a number between")
    stages = []
    for t, ends in steps_of(path):
        a, b, std = ddim_step(*ends, eta)
        stage = Stage(t, ends[0], ends[1], x=a, x0=b, std=std)
        if raw_eps:  # a is the coefficient of x in eps-hat, times 1 / sigma_t
            stage = stage._replace(x=0.0, x0=ends[2], raw_eps=a * ends[1])
        stages.append(stage)
    return walk(model, x, process, stages, seed=seed, sample=sample, clip=clip, guidance=guidance, **more)


def euler_ancestral(model, x, process: Process, path: Path, **more):
    """Euler's method down to a lower level than the next, then fresh noise back up, in Karras et al.'s coordinates.

    With rho = sigma / alpha and y = x / alpha: rho_up^2 = rho_s^2 (rho_t^2 - rho_s^2) / rho_t^2,
    rho_down^2 = rho_s^2 - rho_up^2, y_s = x0 + rho_down eps + rho_up z (k-diffusion's "Euler a"). It is `ddim` with
    eta = 1. One evaluation per step, order 1 in distribution. Good for: varied images in 20 to 40 steps. Arguments: see
    `walk`.
    """
    return ddim(model, x, process, path, eta=1.0, **more)


def ddim_inversion(model, x, process: Process, path: Path, iterations=0, **more):
    """From an image to the noise from which `ddim` (eta = 0) makes it: Song et al. 2021, section 4.3, backwards in t.

    x: (N, ...), the image at the end of `path`, which is the path of the sampling: it is walked in reverse. Every
    step needs eps-hat at the noisier end, which is not known yet; it is taken at the less noisy x instead, with the
    noisier t (the usual approximation, order 1), and then corrected `iterations` times by evaluating again at the
    resulting x (Pan et al. 2023, "Effective real image editing with accelerated iterative diffusion inversion"): with a
    few of these, sampling returns the image to rounding. 1 + iterations evaluations per step. Other arguments: see
    `walk`; x0-hat is not clipped unless requested, because clipping cannot be inverted.
    """
    if iterations < 0:
        raise ValueError(f"iterations is {iterations}, expected 0 or more; 3 are enough for most")
    stages, levels = [], list(zip(path.alpha.tolist(), path.sigma.tolist(), strict=True))
    for i in reversed(range(len(path.t))):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = levels[i], levels[i + 1]
        t, grown, start = path.t[i], alpha_t / alpha_s, len(stages)
        stages.append(Stage(t, alpha_s, sigma_s, x0=alpha_t, raw_eps=sigma_t, last=not iterations))
        away = sigma_t - sigma_s * grown  # x_t = alpha_t x0 + sigma_t eps = grown x_s + away eps
        for k in range(iterations):
            again = Stage(t, alpha_t, sigma_t, raw_eps=away, past=((start, "x", grown),), last=k == iterations - 1)
            stages.append(again)
    return walk(model, x, process, stages, **({"clip": None} | more))  # pyright: ignore[reportArgumentType]


def steps_of(path: Path):
    """(t, (alpha_t, sigma_t, alpha_s, sigma_s)) of every step, Python numbers."""
    levels = list(zip(path.alpha.tolist(), path.sigma.tolist(), strict=True))
    return [(t, (*levels[i], *levels[i + 1])) for i, t in enumerate(path.t.tolist())]


def ddpm_step(alpha_t, sigma_t, alpha_s, sigma_s, variance="small") -> tuple[float, float, float]:
    """(a, b, std): DDPM's reverse step, eq. 6 and 7, with either variance of section 3.2; std is 0 in the last."""
    a, b, small = posterior_coefficients(alpha_t, sigma_t, alpha_s, sigma_s)
    large = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2 if sigma_s > 0 else 0.0
    return a, b, math.sqrt(max(small if variance == "small" else large, 0.0))  # 0 steps round to below 0


def ddim_step(alpha_t, sigma_t, alpha_s, sigma_s, eta=0.0) -> tuple[float, float, float]:
    """(a, b, std): DDIM's step, eq. 12: x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z, with eps = (x_t -
    alpha_t x0) / sigma_t inserted, which leaves x_t and x0.
    """
    _, _, variance = posterior_coefficients(alpha_t, sigma_t, alpha_s, sigma_s)
    std = eta * math.sqrt(max(variance, 0.0))  # eq. 16
    a = math.sqrt(max(sigma_s**2 - std**2, 0.0)) / sigma_t  # rounding alone could make it negative, at alpha_t = 0
    return a, alpha_s - a * alpha_t, std

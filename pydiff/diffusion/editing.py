"""Editing: images from images, with a network that was trained only to generate them.

    image_to_image   keep the large scale, redraw details     inpaint       draw where a mask says
    variations       the same image, a little different       interpolate   images between two noises

All take images in [-1, 1], (N, ..., C) float arrays, and are generators of SamplerState unless they say otherwise.
"""

from collections.abc import Callable, Iterator

import numpy as np

from pydiff import ops, random
from pydiff.arrays import array_module
from pydiff.diffusion.path import Path
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers import SamplerState, ddim, ddim_inversion, ddpm_step
from pydiff.diffusion.samplers.walk import Stage, start_scale, walk
from pydiff.mistakes import is_number

RESAMPLED = 1 << 28  # counters of the noise of RePaint's steps up start here, beyond those of the steps down


def shortened(path: Path, strength: float) -> Path:
    """The last part of a path: `strength` of its steps, at least one. Raises ValueError unless it is in (0 .. 1]."""
    if not (is_number(strength) and 0.0 < strength <= 1.0):
        raise ValueError(f"strength is {strength!r}, expected above 0 (nothing is changed) up to 1 (all is drawn anew)")
    keep = max(1, round(strength * len(path.t)))
    first = len(path.t) - keep
    return Path(path.t[first:], path.alpha[first:], path.sigma[first:])


def image_to_image(
    model, images, process: Process, path: Path, strength=0.5, sampler: Callable = ddim, seed=0, sample=None, **more
) -> Iterator[SamplerState]:
    """Adds noise to the images up to where `strength` of the path is left, and denoises from there (Meng et al. 2022).

    strength: small values keep the image, 1 keeps nothing. The other arguments are those of the sampler.
    """
    part = shortened(path, strength)
    numbers = np.arange(len(images)) if sample is None else np.asarray(sample)
    n, key = len(images), random.key(seed, random.SAMPLE, numbers)
    x = ops.noise(images, np.full(n, part.alpha[0]), np.full(n, part.sigma[0]), key, keep=False)[0].data
    return sampler(model, x, process, part, seed=seed, sample=numbers, **more)


def scheduled(model, images, scheduler, late=True, mask=None, seed=0, sample=None, **more) -> Iterator[SamplerState]:
    """Image to image, and inpainting, by the scheduler of a published model, of formats.diffusers.scheduler.

    late: whether to start from the images, noised to the scheduler's first level, instead of from pure noise. mask:
    None, or 1 where to draw and 0 where to put the images back after every step, noised to the level reached with the
    noise that the run started from ("blended diffusion": Avrahami et al. 2022, algorithm 1).
    """
    numbers = np.arange(len(images)) if sample is None else np.asarray(sample)
    z = _normal(random.key(seed, random.SAMPLE, numbers), images)

    def known(alpha, sigma):
        return z.dtype.type(alpha) * images + z.dtype.type(sigma) * z

    def mend(x, alpha, sigma):
        return part * x + (1.0 - part) * known(alpha, sigma)

    if mask is not None:
        part = array_module(images).asarray(mask, images.dtype)
        more["mend"] = mend
    x = (
        known(*scheduler.plan.level_of(scheduler.timesteps[0]))
        if late
        else z * z.dtype.type(scheduler.init_noise_sigma)
    )
    return scheduler.sample(model, x, seed=seed, sample=numbers, **more)


def variations(model, images, process: Process, path: Path, amount=0.3, seed=0, sample=None, **more):
    """Images like these: inverted to their noise by DDIM, mixed with fresh noise, and denoised again.

    amount: 0 (the images themselves, as far as the inversion is exact) .. 1 (unrelated ones); the mixture sqrt(1 -
    amount^2) noise + amount fresh keeps the variance (inversion: Song et al. 2021, section 4.3).
    """
    if not (is_number(amount) and 0.0 <= amount <= 1.0):
        raise ValueError(f"amount is {amount!r}, expected 0 (the same image) .. 1 (another); choose a number between")
    numbers = np.arange(len(images)) if sample is None else np.asarray(sample)
    traced, scale = _traced(process, path)
    for state in ddim_inversion(model, images * images.dtype.type(scale), process, traced, iterations=1):
        x = state.x
    fresh = _normal(random.key(seed, random.SAMPLE, numbers), x) * x.dtype.type(path.sigma[0])
    x = x.dtype.type(np.sqrt(1.0 - amount**2)) * x + x.dtype.type(amount) * fresh
    return ddim(model, x, process, path, seed=seed, sample=numbers, **more)


def _traced(process, path):
    """(path, scale): the way on which an image times `scale` is traced to its noise.

    The answer of a network that says x0 tells nothing of the noise where there is none (sigma = 0): there an image is
    taken for x at t = 0, whose noise is the least that the network knows.
    """
    if process.prediction != "x0":
        return path, 1.0
    noisy = path.t > 0
    alpha, sigma = process.schedule.at(0)
    ends = (np.append(level[:-1][noisy], end) for level, end in ((path.alpha, alpha), (path.sigma, sigma)))
    return Path(path.t[noisy], *ends), float(alpha)


def interpolate(a, b, shares) -> np.ndarray:
    """Noise between a and b, (...) each: (K, ...) for shares (K,) from 0 (a) to 1 (b), on the great circle.

    Shoemake 1985 (slerp), used for noise in Song et al. 2021, "DDIM", appendix D.5: a straight line would pass through
    noise of a smaller norm than the network has ever seen.
    """
    shares = np.asarray(shares, np.float64).reshape((-1,) + (1,) * a.ndim)
    cosine = float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))
    theta = np.arccos(np.clip(cosine, -1.0, 1.0))
    if theta < 1e-6:
        return ((1.0 - shares) * a + shares * b).astype(a.dtype)
    return ((np.sin((1.0 - shares) * theta) * a + np.sin(shares * theta) * b) / np.sin(theta)).astype(a.dtype)


def inpaint(
    model, images, mask, process: Process, path: Path, resample=5, seed=0, sample=None, variance="small", **more
) -> Iterator[SamplerState]:
    """Draws where mask is 1 and keeps the images where it is 0: RePaint (Lugmayr et al. 2022, algorithm 1).

    Each step goes down with DDPM; the known part is put in at the level reached, with its own noise (eq. 8). Then, so
    that the drawn part adapts to the known one, x is noised back up by one step and the step is repeated, `resample`
    times in all. mask: broadcasts to images; values between 0 and 1 mix. Takes resample x steps evaluations. Other
    arguments: see `walk`. Yields a state after every step.
    """
    if not is_number(resample) or resample < 1 or resample != int(resample):
        raise ValueError(f"resample is {resample!r:.60}, expected 1 (each step once) or more; 5 to 10 are usual")
    numbers = np.arange(len(images)) if sample is None else np.asarray(sample)
    n, steps = len(images), len(path.t)
    mask = array_module(images).asarray(mask, images.dtype)
    x = _normal(random.key(seed, random.SAMPLE, numbers), images)
    x = x * x.dtype.type(start_scale(path))
    for i, t in enumerate(path.t.tolist()):
        (alpha, alpha_s), (sigma, sigma_s) = (v[i : i + 2].tolist() for v in (path.alpha, path.sigma))
        a, b, std = ddpm_step(alpha, sigma, alpha_s, sigma_s, variance)
        rounds = resample if sigma_s > 0 else 1
        for r in range(rounds):
            count = i * resample + r + 1
            z = _normal(random.key(seed, random.SAMPLE, numbers, count), x)
            stage = Stage(t, alpha, sigma, x=a, x0=b, std=std)
            (state,) = walk(model, x, process, [stage], noise=lambda _k, z=z: z, **more)
            key = random.key(seed, random.SAMPLE, numbers, RESAMPLED + 2 * count)
            known = ops.noise(images, np.full(n, alpha_s), np.full(n, sigma_s), key, keep=False)[0].data
            x = mask * state.x + (1.0 - mask) * known
            if r + 1 < rounds:  # q(x_t | x_s)
                ratio = alpha / alpha_s
                up = np.sqrt(sigma**2 - ratio**2 * sigma_s**2)
                key = random.key(seed, random.SAMPLE, numbers, RESAMPLED + 2 * count + 1)
                x = ops.noise(x, np.full(n, ratio), np.full(n, up), key, keep=False)[0].data
        yield state._replace(step=i + 1, steps=steps, x=x)


def _normal(key, like):
    """Standard normal noise of the shape of the images `like`, on their device."""
    return array_module(like).asarray(random.normal(key, like.shape[1:], like.dtype))

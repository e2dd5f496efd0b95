"""A sampler with adaptive steps: DPM-Solver++ of orders 1 and 2, whose difference determines the step size. Every image
has its own steps, so that it is the same alone and in any batch; the network is evaluated for all unfinished images at
once, each at its own t.
"""

import math
from collections.abc import Iterator

import numpy as np

from pydiff import ops
from pydiff.arrays import array_module, column, empty, to_host
from pydiff.codec import PIXEL_RANGE
from pydiff.diffusion.path import Path
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers.exponential import coefficients
from pydiff.diffusion.samplers.walk import SamplerState


def adaptive(
    model,
    x,
    process: Process,
    path: Path,
    rtol=0.05,
    atol=0.0078,
    first_step=0.05,
    safety=0.9,
    seed=0,
    sample=None,
    clip=PIXEL_RANGE,
    guidance=1.0,
) -> Iterator[SamplerState]:
    """DPM-Solver-12 (Lu et al. 2022, "DPM-Solver", appendix C) on x0-hat, with the step size as in eq. C.1.

    A trial step over h in lambda = log(alpha / sigma): x' of order 1, then x'' of order 2 with x0-hat at x'. Its error
    is the root mean square of (x'' - x') / max(atol, rtol max(|x'|, |x|)); the step is accepted if that is at most 1,
    and the next h is safety h error^(-1/2), at most 5 times as large. Only the ends of `path` are used: where it starts
    and, if it ends clean, where its last step starts; there x0-hat is the image. rtol, atol: tolerated error; 0.0078 is
    half a level of 8-bit images. first_step: of lambda. seed and sample exist only for compatibility with the other
    samplers: no noise is drawn. clip, guidance: see `walk`. Two evaluations per trial step, order 2. Good for: a result
    of known accuracy. Yields a SamplerState after every round of trial steps, with steps = 0 until the last; t is that
    of the slowest image. Raises ValueError for a path that starts where alpha = 0.
    """
    del seed, sample
    if path.alpha[0] == 0:
        raise ValueError("adaptive steps cannot start where alpha = 0; leave that t out of the path")
    clean = path.sigma[-1] == 0
    end = len(path.alpha) - (2 if clean else 1)
    ask = _Network(model, process, clip, guidance)
    size = np.hypot(path.alpha[0], path.sigma[0]) / np.hypot(*_own(process, path.alpha[0], path.sigma[0]))
    lam = np.full(len(x), math.log(path.alpha[0] / path.sigma[0]))
    goal = math.log(path.alpha[end] / path.sigma[end])
    h, x, rounds, xp = np.full(len(x), first_step), x.copy(), 0, array_module(x)
    x0, eps = xp.zeros_like(x), xp.zeros_like(x)
    while (going := np.flatnonzero(lam < goal)).size:
        rounds += 1
        h[going] = np.minimum(h[going], goal - lam[going])
        begin = [_level(process, lam[n], size) for n in going]
        target = [_level(process, min(lam[n] + h[n], goal), size) for n in going]
        here = xp.asarray(going)
        x0[here], eps[here] = ask(x[here], begin, here, len(x))
        guess = _combined(x[here], [x0[here]], begin, target, h[going], order=1)
        later, _ = ask(guess, target, here, len(x))
        better = _combined(x[here], [x0[here], later], begin, target, h[going], order=2)
        error = to_host(_error(better, guess, x[here], rtol, atol))
        good = error <= 1.0
        if not (np.isfinite(error).all() and (h[going] > 1e-9).all()):
            raise ValueError(f"no step is small enough in round {rounds}: the network's answers jump or are not finite")
        x[here[xp.asarray(good)]] = better[xp.asarray(good)]
        lam[going[good]] = np.where(h[going] >= goal - lam[going] - 1e-12, goal, lam[going] + h[going])[good]
        h[going] *= np.clip(safety / np.sqrt(np.maximum(error, 1e-10)), 0.1, 5.0)
        done = not (lam < goal).any()
        yield SamplerState(rounds, rounds if done and not clean else 0, begin[0][0], x.copy(), x0.copy(), eps.copy())
    if clean:
        x0, eps = ask(x, [_level(process, goal, size)] * len(x), xp.arange(len(x)), len(x))
        yield SamplerState(rounds + 1, rounds + 1, _level(process, goal, size)[0], float(path.alpha[-1]) * x0, x0, eps)


class _Network:
    """x0-hat and eps-hat of images that are each at their own level (t, alpha, sigma).

    The network is always evaluated for all images, as it may have a label for each; `here` says which of them count.
    """

    def __init__(self, model, process, clip, guidance):
        self.model, self.process, self.guidance = model, process, guidance
        self.low, self.high = (-math.inf, math.inf) if clip is None else clip

    def __call__(self, x, levels, here, total):
        t, alpha, sigma = (np.array(numbers) for numbers in zip(*levels, strict=True))
        scale = column(self.process.scale(alpha, sigma), x)
        told = np.asarray(self.process.network_time(t, alpha, sigma))
        seen, times = array_module(x).zeros((total, *x.shape[1:]), x.dtype), np.full(total, told[0])
        seen[here], times[to_host(here)] = x * scale, told
        f = self.model(seen, times)
        f, f_uncond = (answer[here] for answer in f) if isinstance(f, tuple) else (f[here], None)
        x0 = empty(x, x.shape)
        for n in range(len(x)):
            u, v = map(float, self.process.x0_coefficients(alpha[n], sigma[n]))
            step = ops.DenoiseStep(u, v, 0.0, 1.0, low=self.low, high=self.high, guidance=self.guidance)
            other = None if f_uncond is None else f_uncond[n : n + 1]
            x0[n] = ops.denoise(x[n : n + 1], f[n : n + 1], step, f_uncond=other)[1].data[0]
        return x0, (x - column(alpha, x) * x0) / column(sigma, x)


def _combined(x, values, begin, target, h, order):
    """x after the step, one `ops.denoise` per image: the table of exponential.py with m' from both ends."""
    out = empty(x, x.shape)
    for n in range(len(x)):
        a, (q0, q1, _), _ = coefficients("data", *begin[n][1:], *target[n][1:], float(h[n]))  # pyright: ignore[reportCallIssue]
        weights = [q0] if order == 1 else [q0 - q1, q1]
        step = ops.DenoiseStep(0.0, 1.0, a, weights[0], c=tuple(weights[1:]))
        history = [value[n : n + 1] for value in values[1:]]
        out[n] = ops.denoise(x[n : n + 1], values[0][n : n + 1], step, history)[0].data[0]
    return out


def _error(better, guess, x, rtol, atol):
    """The error of each image relative to the tolerance: (N,)."""
    xp = array_module(x)
    allowed = xp.maximum(atol, rtol * xp.maximum(abs(guess), abs(x)))
    return xp.sqrt((((better - guess) / allowed) ** 2).reshape(len(x), -1).mean(1))


def _level(process, lam, size):
    """(t, alpha, sigma) at log(alpha / sigma) = lam, in the schedule's scale times `size`."""
    alpha, sigma = _own(process, 1.0, math.exp(-lam))
    return float(process.schedule.t_at(alpha, sigma)), float(alpha * size), float(sigma * size)


def _own(process, alpha, sigma):
    scale = process.schedule.scale(alpha, sigma)
    return alpha * scale, sigma * scale

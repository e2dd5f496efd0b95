"""The loop that all samplers share. It takes stages, each of which is one linear update. A sampler is a list of stages,
made from the path before anything is computed. A stage evaluates the network once, at noise level (alpha, sigma), and
updates x:

    x_next = c_x x + c_x0 x0_hat + c_eps eps_hat + sum over earlier stages of c (their x, x0_hat ..) + std z

x0_hat and eps_hat always add up to x: x = alpha x0_hat + sigma eps_hat. Multistep methods read x0_hat or eps_hat of
earlier steps, and methods with several evaluations per step read the x that the step started from. The arithmetic is
that of `ops.denoise`, one call per stage.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pydiff import ops, random
from pydiff.arrays import array_module, contiguous
from pydiff.codec import PIXEL_RANGE
from pydiff.diffusion.process import Process
from pydiff.mistakes import is_number


class SamplerState(NamedTuple):
    """The result of one step."""

    step: int  # 1 .. steps
    steps: int
    t: float  # of the step's first evaluation; not whole on paths with fractional t
    x: np.ndarray  # (N, ...) after the step
    x0: np.ndarray  # (N, ...) the image predicted there, guided and clipped
    eps: np.ndarray  # (N, ...) the noise predicted there: x before the step = alpha_t x0 + sigma_t eps


class Stage(NamedTuple):
    """One evaluation of the network and one linear update. Coefficients are Python numbers and default to 0."""

    t: float  # as given to the network
    alpha: float  # level of x before the update
    sigma: float
    x: float = 0.0  # coefficient of x
    x0: float = 0.0  # of x0_hat
    eps: float = 0.0  # of eps_hat = (x - alpha x0_hat) / sigma
    raw_eps: float = 0.0  # of the network's eps_hat without clipping; also for sigma = 0
    f: float = 0.0  # of the network's output itself, guided
    past: tuple = ()  # (number of an earlier stage, "x" | "x0" | "eps" | "f", coefficient), ..
    std: float = 0.0  # of the noise added
    log_variance: tuple | None = None  # (least, most): the network chooses in between, in place of std (iDDPM)
    split: bool = False  # whether the network's output has two halves of channels, f and that choice
    ask: bool = True  # False: keeps the x0_hat of the stage before; this stage only combines
    last: bool = True  # whether this completes a step
    churn: tuple | None = None  # (std, alpha, sigma): noise added before the evaluation, and the level then


def initial_noise(shape: Sequence[int], seed: int, sample, dtype=np.float32) -> np.ndarray:
    """x_T ~ N(0, 1) for images of this shape, numbered by `sample` (N,): (N, *shape). Uses the noise of step 0.

    Paths that do not start at unit variance, such as exploding ones, start from `start_scale(path)` times this.
    """
    return random.normal(random.key(seed, random.SAMPLE, np.asarray(sample)), shape, dtype)


def start_scale(path) -> float:
    """The factor of `initial_noise`: the standard deviation of x at the path's start, for data of unit variance."""
    scale = math.hypot(path.alpha[0], path.sigma[0])
    return 1.0 if abs(scale - 1.0) < 1e-9 else scale


def walk(
    model: Callable,
    x,
    process: Process,
    stages: Sequence[Stage],
    *,
    seed: int = 0,
    sample=None,
    clip=PIXEL_RANGE,
    threshold: float | None = None,
    threshold_max: float = math.inf,
    guidance: float = 1.0,
    noise: Callable | None = None,
    mend: Callable | None = None,
) -> Iterator[SamplerState]:
    """Runs the stages one after the other and yields a SamplerState after every step. The keywords of every sampler:

    model: (x_t (N, ...), t (N,)) -> f, or a tuple (f, f_uncond) for guidance; arrays. A condition is part of the model.
    x: (N, ...), the start, see `initial_noise`; float32 or float64. seed: of the noise.
    sample: (N,), the numbers of the images, 0 .. N-1 if None. clip: the range of x0-hat, or None.
    threshold: dynamic thresholding instead (Saharia et al. 2022, "Imagen", section 2.3): the fraction of pixels left
    unclipped, e.g. 0.995; an image whose quantile s of |x0-hat| is above 1 is clipped at s and divided by it.
    threshold_max: the largest s. guidance: f_uncond + guidance (f - f_uncond) takes the place of f (Ho and Salimans
    2022, eq. 6, with 1 + w). noise: k -> array like x, replaces the seed: noise drawn at the k-th evaluation, from 0.
    mend: (x, alpha, sigma) -> x, applied after every step, at the level that x then has, to put in what is known.
    """
    stages = [_plain(stage) for stage in stages]  # pyright: ignore[reportAssignmentType]
    last_use = {j: i for i, stage in enumerate(stages) for j, _, _ in stage.past}
    noise_of = _Noise(seed, np.arange(len(x)) if sample is None else np.asarray(sample), noise)
    if threshold is not None and not (is_number(threshold) and 0 <= threshold <= 1):
        raise ValueError(f"threshold is the share of pixels that stay as they are, 0 to 1; got {threshold!r:.60}")
    limits = (-math.inf, math.inf) if clip is None or threshold is not None else clip
    steps, step, first, kept, x0 = sum(stage.last for stage in stages), 0, None, {}, None
    for i, stage in enumerate(stages):
        if stage.churn:
            std, alpha, sigma = stage.churn
            x = noise_of.added_to(x, std, step)
            stage = stage._replace(alpha=alpha, sigma=sigma)
        if stage.ask:
            answer = _ask(model, x, process, stage, guidance)
            noise_of.evaluation += 1
            if threshold is not None:
                answer = _thresholded(x, answer, threshold, threshold_max)
        else:
            answer = _Answer(x0, None, 0.0, 1.0)  # pyright: ignore[reportArgumentType]
        x_next, x0 = _update(x, answer, stage, kept, noise_of, step, limits)
        eps = (x - stage.alpha * x0) / stage.sigma if stage.sigma > 0 else answer.f
        first = first or (stage.t, x0, eps)
        if i in last_use:
            kept[i] = {"x": x, "x0": x0, "eps": eps, "f": _guided(answer) if answer.f_raw is None else answer.f_raw}
        kept = {j: arrays for j, arrays in kept.items() if last_use[j] > i}
        x = x_next
        if stage.last and mend is not None:
            x = mend(x, *(stages[i + 1][1:3] if i + 1 < len(stages) else (1.0, 0.0)))
        if stage.last:
            step += 1
            yield SamplerState(step, steps, first[0], x, first[1], first[2])
            first = None


def _plain(value):
    """A stage, or a value in one, with NumPy scalars as Python numbers: NumPy's would make float32 arrays float64."""
    if isinstance(value, tuple):
        plain = map(_plain, value)
        return type(value)(*plain) if hasattr(value, "_fields") else tuple(plain)
    return value.item() if isinstance(value, np.generic) else value


class _Answer(NamedTuple):
    """The network's output, with x0-hat = u x + v f before clipping, and what else the update needs."""

    f: np.ndarray
    f_uncond: np.ndarray | None
    u: float
    v: float
    guidance: float = 1.0
    raw: tuple = (0.0, 0.0)  # eps-hat = raw[0] x + raw[1] f_raw
    f_raw: np.ndarray | None = None  # None: f itself
    share: np.ndarray | None = None  # of the largest logarithm of the variance, 0 .. 1


def _ask(model, x, process, stage, guidance) -> _Answer:
    alpha, sigma = stage.alpha, stage.sigma
    scale = float(process.scale(alpha, sigma))
    t = process.network_time(stage.t, alpha, sigma)
    t = int(t) if isinstance(t, np.integer) else t
    f = model(x if scale == 1.0 else x * x.dtype.type(scale), np.full(len(x), t))
    f, f_uncond = f if isinstance(f, tuple) else (f, None)
    share = None
    if stage.split:
        c = x.shape[-1]
        f, share = contiguous(f[..., :c]), (f[..., c:] + 1) / 2
        f_uncond = None if f_uncond is None else contiguous(f_uncond[..., :c])
    u, v = map(float, process.x0_coefficients(alpha, sigma))
    raw = tuple(map(float, process.eps_coefficients(alpha, sigma))) if stage.raw_eps else (0.0, 0.0)
    return _Answer(f, f_uncond, u, v, guidance, raw, share=share)


def _guided(answer):
    f, f_uncond = answer.f, answer.f_uncond
    return f if f_uncond is None else f_uncond + f.dtype.type(answer.guidance) * (f - f_uncond)


def _thresholded(x, answer, share, largest) -> _Answer:
    """x0-hat clipped at its own quantile s and divided by it, if s > 1, in place of the network's output."""
    f = _guided(answer)
    x0 = f.dtype.type(answer.u) * x + f.dtype.type(answer.v) * f
    s = array_module(x0).quantile(abs(x0).reshape(len(x0), -1), share, axis=1).clip(1.0, max(largest, 1.0))
    s = s.astype(x0.dtype).reshape((-1,) + (1,) * (x0.ndim - 1))
    return answer._replace(f=x0.clip(-s, s) / s, f_uncond=None, u=0.0, v=1.0, guidance=1.0, f_raw=f)


def _update(x, answer, stage, kept, noise_of, step, limits):
    """x after the stage and x0-hat: the stage's terms, put in the order of `ops.denoise`."""
    a = stage.x + (stage.eps / stage.sigma if stage.eps else 0.0) + stage.raw_eps * answer.raw[0]
    b = stage.x0 - (stage.eps * stage.alpha / stage.sigma if stage.eps else 0.0)
    d, past = stage.f + stage.raw_eps * answer.raw[1], [(c, kept[j][name]) for j, name, c in stage.past if c]
    if d and answer.f_raw is not None:
        d, past = 0.0, [*past, (d, answer.f_raw)]
    std, key = stage.std, None
    if stage.log_variance:
        least, most = stage.log_variance
        log_std = 0.5 * (answer.share * most + (1.0 - answer.share) * least)
        std_of = array_module(x).exp(log_std).astype(x.dtype)
        past = [*past, (1.0, std_of * noise_of.array(x, step))]
    elif std and noise_of.injected:
        std, past = 0.0, [*past, (std, noise_of.array(x, step))]
    elif std:
        key = noise_of.key(step)
    c, history = zip(*past, strict=True) if past else ((), ())
    coefficients = ops.DenoiseStep(answer.u, answer.v, a, b, d, std, c, *limits, answer.guidance)  # pyright: ignore[reportCallIssue]
    outputs = ops.denoise(x, answer.f, coefficients, history, key, answer.f_uncond)
    return tuple(output.data for output in outputs)


class _Noise:
    """The noise of every step: a pure function of (seed, sample, step), or supplied by the caller."""

    def __init__(self, seed, sample, injected):
        self.seed, self.sample, self.injected = seed, sample, injected
        self.evaluation = -1  # of the network, counted from 0

    def key(self, step, second=False):
        """Steps count from 1. Churn, which may precede a step's own noise, has separate counters."""
        return random.key(self.seed, random.SAMPLE, self.sample, step=step + 1 + (1 << 30) * second)

    def array(self, x, step):
        if self.injected:
            z = self.injected(max(self.evaluation, 0))
        else:
            z = random.normal(self.key(step), x.shape[1:], x.dtype)
        return array_module(x).asarray(z, x.dtype)

    def added_to(self, x, std, step):
        """x + std z: the noise kernel with alpha = 1."""
        if self.injected:
            return x + x.dtype.type(std) * array_module(x).asarray(self.injected(self.evaluation + 1), x.dtype)
        n = len(x)
        return ops.noise(x, np.ones(n), np.full(n, std), self.key(step, second=True), keep=False)[0].data

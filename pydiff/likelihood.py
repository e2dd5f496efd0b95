"""How many bits a model spends on a sample: the variational bound on its negative log likelihood.

    bits = - log2 p(sample) / numbers  <=  L_T + sum over t of L_{t-1} + L_0       Sohl-Dickstein et al. 2015, eq. 14;
                                                                                   Ho et al. 2020, eq. 5
with L_T = KL(q(x_T | x_0) | N(0, 1)), L_{t-1} = KL(q(x_{t-1} | x_t, x_0) | p(x_{t-1} | x_t)), L_0 = - log p(x_0 | x_1).
For samples on 256 levels, such as images, the bound is on the probability (L_0 as Ho et al., eq. 13); for points it is
on the density, which may be any positive number, so that bits may be negative.
"""

import math

import numpy as np

from pydiff import backend, random
from pydiff.arrays import array_module, to_host
from pydiff.diffusion.loss import discretized_nll
from pydiff.tensor import Tensor


def bits(pipeline, samples, asked=None, seed=0, numbers=None, variance=None, batch_size=256, progress=False):
    """The bound for each sample, in bits per number: (N,) float64, with one draw of the noise for every t.

    samples: as the codec takes them. asked: their Condition; None asks for nothing. numbers: of the samples, which
    determine their noise; 0 .. N-1 if None. variance: of the model's reverse steps, "small" (the posterior's, right if
    x0 is one of few levels) or "large" (that of the forward step, right if x0 may be anything; Ho et al., section 3.2);
    None takes the one that suits the codec. Both give bounds. Raises ValueError for a model that only its own scheduler
    can evaluate, for a schedule without noise at t = 0, and for a codec without a density.
    """
    from tqdm import tqdm

    pipeline.check_free()
    codec, process = pipeline.codec, pipeline.process
    if codec.bits is None:
        raise ValueError(f"the bits of samples cannot be told through the codec {codec.kind!r}")
    if process.preconditioned or not process.schedule.sigma[0] > 0 or process.schedule.alpha[-1] == 0:
        raise ValueError(f"the bound needs noise at t = 0, signal at the end, and no prediction {process.prediction!r}")
    x = codec.encode_given(samples)
    numbers = np.arange(len(x)) if numbers is None else np.asarray(numbers)
    asked = pipeline.conditioning.nothing_asked(len(x)) if asked is None else asked
    per_number, discrete = codec.bits
    large = not discrete if variance is None else {"small": False, "large": True}[variance]
    total = []
    with (
        backend.use_device(pipeline.device) as xp,
        tqdm(total=len(x) * process.schedule.T, disable=not progress) as bar,
    ):
        for first in range(0, len(x), batch_size):
            here = slice(first, first + batch_size)
            model, _ = pipeline.denoiser(asked.take(here).to(xp))
            nats = _nats(process, model, xp.asarray(x[here]), seed, numbers[here], discrete, large, codec.limits, bar)
            total.append(to_host(nats))
    size = int(np.prod(codec.shape))
    return np.concatenate(total).astype(np.float64) / (size * math.log(2)) + per_number


def _nats(process, model, x0, seed, numbers, discrete, large, limits, bar):
    """The bound in nats for each of x0 (n, ...), summed over its numbers."""
    n, schedule = len(x0), process.schedule
    axes, size = tuple(range(1, x0.ndim)), int(np.prod(x0.shape[1:]))
    alpha, sigma = float(schedule.alpha[-1]), float(schedule.sigma[-1])
    xp = array_module(x0)
    square = (x0.astype(np.float64) ** 2).sum(axis=axes)
    total = 0.5 * (alpha**2 * square + size * (sigma**2 - 1 - 2 * math.log(sigma)))  # L_T
    for t in range(schedule.T):
        at = np.full(n, t)
        x_t, _ = process.q_sample(x0, at, random.key(seed, random.NOISE, numbers, t), keep=False)
        seen = process.network_input(x_t, at)
        guess = process.to_x0(x_t, model(*seen), at).astype(np.float64)
        guess = guess if limits is None else guess.clip(*limits)  # like the samplers
        if t == 0:
            variance = float((schedule.sigma[0] / schedule.alpha[0]) ** 2)
            total = total + _decoder(x0, guess, variance, discrete, axes, size)
        else:
            (_, b, least) = (float(a[0]) for a in process.step_back(at[:1]))
            own = float(process.transition_variance(at[:1])[0]) if large else least
            difference = ((x0 - guess) ** 2).sum(axis=axes)
            total = total + b**2 * difference / (2 * own) + 0.5 * size * (math.log(own / least) + least / own - 1)
        bar.update(n)
    return xp.asarray(total)


def _decoder(x0, guess, variance, discrete, axes, size):
    """L_0: -log of the probability of the level, or of the density, of x0 under a normal around the guess."""
    if discrete:
        log_variance = Tensor(np.full((1,) * x0.ndim, math.log(variance)))
        return discretized_nll(x0.astype(np.float64), guess, log_variance).data.sum(axis=axes)
    return ((x0 - guess) ** 2).sum(axis=axes) / (2 * variance) + 0.5 * size * math.log(2 * math.pi * variance)

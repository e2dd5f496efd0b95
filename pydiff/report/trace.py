"""A recorded reverse process, for the page's slider."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pydiff.arrays import to_host
from pydiff.codec import Codec
from pydiff.report.pixels import shrink, visible

# The lecture's moments: how many of 1000 denoising steps are done. For other step counts, the same fractions.
MOMENTS = (700, 800, 900, 1000)


@dataclass(frozen=True)
class Trace:
    """S recorded steps of N images. All arrays are images, as the codec shows x and noise.

    total: steps of the sampler. steps: (S,) int, denoising steps done at each record, increasing. x: (S, N, H, W, C),
    the image after that many. x0, eps: same shape, the clean image and the noise that the model predicted in the last
    of them, and t: (S,) int, where it was evaluated. At step 0, x is where the sampler starts, and x0, eps and t are
    those of the first step.
    """

    total: int
    steps: np.ndarray
    t: np.ndarray
    x: np.ndarray
    x0: np.ndarray
    eps: np.ndarray

    def marks(self):
        """{moment: position in steps} of 700, 800, 900, 1000 thousandths of the sampler's steps; none twice."""
        positions = {moment: int(np.abs(self.steps - self.total * moment / 1000).argmin()) for moment in MOMENTS}
        return {
            moment: p
            for moment, p in positions.items()
            if not any(positions[later] == p for later in MOMENTS if later > moment)
        }


def steps_to_record(total, keep=100):
    """About `keep` of the steps 0..total, evenly spaced, plus the lecture's moments: an increasing list of int."""
    even = np.linspace(0, total, max(2, min(keep, total + 1)))
    moments = [total * moment / 1000 for moment in MOMENTS]
    return sorted({round(float(step)) for step in (*even, *moments)})


def record(states, codec: Codec, keep=100, samples=None, factor=1, schedule=None):
    """Runs a sampler to its end and records about `keep` of its steps. Returns (Trace, the sampler's last x).

    states: generator of SamplerState. codec: makes images of their arrays. samples: how many of the samples to record,
    default all. factor: record images reduced by block means. schedule: has alpha and sigma (T,); with it, the noise
    that the sampler started from is recorded as step 0. Raises ValueError for a sampler that does not finish.
    """

    def images(x, x0, eps):
        made = codec.show_x(x), codec.show_x(x0), codec.show_noise(eps)
        return tuple(shrink(visible(image), factor) for image in made)

    wanted, rows = set(), []
    state: Any = None
    for state in states:
        first = not wanted
        wanted = wanted or set(steps_to_record(state.steps, keep))
        if first or state.step in wanted:
            x, x0, eps = (to_host(a)[:samples] for a in (state.x, state.x0, state.eps))
        if first and schedule is not None:  # x before the step, see SamplerState
            start = schedule.alpha[state.t] * x0 + schedule.sigma[state.t] * eps
            rows.append((0, state.t, *images(start, x0, eps)))
        if state.step in wanted:
            rows.append((state.step, state.t, *images(x, x0, eps)))
    if not rows or rows[-1][0] != state.steps:
        reached = f"stopped after step {state.step} of {state.steps}" if state else "yielded no state"
        raise ValueError(f"the sampler {reached}; a record needs all steps to the last one")
    return Trace(state.steps, *(np.stack(column) for column in zip(*rows, strict=True))), state.x

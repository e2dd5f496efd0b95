"""A page of random images: small, deterministic, and no two tiles alike, so that a test can tell them apart."""

import numpy as np

from pydiff.codec import Pixels
from pydiff.diffusion.samplers import SamplerState
from pydiff.diffusion.schedule import linear
from pydiff.report.forward import add_noise
from pydiff.report.page import Page
from pydiff.report.sections import Neighbours
from pydiff.report.trace import record

SHAPE = (6, 8, 3)  # not square, in colour
CODEC = Pixels(SHAPE)


def random_images(n, seed, shape=SHAPE):
    """(n, *shape) uint8, random."""
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def states(n=4, steps=1000, shape=SHAPE, seed=0):
    """A sampler that yields random arrays: x and x0 in [-1, 1], eps normal."""
    random = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        x, x0 = random.uniform(-1, 1, (2, n, *shape)).astype(np.float32)
        eps = random.standard_normal((n, *shape), dtype=np.float32)
        yield SamplerState(step, steps, steps - step, x, x0, eps)


def page(n=4, steps=1000, **changes):
    """A Page with everything on it."""
    schedule = linear(1000)
    training = random_images(5, seed=1)
    eps = np.random.default_rng(2).standard_normal(training.shape)
    trace, _ = record(states(n, steps), CODEC, schedule=schedule)
    arguments = {
        "name": "example",
        "facts": {"Data": "random images", "Parameters": "1,234"},
        "training": training,
        "captions": ["a", "b", "c", "d", "e"],
        "forward": add_noise(CODEC, training, eps, schedule.alpha, schedule.sigma),
        "log": [{"step": step, "loss": 1 / step} for step in range(1, 101)],
        "options": {"lr": 2e-4, "model": {"channels": [8, 16]}},
        "trace": trace,
        "sampler": "ddpm",
        "samples": trace.x[-1],
        "neighbours": Neighbours(random_images(n, seed=3), np.arange(n), np.linspace(1, 2, n), np.linspace(1, 3, 50)),
        "commands": [("Draw more", "pydiff sample example")],
    }
    return Page(**{**arguments, **changes})

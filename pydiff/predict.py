"""From a trained U-Net to the network a sampler asks: classes, guidance, self-conditioning, learned variance."""

import inspect
import math

import numpy as np

from pydiff.backend import array_module, contiguous
from pydiff.diffusion.guidance import classifier_free
from pydiff.diffusion.objective import SelfConditioned
from pydiff.diffusion.samplers import SAMPLERS, walk
from pydiff.plan import Played
from pydiff.tensor import no_grad

GIVEN_BY_RUN = {"model", "x", "process", "path", "seed", "sample", "guidance", "noise", "stages"}


def predictor(run, labels=None, guidance=1.0, interval=None, rescale=0.0, learned=False):
    """(model, guidance): a network for one run of a sampler, and what guidance is left for the sampler to apply.

    run: a Run. labels (N,), or None for a network without classes; guidance, interval, rescale: see
    `guidance.classifier_free`. learned: let the second half of the channels, a learned variance, through.
    Arrays in, arrays out. The model may remember its last x0-hat: make a new one for every run of a sampler.
    """
    channels, process, network = run.shape[2], run.process, Played(run.model)
    if guidance == 1 and (interval is not None or rescale):
        raise ValueError("interval and rescale say how guidance works, and guidance is 1; give another guidance")
    withheld = None if labels is None else np.full_like(labels, len(run.classes))

    def ask(given, t, classes):
        f = network(given, t, classes)
        return f if learned or f.shape[-1] == channels else contiguous(f[..., :channels])

    def guided(given, t):
        """Guidance worked out here: `given` may hold x0-hat beside x."""
        answer = ask(given, t, labels)
        if guidance == 1:
            return answer
        f = classifier_free(
            lambda *_: answer[..., :channels],
            lambda *_: ask(given, t, withheld)[..., :channels],
            process,
            guidance,
            (0.0, math.inf) if interval is None else interval,
            rescale,
        )(given[..., :channels], t)
        return array_module(f).concatenate([f, answer[..., channels:]], axis=-1)

    if run.self_conditioning:
        return no_grad()(SelfConditioned(guided, process).__call__), 1.0
    if interval is not None or rescale:
        return no_grad()(guided), 1.0
    if guidance == 1:
        return no_grad()(lambda x, t: ask(x, t, labels)), 1.0
    return no_grad()(lambda x, t: (ask(x, t, labels), ask(x, t, withheld))), guidance


def sampler_options(name) -> list[str]:
    """Names of the options a sampler takes, apart from those every use of it sets."""
    keywords = inspect.signature(SAMPLERS[name]).parameters
    names = dict.fromkeys(n for n, p in keywords.items() if p.kind is not p.VAR_KEYWORD)
    if any(p.kind is p.VAR_KEYWORD for p in keywords.values()):
        names |= dict.fromkeys(inspect.signature(walk).parameters)
    return [n for n in names if n not in GIVEN_BY_RUN]


def check_sampler(run, name, options, interval=None, rescale=0.0):
    """ValueError or TypeError, in one sentence, for a sampler or options of it that do not exist or do not go here."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}; got {name!r}")
    known = sampler_options(name)
    for option in options:
        if option not in known:
            raise TypeError(f"sampler {name!r} has no option {option!r}; it takes {', '.join(known)}")
    if name == "adaptive" and (run.self_conditioning or interval is not None or rescale):
        raise ValueError(
            "adaptive steps differ from picture to picture, which self-conditioning, interval and rescale cannot "
            "follow; use another sampler"
        )
    if options.get("variance") == "learned_range" and run.variance != "learned":
        raise ValueError("this model has no learned variance (train with variance='learned'); use small or large")

"""From a trained network to the model that a sampler evaluates: condition, guidance, self-conditioning, learned
variance.
"""

import inspect
import math

import numpy as np

from pydiff.arrays import array_module, contiguous
from pydiff.diffusion.guidance import check_limits, check_scale, classifier_free, level_of
from pydiff.diffusion.samplers import SAMPLERS, walk
from pydiff.diffusion.self_conditioning import SelfConditioned
from pydiff.graph import Played
from pydiff.mistakes import is_number, near_option
from pydiff.tensor import no_grad

# Arguments of samplers that are set by the caller and not chosen by the user.
GIVEN = {"model", "x", "process", "path", "seed", "sample", "guidance", "noise", "stages"}
# What `Run.sample` takes beside the options of a sampler, which a misspelt name may mean.
BESIDE = (
    "n", "seed", "sampler", "steps", "labels", "guidance", "eta", "prompts", "negative_prompt", "condition", "device",
    "spacing", "interval", "rescale", "batch_size", "progress",
)  # fmt: skip


def denoiser(
    network,
    process,
    channels,
    condition,
    guidance=1.0,
    interval=None,
    rescale=0.0,
    *,
    self_conditioning=False,
    limits=None,
    learned=False,
):
    """(model, guidance): model(x, t) for one run of a sampler, and the guidance that is left for the sampler to apply.

    network: (Tensor or array x (N, ..., C), t (N,), **condition) -> Tensor. channels: C of what is diffused; the
    network may return more, a learned variance, which is passed on if `learned`. condition: a Condition of N rows;
    guidance, interval, rescale: see `guidance.classifier_free`. limits: the codec's, to which the last x0-hat of a
    self-conditioned network is clipped. Arrays in, arrays out. The model may remember its last x0-hat: make a new one
    for every run. Raises ValueError for guidance that this condition or these options do not allow.
    """
    check_scale(guidance)
    played = Played(network)
    if guidance == 1 and (interval is not None or rescale):
        raise ValueError("interval and rescale say how guidance works, and guidance is 1; give another guidance")
    if guidance != 1 and not len(condition):
        raise ValueError("guidance needs a model with classes or another condition (train with conditional=True)")
    interval = (0.0, math.inf) if interval is None and rescale else interval
    if interval is not None:
        check_limits(interval, rescale)
    withheld = condition.null() if guidance != 1 else None
    both = None if withheld is None else together(network, condition, withheld)

    def ask(given, t, condition):
        f = played(given, t, **condition)
        return f if learned or f.shape[-1] == channels else contiguous(f[..., :channels])

    def ask_both(given, t):
        """(f, f_uncond), in one pass if the network supports it."""
        if both is None:
            return ask(given, t, condition), ask(given, t, withheld)
        f = ask(given, t, both)
        return f[: len(given)], f[len(given) :]

    def guided(given, t):
        """Applies guidance here, as `given` may hold x0-hat beside x."""
        if guidance == 1 or (interval and not interval[0] < level_of(process, t[0]) <= interval[1]):
            return ask(given, t, condition)
        answer, other = ask_both(given, t)
        answers = (lambda *_: answer[..., :channels]), (lambda *_: other[..., :channels])
        f = classifier_free(*answers, process, guidance, rescale=rescale)(given[..., :channels], t)
        return array_module(f).concatenate([f, answer[..., channels:]], axis=-1)

    if self_conditioning:
        return no_grad()(SelfConditioned(guided, process, limits).__call__), 1.0
    if interval is not None:
        return no_grad()(guided), 1.0
    if guidance == 1:
        return no_grad()(lambda x, t: ask(x, t, condition)), 1.0
    return no_grad()(ask_both), guidance


def together(network, *conditions):
    """Conditions of N rows each as one with which the network evaluates x (N, ..) for all of them at once, one after
    the other. None if that is impossible: if they differ in other arguments than the network's `several`, or in their
    lengths.
    """
    several, joined = getattr(network, "several", ()), {}
    for name in conditions[0]:
        arrays = [condition[name] for condition in conditions]
        xp = array_module(arrays[0])
        if name in several and len({a.shape for a in arrays}) == 1:
            joined[name] = xp.concatenate(arrays)
        elif any(a.shape != arrays[0].shape or not xp.array_equal(a, arrays[0]) for a in arrays):
            return None
        else:
            joined[name] = arrays[0]
    return joined if several else None


def sampler_options(name) -> dict:
    """{name: default} of the options of a sampler, without the arguments that every caller sets."""
    keywords = inspect.signature(SAMPLERS[name]).parameters
    found = {n: p.default for n, p in keywords.items() if p.kind is not p.VAR_KEYWORD}
    if any(p.kind is p.VAR_KEYWORD for p in keywords.values()):
        for n, p in inspect.signature(walk).parameters.items():
            found.setdefault(n, p.default)
    return {n: default for n, default in found.items() if n not in GIVEN}


def _check_kind(option, value, default):
    """Raises TypeError for an option that is a number, or a pair of them, by its default, and got something else."""
    if isinstance(default, int | float) and not isinstance(default, bool) and not is_number(value):
        raise TypeError(f"{option} is {value!r:.60}, expected a number; {default} if it is left out")
    pair = np.shape(value) == (2,) and all(map(is_number, np.asarray(value).tolist()))
    if isinstance(default, tuple) and len(default) == 2 and value is not None and not pair:
        raise TypeError(f"{option} is {value!r:.60}, expected (low, high) or None; {default} if it is left out")


def check_sampler(name, options, interval=None, rescale=0.0, *, self_conditioning=False, learned_variance=False):
    """Raises ValueError for a sampler, and TypeError for an option, that does not exist, and ValueError for one that
    does not work with this kind of network.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}; got {name!r}")
    known = sampler_options(name)
    for option, value in options.items():
        if option not in known:
            meant = near_option(option, [*known, *BESIDE]) or f"; it takes {', '.join(known)}"
            raise TypeError(f"sampler {name!r} has no option {option!r}{meant}")
        _check_kind(option, value, known[option])
    if name == "adaptive" and (self_conditioning or interval is not None or rescale):
        raise ValueError(
            "adaptive steps differ from image to image, which self-conditioning, interval and rescale cannot "
            "follow; use another sampler"
        )
    if options.get("variance") == "learned_range" and not learned_variance:
        raise ValueError("this model has no learned variance (train with variance='learned'); use small or large")

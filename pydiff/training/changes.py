"""Messages for a run that resumes with changed options, including the effect on the learning rate."""

import dataclasses
import logging

from pydiff.training.rate import learning_rate

RATE = ("steps", "lr", "warmup", "lr_schedule")


def told(place, changed: dict, step: int, options) -> list[str]:
    """Sentences on the options of a run in the folder `place` that changed, {name: [before, now]}, after `step`."""
    if not changed:
        return []
    listed = ", ".join(f"{name} = {now} (before: {before})" for name, (before, now) in changed.items())
    sentences = [f"{place} goes on from step {step:,} with {listed}; its config.json keeps that"]
    if step < options.steps and any(name in changed for name in RATE):
        before = dataclasses.replace(options, **{name: pair[0] for name, pair in changed.items()})
        kind = f"the cosine down to step {options.steps:,}" if options.lr_schedule == "cosine" else "its constant value"
        old = learning_rate(step + 1, before) if step < before.steps else 0.0
        sentences.append(
            f"the learning rate follows {kind} from here on, {learning_rate(step + 1, options):.3g} at the next step, "
            + (f"where it would have been {old:.3g}" if step < before.steps else "where the run had ended")
        )
    if "shards" in changed:
        sentences.append("the batch is computed in another number of parts from here on, which changes the last bits")
    if "batch_size" in changed:
        sentences.append(
            "the order of the data goes on as if every batch had been of the new size, so that some samples come again "
            "sooner or later than they would have"
        )
    return sentences


def undrawn(model) -> list[str]:
    """A sentence on a network whose weights are those that constructors leave to `Module.initialize`."""
    drawn = [p for p in model.parameters() if p.bound]
    if not drawn or any(p.data.any() for p in drawn):
        return []
    return ["every weight of the network is 0, and many networks never leave that: draw them, model.initialize(seed)"]


def heard(announce, first, watch=None):
    """(announce, tell): for lines meant only for a caller that listens, and for sentences that should reach somebody.

    first: whether this is the process that reports. watch: what gets the images, in a while. Raises TypeError for what
    cannot be called, before it has to be.
    """
    for name, listener in (("announce", announce), ("watch", watch)):
        if listener is not None and not callable(listener):
            raise TypeError(f"{name} is a function, which will be called, got {listener!r:.60}")
    if not first:
        return (lambda _: None), (lambda _: None)

    def tell(sentences):
        for sentence in sentences:
            (announce or (lambda line: logging.getLogger("pydiff").warning("%s", line)))(sentence)

    return announce or (lambda _: None), tell

"""Options that suit the data, where nobody chose any: what is usual for images teaches clips no motion.

A clip says the same thing F times over, so that it is still recognised under noise in which an image is long lost, and
it is there that its motion is decided. So noisier levels are drawn, and the error is that of the clean clip, which at
those levels is large, and not that of the noise, which there is small. docs/clips.md has the figures.
"""

import dataclasses
from collections.abc import Collection

CLIPS = {
    "steps": 6000, "batch_size": 4, "lr": 1.5e-3, "warmup": 50, "ema": 0.998, "groups": 4, "prediction": "x0",
    "timestep_sampling": "logit_normal", "timestep_shift": 3.0,
}  # fmt: skip
TOGETHER = {"timestep_shift": "timestep_sampling", "lr": "batch_size", "groups": "channels"}  # who chose one has both


def suited(options, given: Collection[str], dataset, saved=None):
    """(options, sentences): the options with those of CLIPS, for clips, where they are not in `given`.

    options: Options. given: names of the options that somebody chose. dataset: what is to be learned from. saved: the
    options of the run that goes on, as they were written, or None; it keeps its own.
    """
    if dataset.noun != "clip":
        return options, []
    free = {name: value for name, value in CLIPS.items() if not {name, TOGETHER.get(name, name)} & set(given)}
    if saved is not None:
        free = {name: getattr(type(options).from_keywords(saved), name) for name in free}
    changed = {name: value for name, value in free.items() if getattr(options, name) != value}
    if not changed:
        return options, []
    told = ", ".join(f"{name}={value!r}" for name, value in changed.items())
    return dataclasses.replace(options, **changed).check(), [
        f"as suits clips, where nothing else was asked for: {told}"
    ]

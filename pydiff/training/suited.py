"""Options that suit the data, where nobody chose any: what is usual for images teaches clips no motion.

A clip says the same thing F times over, so that it is still recognised under noise in which an image is long lost, and
it is there that its motion is decided. So noisier levels are drawn, and the error is that of the clean clip, which at
those levels is large, and not that of the noise, which there is small. docs/clips.md has the figures.
"""

import dataclasses
from collections.abc import Callable, Collection

from pydiff.store.folder import RunDirectory
from pydiff.training.distributed import Group, settled

CLIPS = {
    "steps": 6000, "batch_size": 4, "lr": 1.5e-3, "warmup": 50, "ema": 0.998, "groups": 4, "prediction": "x0",
    "timestep_sampling": "logit_normal", "timestep_shift": 3.0,
}  # fmt: skip
TOGETHER = {"timestep_shift": "timestep_sampling", "lr": "batch_size", "groups": "channels"}  # who chose one has both


def suited(
    options, given: Collection[str], dataset, network=None, out=None, group: Group | None = None,
    announce: Callable[[str], object] = print,
):  # fmt: skip
    """The options, with those of CLIPS, for clips, where they are not in `given`; `announce` gets a sentence on that.

    options: Options. given: names of the options that somebody chose. dataset: what is to be learned from. network:
    what is trained in place of the network that the options describe, or None; what suits that, nobody knows. out: the
    folder of the run: one that goes on keeps its own. group: the processes that share the work.
    """
    if dataset.noun != "clip" or network is not None or options.init_from is not None:
        return options
    group = Group() if group is None else group
    saved = group.agree(None if out is None or not group.first else RunDirectory(out).saved_options())
    free = {name: value for name, value in CLIPS.items() if not {name, TOGETHER.get(name, name)} & set(given)}
    if saved is not None:
        free = {name: getattr(type(options).from_keywords(saved), name) for name in free}
    changed = {name: value for name, value in free.items() if getattr(options, name) != value}
    if not changed:
        return options
    told = ", ".join(f"{name}={value!r}" for name, value in changed.items())
    announce(f"as suits clips, where nothing else was asked for: {told}")
    return settled(dataclasses.replace(options, **changed).check(), out, group)

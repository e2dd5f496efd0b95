"""Options that suit the data, for those that the user did not choose: the usual ones for images teach clips no motion.

A clip shows the same object F times, so it is still recognisable under noise that hides a single image, and its motion
is decided at these noise levels. So noisier levels are drawn, and the error is that of the clean clip, which is large
at those levels, and not that of the noise, which is small there. docs/clips.md has the figures.
"""

import dataclasses
from collections.abc import Callable, Collection

from pydiff.store.folder import RunDirectory
from pydiff.training.distributed import Group, settled

CLIPS = {
    "steps": 6000, "batch_size": 4, "lr": 1.5e-3, "warmup": 50, "ema": 0.998, "groups": 4, "prediction": "x0",
    "timestep_sampling": "logit_normal", "timestep_shift": 3.0,
}  # fmt: skip
# Latents have no limits to which an estimate could be clipped, and where there is nearly nothing but noise, an error of
# eps is multiplied by sigma / alpha, 20,000 at the end of the cosine schedule. An error of v is not: docs/latents.md.
LATENTS = {"prediction": "v"}
TOGETHER = {"timestep_shift": "timestep_sampling", "lr": "batch_size", "groups": "channels"}  # choosing one keeps both


def suited(
    options, given: Collection[str], dataset, network=None, out=None, group: Group | None = None,
    announce: Callable[[str], object] = print, latent=False,
):  # fmt: skip
    """The options with those of CLIPS, if the data are clips, or of LATENTS, for names that are not in `given`;
    `announce` gets a sentence on that.

    options: Options. given: names of the options that the user chose. dataset: the training data. network: a network to
    train instead of the one that the options describe, or None; no options are known to suit it. out: the folder of the
    run: a resumed run keeps its options. group: the processes that share the work. latent: whether the training is
    in the latents of an autoencoder.
    """
    wanted, what = (LATENTS, "latents") if latent else (CLIPS, "clips")
    if not (latent or dataset.noun == "clip") or network is not None or options.init_from is not None:
        return options
    group = Group() if group is None else group
    saved = group.agree(None if out is None or not group.first else RunDirectory(out).saved_options())
    free = {name: value for name, value in wanted.items() if not {name, TOGETHER.get(name, name)} & set(given)}
    if saved is not None:
        free = {name: getattr(type(options).from_keywords(saved), name) for name in free}
    changed = {name: value for name, value in free.items() if getattr(options, name) != value}
    if not changed:
        return options
    told = ", ".join(f"{name}={value!r}" for name, value in changed.items())
    announce(f"as suits {what}, where nothing else was asked for: {told}")
    return settled(dataclasses.replace(options, **changed).check(), out, group)

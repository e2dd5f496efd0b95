"""Editing for users: samples in, samples out. `Run` has these as methods; diffusion/editing.py has the equations.

Image i depends on the seed, on its number (numbers[i], by default i) and on its own inputs, but not on the other
images. Everything is computed on the pipeline's device; inputs and results are NumPy arrays, encoded and decoded by its
codec.
"""

import numpy as np

from pydiff import backend
from pydiff.data.held import several
from pydiff.diffusion import editing, path, samplers
from pydiff.diffusion.samplers import SAMPLERS
from pydiff.mistakes import at_least_one, described, is_number, keywords, refuse_unknown


def inpaint(pipeline, images, mask, *, resample=None, steps=None, spacing="trailing", strength=1.0, **common):
    """Redraws the images where `mask` is 1 or True and keeps them where it is 0: N samples.

    mask: (H, W), (N, H, W) or (N, H, W, 1 or C), bool or 0 .. 1; of clips (F,), whole frames, (H, W) or (F, H, W); of
    points (D,) or (N, D). resample: RePaint's number of times that each step is taken, which makes the new part fit the
    rest; 0 uses the model's own scheduler and puts the known part back after every step. None is 5, or 0 for Stable
    Diffusion models; models that were trained to inpaint ignore it. steps: 50 if None, or the scheduler's default.
    strength: for the model's own scheduler and for models trained to inpaint, see `image_to_image`. `common`: see
    `edited`.
    """
    images = several(images)
    given, mask = _mask(mask, pipeline.codec, images)
    resample = (0 if pipeline.edits_by_scheduler else 5) if resample is None else resample
    beside = pipeline.beside(images, given)
    steps = pipeline.default_steps() if steps is None else steps
    if beside is not None or resample == 0:
        made, begin = _own_scheduler(pipeline, steps, strength)

        def draw(model, x0, here, **more):
            part = None if beside is not None else mask[here]
            return editing.scheduled(model, x0, made, begin > 0, part, **_without_clip(more))

        return edited(pipeline, images, draw, beside=beside, **common)
    if strength != 1:
        raise ValueError("strength is for resample=0, where the model's own scheduler fills in; leave it out")
    way = path(pipeline.process.schedule, steps, spacing)

    def draw(model, x0, here, **more):
        return editing.inpaint(model, x0, mask[here], pipeline.process, way, resample, **more)

    return pipeline.codec.kept(edited(pipeline, images, draw, **common), images, given)


def image_to_image(
    pipeline, images, strength=0.5, *, sampler=None, steps=None, spacing="trailing", options=None, **common
):
    """Adds noise to the images, `strength` of the way to pure noise, and denoises them again: N samples. Small values
    keep much of an image, 1 keeps nothing.

    sampler: None is the scheduler that a Stable Diffusion model came with, or ddim. steps: of the whole way from noise,
    50 if None, or the scheduler's default. options: of the sampler, a dict. `common`: see `edited`.
    """
    images = several(images)
    if not isinstance(options, dict | None):
        raise TypeError(f"options are those of the sampler, a dict such as {{'eta': 1.0}}, got {options!r:.60}")
    if sampler is None and pipeline.edits_by_scheduler:
        steps = pipeline.default_steps() if steps is None else steps
        made, _ = _own_scheduler(pipeline, steps, strength)

        def draw(model, x0, _here, **more):
            return editing.scheduled(model, x0, made, True, **_without_clip(more), **(options or {}))

        return edited(pipeline, images, draw, **common)
    sampler = sampler or "ddim"
    pipeline.check_sampler(sampler, options or {})
    way = path(pipeline.process.schedule, pipeline.default_steps(sampler) if steps is None else steps, spacing)
    editing.shortened(way, strength)

    def draw(model, x0, _here, **more):
        more |= options or {}
        return editing.image_to_image(model, x0, pipeline.process, way, strength, SAMPLERS[sampler], **more)

    return edited(pipeline, images, draw, **common)


def variations(pipeline, images, strength=0.3, *, steps=None, spacing="trailing", **common):
    """Images like these, N samples: their noise, found by DDIM inversion, is mixed with `strength` (0 .. 1) of other
    noise. steps: 50 if None, or all T if there are fewer.

    Raises ValueError if the model's schedule or prediction does not allow the inversion. `common`: see `edited`.
    """
    images = several(images)
    if not (is_number(strength) and 0 <= strength <= 1):
        told = f"{strength!r:.60}, expected 0 (the same image) .. 1 (another)"
        raise ValueError(f"strength is {told}; choose one between")
    way = path(pipeline.process.schedule, pipeline.default_steps("ddim") if steps is None else steps, spacing)
    if way.alpha[0] == 0:
        raise ValueError(
            "this model's schedule ends in noise alone, to which no image can be traced; use image_to_image"
        )
    if pipeline.process.preconditioned:
        raise ValueError(
            f"a model with prediction {pipeline.process.prediction!r} cannot be asked about clean images, "
            "where the tracing begins; use image_to_image"
        )

    def draw(model, x0, _here, **more):
        return editing.variations(model, x0, pipeline.process, way, strength, **more)

    return edited(pipeline, images, draw, **common)


def interpolate(pipeline, seed_a, seed_b, shares, *, asked=None, steps=None, spacing="trailing", guidance=1.0):
    """Images between those that sample(1, seed_a) and sample(1, seed_b) draw: K samples.

    shares: (K,) from 0 (the first) to 1 (the second). The noises are interpolated on the great circle and denoised by
    DDIM. asked: a Condition of K rows; None takes the condition of sample number 0 for all of them. steps: 50 if None,
    or all T if there are fewer.
    """
    shares = np.asarray(shares)
    numbers = shares.ndim == 1 and shares.dtype.kind in "iuf" and len(shares) > 0
    if not (numbers and ((shares >= 0) & (shares <= 1)).all()):
        raise ValueError(f"shares must be a list of numbers from 0 to 1, got {shares.tolist()!r:.60}")
    shares = shares.astype(np.float64)
    pipeline.check_free()
    steps = pipeline.default_steps("ddim") if steps is None else steps
    codec, process = pipeline.codec, pipeline.process
    way, first = path(process.schedule, steps, spacing), np.zeros(len(shares), np.int64)
    a, b = (samplers.initial_noise(codec.shape, seed, [0])[0] for seed in (seed_a, seed_b))
    x = editing.interpolate(a, b, shares) * np.float32(samplers.start_scale(way))
    asked = pipeline.conditioning.rows(first) if asked is None else asked
    with backend.use_device(pipeline.device) as xp:
        x = xp.asarray(x)
        model, left = pipeline.denoiser(asked.to(xp), guidance)
    states = samplers.ddim(model, x, process, way, guidance=left, clip=codec.limits)
    for state in backend.on_device(pipeline.device, states):
        x = state.x
    return pipeline.decoded(x)


WORDS = ("labels", "condition", "prompts", "negative_prompt")  # what becomes one Condition


def given(edit, conditioning, images, options, n=None):
    """The options of an edit, with labels, prompts and conditions among them made one Condition.

    edit: one of the functions above. images: N samples. n: how many results there will be, if not N. Raises TypeError
    for images that are none, and for an option that the edit does not have.
    """
    known = keywords(edit, *(() if edit is interpolate else (edited,)), apart=("pipeline", "draw", "asked", "beside"))
    refuse_unknown(options, [*dict.fromkeys((*known, *WORDS))])
    words = {name: options.pop(name) for name in WORDS if name in options}
    if any(word is not None for word in words.values()):
        n, numbers = len(several(images)) if n is None else n, options.get("numbers")
        numbers = np.arange(n) if numbers is None else np.asarray(numbers)
        options["asked"] = conditioning.rows(numbers, **words)
    return options


def edited(
    pipeline, images, draw, *, seed=0, asked=None, guidance=None, numbers=None, batch_size=None, beside=None,
    progress=False,
):  # fmt: skip
    """Calls draw(model, x0, here, seed=, sample=, guidance=, clip=) for each batch; returns N samples.

    images: N samples as the codec takes them. asked: their Condition; by default nothing is asked for. numbers: of the
    images, 0 .. N-1 if None. here: the slice of the batch. guidance, batch_size: None for the model's defaults. beside:
    further channels that the network sees beside x, (N, ..), or None. progress: True shows a bar.
    """
    from tqdm import tqdm

    pipeline.check_free()
    if asked is None and guidance not in (None, 1):
        raise ValueError("guidance needs labels, the class wanted for each image; give labels or leave guidance out")
    guidance = (pipeline.default_guidance if asked is not None else 1.0) if guidance is None else guidance
    batch_size = at_least_one("batch_size", pipeline.batch_size if batch_size is None else batch_size)
    x0 = pipeline.codec.encode_given(images)
    numbers = np.arange(len(x0)) if numbers is None else np.asarray(numbers)
    if numbers.shape != (len(x0),):
        raise ValueError(f"{len(x0)} images need as many numbers, one each, got {numbers.tolist()!r:.60}")
    asked = pipeline.conditioning.nothing_asked(len(x0)) if asked is None else asked
    pipeline.check_memory(x0.shape[1:3], min(batch_size, len(x0)))
    parts = []
    with backend.trimmed(), backend.use_device(pipeline.device) as xp:
        for first in range(0, len(x0), batch_size):
            here = slice(first, first + batch_size)
            extra = {} if beside is None else {"beside": xp.asarray(beside[here])}
            model, left = pipeline.denoiser(asked.take(here).to(xp), guidance, **extra)
            more = {"seed": seed, "sample": numbers[here], "guidance": left, "clip": pipeline.codec.limits}
            states = draw(model, xp.asarray(x0[here]), here, **more)
            for state in tqdm(states, unit="step", disable=not progress, delay=1):
                x = state.x
            parts.append(pipeline.decoded(x))
    return np.concatenate(parts)


def _own_scheduler(pipeline, steps, strength):
    """(the model's scheduler for the last `strength` of the steps, how many steps are skipped), counted as diffusers
    does.
    """
    if pipeline.scheduler is None:
        raise ValueError("this model came without a scheduler that could fill in; leave out resample=0")
    if not (is_number(strength) and 0 < strength <= 1):
        raise ValueError(f"strength is {strength!r}, expected above 0 (nothing is changed) up to 1 (all is drawn anew)")
    begin = steps - min(int(steps * strength), steps)
    if begin == steps:
        raise ValueError(f"strength {strength} of {steps} steps is less than one step; use more of either")
    return pipeline.scheduler(steps, begin=begin), begin


def _without_clip(more):
    """Drops `clip`: the scheduler's configuration says what is clipped."""
    return {name: value for name, value in more.items() if name != "clip"}


def _mask(mask, codec, images):
    """(the checked mask over samples with all axes, the same over x, (N, ..))."""
    given, shape = np.asarray(mask), np.shape(images)
    mask = codec.mask_axes(given)
    fits = mask.ndim == len(shape) > 0 and all(m in (1, n) for m, n in zip(mask.shape, shape, strict=True))
    if not fits or (len(shape) == 4 and mask.shape[1:3] != shape[1:3]) or mask.dtype.kind not in "biuf":
        told = f"{given.dtype} {given.shape}" if given.ndim else described(mask.item())
        raise ValueError(f"mask is {told}, expected {codec.mask_forms} to go with {shape}")
    mask = mask.astype(np.float32)
    if not ((mask >= 0) & (mask <= 1)).all():
        raise ValueError(f"mask goes from {mask.min()} to {mask.max()}, expected 0 (keep) .. 1 (draw); divide by 255?")
    return mask, np.broadcast_to(codec.encode_mask(mask), (len(images), *codec.shape_of(images)))

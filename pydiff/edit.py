"""Editing for users: samples in, samples out. `Run` has these as methods; diffusion/editing.py has the equations.

Picture i depends on the seed, its number (numbers[i], by itself i), and what is given for it: not on the others. All
is computed on the pipeline's device; what comes in and goes out are NumPy arrays, encoded and decoded by its codec.
"""

import numpy as np

from pydiff import backend
from pydiff.diffusion import editing, path, samplers
from pydiff.diffusion.samplers import SAMPLERS


def inpaint(pipeline, images, mask, *, resample=5, steps=50, spacing="trailing", **common):
    """Draws anew where `mask` is 1 or True and keeps the pictures where it is 0: RePaint.

    mask: (H, W), (N, H, W) or (N, H, W, 1 or C), bool or 0 .. 1; of clips (F,), whole frames, (H, W) or (F, H, W); of
    points (D,) or (N, D). resample: times each step is taken, so that the new part comes to fit the rest. `common`: see
    `edited`.
    """
    given, mask = _mask(mask, pipeline.codec, images)
    way = path(pipeline.process.schedule, steps, spacing)

    def draw(model, x0, here, **more):
        return editing.inpaint(model, x0, mask[here], pipeline.process, way, resample, **more)

    return pipeline.codec.kept(edited(pipeline, images, draw, **common), images, given)


def image_to_image(
    pipeline, images, strength=0.5, *, sampler="ddim", steps=50, spacing="trailing", options=None, **common
):
    """Draws the pictures anew from `strength` of the way to noise: small values keep much, 1 keeps nothing.

    options: of the sampler, a dict. `common`: see `edited`.
    """
    pipeline.check_sampler(sampler, options or {})
    way = path(pipeline.process.schedule, steps, spacing)
    editing.shortened(way, strength)

    def draw(model, x0, _here, **more):
        more |= options or {}
        return editing.image_to_image(model, x0, pipeline.process, way, strength, SAMPLERS[sampler], **more)

    return edited(pipeline, images, draw, **common)


def variations(pipeline, images, strength=0.3, *, steps=50, spacing="trailing", **common):
    """Pictures like these: their noise, found by DDIM inversion, mixed with `strength` (0 .. 1) of other noise.

    `common`: see `edited`.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}, expected 0 (the same picture) .. 1 (another); choose one between")
    way = path(pipeline.process.schedule, steps, spacing)
    if way.alpha[0] == 0:
        raise ValueError(
            "this model's schedule ends in noise alone, to which no picture can be traced; use image_to_image"
        )
    if pipeline.process.preconditioned:
        raise ValueError(
            f"a model with prediction {pipeline.process.prediction!r} cannot be asked about clean pictures, "
            "where the tracing begins; use image_to_image"
        )

    def draw(model, x0, _here, **more):
        return editing.variations(model, x0, pipeline.process, way, strength, **more)

    return edited(pipeline, images, draw, **common)


def interpolate(pipeline, seed_a, seed_b, shares, *, asked=None, steps=50, spacing="trailing", guidance=1.0):
    """Pictures between those that sample(1, seed_a) and sample(1, seed_b) draw: K samples.

    shares: (K,) from 0 (the first) to 1 (the second). The noises are mixed on the great circle and drawn by DDIM.
    asked: a Condition of K rows; None lets the conditioning choose for the first sample, and the others follow it.
    """
    shares = np.asarray(shares, np.float64)
    if shares.ndim != 1 or not len(shares) or not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"shares must be a list of numbers from 0 to 1, got {shares.tolist()}")
    pipeline.check_free()
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
    return codec.decode(x)


def edited(pipeline, images, draw, *, seed=0, asked=None, guidance=1.0, numbers=None, batch_size=64):
    """draw(model, x0, here, seed=, sample=, guidance=, clip=) for batch after batch: N samples.

    images: N samples as the codec takes them. asked: their Condition; left out, the model is asked for nothing.
    numbers: of the pictures, 0 .. N-1 if None; here: the slice of the batch.
    """
    pipeline.check_free()
    x0 = pipeline.codec.encode_given(images)
    numbers = np.arange(len(x0)) if numbers is None else np.asarray(numbers)
    if numbers.shape != (len(x0),) or batch_size < 1:
        raise ValueError(f"{len(x0)} pictures need as many numbers and a batch_size of at least 1, got {numbers}")
    if asked is None and guidance != 1:
        raise ValueError("guidance needs labels, the class wanted for each picture; give labels or leave guidance out")
    asked = pipeline.conditioning.nothing_asked(len(x0)) if asked is None else asked
    parts = []
    with backend.trimmed(), backend.use_device(pipeline.device) as xp:
        for first in range(0, len(x0), batch_size):
            here = slice(first, first + batch_size)
            model, left = pipeline.denoiser(asked.take(here).to(xp), guidance)
            more = {"seed": seed, "sample": numbers[here], "guidance": left, "clip": pipeline.codec.limits}
            for state in draw(model, xp.asarray(x0[here]), here, **more):
                x = state.x
            parts.append(pipeline.codec.decode(x))
    return np.concatenate(parts)


def _mask(mask, codec, images):
    """A mask over samples, checked and with all axes, and as one over x, (N, *codec.shape)."""
    given, shape = np.asarray(mask), np.shape(images)
    mask = codec.mask_axes(given)
    fits = mask.ndim == len(shape) > 0 and all(m in (1, n) for m, n in zip(mask.shape, shape, strict=True))
    if not fits or (len(shape) == 4 and mask.shape[1:3] != shape[1:3]) or mask.dtype.kind not in "biuf":
        raise ValueError(f"mask is {given.dtype} {given.shape}, expected {codec.mask_forms} to go with {shape}")
    mask = mask.astype(np.float32)
    if not ((mask >= 0) & (mask <= 1)).all():
        raise ValueError(f"mask goes from {mask.min()} to {mask.max()}, expected 0 (keep) .. 1 (draw); divide by 255?")
    return mask, np.broadcast_to(codec.encode_mask(mask), (len(images), *codec.shape))

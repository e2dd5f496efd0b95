"""Editing for users: uint8 pictures in, uint8 pictures out. `Run` has these as methods; diffusion/editing.py has the
equations.

Picture i depends on the seed, its number (numbers[i], by itself i), and what is given for it: not on the others. All
is computed on the run's device; what comes in and goes out are NumPy arrays.
"""

import numpy as np

from pydiff import backend
from pydiff.data.pixels import from_uint8, to_uint8
from pydiff.diffusion import editing, path, samplers
from pydiff.diffusion.samplers import SAMPLERS
from pydiff.predict import check_sampler, predictor


def inpaint(run, images, mask, *, resample=5, steps=50, spacing="trailing", **common):
    """Draws anew where `mask` is 1 or True and keeps the pictures where it is 0: RePaint.

    mask: (H, W), (N, H, W) or (N, H, W, 1 or C), bool or 0 .. 1. resample: times each step is taken, so that the new
    part comes to fit the rest. `common`: see `edited`.
    """
    mask = _mask(mask, run, images)
    way = path(run.process.schedule, steps, spacing)

    def draw(model, x0, here, **more):
        return editing.inpaint(model, x0, mask[here], run.process, way, resample, **more)

    return edited(run, images, draw, **common)


def image_to_image(run, images, strength=0.5, *, sampler="ddim", steps=50, spacing="trailing", options=None, **common):
    """Draws the pictures anew from `strength` of the way to noise: small values keep much, 1 keeps nothing.

    options: of the sampler, a dict. `common`: see `edited`.
    """
    check_sampler(run, sampler, options or {})
    way = path(run.process.schedule, steps, spacing)
    editing.shortened(way, strength)

    def draw(model, x0, _here, **more):
        more |= options or {}
        return editing.image_to_image(model, x0, run.process, way, strength, SAMPLERS[sampler], **more)

    return edited(run, images, draw, **common)


def variations(run, images, strength=0.3, *, steps=50, spacing="trailing", **common):
    """Pictures like these: their noise, found by DDIM inversion, mixed with `strength` (0 .. 1) of other noise.

    `common`: see `edited`.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}, expected 0 (the same picture) .. 1 (another); choose one between")
    way = path(run.process.schedule, steps, spacing)
    if way.alpha[0] == 0:
        raise ValueError(
            "this model's schedule ends in noise alone, to which no picture can be traced; use image_to_image"
        )
    if run.process.preconditioned:
        raise ValueError(
            f"a model with prediction {run.process.prediction!r} cannot be asked about clean pictures, "
            "where the tracing begins; use image_to_image"
        )

    def draw(model, x0, _here, **more):
        return editing.variations(model, x0, run.process, way, strength, **more)

    return edited(run, images, draw, **common)


def interpolate(run, seed_a, seed_b, shares, *, label=0, steps=50, spacing="trailing", guidance=1.0):
    """Pictures between those that run.sample(1, seed_a) and run.sample(1, seed_b) draw: (K, H, W, C) uint8.

    shares: (K,) from 0 (the first) to 1 (the second). The noises are mixed on the great circle and drawn by DDIM.
    label: class of all of them, for a model with classes.
    """
    shares = np.asarray(shares, np.float64)
    if shares.ndim != 1 or not len(shares) or not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"shares must be a list of numbers from 0 to 1, got {shares.tolist()}")
    way = path(run.process.schedule, steps, spacing)
    a, b = (samplers.initial_noise(run.shape, seed, [0])[0] for seed in (seed_a, seed_b))
    x = editing.interpolate(a, b, shares) * np.float32(samplers.start_scale(way))
    with backend.use_device(run.device) as xp:
        x = xp.asarray(x)
    labels = None if run.classes is None else run.checked_labels(np.full(len(shares), label), np.arange(len(shares)))
    model, left = predictor(run, labels, guidance)
    for state in backend.on_device(run.device, samplers.ddim(model, x, run.process, way, guidance=left)):
        x = state.x
    return to_uint8(backend.to_host(x).clip(-1, 1))


def edited(run, images, draw, *, seed=0, labels=None, guidance=1.0, numbers=None, batch_size=64):
    """draw(model, pictures, here, seed=, sample=, guidance=) for batch after batch: (N, H, W, C) uint8.

    images: (N, H, W, C) uint8, of the size the model was trained on. labels: class numbers (N,); left out, a model with
    classes is told none. numbers: of the pictures, 0 .. N-1 if None; here: the slice of the batch.
    """
    x0 = _pictures(run, images)
    numbers = np.arange(len(x0)) if numbers is None else np.asarray(numbers)
    if numbers.shape != (len(x0),) or batch_size < 1:
        raise ValueError(f"{len(x0)} pictures need as many numbers and a batch_size of at least 1, got {numbers}")
    if labels is None and guidance != 1:
        raise ValueError("guidance needs labels, the class wanted for each picture; give labels or leave guidance out")
    labels = run.unlabelled(len(x0)) if labels is None else run.checked_labels(labels, numbers)
    parts = []
    with backend.trimmed(), backend.use_device(run.device) as xp:
        for first in range(0, len(x0), batch_size):
            here = slice(first, first + batch_size)
            model, left = predictor(run, None if labels is None else labels[here], guidance)
            for state in draw(model, xp.asarray(x0[here]), here, seed=seed, sample=numbers[here], guidance=left):
                x = state.x
            parts.append(to_uint8(backend.to_host(x).clip(-1, 1)))
    return np.concatenate(parts)


def _pictures(run, images):
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images) or images.shape[1:] != run.shape:
        expected = ", ".join(map(str, run.shape))
        raise ValueError(f"images are {images.dtype} {images.shape}, expected uint8 (N, {expected}); resize them first")
    return from_uint8(images)


def _mask(mask, run, images):
    given, shape = np.asarray(mask), np.shape(images)
    mask = {2: given[None, ..., None], 3: given[..., None]}.get(given.ndim, given) if given.ndim else given
    fits = mask.ndim == len(shape) == 4 and all(m in (1, n) for m, n in zip(mask.shape, shape, strict=True))
    if not fits or mask.shape[1:3] != run.shape[:2] or mask.dtype.kind not in "biuf":
        raise ValueError(f"mask is {given.dtype} {given.shape}, expected (H, W) or (N, H, W) to go with {shape}")
    mask = mask.astype(np.float32)
    if not ((mask >= 0) & (mask <= 1)).all():
        raise ValueError(f"mask goes from {mask.min()} to {mask.max()}, expected 0 (keep) .. 1 (draw); divide by 255?")
    return np.broadcast_to(mask, shape)

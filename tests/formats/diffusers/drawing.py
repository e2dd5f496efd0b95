"""What diffusers draws from a folder and what pydiff draws, from the same start and noise: in float32 and in float64.

How close is close enough follows from the arithmetic. Both draw in float64 too, from the same float32 tables: there
nothing is left but the 16th digit, and what diffusers rounds to float32 on the way although it is asked for float64. In
float32, every answer of the network is off by some rounding, which the way to the image may magnify: by 1 / alpha = 157
at the noisy end of the usual schedule. `magnified` is what becomes of errors of that size, put into our float64 run at
random. The limit is 1e-5, or FACTOR times `magnified` where that is more.
"""

import functools
import inspect
import sys
import warnings

import numpy as np

import pydiff
from pydiff import random
from pydiff.diffusion.denoiser import denoiser
from pydiff.formats.diffusers.scheduler import from_diffusers
from pydiff.models.unet import sinusoids
from tests.compare import array_path
from tests.formats.diffusers import theirs

FACTOR = 4.0
LIMIT = 1e-5  # of images in [0, 1], relative to the largest number where they are not cut to that
LIMIT_64 = 1e-6  # of the same in float64: tables are float32's, and some of diffusers' steps are
N = 2
STEP_OPTIONS = ("eta", "order", "use_clipped_model_output")
CLIPPED = {"use_clipped_model_output": True}  # pydiff's own DDIM, which draws where no scheduler is
ASSUMED = {
    "_class_name": "DDIMScheduler",
    "clip_sample": True,
    "timestep_spacing": "trailing",
}  # the same for diffusers


# ---- what diffusers draws --------------------------------------------------------------------------------------------


def exact_time(torch, module, width, flip, shift):
    """diffusers makes the sinusoids of t in float32, whatever the network computes in."""

    class Exact(torch.nn.Module):
        def forward(self, t):
            return torch.from_numpy(sinusoids(t.double().numpy(), width, flip, shift))

    return Exact() if type(module).__name__ == "Timesteps" else module


def in_double(network, scheduler):
    """The same network and scheduler, computing in float64 from the numbers that they have."""
    import torch

    network = network.double()
    config = network.config
    width = config.block_out_channels[0]
    network.time_proj = exact_time(torch, network.time_proj, width, config.flip_sin_to_cos, config.freq_shift)

    def widen(part):
        for name, value in vars(part).items():
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
                setattr(part, name, value.double())

    if scheduler is not None:
        widen(scheduler)
        original = scheduler.set_timesteps

        @functools.wraps(original)
        def set_timesteps(*arguments, **options):
            original(*arguments, **options)
            widen(scheduler)

        scheduler.set_timesteps = set_timesteps
    return network, scheduler


class Recorded:
    """Inside, diffusers' random numbers are ours: the start first, if a pipeline draws it, then noise by evaluation."""

    def __init__(self, torch, parts, shape, double, start):
        self.torch, self.shape, self.double, self.calls = torch, shape, double, 0 if start else 1
        self.modules = {sys.modules[type(part).__module__] for part in parts if part is not None}
        self.evaluation = None  # set by the loop below; a pipeline's noise is counted by its calls

    def __call__(self, *_, **__):
        k = self.calls if self.evaluation is None else self.evaluation + 1
        self.calls += 1
        start = random.normal(random.key(theirs.SEED, random.SAMPLE, np.arange(N)), self.shape, np.float32)
        return self.tensor(start if k == 0 else theirs.noise(k - 1, N, self.shape))

    def tensor(self, array):
        array = np.ascontiguousarray(np.moveaxis(array, -1, 1))
        return self.torch.from_numpy(array.astype(np.float64 if self.double else np.float32))

    def __enter__(self):
        self.before = {module: module.randn_tensor for module in self.modules if hasattr(module, "randn_tensor")}
        for module in self.before:
            module.randn_tensor = self
        return self

    def __exit__(self, *_):
        for module, original in self.before.items():
            module.randn_tensor = original


def drawn_by_pipeline(pipe, steps, shape, options, double):
    """(N, H, W, C) in [0, 1]."""
    import torch

    if double:
        in_double(pipe.unet, pipe.scheduler)
    with Recorded(torch, (pipe, pipe.scheduler), shape, double, start=True), torch.no_grad():
        return pipe(batch_size=N, num_inference_steps=steps, output_type="np", **options).images


def drawn_by_loop(network, scheduler, steps, shape, options, double):
    """The same, not cut to [0, 1], by the loop that diffusers' documentation has for a U-Net and any scheduler."""
    import torch

    if double:
        network, scheduler = in_double(network, scheduler)
    told = {"class_labels": torch.as_tensor(options["labels"])} if "labels" in options else {}
    if told and told["class_labels"].is_floating_point():
        told["class_labels"] = told["class_labels"].to(torch.float64 if double else torch.float32)
    own = {name: options[name] for name in ("timesteps", "sigmas") if name in options}
    scheduler.set_timesteps(**(own or {"num_inference_steps": steps}))
    known = inspect.signature(scheduler.step).parameters
    more = {name: options[name] for name in STEP_OPTIONS if name in options}
    with Recorded(torch, (scheduler,), shape, double, start=False) as recorded, torch.no_grad():
        recorded.evaluation = -1
        x = recorded() * float(getattr(scheduler, "init_noise_sigma", 1.0))
        for k, t in enumerate(scheduler.timesteps):
            seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            recorded.evaluation = k
            f = network(seen, t, **told).sample
            if f.shape[1] > x.shape[1] and not str(scheduler.config.get("variance_type")).startswith("learned"):
                f = f[:, : x.shape[1]]
            noise = {"variance_noise": recorded()} if options.get("eta") and "variance_noise" in known else {}
            x = scheduler.step(f, t, x, return_dict=False, **more, **noise)[0]
    return np.moveaxis((x / 2 + 0.5).double().numpy(), 1, -1)


def their_images(made, steps, shape, options, double):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(made, tuple):
            return drawn_by_loop(*made, steps, shape, options, double)
        return drawn_by_pipeline(made, steps, shape, options, double)


# ---- what pydiff draws -----------------------------------------------------------------------------------------------


def _asked(options):
    """options with what the network is told besides as pydiff's own keyword."""
    labels = options.get("labels")
    if labels is None or labels.dtype.kind != "f":
        return options
    told = {"condition": {"class_labels": labels.astype(np.float32)}}
    return {name: value for name, value in options.items() if name != "labels"} | told


def our_images(run, steps, options):
    """(N, H, W, C), not cut to [0, 1]."""
    *_, last = run.sample_states(N, theirs.SEED, steps=steps, **_asked(_with_noise(run, options)))
    return np.asarray(last.x, np.float64) / 2 + 0.5


def our_images_64(run, steps, options, rounding=False):
    """The same in float64. rounding: every answer of the network is off by as much as it is in float32."""
    options = _asked(_with_noise(run, options))
    told = options.pop("labels", None), options.pop("condition", None)
    condition = run.conditioning.rows(np.arange(N), *told)
    x = pydiff.diffusion.initial_noise(run.shape, theirs.SEED, np.arange(N)).astype(np.float64)
    made, learned = run.pipeline.scheduler, False
    if made is not None:
        options = dict(options)
        own = {name: options.pop(name) for name in ("timesteps", "sigmas") if name in options}
        learned, made = made.learned_variance, made(steps, **own)
    else:  # what pydiff says that it assumes
        made = from_diffusers(ASSUMED, steps)
        options |= CLIPPED
    kept = run.model.state_dict()
    single, _ = run.pipeline.denoiser(condition, learned=learned)
    rng = np.random.default_rng(1)
    with array_path():
        double = type(run.model)(**run.model.config)
        double.load_state_dict(kept)
        double.astype(np.float64)
        exact, _ = denoiser(double, run.process, run.shape[-1], condition, learned=learned)

        def model(x, t):
            f = exact(x, t)
            if not rounding:
                return f
            off = np.abs(single(x.astype(np.float32), t) - f).max()
            return f + off * rng.uniform(-1, 1, f.shape)

        *_, last = made.sample(model, x * made.init_noise_sigma, sample=np.arange(N), **options)
    return last.x / 2 + 0.5


def _with_noise(run, options):
    scheduler = run.pipeline.scheduler
    if scheduler is None:  # drawn by DDIM, which asks for no noise
        return dict(options)
    counted = 2 if scheduler.name == "KarrasVeScheduler" else 1
    return {"noise": lambda k: theirs.noise(k // counted, N, run.shape), **options}


# ---- the comparison --------------------------------------------------------------------------------------------------


def compared(made, run, steps, options=()) -> dict:
    """How far apart. made: a pipeline of diffusers, or (network, scheduler). run: the same opened by pydiff."""
    options = dict(options)
    told = options | (CLIPPED if run.pipeline.scheduler is None else {})
    ours, ours_64 = our_images(run, steps, options), our_images_64(run, steps, options)
    rounded = our_images_64(run, steps, options, rounding=True)
    expected = their_images(made, steps, run.shape, told, double=False)
    expected_64 = their_images(made, steps, run.shape, told, double=True)
    if not isinstance(made, tuple):  # pipelines cut to [0, 1]
        ours, ours_64, rounded = (images.clip(0, 1) for images in (ours, ours_64, rounded))
    magnified = _apart(rounded, ours_64)
    return {
        "ours_from_theirs": _apart(ours, expected),
        "limit": max(LIMIT, FACTOR * magnified),
        "in_float64": _apart(ours_64, expected_64),
        "magnified": magnified,
        "ours_from_float64": _apart(ours, ours_64),
        "theirs_from_float64": _apart(expected, expected_64),
        "inside": float(((expected > 0.001) & (expected < 0.999)).mean()),
        "largest": float(np.abs(expected).max()),
    }


def right(found: dict) -> bool:
    """Whether they are as close as the arithmetic allows, and the images are not all black and white."""
    close = found["ours_from_theirs"] <= found["limit"] and found["in_float64"] <= max(LIMIT_64, found["limit"])
    return close and found["inside"] > 0.1


def _apart(a, b) -> float:
    return float(np.abs(a - b).max() / max(1.0, np.abs(b).max())) if a.shape == b.shape else float("nan")

"""Everything needed to sample, and nothing about the training: network, process, codec, conditioning.

    pipeline.sample(16, seed=1)         samples, such as uint8 images
    pipeline.sample_states(16, seed=1)  the steps to them: one SamplerState per step, in the codec's x

Data flow in one direction, from words to samples: conditioning -> denoiser -> sampler -> codec. edit.py starts from
samples.
"""

import math
from typing import Any

import numpy as np

from pydiff import backend, memory
from pydiff.codec import Pixels
from pydiff.condition import Conditioning
from pydiff.diffusion import path, samplers
from pydiff.diffusion.denoiser import check_sampler, denoiser
from pydiff.diffusion.samplers import SAMPLERS
from pydiff.mistakes import at_least_one


class Pipeline:
    """A network with the process it was trained for.

    model: nn.Module, model(x, t, **condition) -> Tensor. process: its diffusion process. codec: converts between
    samples and what is diffused. conditioning: what else the network is given. variance ("fixed" or "learned") and
    self_conditioning: the meaning of the network's further channels. device: where the model is. scheduler: the default
    way to sample, for a model that came with one, see formats.diffusers.scheduler.stored; or None.
    """

    default_guidance, batch_size = 1.0, 64  # defaults for `sample`
    kept_elsewhere = ""  # a sentence on why `Run.save` does not write it, if so
    described: dict = {}  # noqa: RUF012 - never written to; further metadata for a sample's file
    edits_by_scheduler = False  # whether edits use the model's own scheduler by default

    def __init__(
        self,
        model,
        process,
        codec: Any,
        conditioning: Conditioning | None = None,
        *,
        variance="fixed",
        self_conditioning=False,
        device="cpu",
        scheduler: Any = None,
    ):
        self.model, self.process, self.codec = model, process, codec
        self.conditioning = Conditioning() if conditioning is None else conditioning
        self.variance, self.self_conditioning, self.device = variance, self_conditioning, device
        self.scheduler = scheduler

    def to(self, device):
        """Moves the model to a device, where it then stays and samples. Returns the pipeline.

        A model that was following a training elsewhere no longer does. Raises ValueError or RuntimeError for a device
        that does not exist or cannot be used here.
        """
        with backend.use_device(device) as xp:
            self.model.to(xp)
            self.codec.to(xp)
        self.device = device
        return self

    def sample(
        self,
        n: Any = 16,
        seed=0,
        sampler=None,
        steps=None,
        asked=None,
        guidance=None,
        eta=0.0,
        *,
        batch_size=None,
        progress=False,
        **more,
    ):
        """n new samples; sample i depends only on (seed, i) and on its row of `asked`, a Condition. See `Run.sample`.

        n: how many, or their numbers (N,).
        """
        from tqdm import tqdm

        all_numbers = self._numbers(n, 2 * math.prod(self.codec.image_shape))
        n, batch_size = len(all_numbers), self.batch_size if batch_size is None else batch_size
        batch_size = at_least_one("batch_size", batch_size)
        asked, parts = self.conditioning.rows(all_numbers) if asked is None else asked, []
        steps = self.default_steps(sampler) if steps is None else steps
        with tqdm(total=n * steps, unit="image step", unit_scale=True, disable=not progress, delay=1) as bar:
            for first in range(0, n, batch_size):
                chosen = np.arange(first, min(first + batch_size, n))
                numbers, part = all_numbers[chosen], asked.take(chosen)
                states = self.sample_states(numbers, seed, sampler, steps, part, guidance, eta, **more)
                for state in states:
                    x = state.x
                    bar.update(len(numbers))
                parts.append(self.decoded(x))
        return np.concatenate(parts)

    def sample_states(
        self,
        n: Any = 16,
        seed=0,
        sampler=None,
        steps=None,
        asked=None,
        guidance=None,
        eta=0.0,
        *,
        spacing=None,
        interval=None,
        rescale=0.0,
        **options,
    ):
        """The steps to the samples that `sample` draws: a generator of SamplerState, arrays on the device.

        n: how many, or their numbers (N,). asked: their Condition; None lets the conditioning choose. sampler: None for
        the scheduler that the model came with, else ddim. options: of the sampler.
        """
        numbers = self._numbers(n, 16 * math.prod(self.codec.shape))  # x, what is predicted of it, and the next x
        steps = self.default_steps(sampler) if steps is None else steps
        asked = self.conditioning.rows(numbers) if asked is None else asked
        guidance = self.default_guidance if guidance is None else guidance
        if sampler is None and self.scheduler is not None:
            options |= {"spacing": spacing} if spacing else {}
            options |= {"eta": eta} if eta else {}
            return self._scheduled(numbers, seed, steps, asked, guidance, interval, rescale, options)
        self.check_free()
        sampler = sampler or "ddim"
        self.check_sampler(sampler, options, interval, rescale)
        if eta and sampler not in ("ddim", "dpm2"):
            raise ValueError(f"eta {eta} is for ddim and dpm2, and the sampler is {sampler!r}; leave eta out")
        way = path(self.process.schedule, steps, spacing or "trailing")
        if sampler == "ddpm" and self.variance == "learned":
            options = {"variance": "learned_range"} | options
        learned = options.get("variance") == "learned_range"
        with backend.use_device(self.device) as xp:
            model, guidance = self.denoiser(asked.to(xp), guidance, interval, rescale, learned=learned)
            x = xp.asarray(samplers.initial_noise(self.codec.shape, seed, numbers))
            scale = samplers.start_scale(way)
            x = x if scale == 1.0 else x * x.dtype.type(scale)
        arguments = {"seed": seed, "sample": numbers, "guidance": guidance, "clip": self.codec.limits}
        arguments |= ({"eta": eta} if eta else {}) | options
        return backend.on_device(self.device, SAMPLERS[sampler](model, x, self.process, way, **arguments))

    def _scheduled(self, numbers, seed, steps, asked, guidance, interval, rescale, options):
        """The states of the model's own scheduler."""
        own = {name: options.pop(name) for name in ("timesteps", "sigmas") if name in options}
        made, learned = self.scheduler(steps, **own), self.scheduler.learned_variance
        with backend.use_device(self.device) as xp:
            model, guidance = self.denoiser(asked.to(xp), guidance, interval, rescale, learned=learned)
            x = xp.asarray(samplers.initial_noise(self.codec.shape, seed, numbers))
            x = x if made.init_noise_sigma == 1.0 else x * x.dtype.type(made.init_noise_sigma)
        arguments = {"seed": seed, "sample": numbers, "guidance": guidance, **options}
        return backend.on_device(self.device, made.sample(model, x, **arguments))

    def decoded(self, x):
        """Samples from the x of the last step."""
        return self.codec.decode(x)

    def preview(self):
        """Draws 16 samples quickly, in at most 25 steps."""
        return self.sample(16, steps=min(25, self.process.schedule.T))

    def default_steps(self, sampler=None) -> int:
        """The default number of steps: 50, or that of the model's own scheduler."""
        if sampler is None and self.scheduler is not None:
            return self.scheduler.default_steps
        return min(50, self.process.schedule.T)

    def denoiser(self, condition, guidance=1.0, interval=None, rescale=0.0, learned=False):
        """(model, guidance) for one run of a sampler over samples with this condition; see denoiser.py."""
        channels, limits = self.codec.shape[-1], self.codec.limits
        more = {"self_conditioning": self.self_conditioning, "limits": limits, "learned": learned}
        return denoiser(self.model, self.process, channels, condition, guidance, interval, rescale, **more)

    def beside(self, images, mask):  # noqa: ARG002
        """Further channels (N, ..) that the network sees beside x when it inpaints the given images; None if it takes
        none.
        """
        return None

    def _numbers(self, n, each):
        """The numbers (N,) of n samples. Raises ValueError if these would take more memory than is free, at so many
        bytes each.
        """
        numbers = numbered(n)
        memory.check_many(len(numbers), each, self.codec.noun)
        return numbers

    def check_memory(self, size, n=1):
        """Raises MemoryError if n samples of this size at a time need more memory than is free, if that is known."""

    def check_free(self):
        """Raises ValueError for a model that only its own scheduler can evaluate."""
        if self.scheduler is not None and self.scheduler.alone:
            raise ValueError(
                f"this model is drawn by its own {self.scheduler.name} alone; leave the sampler out, and do not edit"
            )

    def check_sampler(self, sampler, options, interval=None, rescale=0.0):
        """Raises ValueError or TypeError for a sampler or options that do not work with this network."""
        kind = {"self_conditioning": self.self_conditioning, "learned_variance": self.variance == "learned"}
        check_sampler(sampler, options, interval, rescale, **kind)

    @property
    def networks(self):
        """All networks that take part in sampling."""
        return (self.model,)

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(p.size for p in self.model.parameters())


def numbered(n) -> np.ndarray:
    """The numbers (N,) of samples: 0 .. n-1, or n itself if it is a list of them. Raises as `how_many` does."""
    numbers = np.asarray(n) if np.ndim(n) else np.arange(how_many(n))
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"n is how many samples to draw, at least 1, or their numbers, got {n!r:.50}")
    return numbers


def how_many(n) -> int:
    """n as a number of samples. Raises TypeError or ValueError unless it is one that can be counted in memory."""
    if not isinstance(n, int | np.integer) or isinstance(n, bool):
        raise TypeError(f"n is how many samples to draw, a whole number, got {n!r:.50}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    memory.check_many(int(n), 0, "sample")
    return int(n)


def pixels_of(model, self_conditioning=False) -> Pixels:
    """The codec of an image network, from its configuration."""
    size = model.config["sample_size"]
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return Pixels((height, width, model.config["in_channels"] // (2 if self_conditioning else 1)))

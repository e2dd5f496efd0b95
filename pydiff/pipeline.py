"""Everything that is needed to draw, and nothing of how it was learned: network, process, codec, conditioning.

    pipeline.sample(16, seed=1)         samples, as people see them
    pipeline.sample_states(16, seed=1)  the way there: a SamplerState a step, in the codec's x

From words to samples without a return: conditioning -> denoiser -> sampler -> codec. edit.py does the same from
samples.
"""

from typing import Any

import numpy as np

from pydiff import backend
from pydiff.codec import Pixels
from pydiff.condition import Conditioning
from pydiff.diffusion import path, samplers
from pydiff.diffusion.denoiser import check_sampler, denoiser
from pydiff.diffusion.samplers import SAMPLERS


class Pipeline:
    """A network with the process it was trained for.

    model: nn.Module, model(x, t, **condition) -> Tensor. process: its diffusion process. codec: between what is
    diffused and what people see. conditioning: what the network is told besides. variance ("fixed" or "learned") and
    self_conditioning: what the network's channels are for besides x. device: where the model is. scheduler: how to draw
    where no sampler is named, for a model that came with one, see formats.diffusers.scheduler.stored; or None.
    """

    default_guidance, batch_size = 1.0, 64  # where nobody says otherwise
    kept_elsewhere = ""  # why `Run.save` does not write it, in one sentence
    described: dict = {}  # noqa: RUF012 - never written to; what a sample's file says besides the recipe
    edits_by_scheduler = False  # whether edits are done by the scheduler it came with, where nobody names a way

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
        """Moves the model to a device, where everything is drawn from then on. Returns the pipeline.

        A model that was in training elsewhere follows it no longer. ValueError or RuntimeError, in one sentence, for a
        device that does not exist or cannot be used here.
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
        """n new samples; sample i depends on (seed, i) and its row of `asked`, a Condition, alone. See `Run.sample`.

        n: how many, or their numbers (N,).
        """
        from tqdm import tqdm

        all_numbers = np.arange(n) if np.ndim(n) == 0 else np.asarray(n)
        n, batch_size = len(all_numbers), self.batch_size if batch_size is None else batch_size
        if n < 1 or batch_size < 1:
            name, value = ("n", n) if n < 1 else ("batch_size", batch_size)
            raise ValueError(f"{name} must be at least 1, got {value}")
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
        """The way to the samples that `sample` draws: a generator of SamplerState, arrays on the device.

        n: how many, or their numbers (N,). asked: their Condition; None lets the conditioning choose. sampler: None for
        the scheduler that the model came with, or else ddim. options: of the sampler.
        """
        numbers = np.arange(n) if np.ndim(n) == 0 else np.asarray(n)
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
        """The states that the model's own scheduler goes through."""
        own = {name: options.pop(name) for name in ("timesteps", "sigmas") if name in options}
        made, learned = self.scheduler(steps, **own), self.scheduler.learned_variance
        with backend.use_device(self.device) as xp:
            model, guidance = self.denoiser(asked.to(xp), guidance, interval, rescale, learned=learned)
            x = xp.asarray(samplers.initial_noise(self.codec.shape, seed, numbers))
            x = x if made.init_noise_sigma == 1.0 else x * x.dtype.type(made.init_noise_sigma)
        arguments = {"seed": seed, "sample": numbers, "guidance": guidance, **options}
        return backend.on_device(self.device, made.sample(model, x, **arguments))

    def decoded(self, x):
        """Samples of x, when the last step is done."""
        return self.codec.decode(x)

    def preview(self):
        """Draws 16 samples quickly, in at most 25 steps."""
        return self.sample(16, steps=min(25, self.process.schedule.T))

    def default_steps(self, sampler=None) -> int:
        """How many steps are taken where nobody says: 50, or what suits the model's own scheduler."""
        if sampler is None and self.scheduler is not None:
            return self.scheduler.default_steps
        return min(50, self.process.schedule.T)

    def denoiser(self, condition, guidance=1.0, interval=None, rescale=0.0, learned=False):
        """(model, guidance) for one run of a sampler over samples with this condition; see denoiser.py."""
        channels, limits = self.codec.shape[-1], self.codec.limits
        more = {"self_conditioning": self.self_conditioning, "limits": limits, "learned": learned}
        return denoiser(self.model, self.process, channels, condition, guidance, interval, rescale, **more)

    def beside(self, images, mask):  # noqa: ARG002
        """What the network sees of given images beside x when it fills in a mask, (N, ..): nothing, None."""
        return None

    def check_memory(self, size, n=1):
        """MemoryError where n samples of this size at a time need more than is free, as far as that is known."""

    def check_free(self):
        """ValueError for a model that nothing but its own scheduler knows how to ask."""
        if self.scheduler is not None and self.scheduler.alone:
            raise ValueError(
                f"this model is drawn by its own {self.scheduler.name} alone; leave the sampler out, and do not edit"
            )

    def check_sampler(self, sampler, options, interval=None, rescale=0.0):
        """ValueError or TypeError, in one sentence, for a sampler or options that do not go with this network."""
        kind = {"self_conditioning": self.self_conditioning, "learned_variance": self.variance == "learned"}
        check_sampler(sampler, options, interval, rescale, **kind)

    @property
    def networks(self):
        """All that have a say in what is drawn."""
        return (self.model,)

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(p.size for p in self.model.parameters())


def pixels_of(model, self_conditioning=False) -> Pixels:
    """The codec of a network of images, read from its configuration."""
    size = model.config["sample_size"]
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return Pixels((height, width, model.config["in_channels"] // (2 if self_conditioning else 1)))

"""Drawing images with DDIM, 16 unless --batch says otherwise: pydiff against torch with diffusers' UNet2DModel and
DDIMScheduler, same weights.

First, three steps from the same noise have to lead to the images that torch gets in float64. Then single steps are
timed (one call of the network and the update of the image), everyone in a process of its own, in turns; a drawing
takes as many steps as --steps says, all alike.
"""

import itertools
import sys

import numpy as np

from benchmarks import whole
from benchmarks.contenders import keep_freed_memory
from benchmarks.training import products_of
from benchmarks.workloads import WORKLOADS, torch_unet
from pydiff import backend
from pydiff.diffusion import Process, ddim, initial_noise, path, schedule
from pydiff.graph import Played
from pydiff.models import UNet2D
from pydiff.tensor import no_grad

# The first 3 steps of 50 are checked, however long the steps are that are timed. In a pixel where x0 is not clipped, an
# error of the network counts alpha' (sigma / alpha - sigma' / alpha') times after the way from alpha, sigma to alpha',
# sigma': 0.8 times here, but 69 times after three steps of 5. There hardly a pixel escapes the clipping at first, and
# these few, one or none in small images, would decide by chance how far two right drawings differ.
CHECKED, CHECKED_OF = 3, 50


class Pydiff:
    """pydiff's sampler."""

    def __init__(self, workload, batch, steps):
        self.workload, self.batch = WORKLOADS[workload], batch
        self.model = UNet2D(**self.workload.config)
        self.process = Process(schedule("linear"))
        self.path = path(self.process.schedule, steps)
        self.states = iter(())

    def weights(self):
        """{name: array in PyTorch's layout}"""
        return self.model.state_dict()

    def operations(self):
        """Floating-point operations of one step that are products."""
        x = self.workload.images(self.batch)
        with no_grad():
            return products_of(lambda: self.model(x, np.zeros(self.batch, np.int64)))

    def walk(self, along):
        """The states of one drawing along a path."""
        x = initial_noise(self.workload.images(1).shape[1:], 0, np.arange(self.batch))
        return backend.on_device("cpu", ddim(Played(self.model), x, self.process, along))

    def images(self):
        """The images after the steps that are checked."""
        states = self.walk(path(self.process.schedule, CHECKED_OF))
        return [state.x for state in itertools.islice(states, CHECKED)][-1]

    def step(self):
        """One step; after the last one a new drawing begins."""
        if next(self.states, None) is None:
            self.states = self.walk(self.path)
            next(self.states)


class Torch:
    """torch, diffusers' U-Net and its DDIMScheduler. keep: freed memory stays in the process. compiled: options of
    torch.compile, or None for eager mode. exact: in float64."""

    def __init__(self, workload, batch, steps, channels_last=False, compiled=None, keep=False, exact=False):
        import torch
        from diffusers import DDIMScheduler

        if keep:
            keep_freed_memory()
        self.torch, self.workload, self.batch, self.steps = torch, WORKLOADS[workload], batch, steps
        self.channels_last, self.compiled, self.exact = channels_last, compiled, exact
        # The defaults are pydiff's "linear" schedule with clipping to [-1, 1].
        self.scheduler = DDIMScheduler(timestep_spacing="trailing")
        if exact:  # diffusers' own are products of float32
            c = self.scheduler.config
            betas = torch.linspace(c.beta_start, c.beta_end, c.num_train_timesteps, dtype=torch.float64)
            self.scheduler.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        self.states = iter(())

    def load(self, weights):
        """Builds the model."""
        self.model = torch_unet(self.workload, weights, self.channels_last, self.exact).eval()
        if self.compiled is not None:
            self.model = self.torch.compile(self.model, **self.compiled)

    def walk(self, steps):
        """The images after every step of one drawing."""
        x = initial_noise(self.workload.images(1).shape[1:], 0, np.arange(self.batch))
        x = self.torch.from_numpy(x.astype(np.float64 if self.exact else np.float32)).permute(0, 3, 1, 2)
        x = x if self.channels_last else x.contiguous()
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            with self.torch.no_grad():
                f = self.model(x, t).sample
                x = self.scheduler.step(f, t, x, use_clipped_model_output=True).prev_sample
            yield x

    def images(self):
        """The images after the steps that are checked."""
        return list(itertools.islice(self.walk(CHECKED_OF), CHECKED))[-1].permute(0, 2, 3, 1).numpy().copy()

    def step(self):
        """One step; after the last one a new drawing begins."""
        if next(self.states, None) is None:
            self.states = self.walk(self.steps)
            next(self.states)


def disagreement(ours, theirs):
    """Norm of the difference relative to the norm; NaN for a NaN."""
    return float(np.linalg.norm(ours.astype(np.float64) - theirs) / np.linalg.norm(theirs))


def measure(options, batch, fastest):
    """The section of the report about one workload."""
    factories = whole.contenders(options, Pydiff, Torch, batch, steps=options.steps)
    title = whole.Title(f"DDIM, {options.steps} steps", whole.words(options.workload, batch), batch, options.steps)
    return whole.compete(title, factories, options, ask="images", difference=disagreement, fastest=fastest)


def main(arguments=None):
    """Returns the exit status."""
    return whole.main(measure, __doc__, arguments, batch=16, steps=50)


if __name__ == "__main__":
    sys.exit(main())

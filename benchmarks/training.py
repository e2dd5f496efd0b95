"""A whole training step, pydiff against torch with diffusers' UNet2DModel of the same configuration and weights.

First, loss and gradient of one batch have to agree with torch's in float64. Then whole steps are timed: draw t, add
noise, forward, mean squared error, backward, clipping of the gradient's norm, AdamW, average of the weights. Everyone
in a process of its own, in turns.
"""

import sys
import time
from collections import Counter
from functools import partial

import numpy as np

from benchmarks import whole
from benchmarks.contenders import keep_freed_memory
from benchmarks.workloads import WORKLOADS, torch_unet
from pydiff import backend, nn, optim, random
from pydiff.arrays import to_host
from pydiff.diffusion import Process, schedule
from pydiff.models import UNet2D
from pydiff.ops.attention import Attention
from pydiff.ops.conv2d import Conv2d
from pydiff.tensor import Function, no_grad

LR, EMA, CLIP, WEIGHT_DECAY = 1e-4, 0.999, 1.0, 0.01


class Pydiff:
    """pydiff's training step. workload: its name, or a Workload. size: of the images, if not the workload's."""

    def __init__(self, workload, batch, recompute=False, size=None, device="cpu"):
        self.workload = WORKLOADS[workload] if isinstance(workload, str) else workload
        self.workload = self.workload._replace(**({} if size is None else {"size": size}))
        self.device = device
        with backend.use_device(device) as xp:
            self.model = UNet2D(**self.workload.config).recompute_blocks(recompute)
            for p in self.model.parameters():
                p.data = xp.asarray(p.data)
            self.optimizer = optim.AdamW(self.model, weight_decay=WEIGHT_DECAY)
            self.x0 = xp.asarray(self.workload.images(batch))
        self.process = Process(schedule("linear"))
        self.sample, self.done = np.arange(batch), 0

    def weights(self):
        """{name: array in PyTorch's layout}"""
        return self.model.state_dict()

    def load(self, weights):
        """Takes over another contender's weights."""
        self.model.load_state_dict(weights)

    def operations(self):
        """Floating-point operations of one step that are products: three times those of a forward pass."""
        with no_grad(), backend.use_device(self.device):
            return 3 * products_of(lambda: self.model(self.x0, np.zeros(len(self.x0), np.int64)))

    def example(self, step):
        """t and the noise's key."""
        t = random.integers(random.key(0, random.TIMESTEP, self.sample, step), self.process.schedule.T)
        return t, random.key(0, random.NOISE, self.sample, step)

    def loss_and_gradient(self):
        """The loss of step 1 and {parameter: gradient in PyTorch's layout}."""
        with backend.use_device(self.device):
            self.optimizer.zero_grad()
            loss = self.process.loss(self.model, self.x0, *self.example(1))
            loss.backward()
        return loss.item(), {name: in_file_order(p) for name, p in self.model.named_parameters()}

    def step(self):
        """One training step."""
        self.done += 1
        with backend.use_device(self.device):
            self.optimizer.zero_grad()
            self.process.loss(self.model, self.x0, *self.example(self.done)).backward()
            self.optimizer.step(self.done, LR, EMA, CLIP)

    def profile(self, steps):
        """{what: share of the time}, over some steps: every Function's forward and backward, and the optimiser.

        The shares add up to 1: what one of them spends in another counts for that one only.
        """
        seconds = Counter()
        undo = [watch(cls, name, seconds) for cls in functions(Function) for name in ("forward", "backward")]
        undo.append(watch(optim.AdamW, "step", seconds))
        start = time.perf_counter()
        try:
            for _ in range(steps):
                self.step()
        finally:
            for restore in undo:
                restore()
        total = time.perf_counter() - start
        seconds["everything else"] = total - sum(seconds.values())
        return {name: value / total for name, value in seconds.most_common()}


def products_of(run):
    """2 for every multiplication and addition in the convolutions, linear layers and attentions of run()."""
    counted = []

    def counting(cls, count):
        original = cls.forward

        def forward(self, *arrays, **options):
            result = original(self, *arrays, **options)
            counted.append(count(result, *arrays))
            return result

        cls.forward = forward
        return lambda: setattr(cls, "forward", original)

    undo = [
        counting(Conv2d, lambda y, _x, w, *_: 2 * y.size * w[..., 0].size),
        counting(Attention, lambda out, _q, k, *_: 4 * out.size * k.shape[1]),  # q k^T and p v
    ]
    try:
        run()
    finally:
        for restore in undo:
            restore()
    return sum(counted)


def in_file_order(p: nn.Parameter):
    """A parameter's gradient, axes as in PyTorch."""
    grad = np.zeros(p.shape, np.float32) if p.grad is None else to_host(p.grad)
    return grad.transpose(p.file_axes).copy()


def functions(cls):
    """All Functions that were defined."""
    for sub in cls.__subclasses__():
        yield sub
        yield from functions(sub)


def watch(cls, name, seconds):
    """Wraps a method so that its time is added to `seconds`, less what is added to it meanwhile by methods that it
    calls; returns what takes the wrapping off again."""
    original = cls.__dict__.get(name)
    if original is None:
        return lambda: None

    def timed(self, *args, **options):
        start, before = time.perf_counter(), seconds.total()
        try:
            return original(self, *args, **options)
        finally:
            inside = seconds.total() - before
            seconds[label(self, name)] += time.perf_counter() - start - inside

    setattr(cls, name, timed)
    return lambda: setattr(cls, name, original)


def label(function, method):
    """A line of the profile; linear layers are convolutions with 1x1 filters, and get a line of their own."""
    kind = type(function).__name__
    if kind == "Conv2d":
        kind = "Linear and 1x1" if function.saved[1].shape[:2] == (1, 1) else "Conv2d"
    return f"{kind} {method}"


class Torch:
    """The same step by torch and diffusers, with torch's fused AdamW and foreach average.

    workload: its name, or a Workload. keep: freed memory stays in the process, as in pydiff's; torch does not do that
    by itself. compiled: what torch.compile is told, or None for eager mode. exact: in float64. low: autocast to
    bfloat16. at: torch's device.
    """

    def __init__(
        self, workload, batch, channels_last=False, compiled=None, keep=False, exact=False, low=False, at="cpu"
    ):
        import torch

        if keep:
            keep_freed_memory()
        self.torch, self.batch = torch, batch
        self.workload = WORKLOADS[workload] if isinstance(workload, str) else workload
        self.channels_last, self.compiled, self.exact, self.low = channels_last, compiled, exact, low
        dtype, self.at = np.float64 if exact else np.float32, torch.device(at)
        x0 = torch.from_numpy(self.workload.images(batch).astype(dtype)).permute(0, 3, 1, 2)
        self.x0 = (x0 if channels_last else x0.contiguous()).to(self.at)
        levels = schedule("linear")
        tables = (torch.from_numpy(a.astype(dtype)).to(self.at) for a in (levels.alpha, levels.sigma))
        self.alpha, self.sigma = tables

    def load(self, weights):
        """Builds model and optimiser."""
        self.model = torch_unet(self.workload, weights, self.channels_last, self.exact).to(self.at)
        self.names, self.parameters = zip(*self.model.named_parameters(), strict=True)
        self.optimizer = self.torch.optim.AdamW(self.parameters, lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
        self.average = [p.detach().clone() for p in self.parameters]
        if self.compiled is not None:
            self.model = self.torch.compile(self.model, **self.compiled)

    def predict(self, x, t):
        """The model's answer, in x's type."""
        if self.at.type == "cuda":
            self.torch.compiler.cudagraph_mark_step_begin()
        with self.torch.autocast(self.at.type, self.torch.bfloat16, enabled=self.low):
            f = self.model(x, t)
        return (f if isinstance(f, self.torch.Tensor) else f.sample).to(x.dtype)

    def loss(self, t, eps):
        """Mean squared error of the predicted noise."""
        alpha, sigma = (a[t].reshape(-1, 1, 1, 1) for a in (self.alpha, self.sigma))
        return self.torch.nn.functional.mse_loss(self.predict(alpha * self.x0 + sigma * eps, t), eps)

    def loss_and_gradient(self):
        """The same as Pydiff's, with the same t and noise."""
        sample = np.arange(self.batch)
        t = random.integers(random.key(0, random.TIMESTEP, sample, 1), len(self.alpha))
        eps = random.normal(random.key(0, random.NOISE, sample, 1), self.workload.images(1).shape[1:])
        self.optimizer.zero_grad()
        eps = self.torch.from_numpy(eps).permute(0, 3, 1, 2).to(self.at, self.x0.dtype)
        loss = self.loss(self.torch.from_numpy(t).to(self.at), eps)
        loss.backward()
        return loss.item(), {n: p.grad.cpu().numpy().copy() for n, p in zip(self.names, self.parameters, strict=True)}

    def step(self):
        """One training step."""
        torch = self.torch
        t = torch.randint(len(self.alpha), (self.batch,), device=self.at)
        self.optimizer.zero_grad()
        self.loss(t, torch.randn_like(self.x0)).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - EMA)


def disagreement(ours, theirs):
    """Of two (loss, gradients): the norm of the difference of all gradients relative to their norm, or that of the
    losses if larger; NaN for a NaN or for different parameters."""
    (loss, gradients), (other_loss, others) = ours, theirs
    if gradients.keys() != others.keys():
        return float("nan")
    flat = [np.concatenate([g[name].ravel() for name in gradients]).astype(np.float64) for g in (gradients, others)]
    off = np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1])
    return float(np.max([off, abs(loss - other_loss) / abs(other_loss)]))


def measure(options, batch, fastest):
    """The section of the report about one workload."""
    factories = whole.contenders(options, Pydiff, Torch, batch)
    factories[f"{whole.PYDIFF} recomputing"] = partial(Pydiff, options.workload, batch, recompute=True)
    title = whole.Title("training step", whole.words(options.workload, batch), batch)
    return whole.compete(
        title,
        factories,
        options,
        ask="loss_and_gradient",
        difference=disagreement,
        fastest=fastest,
        profile=3,
    )


def main(arguments=None):
    """Returns the exit status."""
    return whole.main(measure, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())

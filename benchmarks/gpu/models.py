"""Whole models: a training step of DDPM's U-Net for CIFAR-10 and fifty steps of DDIM with it, pydiff against torch.

torch works as it is used for speed: channels_last, bfloat16 by autocast, fused AdamW; eager, and compiled with CUDA
graphs. pydiff works in float32 on CuPy. First, loss and gradient of both are compared in float32 at the same weights.
"""

import functools
import math
import statistics

import numpy as np
import torch

from benchmarks.cases import OTHER, OURS, PEER
from benchmarks.gpu.unet_shapes import CONFIG, TINY_CONFIG, macs
from benchmarks.harness import finite, in_a_line, ratio
from pydiff import optim
from pydiff import random as philox
from pydiff.diffusion import Process, ddim, initial_noise, path, schedule
from pydiff.models import UNet2D
from pydiff.tensor import no_grad

LR, EMA, CLIP, WEIGHT_DECAY = 1e-4, 0.999, 1.0, 0.01
LIMIT = 1e-3  # of the difference of two gradients, relative to their norm
SAMPLING_STEPS, SAMPLED = 50, 64
TURNS, SECONDS = 20, 12.0  # steps to aim at, and most time for a batch size
LEVELS = schedule("linear")


def tasks(device):
    """{name: function() -> rows} of the stage."""
    batches = (2,) if device.tiny else (16, 128)
    found = {"agreement": functools.partial(agreement, device)}
    for batch in batches:
        found[f"training step, batch {batch}"] = functools.partial(training, device, batch)
    found["sampling"] = functools.partial(sampling, device, 2 if device.tiny else SAMPLED)
    return found


def sampling_steps(device):
    """Steps of a drawing."""
    return 3 if device.tiny else SAMPLING_STEPS


def config(device):
    """The U-Net's options."""
    return TINY_CONFIG if device.tiny else CONFIG


def peer_class():
    """The class to build the peer of, and whose it is."""
    try:
        from diffusers import UNet2DModel
    except ModuleNotFoundError:
        from benchmarks.gpu.torch_unet import UNet2DModel

        return UNet2DModel, "torch"
    return UNet2DModel, "diffusers"


# ---- pydiff ----------------------------------------------------------------------------------------------------------


class Pydiff:
    """A model of ours with its optimiser, and made-up images, on the device."""

    def __init__(self, device, batch):
        if device.reason:
            raise RuntimeError(device.reason)
        self.xp, self.steps, options = device.xp, sampling_steps(device), config(device)
        self.model = UNet2D(**options)
        for p in self.model.parameters():
            p.data = self.xp.asarray(p.data)
        self.process, self.batch, self.done = Process(LEVELS), batch, 0
        self.shape = options["sample_size"], options["sample_size"], options["in_channels"]
        images = np.random.default_rng(0).uniform(-1, 1, (batch, *self.shape)).astype(np.float32)
        self.x0 = self.xp.asarray(images)
        self.optimizer = optim.AdamW(self.model, weight_decay=WEIGHT_DECAY)

    def loss(self, step):
        """The loss of a training step with its own t and noise, after its gradient was computed."""
        sample = np.arange(self.batch)
        t = philox.integers(philox.key(0, philox.TIMESTEP, sample, step), LEVELS.T)
        self.optimizer.zero_grad()
        loss = self.process.loss(self.model, self.x0, t, philox.key(0, philox.NOISE, sample, step))
        loss.backward()
        return loss, t

    def step(self):
        """One training step."""
        self.done += 1
        self.loss(self.done)
        self.optimizer.step(self.done, LR, EMA, CLIP)

    def draw(self):
        """A drawing with DDIM."""
        predict = no_grad()(lambda x, t: self.model(x, t).data)
        x = self.xp.asarray(initial_noise(self.shape, 0, np.arange(self.batch)))
        for state in ddim(predict, x, self.process, path(LEVELS, self.steps)):
            last = state.x
        return last


# ---- torch -----------------------------------------------------------------------------------------------------------


class Torch:
    """The same in torch. low: autocast to bfloat16. compiled: torch.compile with CUDA graphs."""

    def __init__(self, device, batch, weights=None, low=True, compiled=False):
        self.device, self.batch, self.low, options = device, batch, low, config(device)
        self.steps = sampling_steps(device)
        cls, self.whose = peer_class()
        self.model = cls(**options)
        if weights is not None:
            self.model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        self.model.to(device.at, memory_format=torch.channels_last)
        self.parameters = list(self.model.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
        shape = batch, options["in_channels"], options["sample_size"], options["sample_size"]
        x0 = torch.rand(shape, device=device.at) * 2 - 1
        self.x0 = x0.contiguous(memory_format=torch.channels_last)
        to = {"dtype": torch.float32, "device": device.at}
        self.alpha, self.sigma = (torch.tensor(a, **to) for a in (LEVELS.alpha, LEVELS.sigma))
        self.predict = self._predict
        if compiled:
            mode = {"mode": "reduce-overhead"} if device.cuda else {}
            self.predict = device.compile(self._predict, **mode)

    def _predict(self, x, t):
        with torch.autocast(self.device.at.type, torch.bfloat16, enabled=self.low):
            f = self.model(x, t)
        return (f if isinstance(f, torch.Tensor) else f.sample).float()

    def loss(self, t, eps):
        """Mean squared error of the predicted noise."""
        alpha, sigma = (a[t].reshape(-1, 1, 1, 1) for a in (self.alpha, self.sigma))
        return torch.nn.functional.mse_loss(self.predict(alpha * self.x0 + sigma * eps, t), eps)

    def step(self):
        """One training step."""
        if self.device.cuda:
            torch.compiler.cudagraph_mark_step_begin()
        t = torch.randint(LEVELS.T, (self.batch,), device=self.device.at)
        self.loss(t, torch.randn_like(self.x0)).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - EMA)
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def draw(self):
        """A drawing with DDIM, with diffusers' formula."""
        way = path(LEVELS, self.steps)
        x = torch.randn_like(self.x0)
        levels = list(zip(way.alpha.tolist(), way.sigma.tolist(), strict=True))
        for i, t in enumerate(way.t):
            if self.device.cuda:
                torch.compiler.cudagraph_mark_step_begin()
            (alpha, sigma), (alpha_next, sigma_next) = levels[i], levels[i + 1]
            f = self.predict(x, torch.full((self.batch,), int(t), device=self.device.at))
            x0 = ((x - sigma * f) / alpha).clamp(-1, 1)
            x = alpha_next * x0 + sigma_next * (x - alpha * x0) / sigma
        return x


def contenders(device, batch):
    """{name: (kind, function that makes it)}"""
    whose = peer_class()[1]
    return {
        "pydiff, float32": (OURS, functools.partial(Pydiff, device, batch)),
        f"{whose} eager, bfloat16": (PEER, functools.partial(Torch, device, batch)),
        f"{whose} compiled, bfloat16": (PEER, functools.partial(Torch, device, batch, compiled=True)),
        f"{whose} eager, float32": (OTHER, functools.partial(Torch, device, batch, low=False)),
    }


def warm(device, batch):
    """Compiles the peer, so that the compiler's cache has it when it is timed."""
    contender = Torch(device, batch, compiled=True)
    for _ in range(3):
        contender.draw() if batch == SAMPLED else contender.step()
    device.synchronize()


# ---- agreement -------------------------------------------------------------------------------------------------------


def agreement(device):
    """Loss and gradient of pydiff and torch at the same weights, images, t and noise, both in float32."""
    batch = 2 if device.tiny else 8
    ours = Pydiff(device, batch)
    theirs = Torch(device, batch, weights=ours.model.state_dict(), low=False)
    loss, t = ours.loss(1)
    eps = philox.normal(philox.key(0, philox.NOISE, np.arange(batch), 1), ours.shape)
    place = lambda a: torch.as_tensor(a).to(device.at).permute(0, 3, 1, 2)  # noqa: E731
    theirs.x0 = place(ours.x0.get() if device.cuda else ours.x0)
    their_loss = theirs.loss(torch.as_tensor(t).to(device.at), place(eps))
    their_loss.backward()
    expected = dict(theirs.model.named_parameters())
    off = total = 0.0
    for name, p in ours.model.named_parameters():
        grad = np.zeros(p.shape, np.float32) if p.grad is None else (p.grad.get() if device.cuda else p.grad)
        exact = expected[name].grad
        exact = np.zeros(1) if exact is None else exact.cpu().numpy().astype(np.float64)
        grad = grad.transpose(p.file_axes).astype(np.float64)
        off, total = off + np.square(grad - exact).sum(), total + np.square(exact).sum()
    error = float(max(math.sqrt(off / total), abs(loss.item() - their_loss.item()) / abs(their_loss.item())))
    row = {
        "op": "loss and gradient",
        "shape": f"batch {batch}",
        "dtype": "float32",
        "kernel": f"against {theirs.whose}",
    }
    return [row | {"error": finite(error), "limit": LIMIT, "ok": error <= LIMIT, "repeats": None}]


# ---- time ------------------------------------------------------------------------------------------------------------


def training(device, batch):
    """Rows of a training step."""
    flops = 3 * 2 * macs() * batch  # of the convolutions, forward and the two gradients
    return race(device, f"training step, batch {batch}", contenders(device, batch), "step", batch, flops)


def sampling(device, batch):
    """Rows of a drawing of fifty steps."""
    steps = sampling_steps(device)
    flops = 2 * macs() * batch * steps
    return race(device, f"{steps} steps of DDIM, batch {batch}", contenders(device, batch), "draw", batch, flops)


def race(device, title, entrants, method, batch, flops):
    """Makes everyone, then times them in turns; who fails is out."""
    device.release()
    rows, running = [], {}
    for name, (kind, build) in entrants.items():
        row = {"op": title, "shape": "DDPM's U-Net", "name": name, "kind": kind, "wrong": True, "quiet": True}
        rows.append(row)
        try:
            call = getattr(build(), method)
            for _ in range(3):
                call()
            device.synchronize()
            running[name] = call
            row["wrong"] = False
        except Exception as error:  # the others want their turn
            device.synchronize()
            row["failure"] = in_a_line(error)
    seconds = {name: [device.seconds(call, 1)] for name, call in running.items()}
    turn = sum(s[0] for s in seconds.values())
    for _ in range(1 if device.tiny else max(2, min(TURNS, int(SECONDS / max(turn, 1e-6))))):
        for name, call in running.items():
            seconds[name].append(device.seconds(call, 1))
    for row in rows:
        if row["name"] in running:
            median = statistics.median(seconds[row["name"]])
            row |= {"median_ms": median * 1e3, "min_ms": min(seconds[row["name"]]) * 1e3}
            row |= {"images_s": batch / median, "turns": len(seconds[row["name"]])}
            row |= {} if device.tiny else {"tflops": flops / median * 1e-12}
    value = ratio(rows)
    return [row | {"ratio": value} if row["kind"] == OURS else row for row in rows]

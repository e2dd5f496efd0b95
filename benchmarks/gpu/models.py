"""Whole models: a training step of DDPM's U-Net for CIFAR-10 and fifty steps of DDIM with it, pydiff against torch.

The contenders are those of benchmarks.training. torch works as it is used for speed: channels_last, bfloat16 by
autocast, fused AdamW; eager, and compiled with CUDA graphs. pydiff works in float32 on CuPy. First, loss and gradient
of both are compared in float32 at the same weights.
"""

import functools
import statistics

import torch

from benchmarks import training as steps
from benchmarks.cases import OTHER, OURS, PEER
from benchmarks.gpu.unet_shapes import CONFIG, TINY_CONFIG, macs
from benchmarks.harness import finite, in_a_line, ratio
from benchmarks.workloads import Workload, unet_class
from pydiff.diffusion import ddim, initial_noise, path
from pydiff.models import UNet2D
from pydiff.tensor import no_grad

LIMIT = 1e-3  # of the difference of two gradients, relative to their norm
SAMPLING_STEPS, SAMPLED = 50, 64
TURNS, SECONDS = 20, 12.0  # steps to aim at, and most time for a batch size


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


def workload(device):
    """DDPM's U-Net and its images."""
    config = TINY_CONFIG if device.tiny else CONFIG
    return Workload(SAMPLED, config["sample_size"], config["in_channels"], config)


class Pydiff(steps.Pydiff):
    """Trains and draws on the device."""

    def __init__(self, device, batch):
        if device.reason:
            raise RuntimeError(device.reason)
        super().__init__(workload(device), batch, device=device.name)
        self.xp, self.steps = device.xp, sampling_steps(device)

    def draw(self):
        """A drawing with DDIM."""
        predict = no_grad()(lambda x, t: self.model(x, t).data)
        x = self.xp.asarray(initial_noise(self.x0.shape[1:], 0, self.sample))
        for state in ddim(predict, x, self.process, path(self.process.schedule, self.steps)):
            last = state.x
        return last


class Torch(steps.Torch):
    """The same in torch. compiled: torch.compile with CUDA graphs."""

    def __init__(self, device, batch, weights=None, low=True, compiled=False):
        told = {"mode": "reduce-overhead"} if device.cuda else {"backend": "eager"}
        told = {**told, "dynamic": False} if compiled else None
        super().__init__(workload(device), batch, channels_last=True, compiled=told, low=low, at=device.at)
        self.steps = sampling_steps(device)
        self.load(weights or UNet2D(**self.workload.config).state_dict())

    @torch.no_grad()
    def draw(self):
        """A drawing with DDIM, with diffusers' formula."""
        way = path(steps.schedule("linear"), self.steps)
        x = torch.randn_like(self.x0)
        levels = list(zip(way.alpha.tolist(), way.sigma.tolist(), strict=True))
        for i, t in enumerate(way.t):
            (alpha, sigma), (alpha_next, sigma_next) = levels[i], levels[i + 1]
            f = self.predict(x, torch.full((self.batch,), int(t), device=self.at))
            x0 = ((x - sigma * f) / alpha).clamp(-1, 1)
            x = alpha_next * x0 + sigma_next * (x - alpha * x0) / sigma
        return x


def contenders(device, batch):
    """{name: (kind, function that makes it)}"""
    whose = unet_class()[1]
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


def agreement(device):
    """Loss and gradient of pydiff and torch at the same weights, images, t and noise, both in float32."""
    batch = 2 if device.tiny else 8
    ours = Pydiff(device, batch)
    theirs = Torch(device, batch, weights=ours.weights(), low=False)
    error = steps.disagreement(ours.loss_and_gradient(), theirs.loss_and_gradient())
    row = {"op": "loss and gradient", "shape": f"batch {batch}", "dtype": "float32"}
    row |= {"kernel": f"against {unet_class()[1]}", "error": finite(error), "limit": LIMIT}
    return [row | {"ok": error <= LIMIT, "repeats": None}]


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

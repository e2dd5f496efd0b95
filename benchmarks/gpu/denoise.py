"""denoise: a step of a sampler after the network was asked: DDIM, DDIM with guidance, DPM-Solver++(2M) with its
history, and DDPM with fresh noise. The peers are the formulas of diffusers' schedulers, eager and compiled.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.gpu.case import PEER, Case, Contender, ours
from benchmarks.gpu.device import TYPES
from benchmarks.gpu.noise import CHECKED, looking_normal
from pydiff import ops
from pydiff import random as philox
from pydiff.diffusion import Process, path, schedule
from pydiff.diffusion.samplers import ddim_step, ddpm_step

SEED, GUIDANCE = 11, 3.0
WAY = path(schedule("linear"), 50)
MIDDLE = 25  # the step in question: from WAY's entry 25 to entry 26
ALPHA, SIGMA = (a[MIDDLE - 1 : MIDDLE + 2].tolist() for a in (WAY.alpha, WAY.sigma))  # before, here, next

CHECKS = [(1, 3), (3, 7), (2, 1023), (4, 3072), (33, 192)]
TIMINGS = [(16, 3 * 32 * 32), (1024, 4 * 64 * 64)]
TINY = [(3, 7), (2, 96)]


class Sampler(NamedTuple):
    """step: the coefficients; formula(x, f, f_uncond, past) -> x_next, x0_hat and, if it draws noise, z."""

    step: ops.DenoiseStep
    formula: object
    guided: bool = False


def checks(device):
    """Cases of the correctness stage."""
    for n, size in TINY if device.tiny else CHECKS:
        for dtype in TYPES:
            for name, sampler in samplers().items():
                yield forward(device, name, sampler, n, size, dtype, peers=False)
            for name in ("DDIM", "DDIM guided"):
                yield backward(device, name, samplers()[name], n, size, dtype)


def timings(device):
    """Cases of the timing stage."""
    for n, size in TINY[1:] if device.tiny else reversed(TIMINGS):
        for dtype in TYPES:
            for name, sampler in samplers().items():
                yield forward(device, name, sampler, n, size, dtype, peers=True)


# ---- the steps, and how diffusers computes them ----------------------------------------------------------------------


def samplers():
    """{name: Sampler}"""
    (_, here, after), (_, sigma, sigma_after) = ALPHA, SIGMA
    u, v = Process(schedule("linear")).x0_coefficients(here, sigma)
    ends = here, sigma, after, sigma_after
    a, b, _ = ddim_step(*ends)
    clip = {"low": -1.0, "high": 1.0}
    found = {"DDIM": Sampler(ops.DenoiseStep(u, v, a, b, **clip), ddim)}
    found["DDIM guided"] = Sampler(ops.DenoiseStep(u, v, a, b, **clip, guidance=GUIDANCE), guided_ddim, guided=True)
    r, decay = solver_terms()
    b, c = -after * decay * (1 + 0.5 / r), after * decay * 0.5 / r
    found["DPM-Solver++ 2M"] = Sampler(ops.DenoiseStep(u, v, sigma_after / sigma, b, c=(c,)), dpm_solver)
    a, b, std = ddpm_step(*ends)
    found["DDPM"] = Sampler(ops.DenoiseStep(u, v, a, b, s=std, **clip), ddpm)
    return found


def solver_terms():
    """r and exp(-h) - 1 of DPM-Solver++, from differences h of lambda = log(alpha / sigma)."""
    before, here, after = (math.log(a / s) for a, s in zip(ALPHA, SIGMA, strict=True))
    h = after - here
    return (here - before) / h, math.expm1(-h)


def predicted_x0(x, f):
    """pred_original_sample, before clipping."""
    return (x - SIGMA[1] * f) / ALPHA[1]


def ddim(x, f, _f_uncond=None, _past=None):
    """DDIMScheduler.step, eta = 0, use_clipped_model_output."""
    x0 = predicted_x0(x, f).clamp(-1, 1)
    eps = (x - ALPHA[1] * x0) / SIGMA[1]
    return ALPHA[2] * x0 + SIGMA[2] * eps, x0


def guided_ddim(x, f, f_uncond, _past=None):
    """The same behind a pipeline's guidance."""
    return ddim(x, f_uncond + GUIDANCE * (f - f_uncond))


def dpm_solver(x, f, _f_uncond, past):
    """DPMSolverMultistepScheduler's second-order update, dpmsolver++, midpoint."""
    r, decay = solver_terms()
    x0 = predicted_x0(x, f)
    d1 = (1 / r) * (x0 - past)
    return (SIGMA[2] / SIGMA[1]) * x - (ALPHA[2] * decay) * x0 - 0.5 * (ALPHA[2] * decay) * d1, x0


def ddpm(x, f, _f_uncond=None, _past=None):
    """DDPMScheduler.step, variance_type fixed_small."""
    ratio = (ALPHA[1] / ALPHA[2]) ** 2  # current_alpha_t
    x0 = predicted_x0(x, f).clamp(-1, 1)
    mean = ALPHA[2] * (1 - ratio) / SIGMA[1] ** 2 * x0 + ratio**0.5 * SIGMA[2] ** 2 / SIGMA[1] ** 2 * x
    variance = SIGMA[2] ** 2 / SIGMA[1] ** 2 * (1 - ratio)
    z = torch.randn_like(x)
    return mean + variance**0.5 * z, x0, z


# ---- cases -----------------------------------------------------------------------------------------------------------


def inputs_of(random, sampler, n, size, dtype):
    """x, f and the rest. x is such that x0-hat keeps away from the ends of the clip: there, rounding decides whether a
    gradient is let through."""
    step = sampler.step
    i = {"f": random.normal(n, size, dtype=TYPES[dtype])}
    if sampler.guided:
        i["f_uncond"] = random.normal(n, size, dtype=TYPES[dtype])
    x0 = 0.8 * random.normal(n, size)
    x0 = torch.where((x0.abs() - 1).abs() < 0.02, 0.5 * x0, x0)
    i["x"] = ((x0.double() - step.v * guided(i, step)) / step.u).float()
    row = [step.u, step.v, step.low, step.high, step.a, step.b, step.d, step.s, step.guidance, *step.c]
    i["table"] = torch.tensor([[math.nan] * len(row), row], dtype=torch.float32, device=random.device.at)
    i["row"] = torch.ones(1, dtype=torch.int32, device=random.device.at)  # the second row: the first is not to be read
    i |= {"past": random.normal(n, size)} if step.c else {}
    return i | {"sample": random.integers(2**31 - 1, n), "step": random.integers(99, n)}


def guided(i, step):
    """f, or with guidance the mixture, in float64."""
    f = i["f"].double()
    return i["f_uncond"].double() + step.guidance * (f - i["f_uncond"].double()) if "f_uncond" in i else f


def update(i, step, z=None):
    """x_next and x0_hat in float64, with the coefficients as the table holds them."""
    step = step._replace(**{k: float(np.float32(getattr(step, k))) for k in ("u", "v", "a", "b", "s")})
    x = i["x"].double()
    x0 = (step.u * x + step.v * guided(i, step)).clamp(step.low, step.high)
    x_next = step.a * x + step.b * x0
    for c in step.c:
        x_next = x_next + float(np.float32(c)) * i["past"].double()
    return (x_next if z is None else x_next + step.s * z), x0


def forward(device, name, sampler, n, size, dtype, peers):
    """One step."""
    step = sampler.step

    def call(kernels, a, o):
        noise = (SEED, philox.SAMPLE, a["sample"], a["step"]) if step.s else None
        past = [a["past"]] if step.c else []
        arguments = a["x"], a["f"], a.get("f_uncond"), a["table"], a["row"], past, noise
        kernels.denoise_forward(*arguments, o["x_next"], o["x0_hat"])

    def truth(i):
        if not step.s:
            return dict(zip(("x_next", "x0_hat"), update(i, step), strict=True))
        few = {key: t[:CHECKED] if len(t) == n and key not in ("table", "row") else t for key, t in i.items()}
        sample, counter = (few[key].cpu().numpy().astype(np.uint32) for key in ("sample", "step"))
        z = philox.normal(philox.key(SEED, philox.SAMPLE, sample, counter), (size,), np.float64)
        return dict(zip(("x_next", "x0_hat"), update(few, step, torch.from_numpy(z).to(device.at)), strict=True))

    entrants = [ours(device, "pydiff", lambda _: pair(device, n, size), call)]
    entrants += formulas(device, sampler, dtype) if peers else []
    # x, f, f_uncond and the history read, x_next and x0_hat written
    item = TYPES[dtype].itemsize
    nbytes = n * size * (12 + 4 * len(step.c) + item * (2 if sampler.guided else 1))
    make = lambda random: inputs_of(random, sampler, n, size, dtype)  # noqa: E731
    return Case(f"denoise {name}", f"{n} x {size}", dtype, make, truth, entrants, nbytes=nbytes, limit=2e-5)


def pair(device, n, size):
    """The outputs of a step."""
    return {"x_next": device.nan(n, size), "x0_hat": device.nan(n, size)}


def formulas(device, sampler, dtype):
    """diffusers' formula, eager and compiled. Those that draw noise are judged by the noise they drew."""

    def calling(function):
        def prepare(i):
            arguments = i["x"], i["f"], i.get("f_uncond"), i.get("past")
            return torch.no_grad()(lambda: function(*arguments))

        return prepare

    def own(i, got):
        z = got["z"].double()
        return dict(zip(("x_next", "x0_hat", "z"), (*update(i, sampler.step, z), looking_normal(z)), strict=True))

    names = ("x_next", "x0_hat", "z") if sampler.step.s else ("x_next", "x0_hat")
    exact = own if sampler.step.s else None
    functions = {"diffusers' formula, eager": sampler.formula, "torch.compile": device.compile(sampler.formula)}
    limit = 0.1 if dtype == "bfloat16" else None  # multiples of f, large ones with guidance, are bfloat16 there
    for name, function in functions.items():
        results = lambda got: dict(zip(names, got, strict=True))  # noqa: E731
        yield Contender(name, PEER, calling(function), results, exact, limit)


def backward(device, name, sampler, n, size, dtype):
    """The gradients of a step."""
    step = sampler.step

    def make(random):
        gradients = {"dx_next": random.normal(n, size), "dx0_hat": random.normal(n, size)}
        return inputs_of(random, sampler, n, size, dtype) | gradients

    def call(kernels, a, o):
        kernels.denoise_backward(
            a["dx_next"], a["dx0_hat"], a["x"], a["f"], a.get("f_uncond"), a["table"], a["row"], o["dx"], o["df"]
        )

    def truth(i):
        wide = i | {key: i[key].double().requires_grad_() for key in ("x", "f")}
        gradients = torch.autograd.grad(
            update(wide, step), (wide["x"], wide["f"]), (i["dx_next"].double(), i["dx0_hat"].double())
        )
        return dict(zip(("dx", "df"), gradients, strict=True))

    outputs = lambda _: {"dx": device.nan(n, size), "df": device.nan(n, size, dtype=TYPES[dtype])}  # noqa: E731
    entrant = ours(device, "pydiff", outputs, call)
    return Case(f"denoise {name} backward", f"{n} x {size}", dtype, make, truth, [entrant])

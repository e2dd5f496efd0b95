"""denoise: a step of a sampler after the network was asked: DDIM, DDIM with guidance, DPM-Solver++(2M) with its
history, and DDPM with fresh noise; and the gradients of DDIM's. On the CPU at the sizes of workloads.py, 16 images.

The peers are the formulas of diffusers' schedulers.
"""

import math
import sys
from typing import Any, NamedTuple

import numpy as np

from benchmarks import harness
from benchmarks.bench_noise import looking_normal
from benchmarks.cases import PEER, Case, Contender, Problem, by_reference, images, nbytes_of, of_few, truth_of
from benchmarks.contenders import peer
from benchmarks.workloads import WORKLOADS
from pydiff import ops, random
from pydiff.arrays import array_module, to_host
from pydiff.diffusion import Process, path, schedule
from pydiff.diffusion.samplers import ddim_step, ddpm_step
from pydiff.reference.denoise import denoise as reference
from pydiff.tensor import Tensor, no_grad

TINY = [(2, 4, 4, 3), (3, 7), (2, 96)]
SHAPES = [(16, w.size, w.size, w.channels) for w in WORKLOADS.values()]
CHECKS = [(1, 3), (3, 7), (2, 1023), (4, 3072), (33, 192)]
GPU = [(shape, dtype) for shape in ((1024, 64, 64, 4), (16, 32, 32, 3)) for dtype in ("float32", "bfloat16")]
LIMIT, GUIDANCE = 1e-5, 3.0  # guidance multiplies rounding errors
WAY = path(schedule("linear"), 50)
MIDDLE = 25  # the step in question: from WAY's entry 25 to entry 26
ALPHA, SIGMA = (a[MIDDLE - 1 : MIDDLE + 2].tolist() for a in (WAY.alpha, WAY.sigma))  # before, here, next


class Sampler(NamedTuple):
    """step: the coefficients; formula(x, f, and f_uncond or the history) -> x_next, x0_hat and the noise it drew."""

    step: ops.DenoiseStep
    formula: Any
    backward: bool = False


# ---- the steps, and how diffusers computes them ----------------------------------------------------------------------


def samplers():
    """{name: Sampler}"""
    (_, here, after), (_, sigma, sigma_after) = ALPHA, SIGMA
    u, v = Process(schedule("linear")).x0_coefficients(here, sigma)
    ends = here, sigma, after, sigma_after
    a, b, _ = ddim_step(*ends)
    clip = {"low": -1.0, "high": 1.0}
    found = {"ddim": Sampler(ops.DenoiseStep(u, v, a, b, **clip), ddim, backward=True)}
    found["ddim guided"] = Sampler(ops.DenoiseStep(u, v, a, b, **clip, guidance=GUIDANCE), guided_ddim, backward=True)
    r, decay = solver_terms()
    b, c = -after * decay * (1 + 0.5 / r), after * decay * 0.5 / r
    found["dpm-solver++ 2m"] = Sampler(ops.DenoiseStep(u, v, sigma_after / sigma, b, c=(c,)), dpm_solver)
    a, b, std = ddpm_step(*ends)
    found["ddpm"] = Sampler(ops.DenoiseStep(u, v, a, b, s=std, **clip), ddpm)
    return found


def solver_terms():
    """r and exp(-h) - 1 of DPM-Solver++, from differences h of lambda = log(alpha / sigma)."""
    before, here, after = (math.log(a / s) for a, s in zip(ALPHA, SIGMA, strict=True))
    h = after - here
    return (here - before) / h, math.expm1(-h)


def predicted_x0(x, f):
    """pred_original_sample, before clipping."""
    return (x - SIGMA[1] * f) / ALPHA[1]


def ddim(x, f):
    """DDIMScheduler.step, eta = 0, use_clipped_model_output."""
    x0 = predicted_x0(x, f).clamp(-1, 1)
    eps = (x - ALPHA[1] * x0) / SIGMA[1]
    return ALPHA[2] * x0 + SIGMA[2] * eps, x0


def guided_ddim(x, f, f_uncond):
    """The same behind a pipeline's guidance."""
    return ddim(x, f_uncond + GUIDANCE * (f - f_uncond))


def dpm_solver(x, f, past):
    """DPMSolverMultistepScheduler's second-order update, dpmsolver++, midpoint."""
    r, decay = solver_terms()
    x0 = predicted_x0(x, f)
    d1 = (1 / r) * (x0 - past)
    return (SIGMA[2] / SIGMA[1]) * x - (ALPHA[2] * decay) * x0 - 0.5 * (ALPHA[2] * decay) * d1, x0


def ddpm(x, f):
    """DDPMScheduler.step, variance_type fixed_small."""
    ratio = (ALPHA[1] / ALPHA[2]) ** 2  # current_alpha_t
    x0 = predicted_x0(x, f).clamp(-1, 1)
    mean = ALPHA[2] * (1 - ratio) / SIGMA[1] ** 2 * x0 + ratio**0.5 * SIGMA[2] ** 2 / SIGMA[1] ** 2 * x
    variance = SIGMA[2] ** 2 / SIGMA[1] ** 2 * (1 - ratio)
    z = peer("torch").randn_like(x)
    return mean + variance**0.5 * z, x0, z


# ---- cases -----------------------------------------------------------------------------------------------------------


class Given(NamedTuple):
    """The inputs of a step: arrays of the device; f_uncond and key may be None. dx_next, dx0_hat: gradients."""

    x: Any
    f: Any
    f_uncond: Any
    history: tuple
    key: Any
    dx_next: Any
    dx0_hat: Any


def cases_of(device, shape, dtype):
    """A step of every sampler at one shape, and gradients of steps."""
    wide, low, words = nbytes_of(shape, "float32"), nbytes_of(shape, dtype), images(shape)
    for name, sampler in samplers().items():
        step, guided = sampler.step, sampler.step.guidance != 1

        def make(random_, step=step):
            return inputs_of(device, random_, step, shape, dtype)

        def exactly(inputs, step=step):
            return truth(device, inputs, step)

        problem, limit = Problem(f"denoise {name}", words, dtype, make, exactly), device.limit(LIMIT, "float32")
        entrants = [*device.ours(ours(step)), *by_torch(device, sampler)]
        if name == "ddim" and wide < 1e4 and not device.gpu:
            entrants.insert(0, by_reference(lambda i, step=step: reference(i.x, i.f, *coefficients(step))))
        # x, f, f_uncond and the history read, x_next and x0_hat written; limit: x is in float32, whatever f is in
        nbytes = (3 + len(step.c)) * wide + (1 + guided) * low
        yield Case(problem.op, problem, slice(2), entrants, limit, nbytes=nbytes)
        if sampler.backward:
            entrants = [*device.ours(ours(step, True)), *by_torch(device, sampler, True)]
            # x, f, f_uncond and two gradients read, dx and df written
            nbytes, limit = 4 * wide + (2 + guided) * low, device.limit(LIMIT, dtype)
            yield Case(f"{problem.op} backward", problem, slice(2, 4), entrants, limit, nbytes=nbytes)


def inputs_of(device, random_, step, shape, dtype):
    """x is such that x0-hat keeps away from the ends of the clip: there, rounding decides whether a gradient is let
    through."""
    f, f_uncond = (random_.normal(*shape, dtype=dtype) for _ in range(2))
    x0, past, dx_next, dx0_hat = (random_.normal(*shape, scale=s) for s in (0.8, 1, 1, 1))
    x0 = array_module(x0).where(abs(abs(x0) - 1) < 0.02, 0.5 * x0, x0)
    guided, uncond = device.wide(f), device.wide(f_uncond)
    x = ((x0 - step.v * (uncond + step.guidance * (guided - uncond))) / step.u).astype(np.float32)
    key = random_.key(len(x), random.SAMPLE) if step.s else None
    return Given(x, f, f_uncond if step.guidance != 1 else None, (past,) * len(step.c), key, dx_next, dx0_hat)


def coefficients(step):
    """In the reference's order, as the kernels have them: float32."""
    numbers = (step.u, step.v, step.low, step.high, step.a, step.b, step.d, step.s)
    return tuple(float(np.float32(number)) for number in numbers)


def truth(device, inputs, step):
    """x_next, x0_hat, dx, df in float64. Of a step that draws noise, which takes a while, x_next and x0_hat for as many
    samples as draw a million numbers."""
    u, v, low, high, a, b, d, s = coefficients(step)
    c = tuple(float(np.float32(c)) for c in step.c)
    without = ops.DenoiseStep(u, v, a, b, d, 0.0, c, low, high, step.guidance)
    wide = [device.wide(a) for a in inputs.history]
    f_uncond = None if inputs.f_uncond is None else device.wide(inputs.f_uncond)

    def rest(x):
        """f_uncond and the history, of as many samples, where x is."""
        beside = lambda a: (a if array_module(a) is array_module(x) else to_host(a))[: len(x)]  # noqa: E731
        return {"history": [*map(beside, wide)], "f_uncond": None if f_uncond is None else beside(f_uncond)}

    # The gradients by g and h are the step's two results.
    def op(x, f, g, h):
        x_next, x0_hat = ops.denoise(x, f, without, **rest(x.data))
        return x_next * g + x0_hat * h

    def slow(x, f, g, h):
        x_next, x0_hat = reference(x, f, *coefficients(without), c, guidance=step.guidance, **rest(x))
        return x_next * g + x0_hat * h

    given = inputs.x, inputs.f, inputs.dx_next, inputs.dx0_hat, inputs.x * 0 + 1
    _, dx, df, x_next, x0_hat = truth_of(device, op, slow, given)
    if step.s:
        few, key = of_few(inputs.key, x_next.shape)
        z = device.xp.asarray(random.normal(key, x_next.shape[1:], np.float64))
        x_next, x0_hat = x_next[few] + s * z, x0_hat[few]
    return [x_next, x0_hat, dx, df]


def ours(step, backward=False):
    """build(inputs) for Device.ours: a step, or its gradients."""

    def build(i):
        x, f = (Tensor(a, requires_grad=backward) for a in (i.x, i.f))
        take = lambda: ops.denoise(x, f, step, i.history, i.key, i.f_uncond)  # noqa: E731
        if not backward:
            return no_grad()(take)
        function: Any = take()[0].maker
        return lambda: function.backward(i.dx_next, i.dx0_hat)

    return build


def by_torch(device, sampler, backward=False):
    """diffusers' formula, eager and on a GPU compiled. Those that draw noise are judged by the noise they drew."""
    torch: Any = peer("torch")
    for name, formula in device.torch_ways(sampler.formula):

        def make(i, formula=formula):
            x, f, *rest = map(device.tensor, (i.x, i.f, *([] if i.f_uncond is None else [i.f_uncond]), *i.history))
            # in float32, as ours: multiples of f would be far off in bfloat16
            take = lambda x, f: formula(x, f.float(), *(a.float() for a in rest))  # noqa: E731
            if not backward:
                return torch.no_grad()(lambda: take(x, f))
            leaves = [a.detach().requires_grad_() for a in (x, f)]
            results, gradients = take(*leaves), [device.tensor(a) for a in (i.dx_next, i.dx0_hat)]
            return lambda: torch.autograd.grad(results, leaves, gradients, retain_graph=True)

        def own(i, got):
            x_next, x0_hat, *_ = truth(device, i, sampler.step._replace(s=0.0))
            return [x_next + float(np.float32(sampler.step.s)) * got[2], x0_hat, looking_normal(got[2])]

        yield Contender(name, PEER, make, exact=own if sampler.step.s else None)


if __name__ == "__main__":
    sys.exit(harness.main("denoise"))

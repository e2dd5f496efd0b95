"""denoise: one step of DDIM and one of DDPM after the network was asked, at the image sizes of workloads.py, 16 at a
time, and the gradient of the DDIM step."""

import sys

import numpy as np

from benchmarks import harness
from benchmarks.contenders import OTHER, PEER, Contender, arrays, house, peer, variants
from benchmarks.workloads import WORKLOADS
from pydiff import ops, random
from pydiff.diffusion import Process, path, schedule
from pydiff.diffusion.samplers import ddim_step, ddpm_step
from pydiff.ops.denoise import Denoise
from pydiff.reference.denoise import denoise as reference
from pydiff.tensor import Tensor, no_grad

TINY = (2, 4, 4, 3)
LIMIT = 5e-6
WAY = path(schedule("linear"), 50)
MIDDLE = 25  # the step that is timed: from WAY's entry 25 to entry 26


def cases(settings):
    """Three cases a shape."""
    rng = np.random.default_rng(0)
    images = {} if settings.quick else {name: (16, w.size, w.size, w.channels) for name, w in WORKLOADS.items()}
    for name, shape in ({"tiny": TINY} | images).items():
        yield from cases_of(name, shape, rng, settings)


def step_of(sampler):
    """The coefficients of the middle step."""
    (alpha_t, alpha_s), (sigma_t, sigma_s) = (a[MIDDLE : MIDDLE + 2].tolist() for a in (WAY.alpha, WAY.sigma))
    u, v = Process(schedule("linear")).x0_coefficients(alpha_t, sigma_t)
    a, b, std = {"ddim": ddim_step, "ddpm": ddpm_step}[sampler](alpha_t, sigma_t, alpha_s, sigma_s)
    return ops.DenoiseStep(u, v, a, b, s=std, low=-1.0, high=1.0)


def cases_of(name, shape, rng, settings):
    """A DDIM step, a DDPM step, and the gradient of a DDIM step at one shape."""

    def make(rng):
        x, f = rng.standard_normal((2, *shape), np.float32)
        return x, f, random.key(7, random.SAMPLE, range(shape[0]), int(rng.integers(2**31)))

    nbytes = int(4 * np.prod(shape))
    sets = variants(make, 2 * nbytes, rng)
    x, f, key = sets[0]
    words = f"{name}: {shape[0]} x {'x'.join(map(str, shape[1:]))}"
    for sampler in ("ddim", "ddpm"):
        step = step_of(sampler)
        z = random.normal(key, shape[1:], np.float64) if step.s else None
        exact = list(reference(x, f, *coefficients(step), z=z))
        contenders = [*house(ours(step), settings.all_levels), *torch_steps(sampler, step)]
        if name == "tiny" and sampler == "ddim":
            slow = lambda i, step=step: lambda: reference(*i[:2], *coefficients(step))  # noqa: E731
            contenders.insert(0, Contender("reference (float64)", OTHER, slow, arrays))
        # x and f read, x_next and x0_hat written
        yield harness.Case(f"denoise {sampler}", words, sets, contenders, exact, LIMIT, nbytes=4 * nbytes)

    exact = truth_backward(x, f, step_of("ddim"), rng)
    contenders = [*house(backward, settings.all_levels), *torch_backward()]
    # x, f and two gradients read (x and f stand in for these), dx and df written
    yield harness.Case("denoise backward", words, sets, contenders, exact, LIMIT, nbytes=6 * nbytes)


def coefficients(step):
    """In the reference's order."""
    return step.u, step.v, step.low, step.high, step.a, step.b, step.d, step.s


def ours(step):
    """build(inputs) for contenders.house."""

    def build(inputs):
        x, f, key = inputs
        x, f, key = Tensor(x), Tensor(f), key if step.s else None
        return no_grad()(lambda: ops.denoise(x, f, step, noise=key))

    return build


def backward(inputs):
    """build(inputs) for contenders.house: dx_next is f, dx0_hat is x."""
    x, f, _ = inputs
    function = Denoise()
    function.needs = [True, True, False]
    function.forward(x, f, None, step=step_of("ddim"), history=(), noise=None)
    return lambda: function.backward(f, x)


def truth_backward(x, f, step, rng):
    """dx and df in float64 for dx_next = f and dx0_hat = x, compared with the slope of pydiff/reference."""
    x, f = x.astype(np.float64), f.astype(np.float64)
    wide = [Tensor(a, requires_grad=True) for a in (x, f)]
    x_next, x0_hat = ops.denoise(*wide, step)
    (x_next * f + x0_hat * x).sum().backward()
    dx, df = (t.grad for t in wide)
    p, q = rng.standard_normal((2, *x.shape))

    def value(h):
        after, clean = reference(x + h * p, f + h * q, *coefficients(step))
        return np.sum(after * f) + np.sum(clean * x)

    slope, expected = (value(1e-6) - value(-1e-6)) / 2e-6, np.sum(dx * p) + np.sum(df * q)
    # A pixel may cross the clip within the step of the difference, hence 1e-3.
    if not abs(slope - expected) <= 1e-3 * (np.abs(dx * p).sum() + np.abs(df * q).sum()):
        raise AssertionError("the gradient of denoise in float64 does not agree with the reference's slope")
    return [dx, df]


# ---- torch, with the formulas of diffusers' DDIMScheduler and DDPMScheduler ----


def torch_x0(x, f):
    """The clipped x0-hat: x = alpha x0 + sigma f solved for x0."""
    alpha_t, sigma_t = float(WAY.alpha[MIDDLE]), float(WAY.sigma[MIDDLE])
    return ((x - sigma_t * f) / alpha_t).clamp(-1, 1)


def torch_ddim(x, f):
    """x_next and x0_hat of a DDIM step (eta = 0, eps-hat computed again from the clipped x0-hat)."""
    alpha_t, sigma_t = float(WAY.alpha[MIDDLE]), float(WAY.sigma[MIDDLE])
    x0 = torch_x0(x, f)
    eps = (x - alpha_t * x0) / sigma_t
    return float(WAY.alpha[MIDDLE + 1]) * x0 + float(WAY.sigma[MIDDLE + 1]) * eps, x0


def torch_steps(sampler, step):
    """One step by torch eager."""
    torch = peer("torch")
    if torch is None:
        return

    def make(inputs):
        x, f = (torch.from_numpy(a) for a in inputs[:2])

        @torch.no_grad()
        def call():
            if sampler == "ddim":
                return torch_ddim(x, f)
            x0, z = torch_x0(x, f), torch.randn_like(x)
            return step.b * x0 + step.a * x + step.s * z, x0, z

        return call

    def outputs(results):
        return [r.numpy() for r in results]

    def own_truth(inputs, got):
        return [*reference(*inputs[:2], *coefficients(step), z=got[2]), got[2].astype(np.float64)]

    yield Contender("torch", PEER, make, outputs, own_truth if sampler == "ddpm" else None)


def torch_backward():
    """The gradient of the DDIM step by torch's autograd."""
    torch = peer("torch")
    if torch is None:
        return

    def make(inputs):
        x, f = (torch.from_numpy(a).requires_grad_() for a in inputs[:2])
        results, gradients = torch_ddim(x, f), (f.detach(), x.detach())
        return lambda: torch.autograd.grad(results, (x, f), gradients, retain_graph=True)

    yield Contender("torch", PEER, make, lambda results: [r.numpy() for r in results])


if __name__ == "__main__":
    sys.exit(harness.main(cases, __doc__))

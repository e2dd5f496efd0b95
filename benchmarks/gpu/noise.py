"""noise: x_t = alpha x0 + sigma eps with eps made on the spot, and the squared error against an eps made again.

The peer keeps its noise: torch.randn_like and the formulas of diffusers' add_noise, then its mean squared error and the
gradient of that. Their answers are judged by the noise they drew themselves, which has to look normal.
"""

import math

import numpy as np
import torch

from benchmarks.gpu.case import PEER, Case, Contender, ours
from benchmarks.gpu.device import TYPES
from pydiff import random as philox
from pydiff.diffusion import schedule

SEED, CHECKED = 7, 4  # samples whose noise is made again in NumPy, which takes a while
LEVELS = schedule("linear")
CUMPROD = (LEVELS.alpha**2).astype(np.float32)  # diffusers' alphas_cumprod

CHECKS = [(1, 3), (3, 7), (5, 64), (2, 1023), (4, 3072), (130, 192)]
TIMINGS = [(128, 3 * 32 * 32), (2048, 3 * 64 * 64)]
TINY = [(3, 7), (2, 96)]


def checks(device):
    """Cases of the correctness stage."""
    for n, size in TINY if device.tiny else CHECKS:
        for dtype in TYPES:
            yield normal(device, n, size, dtype)
            yield forward(device, n, size, dtype, peers=False)
            yield backward(device, n, size, dtype)
            yield loss(device, n, size, dtype, peers=False)


def timings(device):
    """Cases of the timing stage."""
    for n, size in TINY[1:] if device.tiny else reversed(TIMINGS):
        for dtype in TYPES:
            yield forward(device, n, size, dtype, peers=True)
            yield loss(device, n, size, dtype, peers=True)


def words(n, size):
    """The shape in words."""
    return f"{n} x {size}"


def draw(random, n):
    """What every sample has of its own: step numbers t, their alpha and sigma, and the generator's counters."""
    t = random.integers(LEVELS.T, n)
    alpha, sigma = (
        torch.as_tensor(a.astype(np.float32), device=t.device)[t.long()] for a in (LEVELS.alpha, LEVELS.sigma)
    )
    return {
        "t": t,
        "alpha": alpha,
        "sigma": sigma,
        "sample": random.integers(2**31 - 1, n),
        "step": random.integers(9, n),
    }


def eps_of(inputs, size):
    """The noise of the first samples in float64, by pydiff.random."""
    sample, step = (inputs[name][:CHECKED].cpu().numpy().astype(np.uint32) for name in ("sample", "step"))
    eps = philox.normal(philox.key(SEED, philox.NOISE, sample, step), (size,), np.float64)
    return torch.from_numpy(eps).to(inputs["sample"].device)


def key(a):
    """The key as the kernels take it."""
    return SEED, philox.NOISE, a["sample"], a["step"]


def column(values):
    """(n,) -> (n, 1) float64"""
    return values.double()[:, None]


def normal(device, n, size, dtype):
    """eps alone."""
    entrant = ours(
        device,
        "pydiff",
        lambda _: {"eps": device.nan(n, size, dtype=TYPES[dtype])},
        lambda kernels, a, o: kernels.normal(*key(a), o["eps"]),
    )
    return Case("normal", words(n, size), dtype, lambda r: draw(r, n), lambda i: {"eps": eps_of(i, size)}, [entrant])


# ---- x_t -------------------------------------------------------------------------------------------------------------


def forward(device, n, size, dtype, peers):
    """x_t; with peers, timed, eps is not kept, because noise_loss draws it again."""

    def make(random):
        return {"x0": random.normal(n, size, dtype=TYPES[dtype])} | draw(random, n)

    def outputs(_):
        kept = {} if peers else {"eps": device.nan(n, size, dtype=TYPES[dtype])}
        return {"x_t": device.nan(n, size, dtype=TYPES[dtype])} | kept

    def call(kernels, a, o):
        kernels.noise_forward(a["x0"], a["alpha"], a["sigma"], *key(a), o["x_t"], o.get("eps"))

    def truth(i):
        eps = eps_of(i, size)
        x0, alpha, sigma = (i[name][:CHECKED] for name in ("x0", "alpha", "sigma"))
        x_t = column(alpha) * x0.double() + column(sigma) * eps
        return {"x_t": x_t} if peers else {"x_t": x_t, "eps": eps}

    entrants = [ours(device, "pydiff", outputs, call), *(add_noise_peers(device, dtype) if peers else ())]
    nbytes = 2 * n * size * TYPES[dtype].itemsize  # x0 read, x_t written
    return Case("noise forward", words(n, size), dtype, make, truth, entrants, nbytes=nbytes)


def add_noise(x0, t, alphas_cumprod):
    """torch.randn_like and diffusers' DDPMScheduler.add_noise: x_t and eps."""
    eps = torch.randn_like(x0)
    sqrt_alpha_prod = alphas_cumprod[t] ** 0.5
    sqrt_one_minus_alpha_prod = (1 - alphas_cumprod[t]) ** 0.5
    return sqrt_alpha_prod[:, None] * x0 + sqrt_one_minus_alpha_prod[:, None] * eps, eps


def add_noise_peers(device, dtype):
    """That formula, eager and compiled."""
    table = torch.from_numpy(CUMPROD).to(device.at, TYPES[dtype])

    def calling(function):
        def prepare(i):
            x0, t = i["x0"], i["t"].long()
            return torch.no_grad()(lambda: function(x0, t, table))

        return prepare

    def exact(i, got):
        eps = got["eps"].double()
        level = table[i["t"].long()]  # in its own precision, as diffusers has it
        x_t = column(level**0.5) * i["x0"].double() + column((1 - level) ** 0.5) * eps
        return {"x_t": x_t, "eps": looking_normal(eps)}

    for name, function in (("diffusers' formula, eager", add_noise), ("torch.compile", device.compile(add_noise))):
        yield Contender(name, PEER, calling(function), lambda pair: dict(zip(("x_t", "eps"), pair, strict=True)), exact)


def looking_normal(eps):
    """eps itself if its mean and variance are within six standard errors of 0 and 1, else NaN."""
    bound = 6 / math.sqrt(eps.numel())
    spread = eps.square().mean() - 1
    rounded = 0.01  # bfloat16's
    fine = abs(eps.mean()) <= bound and abs(spread) <= math.sqrt(2) * bound + rounded
    return eps if fine else torch.full_like(eps, math.nan)


def backward(device, n, size, dtype):
    """dx0 = alpha dx_t."""

    def make(random):
        return {"dx_t": random.normal(n, size, dtype=TYPES[dtype])} | draw(random, n)

    entrant = ours(
        device,
        "pydiff",
        lambda _: {"dx0": device.nan(n, size, dtype=TYPES[dtype])},
        lambda kernels, a, o: kernels.noise_backward(a["dx_t"], a["alpha"], o["dx0"]),
    )
    truth = lambda i: {"dx0": column(i["alpha"]) * i["dx_t"].double()}  # noqa: E731
    return Case("noise backward", words(n, size), dtype, make, truth, [entrant])


# ---- the loss --------------------------------------------------------------------------------------------------------


def loss(device, n, size, dtype, peers):
    """The squared error of f against p x0 + q eps, and its gradient: two launches.

    Timed, the target is eps (p = 0, q = 1), which the peer has kept from its forward.
    """

    def make(random):
        i = {"f": random.normal(n, size, dtype=TYPES[dtype]), "x0": random.normal(n, size, dtype=TYPES[dtype])}
        i |= draw(random, n) | {name: random.normal(n) for name in ("p", "q", "weight")}
        i["dloss"] = random.normal(n)
        if peers:
            i["p"], i["q"], i["weight"] = (
                torch.zeros_like(i["p"]),
                torch.ones_like(i["q"]),
                torch.ones_like(i["weight"]),
            )
            i["dloss"] = torch.full_like(i["dloss"], 1 / n)  # the mean over the batch
            i["eps"] = random.normal(n, size, dtype=TYPES[dtype])
        return i

    def outputs(_):
        return {"loss": device.nan(n), "df": device.nan(n, size, dtype=TYPES[dtype])}

    def call(kernels, a, o):
        coefficients = a["f"], a["x0"], a["p"], a["q"], a["weight"], *key(a)
        kernels.noise_loss_forward(*coefficients, o["loss"])
        kernels.noise_loss_backward(a["dloss"], *coefficients, o["df"])

    def truth(i):
        few = {name: t[:CHECKED] for name, t in i.items()}
        off = few["f"].double() - column(few["p"]) * few["x0"].double() - column(few["q"]) * eps_of(i, size)
        df = column(few["dloss"] * few["weight"]) * 2 / size * off
        return {"loss": few["weight"].double() * off.square().mean(1), "df": df}

    entrants = [ours(device, "pydiff", outputs, call), *(mse_peers(device) if peers else ())]
    nbytes = 5 * n * size * TYPES[dtype].itemsize  # f and x0 read twice, df written
    return Case("noise loss", words(n, size), dtype, make, truth, entrants, nbytes=nbytes)


def mse(f, eps):
    """Mean squared error and its gradient."""
    loss = torch.nn.functional.mse_loss(f, eps)
    return loss, torch.ops.aten.mse_loss_backward(torch.ones_like(loss), f, eps, 1)


def mse_peers(device):
    """That pair, eager and compiled; eps is read, not drawn."""

    def calling(function):
        return lambda i: torch.no_grad()(lambda: function(i["f"], i["eps"]))

    def exact(i, _got):
        off = i["f"].double() - i["eps"].double()
        return {"loss": off.square().mean(), "df": 2 / off.numel() * off}

    for name, function in (("mse_loss, eager", mse), ("torch.compile", device.compile(mse))):
        yield Contender(name, PEER, calling(function), lambda pair: dict(zip(("loss", "df"), pair, strict=True)), exact)

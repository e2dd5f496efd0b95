"""noise: x_t = alpha x0 + sigma eps with fresh eps, at the batches of the U-Nets in workloads.py, and its gradient; and
all that a training step does with its noise: x_t, the squared error of a network's answer, and the answer's gradient.

pydiff draws the noise again where it is needed; its peers keep theirs. Those with generators of their own are judged by
the noise they drew, which has to look normal.
"""

import math
import sys
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.cases import OTHER, PEER, Case, Contender, Problem, by_reference, error_of, images, nbytes_of, of_few
from benchmarks.contenders import peer
from benchmarks.workloads import WORKLOADS
from pydiff import ops, random
from pydiff.arrays import to_host
from pydiff.diffusion import schedule
from pydiff.ops.noise import key_on
from pydiff.reference.noise import noise as reference
from pydiff.tensor import Tensor, no_grad

TINY = [(2, 4, 4, 3), (3, 7), (2, 96)]
SHAPES = [(w.batch, w.size, w.size, w.channels) for w in WORKLOADS.values()]
CHECKS = [(1, 3), (3, 7), (5, 64), (2, 1023), (4, 3072), (130, 192)]
GPU = [(shape, dtype) for shape in ((2048, 64, 64, 3), (128, 32, 32, 3)) for dtype in ("float32", "bfloat16")]
LIMIT = 5e-6  # normals in float32 against normals in float64
LEVELS = schedule("linear")


def cases_of(device, shape, dtype):
    """forward, backward, and training; on a GPU also normals alone and any loss, which are checked there only."""
    limit, nbytes = device.limit(LIMIT, dtype), nbytes_of(shape, dtype)

    def make(random_, general=False):
        x0, f = (random_.normal(*shape, dtype=dtype) for _ in range(2))
        t = random_.integers(LEVELS.T, shape[0])
        alpha, sigma = (device.xp.asarray(a[t].astype(np.float32)) for a in (LEVELS.alpha, LEVELS.sigma))
        zero = 0 * alpha
        loss = [zero, zero + 1, zero + 1, zero + 1 / len(t)]  # the target is eps; the mean over the batch is wanted
        if general:
            loss = [random_.normal(len(t)) for _ in loss]
        return x0, alpha, sigma, random_.key(len(t), random.NOISE), f, *loss

    def problem(general=False):
        return Problem("noise", images(shape), dtype, lambda r: make(r, general), lambda inputs: truth(device, inputs))

    plain, (x_t, eps, dx0, losses, df) = problem(), range(5)
    entrants = [*device.ours(forward), *others(device), *by_torch(device, add_noise, exact=own_truth(device))]
    if 3 * nbytes < 1e4 and not device.gpu:
        entrants.insert(0, by_reference(lambda i: reference(*i[:3], *i[3])))
    # x0 read, x_t and eps written
    yield Case("noise forward", plain, (x_t, eps), entrants, limit, nbytes=3 * nbytes)
    entrants = [*device.ours(backward), *by_torch(device, lambda x0, alpha, *_: [alpha * x0])]
    yield Case("noise backward", plain, (dx0,), entrants, limit, nbytes=2 * nbytes)
    entrants = [*device.ours(training), *by_torch(device, train, exact=own_truth(device))]
    # x0 and the answer read, x_t and the gradient written
    yield Case("noise and loss", plain, (x_t, losses, df), entrants, limit, nbytes=4 * nbytes)
    if device.gpu:
        yield Case("normal", plain, (eps,), list(device.ours(lambda i: normal(device, i))), limit)
        anyhow = list(device.ours(lambda i: lambda: training(i)()[1:]))
        yield Case("noise loss", problem(general=True), (losses, df), anyhow, limit)


# ---- the truth -------------------------------------------------------------------------------------------------------


def truth(device, inputs):
    """x_t, eps, dx0, the losses and the answer's gradient in float64, of as many samples as draw a million numbers. The
    first numbers of the first sample are compared with pydiff/reference."""
    x0, alpha, sigma, key = inputs[:4]
    eps = random.normal(of_few(key, x0.shape)[1], x0.shape[1:], np.float64)
    first, drawn = to_host(device.wide(x0[:1])).reshape(1, -1)[:, :192], eps.reshape(len(eps), -1)[:1, :192]
    alpha0, sigma0 = float(alpha[0]), float(sigma[0])
    expected = reference(first, [alpha0], [sigma0], key.seed, key.purpose, key.sample[:1], key.step[:1])
    if not error_of([alpha0 * first + sigma0 * drawn, drawn], expected) <= 1e-12:
        raise AssertionError("random.normal in float64 does not agree with the reference of noise")
    eps = device.xp.asarray(eps)
    x_t, losses, df = given_noise(device, inputs, eps)
    return [x_t, eps, column(alpha, x0) * device.wide(x0), losses, df]


def given_noise(device, inputs, eps):
    """x_t, the losses and the answer's gradient in float64, of as many samples as there is noise of."""
    x0, alpha, sigma, _, f, p, q, weight, dloss = (a if isinstance(a, random.Key) else a[: len(eps)] for a in inputs)
    x0, f = device.wide(x0), device.wide(f)
    off = f - column(p, f) * x0 - column(q, f) * eps
    losses = device.wide(weight) * (off**2).reshape(len(f), -1).mean(axis=1)
    df = column(dloss, f) * column(weight, f) * (2 / math.prod(f.shape[1:])) * off
    return column(alpha, x0) * x0 + column(sigma, x0) * eps, losses, df


def column(values, like):
    """(N,) -> (N, 1, ..), float64"""
    return values.astype(np.float64).reshape((-1,) + (1,) * (like.ndim - 1))


def own_truth(device):
    """exact(inputs, outputs) of a contender whose last output is the noise it drew: the truth given that noise."""
    return lambda inputs, outputs: [
        *given_noise(device, inputs, outputs[-1])[: len(outputs) - 1], looking_normal(outputs[-1])
    ]  # fmt: skip


def looking_normal(eps):
    """eps itself, or NaN where its mean and variance are not within six standard errors of 0 and 1; bfloat16's rounding
    is allowed for."""
    bound = 6 / math.sqrt(eps.size)
    normal = abs(eps.mean()) <= bound and abs((eps**2).mean() - 1) <= math.sqrt(2) * bound + 0.01
    return eps if normal else eps * math.nan


# ---- pydiff: build(inputs) for Device.ours ---------------------------------------------------------------------------


def forward(inputs):
    """x_t and eps."""
    x0, *rest = inputs[:4]
    x0 = Tensor(x0)
    return no_grad()(lambda: ops.noise(x0, *rest))


def backward(inputs):
    """The gradient of the image; x0 stands in for dx_t."""
    x0, *rest = inputs[:4]
    function: Any = ops.noise(Tensor(x0, requires_grad=True), *rest)[0].maker
    return lambda: function.backward(x0, None)


def training(inputs):
    """x_t, losses and the gradient of the answer: noise that is never stored."""
    x0, alpha, sigma, key, f, p, q, weight, dloss = inputs

    def call():
        x_t, _ = ops.noise(x0, alpha, sigma, key, keep=False)
        answer = Tensor(f, requires_grad=True)
        losses = ops.noise_loss(answer, x0, p, q, weight, key)
        losses.backward(dloss)
        return x_t, losses, answer.grad

    return call


def normal(device, inputs):
    """eps alone, which is a kernel but no op."""
    x0, key = inputs[0], inputs[3]

    def call():
        eps = device.xp.empty((len(x0), math.prod(x0.shape[1:])), x0.dtype)
        device.kernels.normal(*key_on(x0, key), eps)
        return eps.reshape(x0.shape)

    return call


# ---- others ----------------------------------------------------------------------------------------------------------


def others(device):
    """NumPy's own generator, on its one thread."""

    def make(inputs):
        x0, alpha, sigma, *_ = inputs
        alpha, sigma = (a.reshape((-1,) + (1,) * (x0.ndim - 1)) for a in (alpha, sigma))
        generator = np.random.default_rng(0)

        def call():
            eps = generator.standard_normal(x0.shape, np.float32)
            return alpha * x0 + sigma * eps, eps

        return call

    if not device.gpu:
        yield Contender("NumPy Generator", OTHER, make, exact=own_truth(device))


def by_torch(device, function, exact=None):
    """function(x0, alpha, sigma, f) -> tensors, eager and on a GPU compiled."""
    for name, way in device.torch_ways(function):

        def make(inputs, way=way):
            x0, alpha, sigma, f = (device.tensor(inputs[i]) for i in (0, 1, 2, 4))
            alpha, sigma = (a.to(x0.dtype).reshape(-1, *[1] * (x0.ndim - 1)) for a in (alpha, sigma))
            return lambda: way(x0, alpha, sigma, f)

        yield Contender(name, PEER, make, exact=exact)


def add_noise(x0, alpha, sigma, _f):
    """torch.randn_like and the formula of diffusers' schedulers: x_t and eps."""
    eps = peer("torch").randn_like(x0)
    return alpha * x0 + sigma * eps, eps


def train(x0, alpha, sigma, f):
    """The same, and the squared error with its gradient."""
    torch: Any = peer("torch")
    x_t, eps = add_noise(x0, alpha, sigma, f)
    losses = torch.nn.functional.mse_loss(f, eps, reduction="none").flatten(1).mean(1)
    df = torch.ops.aten.mse_loss_backward(torch.ones((), dtype=f.dtype, device=f.device), f, eps, 1)
    return x_t, losses, df, eps


if __name__ == "__main__":
    sys.exit(harness.main("noise"))

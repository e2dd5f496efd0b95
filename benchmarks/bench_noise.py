"""noise: x_t = alpha x0 + sigma eps with fresh eps, at the batches of the U-Nets in workloads.py, and its gradient; and
all that a training step does with its noise: x_t, the squared error of a network's answer, and the answer's gradient.
"""

import sys

import numpy as np

from benchmarks import harness
from benchmarks.contenders import OTHER, PEER, Contender, arrays, house, peer, variants
from benchmarks.workloads import WORKLOADS
from pydiff import ops, random
from pydiff.diffusion import schedule
from pydiff.ops.noise import Noise
from pydiff.reference.noise import noise as reference
from pydiff.tensor import Tensor, no_grad

TINY = (2, 4, 4, 3)
LIMIT = 5e-6  # normals in float32 against normals in float64


def cases(settings):
    """Three cases a shape."""
    rng = np.random.default_rng(0)
    shapes = {"tiny": TINY} | ({} if settings.quick else batches())
    for name, shape in shapes.items():
        yield from cases_of(name, shape, rng, settings)


def batches():
    """{workload: shape of its batch}"""
    return {name: (w.batch, w.size, w.size, w.channels) for name, w in WORKLOADS.items()}


def cases_of(name, shape, rng, settings):
    """forward, backward and loss at one shape."""
    n = shape[0]
    s = schedule("linear")

    def make(rng):
        x0 = rng.standard_normal(shape, np.float32)
        t = rng.integers(s.T, size=n)
        step = int(rng.integers(2**31))
        return (
            x0,
            s.alpha[t].astype(np.float32),
            s.sigma[t].astype(np.float32),
            random.key(7, random.NOISE, range(n), step),
        )

    nbytes = int(4 * np.prod(shape))
    sets = variants(make, nbytes, rng)
    exact = truth(*sets[0])
    contenders = [*house(forward, settings.all_levels), *others(), *torch_forward()]
    if name == "tiny":
        slow = lambda i: lambda: reference(*i[:3], i[3].seed, i[3].purpose, i[3].sample, i[3].step)  # noqa: E731
        contenders.insert(0, Contender("reference (float64)", OTHER, slow, arrays))
    words = f"{name}: {n} x {'x'.join(map(str, shape[1:]))}"
    # x0 read, x_t and eps written
    yield harness.Case("noise forward", words, sets, contenders, exact, LIMIT, nbytes=3 * nbytes)

    x0, alpha, _, _ = sets[0]  # x0 stands in for dx_t
    exact = [x0.astype(np.float64) * column(alpha, x0)]
    contenders = [*house(backward, settings.all_levels), *torch_backward()]
    yield harness.Case("noise backward", words, sets, contenders, exact, LIMIT, nbytes=2 * nbytes)

    sets = variants(lambda rng: (*make(rng), rng.standard_normal(shape, np.float32)), 2 * nbytes, rng)
    x_t, eps = truth(*sets[0][:4])
    exact = [x_t, *truth_of_loss(sets[0][4], eps)]
    contenders = [*house(training, settings.all_levels), *torch_training()]
    # x0 and the answer read, x_t and the gradient written
    yield harness.Case("noise and loss", words, sets, contenders, exact, LIMIT, nbytes=4 * nbytes)


def truth(x0, alpha, sigma, key):
    """x_t and eps in float64, compared with pydiff/reference on the first sample."""
    eps = random.normal(key, x0.shape[1:], np.float64)
    x_t = column(alpha, x0).astype(np.float64) * x0 + column(sigma, x0).astype(np.float64) * eps
    expected = reference(x0[:1], alpha[:1], sigma[:1], key.seed, key.purpose, key.sample[:1], key.step[:1])
    if not harness.error_of([x_t[:1], eps[:1]], expected) <= 1e-12:
        raise AssertionError("random.normal in float64 does not agree with the reference of noise")
    return [x_t, eps]


def truth_of_loss(f, eps):
    """The mean squared error of f, which predicts eps, of every sample, and the gradient of their mean; in float64."""
    difference = f.astype(np.float64) - eps
    return (difference**2).mean(axis=(1, 2, 3)), 2 * difference / difference.size


def column(values, like):
    """(N,) -> (N, 1, 1, 1)"""
    return values.reshape((-1,) + (1,) * (like.ndim - 1))


def forward(inputs):
    """build(inputs) for contenders.house."""
    x0, *rest = inputs
    x0 = Tensor(x0)
    return no_grad()(lambda: ops.noise(x0, *rest))


def backward(inputs):
    """build(inputs) for contenders.house."""
    function = Noise()
    function.needs = [True, False, False, False]
    function.forward(*inputs)
    return lambda: function.backward(inputs[0], None)


def training(inputs):
    """build(inputs) for contenders.house: noise that is never stored."""
    x0, alpha, sigma, key, f = inputs
    zero, one, mean = np.zeros(len(x0)), np.ones(len(x0)), np.full(len(x0), 1 / len(x0), np.float32)

    def call():
        x_t, _ = ops.noise(x0, alpha, sigma, key, keep=False)
        answer = Tensor(f, requires_grad=True)
        losses = ops.noise_loss(answer, x0, zero, one, one, key)
        losses.backward(mean)
        return x_t, losses, answer.grad

    return call


# ---- contenders with generators of their own: their x_t is checked against their own eps ----


def own_truth(inputs, outputs):
    """The truth given the contender's own eps; NaN where that does not look normal (mean 0, variance 1)."""
    x0, alpha, sigma, _ = inputs
    eps = outputs[1].astype(np.float64)
    bound = 6 / np.sqrt(eps.size)  # six standard errors of the mean
    normal = abs(eps.mean()) <= bound and abs((eps**2).mean() - 1) <= np.sqrt(2) * bound
    return [column(alpha, x0) * x0 + column(sigma, x0) * eps, eps if normal else np.full_like(eps, np.nan)]


def others():
    """NumPy's own generator, on its one thread."""

    def make(inputs):
        x0, alpha, sigma, _ = inputs
        alpha, sigma, generator = column(alpha, x0), column(sigma, x0), np.random.default_rng(0)

        def call():
            eps = generator.standard_normal(x0.shape, np.float32)
            return alpha * x0 + sigma * eps, eps

        return call

    yield Contender("NumPy Generator", OTHER, make, arrays, own_truth)


def torch_forward():
    """torch.randn_like and the formula of diffusers' schedulers."""
    torch = peer("torch")
    if torch is None:
        return

    def make(inputs):
        x0, alpha, sigma = (torch.from_numpy(a) for a in inputs[:3])
        alpha, sigma = (a.reshape(-1, *[1] * (x0.ndim - 1)) for a in (alpha, sigma))

        @torch.no_grad()
        def call():
            eps = torch.randn_like(x0)
            return alpha * x0 + sigma * eps, eps

        return call

    yield Contender("torch", PEER, make, lambda results: [r.numpy() for r in results], own_truth)


def torch_backward():
    """The gradient of the image, alpha dx_t."""
    torch = peer("torch")
    if torch is None:
        return

    def make(inputs):
        dx_t, alpha = (torch.from_numpy(a) for a in inputs[:2])
        alpha = alpha.reshape(-1, *[1] * (dx_t.ndim - 1))
        return torch.no_grad()(lambda: [alpha * dx_t])

    yield Contender("torch", PEER, make, lambda results: [r.numpy() for r in results])


def torch_training():
    """torch.randn_like, the formula of diffusers' schedulers, and autograd of the squared error."""
    torch = peer("torch")
    if torch is None:
        return

    def make(inputs):
        x0, alpha, sigma, f = (torch.from_numpy(inputs[i]) for i in (0, 1, 2, 4))
        alpha, sigma = (a.reshape(-1, *[1] * (x0.ndim - 1)) for a in (alpha, sigma))

        def call():
            eps = torch.randn_like(x0)
            x_t, answer = alpha * x0 + sigma * eps, f.detach().requires_grad_()
            losses = torch.nn.functional.mse_loss(answer, eps, reduction="none").mean(dim=(1, 2, 3))
            losses.mean().backward()
            return x_t, losses, answer.grad, eps

        return call

    def own_truth_of_loss(inputs, outputs):
        x_t, eps = own_truth(inputs[:4], [outputs[0], outputs[3]])
        return [x_t, *truth_of_loss(inputs[4], eps), eps]

    yield Contender("torch", PEER, make, lambda results: [r.detach().numpy() for r in results], own_truth_of_loss)


if __name__ == "__main__":
    sys.exit(harness.main(cases, __doc__))

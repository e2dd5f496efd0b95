"""layer_norm, forward and backward, at the shapes of Stable Diffusion 1.5's transformer blocks and of text encoders."""

import sys

import numpy as np

from benchmarks import harness
from benchmarks.contenders import OTHER, PEER, Contender, arrays, house, peer, variants
from pydiff import ops
from pydiff.ops.layer_norm import LayerNorm
from pydiff.reference.layer_norm import layer_norm as reference
from pydiff.tensor import Tensor, no_grad

TINY = (2, 8, 16)
# batch, tokens, channels
SHAPES = [(1, 4096, 320), (2, 4096, 320), (2, 1024, 640), (2, 256, 1280), (2, 64, 1280), (1, 77, 768), (32, 64, 64)]
EPS = 1e-5
LIMIT = 1e-5


def cases(settings):
    """Two cases a shape."""
    rng = np.random.default_rng(0)
    for shape in [TINY] if settings.quick else [TINY, *SHAPES]:
        yield from cases_of(shape, rng, settings)


def cases_of(shape, rng, settings):
    """forward and backward at one shape."""

    def make(rng):
        x = rng.standard_normal(shape, np.float32) + 1
        gamma, beta = rng.standard_normal((2, shape[-1]), np.float32)
        return x, gamma, beta, rng.standard_normal(shape, np.float32)

    nbytes = 4 * int(np.prod(shape))
    sets = variants(make, 2 * nbytes, rng)
    *inputs, dy = sets[0]
    y, *gradients = harness.truth(
        lambda *a: ops.layer_norm(*a, EPS), lambda *a: reference(*a, EPS), inputs, dy, lambda a: (a[0][:1], *a[1:]), rng
    )
    for direction, exact, moved in (("forward", [y], 2 * nbytes), ("backward", gradients, 3 * nbytes)):
        contenders = [*house(ours(direction), settings.all_levels), *torch_contenders(direction)]
        if shape == TINY and direction == "forward":
            slow = lambda i: lambda: [reference(*i[:3], EPS)]  # noqa: E731
            contenders.insert(0, Contender("reference (float64)", OTHER, slow, arrays))
        words = " x ".join(map(str, shape))
        yield harness.Case(f"layer_norm {direction}", words, sets, contenders, exact, LIMIT, nbytes=moved)


def ours(direction):
    """build(inputs) for contenders.house."""

    def build(inputs):
        x, gamma, beta, dy = inputs
        if direction == "forward":
            x, gamma, beta = Tensor(x), Tensor(gamma), Tensor(beta)
            return no_grad()(lambda: ops.layer_norm(x, gamma, beta, EPS))
        function = LayerNorm()
        function.needs = [True] * 3
        function.forward(x, gamma, beta, eps=EPS)
        return lambda: function.backward(dy)

    return build


def torch_contenders(direction):
    """torch eager."""
    torch = peer("torch")
    if torch is None:
        return

    def make(inputs):
        x, gamma, beta, dy = (torch.from_numpy(a) for a in inputs)
        layer_norm, size = torch.nn.functional.layer_norm, x.shape[-1:]
        if direction == "forward":
            return torch.no_grad()(lambda: [layer_norm(x, size, gamma, beta, EPS)])
        leaves = [leaf.requires_grad_() for leaf in (x, gamma, beta)]
        y = layer_norm(x, size, *leaves[1:], EPS)
        return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)

    yield Contender("torch", PEER, make, lambda results: [r.numpy() for r in results])


if __name__ == "__main__":
    sys.exit(harness.main(cases, __doc__))

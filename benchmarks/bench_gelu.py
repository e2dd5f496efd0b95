"""The exact GELU and the gate made of it, forward and backward, at the shapes of Stable Diffusion 1.5's transformer
blocks and of small text encoders."""

import sys

import numpy as np

from benchmarks import harness
from benchmarks.contenders import OTHER, PEER, Contender, arrays, house, peer, variants
from pydiff import ops
from pydiff.ops.gelu import GEGLU, GELU
from pydiff.reference import gelu as reference
from pydiff.tensor import Tensor, no_grad

TINY = (2, 8, 16)
# batch, tokens, channels of the output
GATES = [(1, 4096, 1280), (2, 4096, 1280), (2, 1024, 2560), (2, 256, 5120), (32, 64, 256)]
ENCODERS = [(1, 77, 3072), (32, 64, 1024)]
LIMIT = 2e-6
OPS = {"gelu": (ops.gelu, GELU, reference.gelu, 1), "geglu": (ops.geglu, GEGLU, reference.geglu, 2)}


def cases(settings):
    """Two cases a shape."""
    rng = np.random.default_rng(0)
    for name, shapes in (("gelu", ENCODERS), ("geglu", GATES)):
        for shape in [TINY] if settings.quick else [TINY, *shapes]:
            yield from cases_of(name, shape, rng, settings)


def cases_of(name, shape, rng, settings):
    """forward and backward at one shape."""
    op, _, equation, halves = OPS[name]
    *lead, c = shape
    x_shape = (*lead, halves * c)

    def make(rng):
        return rng.standard_normal(x_shape, np.float32), rng.standard_normal(shape, np.float32)

    nbytes = 4 * int(np.prod(shape))
    sets = variants(make, 2 * nbytes, rng)
    x, dy = sets[0]
    y, dx = harness.truth(op, equation, [x], dy, lambda a: (a[0][:1, :2],), rng)
    for direction, exact, moved in (
        ("forward", [y], (1 + halves) * nbytes),
        ("backward", [dx], (1 + 2 * halves) * nbytes),
    ):
        contenders = [*house(ours(name, direction), settings.all_levels), *torch_contenders(name, direction)]
        if shape == TINY and direction == "forward":
            slow = lambda i: lambda: [equation(i[0])]  # noqa: E731
            contenders.insert(0, Contender("reference (float64)", OTHER, slow, arrays))
        words = f"{' x '.join(map(str, lead))} x {c}"
        label = "gelu" if name == "gelu" else "gelu gate"
        yield harness.Case(f"{label} {direction}", words, sets, contenders, exact, LIMIT, nbytes=moved)


def ours(name, direction):
    """build(inputs) for contenders.house."""
    op, function_class, _, _ = OPS[name]

    def build(inputs):
        x, dy = inputs
        if direction == "forward":
            x = Tensor(x)
            return no_grad()(lambda: op(x))
        function = function_class()
        function.needs = [True]
        function.forward(x)
        return lambda: [function.backward(dy)]

    return build


def torch_contenders(name, direction):
    """torch eager, as diffusers calls it: the gate is a chunk, a GELU and a product."""
    torch = peer("torch")
    if torch is None:
        return
    gelu = torch.nn.functional.gelu

    def theirs(x):
        if name == "gelu":
            return gelu(x)
        a, b = x.chunk(2, dim=-1)
        return a * gelu(b)

    def make(inputs):
        x, dy = (torch.from_numpy(a) for a in inputs)
        if direction == "forward":
            return torch.no_grad()(lambda: [theirs(x)])
        x = x.requires_grad_()
        y = theirs(x)
        return lambda: torch.autograd.grad(y, [x], dy, retain_graph=True)

    yield Contender("torch", PEER, make, lambda results: [r.numpy() for r in results])


if __name__ == "__main__":
    sys.exit(harness.main(cases, __doc__))

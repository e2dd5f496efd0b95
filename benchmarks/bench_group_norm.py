"""group_norm with SiLU behind it, forward and backward, at the shapes of the U-Nets in workloads.py."""

import sys

import numpy as np

from benchmarks import harness
from benchmarks.contenders import OTHER, PEER, Contender, arrays, from_torch, house, peer, to_torch, variants
from pydiff import ops
from pydiff.ops.group_norm import GroupNorm
from pydiff.reference.group_norm import group_norm as reference
from pydiff.tensor import Tensor, no_grad

# batch, size, channels, groups
TINY = (2, 8, 16, 8)
SHAPES = [
    # digits8 and digits16
    (128, 8, 32, 8),
    (128, 4, 64, 8),
    (128, 16, 32, 8),
    (128, 8, 64, 8),
    (128, 16, 96, 8),
    # cifar32
    (32, 32, 64, 32),
    (32, 32, 128, 32),
    (32, 16, 128, 32),
    (32, 8, 128, 32),
    # image64
    (8, 64, 64, 32),
    (8, 64, 192, 32),
    (8, 32, 128, 32),
    (8, 16, 256, 32),
    (8, 8, 256, 32),
]
EPS = 1e-5
LIMIT = 2e-5


def cases(settings):
    """Two cases a shape."""
    rng = np.random.default_rng(0)
    for shape in [TINY] if settings.quick else [TINY, *SHAPES]:
        yield from cases_of(shape, rng, settings)


def cases_of(shape, rng, settings):
    """forward and backward at one shape."""
    batch, size, c, groups = shape

    def make(rng):
        # An offset of the size of the spread: a variance computed as E[x²] - E[x]² would show.
        x = rng.standard_normal((batch, size, size, c), np.float32) + 1
        gamma, beta = rng.standard_normal((2, c), np.float32)
        return x, gamma, beta, rng.standard_normal(x.shape, np.float32)

    nbytes = 4 * batch * size * size * c  # of one array of x's shape
    sets = variants(make, 2 * nbytes, rng)
    *inputs, dy = sets[0]
    y, *gradients = harness.truth(
        lambda *a: ops.group_norm(*a, groups, EPS, "silu"),
        lambda *a: reference(*a, groups, EPS, "silu"),
        inputs,
        dy,
        lambda a: (a[0][:1], *a[1:]),
        rng,
    )
    # forward: x read, y written; backward: x and dy read, dx written
    for direction, exact, moved in (("forward", [y], 2 * nbytes), ("backward", gradients, 3 * nbytes)):
        contenders = [*house(ours(direction, groups), settings.all_levels), *torch_contenders(direction, groups)]
        if shape == TINY and direction == "forward":
            slow = lambda i: lambda: [reference(*i[:3], groups, EPS, "silu")]  # noqa: E731
            contenders.insert(0, Contender("reference (float64)", OTHER, slow, arrays))
        words = f"{batch} x {size}x{size}x{c}, {groups} groups, SiLU"
        yield harness.Case(f"group_norm {direction}", words, sets, contenders, exact, LIMIT, nbytes=moved)


def ours(direction, groups):
    """build(inputs) for contenders.house."""

    def build(inputs):
        x, gamma, beta, dy = inputs
        if direction == "forward":
            x, gamma, beta = Tensor(x), Tensor(gamma), Tensor(beta)
            return no_grad()(lambda: ops.group_norm(x, gamma, beta, groups, EPS, "silu"))
        function = GroupNorm()
        function.needs = [True] * 3
        function.forward(x, gamma, beta, groups=groups, eps=EPS, silu=True)
        return lambda: function.backward(dy)

    return build


def torch_contenders(direction, groups):
    """torch eager in both of its layouts: group_norm, then silu, as diffusers calls them."""
    torch = peer("torch")
    if torch is None:
        return
    functional = torch.nn.functional
    for channels_last in (False, True):

        def make(inputs, channels_last=channels_last):
            x, gamma, beta, dy = inputs
            x, dy = to_torch(x, channels_last), to_torch(dy, channels_last)
            leaves = [x, torch.from_numpy(gamma), torch.from_numpy(beta)]
            if direction == "forward":
                return torch.no_grad()(lambda: [functional.silu(functional.group_norm(x, groups, *leaves[1:], EPS))])
            leaves = [leaf.requires_grad_() for leaf in leaves]
            y = functional.silu(functional.group_norm(leaves[0], groups, *leaves[1:], EPS))
            return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)

        def outputs(results):
            return [from_torch(result) for result in results]

        yield Contender("torch channels_last" if channels_last else "torch", PEER, make, outputs)


if __name__ == "__main__":
    sys.exit(harness.main(cases, __doc__))

"""attention, forward and backward, at the shapes of the U-Nets in workloads.py and with larger heads."""

import sys

import numpy as np

from benchmarks import harness
from benchmarks.contenders import OTHER, PEER, Contender, arrays, house, peer, variants
from pydiff import ops
from pydiff.ops.attention import Attention
from pydiff.reference.attention import attention as reference
from pydiff.tensor import Tensor, no_grad

# batch, tokens, heads, channels of a head
TINY = (2, 16, 2, 8)
SHAPES = [
    (128, 16, 8, 8),  # digits8
    (128, 64, 8, 8),  # digits16
    (32, 256, 16, 8),  # cifar32
    (32, 64, 16, 8),
    (8, 256, 32, 8),  # image64
    (8, 64, 32, 8),
    (32, 256, 2, 64),  # the same channels in larger heads
    (8, 256, 4, 64),
    (8, 1024, 8, 32),
    (8, 1024, 4, 64),
]
LIMIT = 2e-5


def cases(settings):
    """Two cases a shape."""
    rng = np.random.default_rng(0)
    for shape in [TINY] if settings.quick else [TINY, *SHAPES]:
        yield from cases_of(shape, rng, settings)


def cases_of(shape, rng, settings):
    """forward and backward at one shape."""
    batch, tokens, heads, d = shape

    def make(rng):
        return tuple(rng.standard_normal((4, batch, tokens, heads * d), np.float32))

    # The array path and torch's "math" keep all probabilities for the backward: fewer sets where those are large.
    kept = 4 * batch * heads * tokens * tokens
    sets = variants(make, max(16 * batch * tokens * heads * d, kept / 4), rng)
    *inputs, dout = sets[0]
    out, *gradients = harness.truth(
        lambda *a: ops.attention(*a, heads),
        lambda *a: reference(*a, heads),
        inputs,
        dout,
        lambda a: [i[:1] for i in a],
        rng,
    )
    product = 2 * batch * heads * tokens * tokens * d
    # forward: q kᵀ and p v; backward: dv, dp, dq, dk (what is computed again to save memory does not count)
    for direction, exact, flops in (("forward", [out], 2 * product), ("backward", gradients, 4 * product)):
        contenders = [*house(ours(direction, heads), settings.all_levels), *torch_contenders(direction, heads)]
        if shape == TINY and direction == "forward":
            slow = lambda i: lambda: [reference(*i[:3], heads)]  # noqa: E731
            contenders.insert(0, Contender("reference (float64)", OTHER, slow, arrays))
        words = f"{batch} x {tokens} tokens, {heads} heads of {d}"
        yield harness.Case(f"attention {direction}", words, sets, contenders, exact, LIMIT, flops=flops)


def ours(direction, heads):
    """build(inputs) for contenders.house."""

    def build(inputs):
        q, k, v, dout = inputs
        if direction == "forward":
            q, k, v = Tensor(q), Tensor(k), Tensor(v)
            return no_grad()(lambda: ops.attention(q, k, v, heads))
        function = Attention()
        function.needs = [True] * 3
        function.forward(q, k, v, None, heads=heads, scale=(q.shape[2] // heads) ** -0.5, causal=False)
        return lambda: function.backward(dout)

    return build


def torch_contenders(direction, heads):
    """torch's scaled_dot_product_attention as diffusers calls it, from (N, T, C) to (N, T, C): with the kernel that
    torch chooses, and with the one that holds all scores, which is sometimes faster."""
    torch = peer("torch")
    if torch is None:
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def attend(q, k, v):
        q, k, v = (a.unflatten(2, (heads, -1)).transpose(1, 2) for a in (q, k, v))  # (N, heads, T, d), no copy
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    for name, backends in (
        ("torch SDPA", list(SDPBackend.__members__.values())),
        ("torch SDPA math", [SDPBackend.MATH]),
    ):

        def make(inputs, backends=backends):
            q, k, v, dout = (torch.from_numpy(a) for a in inputs)
            with sdpa_kernel(backends):
                if direction == "forward":

                    def forward():
                        with torch.no_grad(), sdpa_kernel(backends):
                            return [attend(q, k, v)]

                    return forward
                leaves = [a.requires_grad_() for a in (q, k, v)]
                out = attend(*leaves)
            return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)

        yield Contender(name, PEER, make, lambda results: [r.detach().numpy() for r in results])


if __name__ == "__main__":
    sys.exit(harness.main(cases, __doc__))

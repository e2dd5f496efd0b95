"""attention, forward and backward: the shapes of the U-Nets in workloads.py, larger heads, and Stable Diffusion's."""

import sys
from typing import NamedTuple

import numpy as np

from benchmarks import harness
from benchmarks.contenders import OTHER, PEER, Contender, arrays, house, peer, variants
from pydiff import ops
from pydiff.ops.attention import Attention
from pydiff.reference.attention import attention as reference
from pydiff.tensor import Tensor, no_grad


class Shape(NamedTuple):
    batch: int
    tokens: int
    heads: int
    d: int  # channels of a head
    keys: int = 0  # in another sequence; 0: the tokens themselves
    causal: bool = False
    backward: bool = True

    def __str__(self):
        seen = f" of {self.keys} keys" if self.keys else ", causal" if self.causal else ""
        return f"{self.batch} x {self.tokens} tokens{seen}, {self.heads} heads of {self.d}"


TINY = Shape(2, 16, 2, 8)
SHAPES = [
    Shape(128, 16, 8, 8),  # digits8
    Shape(128, 64, 8, 8),  # digits16
    Shape(32, 256, 16, 8),  # cifar32
    Shape(32, 64, 16, 8),
    Shape(8, 256, 32, 8),  # image64
    Shape(8, 64, 32, 8),
]
OTHERS = [
    Shape(32, 256, 2, 64),  # the same channels in larger heads
    Shape(8, 256, 4, 64),
    Shape(8, 1024, 8, 32),
    Shape(8, 1024, 4, 64),
    Shape(1, 4096, 8, 40, backward=False),  # Stable Diffusion 1.5 at 512 x 512
    Shape(1, 1024, 8, 80),
    Shape(1, 256, 8, 160),
    Shape(1, 64, 8, 160),
    Shape(1, 4096, 8, 40, keys=77),
    Shape(1, 1024, 8, 80, keys=77),
    Shape(1, 256, 8, 160, keys=77),
    Shape(1, 77, 12, 64, causal=True),  # its text encoder
    Shape(1, 4096, 1, 512, backward=False),  # its autoencoder
]
LIMIT = 2e-5


def cases(settings):
    """One case or two a shape."""
    rng = np.random.default_rng(0)
    for shape in [TINY] if settings.quick else [TINY, *SHAPES, *OTHERS]:
        yield from cases_of(shape, rng, settings)


def cases_of(shape, rng, settings):
    """forward and backward at one shape."""
    batch, tokens, heads, d = shape[:4]
    keys, channels = shape.keys or tokens, heads * d

    def make(rng):
        return tuple(rng.standard_normal((batch, t, channels), np.float32) for t in (tokens, keys, keys, tokens))

    def attend(q, k, v):
        if shape.backward:
            return ops.attention(q, k, v, heads, causal=shape.causal)
        # In float64, which keeps all probabilities, a part of the queries at a time.
        with no_grad():
            parts = [ops.attention(q[:, i : i + 512], k, v, heads).data for i in range(0, q.shape[1], 512)]
        return Tensor(np.concatenate(parts, 1))

    # The array path and torch's "math" keep all probabilities for the backward: fewer sets where those are large.
    kept = 4 * batch * heads * tokens * keys
    sets = variants(make, max(16 * batch * tokens * channels, kept / 4), rng)
    *inputs, dout = sets[0]
    small = lambda a: [i[:1, :128] for i in a]  # noqa: E731
    harness.truth(
        lambda *a: ops.attention(*a, heads, causal=shape.causal),
        lambda *a: reference(*a, heads, causal=shape.causal),
        small(inputs),
        small([dout])[0],
        lambda a: a,
        rng,
    )
    wide = [a.astype(np.float64) for a in inputs]
    out, *gradients = harness.differentiate(attend, wide, dout.astype(np.float64) if shape.backward else None)
    pairs = tokens * (tokens + 1) // 2 if shape.causal else tokens * keys  # of a query and a key it sees
    product = 2 * batch * heads * pairs * d
    # forward: q kᵀ and p v; backward: dv, dp, dq, dk (what is computed again to save memory does not count)
    for direction, exact, flops in (("forward", [out], 2 * product), ("backward", gradients, 4 * product)):
        if direction == "backward" and not shape.backward:
            continue
        contenders = [*house(ours(direction, shape), settings.all_levels), *torch_contenders(direction, shape)]
        if shape == TINY and direction == "forward":
            slow = lambda i: lambda: [reference(*i[:3], heads)]  # noqa: E731
            contenders.insert(0, Contender("reference (float64)", OTHER, slow, arrays))
        yield harness.Case(f"attention {direction}", str(shape), sets, contenders, exact, LIMIT, flops=flops)


def ours(direction, shape):
    """build(inputs) for contenders.house."""

    def build(inputs):
        q, k, v, dout = inputs
        if direction == "forward":
            q, k, v = Tensor(q), Tensor(k), Tensor(v)
            return no_grad()(lambda: ops.attention(q, k, v, shape.heads, causal=shape.causal))
        function = Attention()
        function.needs = [True] * 3
        function.forward(q, k, v, None, heads=shape.heads, scale=shape.d**-0.5, causal=shape.causal)
        return lambda: function.backward(dout)

    return build


def torch_contenders(direction, shape):
    """torch's scaled_dot_product_attention as diffusers calls it, from (N, T, C) to (N, T, C): with the kernel that
    torch chooses, and with the one that holds all scores, which is sometimes faster."""
    torch = peer("torch")
    if torch is None:
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def attend(q, k, v):
        q, k, v = (a.unflatten(2, (shape.heads, -1)).transpose(1, 2) for a in (q, k, v))  # (N, heads, T, d), no copy
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=shape.causal)
        return attended.transpose(1, 2).flatten(2)

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

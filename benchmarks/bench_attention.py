"""attention, forward and backward: the shapes of the U-Nets in workloads.py, larger heads, and Stable Diffusion's.

On a GPU: 65,536 queries in all, whatever their length and the heads' width; q, k and v lie packed, as one linear layer
leaves them. The peers are torch's scaled_dot_product_attention, and there each of its kernels by name.
"""

import sys
from typing import Any, NamedTuple

from benchmarks import harness
from benchmarks.cases import OTHER, PEER, Contender, Problem, Unsupported, by_direction, truth_of
from benchmarks.contenders import peer
from pydiff import ops
from pydiff.arrays import array_module
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


TINY = [Shape(2, 16, 2, 8), Shape(2, 5, 2, 5, keys=7), Shape(1, 17, 2, 8, causal=True)]
SHAPES = [
    Shape(128, 16, 8, 8),  # digits8
    Shape(128, 64, 8, 8),  # digits16
    Shape(32, 256, 16, 8),  # cifar32
    Shape(32, 64, 16, 8),
    Shape(8, 256, 32, 8),  # image64
    Shape(8, 64, 32, 8),
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
OF_WORKLOADS = 6  # the first of them
CHECKS = [
    Shape(1, 1, 1, 8), Shape(2, 5, 2, 5, keys=7), Shape(1, 33, 3, 8, keys=17), Shape(2, 64, 2, 32),
    Shape(1, 130, 2, 64, keys=65), Shape(2, 77, 1, 80), Shape(1, 77, 12, 64, causal=True), Shape(1, 100, 2, 128),
    Shape(1, 256, 1, 256), Shape(2, 1024, 4, 64),
]  # fmt: skip
# The widths that diffusion models use most come first; float32 where DDPM's U-Net attends.
HEADS = {64: 4, 256: 1, 32: 8, 128: 2, 8: 8}  # of width d
GPU = [
    (Shape(65536 // tokens // heads, tokens, heads, d), "bfloat16")
    for d, heads in HEADS.items() for tokens in (256, 1024, 4096, 64)
]  # fmt: skip
GPU.insert(4, (Shape(256, 256, 1, 256), "float32"))
LIMIT = 2e-5


def cases_of(device, shape, dtype):
    """forward and, but where memory forbids, backward at one shape."""
    batch, tokens, heads, d, keys, causal, backward = shape
    keys, channels = keys or tokens, heads * d
    op, slow = (lambda *a, f=f: f(*a, heads, causal=causal) for f in (ops.attention, reference))

    def make(random):
        if device.gpu and keys == tokens:
            packed = random.normal(batch, tokens, 3 * channels, dtype=dtype)
            q, k, v = (packed[..., i * channels : (i + 1) * channels] for i in range(3))
        else:
            q, k, v = (random.normal(batch, t, channels, dtype=dtype) for t in (tokens, keys, keys))
        return q, k, v, random.normal(batch, tokens, channels, dtype=dtype)

    def exactly(q, k, v):
        if backward or q.shape[1] <= 512:
            return op(q, k, v)
        with no_grad():  # in float64, which keeps all probabilities, a part of the queries at a time
            parts = [op(q[:, i : i + 512], k, v).data for i in range(0, q.shape[1], 512)]
        return Tensor(array_module(*parts).concatenate(parts, 1))

    def truth(inputs):
        inputs = inputs if backward else (*inputs[:-1], None)
        return truth_of(device, exactly, slow, inputs, first=lambda a: [i[:1, :64] for i in a])

    pairs = tokens * (tokens + 1) // 2 if causal else tokens * keys  # of a query and a key it sees
    product = 2 * batch * heads * pairs * d
    # forward: q kᵀ and p v; backward: dv, dp, dq, dk (what is computed again to save memory does not count)
    flops = {"forward": 2 * product} | ({"backward": 4 * product} if backward else {})
    problem = Problem("attention", str(shape), dtype, make, truth)
    peers = lambda direction: sdpa(device, direction, shape, dtype)  # noqa: E731
    yield from by_direction(device, problem, op, slow, peers, LIMIT, flops=flops)


def sdpa(device, direction, shape, dtype):
    """torch's scaled_dot_product_attention as diffusers calls it, from (N, T, C) to (N, T, C): on the CPU with the
    kernel that torch chooses, and with the one that holds all scores, which is sometimes faster; on a GPU with each
    that knows this type. There the one that holds all scores is for orientation."""
    torch: Any = peer("torch")
    if torch is None:
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    ways = {"torch SDPA": list(SDPBackend.__members__.values()), "torch SDPA math": [SDPBackend.MATH]}
    if device.gpu:
        low = {"SDPA flash": [SDPBackend.FLASH_ATTENTION], "SDPA cuDNN": [SDPBackend.CUDNN_ATTENTION]}
        ways = low if dtype == "bfloat16" else {}
        ways |= {"SDPA efficient": [SDPBackend.EFFICIENT_ATTENTION], "SDPA math": [SDPBackend.MATH]}
    for name, backends in ways.items():

        def make(inputs, name=name, backends=backends):
            if device.name == "simt" and name != "SDPA math":
                raise Unsupported("needs a GPU")
            # (N, heads, T, d), views
            q, k, v, dout = (device.tensor(a).unflatten(2, (shape.heads, -1)).transpose(1, 2) for a in inputs)
            leaves = [a.detach().requires_grad_(direction == "backward") for a in (q, k, v)]

            def attend():
                with sdpa_kernel(backends):
                    return torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=shape.causal)

            try:
                out = attend()
            except RuntimeError as error:
                if "No available kernel" in str(error):
                    raise Unsupported("torch has no such kernel for this shape") from None
                raise
            if direction == "forward":
                return torch.no_grad()(lambda: [merged(attend())])
            return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)

        def outputs(results):
            return [merged(r) if r.ndim == 4 else r for r in results]

        yield Contender(name, OTHER if name == "SDPA math" else PEER, make, outputs)


def merged(x):
    """(N, heads, T, d) -> (N, T, heads·d)"""
    return x.transpose(1, 2).flatten(2)


if __name__ == "__main__":
    sys.exit(harness.main("attention"))

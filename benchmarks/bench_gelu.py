"""The exact GELU and the gate made of it, forward and backward, at the shapes of Stable Diffusion 1.5's transformer
blocks and of small text encoders."""

import sys

from benchmarks import harness
from benchmarks.cases import Problem, by_direction, by_torch, nbytes_of, truth_of
from benchmarks.contenders import peer
from pydiff import ops
from pydiff.reference import gelu as reference

# name, then the shape of the output: batch, tokens, channels
TINY = [("gelu", 2, 8, 16), ("gelu gate", 2, 8, 16), ("gelu", 5, 7), ("gelu gate", 5, 7)]
GATES = [(1, 4096, 1280), (2, 4096, 1280), (2, 1024, 2560), (2, 256, 5120), (32, 64, 256)]
SHAPES = [("gelu", 1, 77, 3072), ("gelu", 32, 64, 1024), *(("gelu gate", *shape) for shape in GATES)]
CHECKS = [
    (name, *shape) for shape in ((1, 1), (5, 7), (3, 40), (77, 3072), (1030, 320)) for name in ("gelu", "gelu gate")
]
GPU = [
    (("gelu gate", 8, *shape), dtype)
    for shape in ((4096, 1280), (1024, 2560), (256, 5120)) for dtype in ("float32", "bfloat16")
]  # fmt: skip
LIMIT = 2e-6


def cases_of(device, shape, dtype):
    """forward and backward at one shape."""
    name, *shape = shape
    op, slow, theirs, halves = {
        "gelu": (ops.gelu, reference.gelu, gelu, 1), "gelu gate": (ops.geglu, reference.geglu, gate, 2)
    }[name]  # fmt: skip

    def make(random):  # x is wide enough for both ends of the curve
        *lead, c = shape
        return random.normal(*lead, halves * c, dtype=dtype, scale=2), random.normal(*shape, dtype=dtype)

    def truth(inputs):
        return truth_of(device, op, slow, inputs, first=lambda a: [a[0][:2].reshape(-1, a[0].shape[-1])[:2]])

    problem = Problem(name, " x ".join(map(str, shape)), dtype, make, truth)
    nbytes = nbytes_of(shape, dtype)
    nbytes = {"forward": (1 + halves) * nbytes, "backward": (1 + 2 * halves) * nbytes}
    peers = lambda direction: by_torch(device, direction, theirs)  # noqa: E731
    yield from by_direction(device, problem, op, slow, peers, LIMIT, nbytes=nbytes)


def gelu(x):
    """torch's."""
    return peer("torch").nn.functional.gelu(x)


def gate(x):
    """As diffusers' GEGLU computes it behind its projection: a chunk, a GELU and a product."""
    a, b = x.chunk(2, dim=-1)
    return a * gelu(b)


if __name__ == "__main__":
    sys.exit(harness.main("gelu"))

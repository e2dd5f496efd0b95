"""layer_norm, forward and backward, at the shapes of Stable Diffusion 1.5's transformer blocks and of text encoders."""

import sys

from benchmarks import harness
from benchmarks.cases import Problem, by_direction, by_torch, nbytes_of, truth_of
from benchmarks.contenders import peer
from pydiff import ops
from pydiff.reference.layer_norm import layer_norm as reference

# (.., channels)
TINY = [(2, 8, 16), (5, 7), (260, 16)]
SHAPES = [(1, 4096, 320), (2, 4096, 320), (2, 1024, 640), (2, 256, 1280), (2, 64, 1280), (1, 77, 768), (32, 64, 64)]
CHECKS = [(1, 2), (5, 7), (300, 40), (77, 768), (1030, 320), (3, 5000)]
GPU = [
    (shape, dtype) for shape in ((8, 4096, 320), (8, 1024, 640), (8, 256, 1280)) for dtype in ("float32", "bfloat16")
]
EPS, LIMIT = 1e-5, 1e-5


def cases_of(device, shape, dtype):
    """forward and backward at one shape."""
    op, slow = (lambda x, gamma, beta, f=f: f(x, gamma, beta, EPS) for f in (ops.layer_norm, reference))

    def make(random):
        x, c = random.normal(*shape, dtype=dtype, mean=1), shape[-1]
        return x, random.parameters(c), random.parameters(c), random.normal(*shape, dtype=dtype)

    def truth(inputs):
        return truth_of(device, op, slow, inputs, first=lambda a: [a[0][:1], *a[1:]])

    def peers(direction):
        # On a CPU torch keeps the statistics of bfloat16 rows in bfloat16.
        limit = 5e-2 if device.name == "simt" and dtype == "bfloat16" else None
        return by_torch(device, direction, theirs, limit=limit)

    problem = Problem("layer_norm", " x ".join(map(str, shape)), dtype, make, truth)
    nbytes = nbytes_of(shape, dtype)
    # forward: x read, y written; backward: x and dy read, dx written
    nbytes = {"forward": 2 * nbytes, "backward": 3 * nbytes}
    yield from by_direction(device, problem, op, slow, peers, LIMIT, nbytes=nbytes)


def theirs(x, gamma, beta):
    """What diffusers' BasicTransformerBlock calls."""
    return peer("torch").nn.functional.layer_norm(x, x.shape[-1:], gamma, beta, EPS)


if __name__ == "__main__":
    sys.exit(harness.main("layer_norm"))

"""group_norm with SiLU behind it, forward and backward, at the shapes of the U-Nets in workloads.py.

On a GPU, the peers are torch in both memory layouts, the same compiled, and a kernel in Triton that was written for
this comparison, gpu/triton_group_norm.py.
"""

import sys

from benchmarks import harness
from benchmarks.cases import (
    PEER,
    Contender,
    Problem,
    Unsupported,
    by_direction,
    by_torch,
    from_channels_first,
    nbytes_of,
    torch_layouts,
    truth_of,
)
from benchmarks.contenders import peer
from pydiff import ops
from pydiff.reference.group_norm import group_norm as reference

# batch, size, channels, groups; then "plain" for no SiLU
TINY = [(2, 8, 16, 8), (2, 3, 12, 3), (3, 4, 16, 4, "plain")]
SHAPES = [
    # digits8 and digits16
    (128, 8, 32, 8), (128, 4, 64, 8), (128, 16, 32, 8), (128, 8, 64, 8), (128, 16, 96, 8),
    # cifar32
    (32, 32, 64, 32), (32, 32, 128, 32), (32, 16, 128, 32), (32, 8, 128, 32),
    # image64
    (8, 64, 64, 32), (8, 64, 192, 32), (8, 32, 128, 32), (8, 16, 256, 32), (8, 8, 256, 32),
]  # fmt: skip
AWKWARD = [
    (1, 1, 8, 2),
    (2, 3, 12, 3),
    (3, 5, 40, 8),
    (2, 7, 33, 3),
    (5, 16, 256, 32),
    (2, 32, 384, 32),
    (1, 64, 320, 32),
]
CHECKS = [(*shape, *how) for shape in AWKWARD for how in ((), ("plain",))]
LARGE = [(128, 32, 128, 32), (128, 16, 256, 32), (128, 32, 384, 32), (16, 64, 320, 32), (128, 16, 512, 32)]
GPU = [(shape, "bfloat16") for shape in LARGE] + [(LARGE[0], "float32")]
EPS, LIMIT = 1e-5, 2e-5


def cases_of(device, shape, dtype):
    """forward and backward at one shape."""
    batch, size, c, groups, *how = shape
    activation = None if how else "silu"
    op, slow = (lambda *a, f=f: f(*a, groups, EPS, activation) for f in (ops.group_norm, reference))
    full = batch, size, size, c

    def make(random):
        # An offset of the size of the spread: a variance computed as E[x²] - E[x]² would show.
        x, gamma, beta = random.normal(*full, dtype=dtype, mean=1), random.parameters(c), random.parameters(c)
        return x, gamma, beta, random.normal(*full, dtype=dtype)

    def truth(inputs):
        return truth_of(device, op, slow, inputs, first=lambda a: [a[0][:1, :16, :16], *a[1:]])

    def theirs(x, gamma, beta):
        """group_norm, then silu, as diffusers' ResnetBlock2D calls them."""
        functional = peer("torch").nn.functional
        y = functional.group_norm(x, groups, gamma, beta, EPS)
        return y if how else functional.silu(y)

    def peers(direction):
        for suffix, place in torch_layouts().items():
            found = by_torch(device, direction, theirs, place, from_channels_first, suffix)
            # compiled in the layout that is faster
            yield from (c for c in found if suffix or "compile" not in c.name)
        if device.gpu and not how:
            yield triton(device, direction, groups)

    words = f"{batch} x {size}x{size}x{c}, {groups} groups{'' if how else ', SiLU'}"
    problem, nbytes = Problem("group_norm", words, dtype, make, truth), nbytes_of(full, dtype)
    # forward: x read, y written; backward: x and dy read, dx written
    nbytes = {"forward": 2 * nbytes, "backward": 3 * nbytes}
    yield from by_direction(device, problem, op, slow, peers, LIMIT, nbytes=nbytes)


def triton(device, direction, groups):
    """The kernel in Triton, which takes (n, s, c)."""
    from benchmarks.gpu import triton_group_norm

    def make(inputs):
        if triton_group_norm.triton is None:
            raise Unsupported("Triton is not installed")
        if not (device.cuda or triton_group_norm.interpreted()):
            raise Unsupported("Triton needs a GPU or TRITON_INTERPRET=1")
        x, gamma, beta, dy = (device.tensor(a) for a in inputs)
        shape, x, dy = x.shape, x.flatten(1, 2), dy.flatten(1, 2)
        forward = lambda: triton_group_norm.forward(x, gamma, beta, groups, EPS)  # noqa: E731
        if direction == "forward":
            return lambda: [forward()[0].reshape(shape)]
        _, mean, rstd = forward()

        def backward():
            dx, *others = triton_group_norm.backward(dy, x, gamma, beta, mean, rstd, groups)
            return [dx.reshape(shape), *others]

        return backward

    return Contender("Triton", PEER, make)


if __name__ == "__main__":
    sys.exit(harness.main("group_norm"))

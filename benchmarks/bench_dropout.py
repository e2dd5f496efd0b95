"""Dropout with masks drawn on the spot, and its gradient, for which they are drawn again, at the widest layers of the
U-Nets in workloads.py.
"""

import math
import sys

from benchmarks import harness
from benchmarks.cases import PEER, SMALL, Case, Contender, Problem, by_reference, error_of, images, nbytes_of, of_few
from benchmarks.contenders import peer
from benchmarks.workloads import WORKLOADS
from pydiff import ops, random
from pydiff.arrays import to_host
from pydiff.reference.dropout import dropout as reference
from pydiff.tensor import Tensor

TINY = [(2, 4, 4, 3), (3, 7), (2, 96)]
SHAPES = [(w.batch, w.size, w.size, w.config["block_out_channels"][0]) for w in WORKLOADS.values()]
CHECKS = [(1, 3), (3, 7), (5, 64), (2, 1023), (4, 3072), (130, 192)]
GPU = [(shape, dtype) for shape in ((64, 64, 64, 128), (128, 32, 32, 128)) for dtype in ("float32", "bfloat16")]
LIMIT, SHARE = 2e-7, 0.1


def cases_of(device, shape, dtype):
    """y and dx at one shape."""

    def make(random_):
        x, dy = (random_.normal(*shape, dtype=dtype) for _ in range(2))
        return x, dy, random_.key(len(x), random.DROPOUT)

    problem = Problem("dropout", images(shape), dtype, make, lambda i: truth(device, *i))
    nbytes = 4 * nbytes_of(shape, dtype)  # x and dy read, y and dx written
    entrants = [*device.ours(ours), *by_torch(device)]
    if nbytes < SMALL and not device.gpu:
        entrants.insert(0, by_reference(lambda i: [reference(a, SHARE, *i[2]) for a in i[:2]]))
    yield Case("dropout", problem, slice(2), entrants, device.limit(LIMIT, dtype), nbytes=nbytes)


def truth(device, x, dy, key):
    """y and dx in float64, of as many samples as draw a million numbers; compared with pydiff/reference on the first
    numbers of the first sample."""
    few, drawn = of_few(key, x.shape)
    mask = random.uniform(drawn, x.shape[1:]) >= SHARE
    first = to_host(device.wide(x[:1])).reshape(1, -1)[:, :192]
    expected = reference(first, SHARE, key.seed, key.purpose, key.sample[:1], key.step[:1])
    if not error_of([first * mask.reshape(len(mask), -1)[:1, :192] / (1 - SHARE)], [expected]) <= 1e-12:
        raise AssertionError("the masks of dropout do not agree with the reference")
    return [device.wide(a[few]) * device.xp.asarray(mask / (1 - SHARE)) for a in (x, dy)]


def ours(inputs):
    """build(inputs) for Device.ours."""
    x, dy, key = inputs

    def call():
        leaf = Tensor(x, requires_grad=True)
        y = ops.dropout(leaf, SHARE, key)
        y.backward(dy)
        return y, leaf.grad

    return call


def by_torch(device):
    """torch's dropout, judged by the mask it drew itself: a share of zeros within six standard errors."""
    for name, dropout in device.torch_ways(lambda x: peer("torch").nn.functional.dropout(x, SHARE)):

        def make(inputs, dropout=dropout):
            x, dy = (device.tensor(a) for a in inputs[:2])

            def call():
                leaf = x.detach().requires_grad_()
                y = dropout(leaf)
                y.backward(dy)
                return y, leaf.grad

            return call

        def own_truth(inputs, outputs):
            kept = outputs[0] != 0
            fine = abs(kept.mean() - (1 - SHARE)) <= 6 * math.sqrt(SHARE * (1 - SHARE) / kept.size)
            return [kept / (1 - SHARE) * device.wide(a) if fine else outputs[0] * math.nan for a in inputs[:2]]

        yield Contender(name, PEER, make, exact=own_truth)


if __name__ == "__main__":
    sys.exit(harness.main("dropout"))

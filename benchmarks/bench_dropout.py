"""Dropout with masks drawn on the spot, and its gradient, for which they are drawn again, at the widest layers of the
U-Nets in workloads.py.
"""

import sys

import numpy as np

from benchmarks import harness
from benchmarks.contenders import OTHER, PEER, Contender, arrays, house, peer, variants
from benchmarks.workloads import WORKLOADS
from pydiff import ops, random
from pydiff.reference.dropout import dropout as reference
from pydiff.tensor import Tensor

TINY = (2, 4, 4, 3)
LIMIT, SHARE = 2e-7, 0.1


def cases(settings):
    """One case a shape."""
    rng = np.random.default_rng(0)
    shapes = {"tiny": TINY}
    if not settings.quick:
        widths = {name: w.config["block_out_channels"][0] for name, w in WORKLOADS.items()}
        shapes |= {name: (w.batch, w.size, w.size, widths[name]) for name, w in WORKLOADS.items()}
    for name, shape in shapes.items():
        yield case_of(name, shape, rng, settings)


def case_of(name, shape, rng, settings):
    """y and dx at one shape."""

    def make(rng):
        key = random.key(7, random.DROPOUT, range(shape[0]), int(rng.integers(2**31)))
        return rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32), key

    nbytes = int(4 * np.prod(shape))
    sets = variants(make, 2 * nbytes, rng)
    contenders = [*house(ours, settings.all_levels), *torch_contender()]
    if name == "tiny":
        slow = lambda i: lambda: [reference(a, SHARE, *i[2]) for a in i[:2]]  # noqa: E731
        contenders.insert(0, Contender("reference (float64)", OTHER, slow, arrays))
    words = f"{name}: {shape[0]} x {'x'.join(map(str, shape[1:]))}"
    # x and dy read, y and dx written
    return harness.Case("dropout", words, sets, contenders, truth(*sets[0]), LIMIT, nbytes=4 * nbytes)


def truth(x, dy, key):
    """y and dx in float64, compared with pydiff/reference on the first sample."""
    exact = [ops.dropout(a.astype(np.float64), SHARE, key).data for a in (x, dy)]
    alone = random.key(key.seed, key.purpose, key.sample[:1], key.step[:1])
    if not harness.error_of([exact[0][:1]], [reference(x[:1], SHARE, *alone)]) <= 1e-12:
        raise AssertionError("dropout in float64 does not agree with its reference")
    return exact


def ours(inputs):
    """build(inputs) for contenders.house."""
    x, dy, key = inputs

    def call():
        leaf = Tensor(x, requires_grad=True)
        y = ops.dropout(leaf, SHARE, key)
        y.backward(dy)
        return y, leaf.grad

    return call


def torch_contender():
    """torch's dropout, judged by the mask it drew itself: a share of zeros within six standard errors."""
    torch = peer("torch")
    if torch is None:
        return

    def make(inputs):
        x, dy = (torch.from_numpy(a) for a in inputs[:2])

        def call():
            leaf = x.detach().requires_grad_()
            y = torch.nn.functional.dropout(leaf, SHARE)
            y.backward(dy)
            return y, leaf.grad

        return call

    def own_truth(inputs, outputs):
        kept = outputs[0] != 0
        fine = abs(kept.mean() - (1 - SHARE)) <= 6 * np.sqrt(SHARE * (1 - SHARE) / kept.size)
        mask = kept / (1 - SHARE) if fine else np.nan
        return [mask * a.astype(np.float64) for a in inputs[:2]]

    yield Contender("torch", PEER, make, lambda results: [r.detach().numpy() for r in results], own_truth)


if __name__ == "__main__":
    sys.exit(harness.main(cases, __doc__))

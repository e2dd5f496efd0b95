"""One thing to compute at one shape, who computes it, and whether that is right.

Everyone's result is compared with float64 by the norm of the difference relative to the norm of the truth, array by
array. NaN never passes, and outputs of ours are NaN before they are written.
"""

import math
import zlib
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.contenders import OTHER, OURS, PEER

__all__ = ["OTHER", "OURS", "PEER", "Case", "Contender", "Unsupported", "check", "errors_of", "ours", "worst"]

# Largest relative error. float32: sums of thousands of terms; bfloat16: rounded to 8 bits on the way out.
LIMITS = {"float32": 2e-5, "bfloat16": 1e-2}


class Unsupported(Exception):
    """A contender cannot do this case; the text says why. That is no failure."""


class Contender(NamedTuple):
    """One way to compute a case.

    prepare(inputs) -> call; call() does the work on the device and returns what results(..) turns into
    {name: tensor}, in pydiff's layout. exact: None, or exact(inputs, results) -> {name: float64 tensor}, for those who
    draw their own random numbers. limit: the largest error allowed, where it is not the case's.
    """

    name: str
    kind: str
    prepare: Callable
    results: Callable = dict
    exact: Callable | None = None
    limit: float | None = None


class Case(NamedTuple):
    """make(random) -> {name: tensor}, the inputs; random: `Random`. contenders: ours first, if pydiff takes part.

    truth(inputs) -> {name: float64 tensor}; one with fewer rows than the result is about its first rows. flops, nbytes:
    what the equation needs, whichever bounds it; bound: the ceiling it is compared with, see ceilings.py.
    """

    op: str
    shape: str
    dtype: str
    make: Callable
    truth: Callable
    contenders: list
    nbytes: float | None = None
    flops: float | None = None
    bound: str = "copy_gbs"
    limit: float | None = None
    naive: bool = True  # whether the naive kernel is quick enough to be checked at this shape

    @property
    def title(self):
        """Names the case."""
        return f"{self.op}, {self.shape}, {self.dtype}"

    @property
    def allowed(self):
        """The largest error allowed."""
        return self.limit or LIMITS[self.dtype]


class Random:
    """Fresh inputs on a device, from a seed that the report keeps."""

    def __init__(self, device, seed, title):
        self.device = device
        self.generator = torch.Generator(device.at)
        self.generator.manual_seed((seed << 32) + zlib.crc32(title.encode()))

    def normal(self, *shape, dtype=torch.float32):
        """Standard normals."""
        return torch.randn(shape, device=self.device.at, generator=self.generator).to(dtype)

    def integers(self, high, *shape):
        """Whole numbers 0 .. high - 1, as int32."""
        kind = {"device": self.device.at, "generator": self.generator, "dtype": torch.int32}
        return torch.randint(high, shape, **kind)


def ours(device, name, outputs, call):
    """pydiff as a contender: outputs(inputs) -> {name: tensor to be written}, call(kernels, a, o) with the inputs `a`
    and the outputs `o` as {name: array}."""

    def prepare(inputs):
        if device.kernels is None:
            raise RuntimeError(device.reason)
        written = outputs(inputs)
        # integers are the generator's counters, the only ones the kernels know besides a table's row
        a = {key: device.array(t, "uint32" if key in ("sample", "step") else None) for key, t in inputs.items()}
        o = {key: device.array(t) for key, t in written.items()}

        def run():
            call(device.kernels, a, o)
            return written

        return run

    return Contender(name, OURS, prepare)


# ---- right or wrong --------------------------------------------------------------------------------------------------


def errors_of(got, exact):
    """{name: relative error}; NaN for a missing array, a wrong shape, or anything that is not finite."""
    return {name: _error(got.get(name), truth) for name, truth in exact.items()}


def _error(got, truth):
    if got is None or got.shape[1:] != truth.shape[1:] or len(got.shape) != len(truth.shape):
        return math.nan
    if (got.ndim and len(got) < len(truth)) or not bool(torch.isfinite(got).all()):
        return math.nan
    got = got[: len(truth)].double() if got.ndim else got.double()
    size = float(torch.linalg.vector_norm(truth))
    return float(torch.linalg.vector_norm(got - truth)) / max(size, 1e-30) if truth.numel() else 0.0


def worst(errors):
    """The largest of {name: error}; NaN if any is."""
    values = list(errors.values())
    return math.nan if any(math.isnan(v) for v in values) else max(values, default=math.nan)


def error_of(contender, inputs, exact):
    """{name: error} of a contender, computed once on fresh outputs."""
    results = contender.results(contender.prepare(inputs)())
    return errors_of(results, contender.exact(inputs, results) if contender.exact else exact)


def check(device, case, seed):
    """The rows of the report about one case of the correctness stage: the naive kernel and the fast one, each twice."""
    inputs = case.make(Random(device, seed, case.title))
    exact = case.truth(inputs)
    (contender,) = [c for c in case.contenders if c.kind == OURS]
    return [
        _checked(device, case, contender, inputs, exact, naive) for naive in ([True] if case.naive else []) + [False]
    ]


def _checked(device, case, contender, inputs, exact, naive):
    row = {"op": case.op, "shape": case.shape, "dtype": case.dtype, "kernel": "naive" if naive else "fast"}
    row |= {"limit": case.allowed, "ok": False, "error": None, "repeats": None}
    try:
        if device.kernels is None:
            raise RuntimeError(device.reason)
        device.kernels.set_naive(naive)
        first, second = (contender.results(contender.prepare(inputs)()) for _ in range(2))
        device.synchronize()
    except Exception as error:  # whatever it was, the other kernels want to be checked too
        device.synchronize()  # unless it was the GPU's: then the process has to end
        return row | {"failure": in_a_line(error)}
    finally:
        if device.kernels is not None:
            device.kernels.set_naive(False)
    errors = errors_of(first, contender.exact(inputs, first) if contender.exact else exact)
    error, repeats = worst(errors), all(same_bits(first[name], second[name]) for name in first)
    row |= {"errors": {name: finite(value) for name, value in errors.items()}, "error": finite(error)}
    return row | {"repeats": repeats, "ok": repeats and error <= case.allowed}


def same_bits(a, b):
    """Whether two tensors are the same to the last bit."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def finite(value):
    """The number, or None, which is how JSON says NaN."""
    return value if math.isfinite(value) else None


def in_a_line(error):
    """An exception as a line of the report."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]

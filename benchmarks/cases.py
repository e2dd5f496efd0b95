"""What a bench_<op>.py is made of: problems, the cases of each, and who computes them.

A problem is something to compute at one shape: its inputs and, in float64, the right answers. A case is one direction
of it, such as the gradient, with its contenders and the FLOP or bytes that the equation needs. Both are written once
for all devices (devices.py). The modules of ops have

    TINY      shapes for a quick run and for the emulator, the first of them the smallest
    SHAPES    shapes that are timed on the CPU;  PARTS: {name: more of them}, where there are any
    CHECKS    awkward shapes at which the kernels for GPUs are checked
    GPU       [(shape, dtype)] that are timed on a GPU
    cases_of  (device, shape, dtype) -> the cases
"""

import importlib
import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from benchmarks.contenders import peer
from pydiff.arrays import to_host
from pydiff.tensor import Tensor, no_grad

OURS, PEER, OTHER = "ours", "peer", "other"  # a ratio is the best peer's time over ours; the others are for orientation
SMALL = 1e6  # FLOP or bytes: below, one may wait for pydiff/reference


class Unsupported(Exception):
    """A contender cannot do this case; the text says why. That is no failure."""


class Contender(NamedTuple):
    """One way to compute a case.

    make(inputs) -> call: prepares everything that is not timed (layouts, saved forward results); call() does the work
    and returns its results. outputs(results) -> arrays or tensors in pydiff's layout, to compare with the truth.
    exact: None, or exact(inputs, outputs) -> the truth for a contender that drew its own random numbers; its outputs
    then come in float64. limit: the largest error allowed, where it is not the case's.
    """

    name: str
    kind: str
    make: Callable
    outputs: Callable = list
    exact: Callable | None = None
    limit: float | None = None


class Problem:
    """make(random) -> inputs, a tuple of arrays of the device; random: devices.Random. truth(inputs) -> float64 arrays;
    one with fewer rows than the result is about its first rows. shape: in words."""

    def __init__(self, op: str, shape: str, dtype: str, make: Callable, truth: Callable):
        self.op, self.shape, self.dtype, self.make, self.truth = op, shape, dtype, make, truth


class Case(NamedTuple):
    """Contenders and what they have to compute: a part of the problem's truth, a slice or numbers. limit: the largest
    error allowed, relative to max|exact| of each array. flops or nbytes: what the equation needs, whichever bounds it.
    """

    op: str
    problem: Problem
    part: slice | tuple
    contenders: list[Contender]
    limit: float
    flops: float | None = None
    nbytes: float | None = None

    def exact(self, truth):
        """Its part of the problem's truth."""
        return truth[self.part] if isinstance(self.part, slice) else [truth[i] for i in self.part]

    @property
    def naive(self):
        """Whether the GPU's naive kernel is quick enough to be checked here."""
        return (self.flops or 0) < 1e10

    @property
    def title(self):
        """Names the case."""
        return f"{self.op}, {self.problem.shape}, {self.problem.dtype}"


def nbytes_of(shape, dtype):
    """Of an array."""
    return math.prod(shape) * (2 if dtype == "bfloat16" else 4)


def images(shape):
    """(N, ..) in words."""
    return f"{shape[0]} x {'x'.join(map(str, shape[1:]))}"


def of_few(key, shape):
    """(slice, key): as many samples of this shape as draw a million numbers, which takes NumPy a while."""
    few = slice(max(4, 2**20 // math.prod(shape[1:])))
    return few, key._replace(sample=key.sample[few], step=key.step[few])


def timed(op, device):
    """The cases of an op that are timed on a device. Where it is checked elsewhere, it takes a peer to be timed."""
    module = importlib.import_module(f"benchmarks.bench_{op}")
    for shape, dtype in device.timings(module):
        for case in module.cases_of(device, shape, dtype):
            if not device.gpu or any(c.kind == PEER for c in case.contenders):
                yield case


def checked(op, device):
    """The cases of an op that are checked on a device, in every type that its kernels know."""
    module = importlib.import_module(f"benchmarks.bench_{op}")
    for shape in module.TINY if device.tiny else module.CHECKS:
        for dtype in device.dtypes:
            yield from module.cases_of(device, shape, dtype)


# ---- right or wrong --------------------------------------------------------------------------------------------------


def error_of(got, exact):
    """Largest |got - exact| relative to max|exact|, of the worst array; NaN for a wrong shape or what is not finite.

    got, exact: float64 arrays. A truth with fewer rows is about the first rows.
    """
    if len(got) != len(exact):
        return float("nan")
    return float(np.max([_error(g, e) for g, e in zip(got, exact, strict=True)]))  # np.max, unlike max, hands a NaN on


def _error(got, exact):
    fits = got.ndim == exact.ndim and got.shape[1:] == exact.shape[1:] and len(got.reshape(-1)) >= exact.size
    if not fits or not bool((abs(got) < np.inf).all()):
        return float("nan")
    got = got[: len(exact)] if exact.ndim else got
    return float(abs(got - exact).max() / max(float(abs(exact).max()), 1e-30)) if exact.size else 0.0


def truth_of(device, op, reference, inputs, first=lambda arguments: [a[:1] for a in arguments]):
    """[output, gradient of every argument], float64: what contenders are compared with.

    The array path in float64, after it has been compared with pydiff/reference on a smaller problem: the output itself,
    and the gradients against the reference's slope along a random direction with a random cotangent.
    op: Tensors -> Tensor; reference: arrays -> array; inputs: the arguments and the gradient of the output, or None to
    leave out gradients. first(arguments): a part that can stand for all of it, such as those of the first sample.
    """
    *arguments, cotangent = inputs
    wide = [to_host(device.wide(a)) for a in first(arguments)]
    out, *gradients = differentiate(op, wide, None)
    trusted = error_of([out], [reference(*wide)]) <= 1e-9
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(out.shape)
    out, *gradients = differentiate(op, wide, weights)
    directions = [rng.standard_normal(a.shape) for a in wide]
    ahead, behind = (reference(*(a + h * d for a, d in zip(wide, directions, strict=True))) for h in (1e-5, -1e-5))
    slope = np.sum(weights * (ahead - behind)) / 2e-5
    parts = [np.sum(g * d) for g, d in zip(gradients, directions, strict=True)]
    trusted = trusted and abs(sum(parts) - slope) <= 1e-5 * (sum(map(abs, parts)) + 1e-3)
    if not trusted:
        raise AssertionError("the array path in float64 does not agree with the reference")
    cotangent = None if cotangent is None else device.wide(cotangent)
    return differentiate(op, [device.wide(a) for a in arguments], cotangent)


def differentiate(op, inputs, cotangent):
    """[output, gradient of every input]; with cotangent None the output alone."""
    tensors = [Tensor(a, requires_grad=cotangent is not None) for a in inputs]
    out = op(*tensors)
    if cotangent is None:
        return [out.data]
    out.backward(cotangent)
    return [out.data, *(t.grad for t in tensors)]


# ---- a differentiable op, and how everyone computes it ---------------------------------------------------------------


# {direction: (its part of the truth, the numbers of the arguments whose gradients it has, or None for all)}
BOTH = {"forward": (slice(1), ()), "backward": (slice(1, None), None)}
OF_LAYERS = {"forward": (slice(1), ()), "backward_input": (slice(1, 2), (0,)), "backward_weight": (slice(2, 4), (1, 2))}


def by_direction(device, problem, op, slow, peers, limit, directions=MappingProxyType(BOTH), **amounts):
    """The cases of a problem whose inputs are the arguments of `op` and the gradient of its output, and whose truth is
    the output and the gradients of the arguments.

    slow: pydiff/reference's function; peers(direction) -> contenders; flops or nbytes: {direction: how many}, of all
    directions that are wanted.
    """
    ((unit, amounts),) = amounts.items()
    for direction, amount in amounts.items():
        part, wanted = directions[direction]
        forward = direction == "forward"
        entrants = [*device.ours(forward_of(op) if forward else backward_of(op, wanted)), *peers(direction)]
        if forward and not device.gpu and amount < SMALL:
            entrants.insert(0, by_reference(lambda i: [slow(*i[:-1])]))
        allowed = device.limit(limit, problem.dtype)
        yield Case(f"{problem.op} {direction}", problem, part, entrants, allowed, **{unit: amount})


def by_reference(function):
    """pydiff/reference as a contender: function(inputs) -> arrays."""
    return Contender("reference (float64)", OTHER, lambda inputs: lambda: function(inputs))


def forward_of(op):
    """build(inputs) for Device.ours: op of all but the last of the inputs, which is a gradient."""

    def build(inputs):
        tensors = [Tensor(a) for a in inputs[:-1]]
        return no_grad()(lambda: op(*tensors))

    return build


def backward_of(op, wanted=None):
    """build(inputs) for Device.ours: the gradients of the arguments, or only of those whose numbers are `wanted`."""

    def build(inputs):
        *arguments, dy = inputs
        tensors = [Tensor(a, requires_grad=wanted is None or i in wanted) for i, a in enumerate(arguments)]
        function: Any = op(*tensors).maker
        return lambda: function.backward(dy)

    return build


def by_torch(device, direction, function, place=lambda t: t, back=None, suffix="", limit=None):
    """torch as a peer, as it is and, where that is usual, compiled: function(*tensors), or its gradients by autograd.

    Inputs as in by_direction; those of 4 axes are brought into torch's layout by place(tensor), and the results back by
    back(tensor). All have the type of the first, as torch's ops want it.
    """
    torch = peer("torch")
    for name, f in device.torch_ways(function):

        def make(inputs, f=f):
            tensors = [device.tensor(a) for a in inputs]
            *leaves, dy = [place(t.to(tensors[0].dtype)) if t.ndim == 4 else t.to(tensors[0].dtype) for t in tensors]
            if direction == "forward":
                return torch.no_grad()(lambda: [f(*leaves)])
            leaves = [leaf.detach().requires_grad_() for leaf in leaves]
            y = f(*leaves)
            return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)

        def outputs(results):
            return [back(r) if back and r.ndim == 4 else r for r in results]

        yield Contender(name + suffix, PEER, make, outputs, limit=limit)


def torch_layouts():
    """{suffix of a name: place(tensor)} for torch's two memory layouts of images; `from_channels_first` leads back.

    pydiff's images are (N, H, W, C); torch's (N, C, H, W), stored in either order.
    """
    channels_first = lambda t: t.permute(0, 3, 1, 2)  # noqa: E731
    return {"": lambda t: channels_first(t).contiguous(), " channels_last": lambda t: channels_first(t.clone())}


def from_channels_first(t):
    """(N, C, H, W) -> (N, H, W, C), a view."""
    return t.permute(0, 2, 3, 1)

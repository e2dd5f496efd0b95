"""The exact GELU on (size,), and the gate made of it on (rows, 2c), forward and backward: the shapes of Stable
Diffusion 1.5's transformer blocks. Peers: torch, as diffusers' GEGLU calls it, eager and compiled.
"""

import torch

from benchmarks.gpu.case import PEER, Case, Contender, ours
from benchmarks.gpu.device import TYPES

# (rows, c); the GELU alone takes all of their elements
CHECKS = [(1, 1), (5, 7), (3, 40), (77, 3072), (1030, 320)]
TIMINGS = [(8 * 4096, 1280), (8 * 1024, 2560), (8 * 256, 5120)]
TINY = [(5, 7), (6, 48)]


def checks(device):
    """Cases of the correctness stage."""
    for shape in TINY if device.tiny else CHECKS:
        for dtype in TYPES:
            for gated in (False, True):
                yield forward(device, shape, dtype, gated, peers=False)
                yield backward(device, shape, dtype, gated, peers=False)


def timings(device):
    """Cases of the timing stage."""
    for shape in TINY[1:] if device.tiny else TIMINGS:
        for dtype in TYPES:
            yield forward(device, shape, dtype, True, peers=True)
            yield backward(device, shape, dtype, True, peers=True)


def shapes_of(shape, gated):
    """(shape of x, shape of y)"""
    rows, c = shape
    return ((rows, 2 * c), (rows, c)) if gated else ((rows * c,), (rows * c,))


def make(random, shape, dtype, gated):
    """x, wide enough for both ends of the curve, and a gradient."""
    x_shape, y_shape = shapes_of(shape, gated)
    return {"x": 3 * random.normal(*x_shape, dtype=TYPES[dtype]), "dy": random.normal(*y_shape, dtype=TYPES[dtype])}


def gelu(x):
    """x Phi(x)"""
    return torch.nn.functional.gelu(x)


def geglu(x):
    """What diffusers' GEGLU computes behind its projection."""
    a, gate = x.chunk(2, dim=-1)
    return a * torch.nn.functional.gelu(gate)


def forward(device, shape, dtype, gated, peers):
    """y"""
    function, label = (geglu, "gelu gate") if gated else (gelu, "gelu")
    _, y_shape = shapes_of(shape, gated)

    def call(kernels, a, o):
        (kernels.geglu_forward if gated else kernels.gelu_forward)(a["x"], o["y"])

    entrants = [ours(device, "pydiff", lambda _: {"y": device.nan(*y_shape, dtype=TYPES[dtype])}, call)]
    entrants += list(torch_contenders(device, function, "y")) if peers else []
    elements = shape[0] * shape[1] * (3 if gated else 2)  # x read, y written
    return Case(
        f"{label} forward", words(shape), dtype, lambda random: make(random, shape, dtype, gated),
        lambda i: {"y": function(i["x"].double())}, entrants, nbytes=elements * TYPES[dtype].itemsize,
    )  # fmt: skip


def backward(device, shape, dtype, gated, peers):
    """dx"""
    function, label = (geglu, "gelu gate") if gated else (gelu, "gelu")
    x_shape, _ = shapes_of(shape, gated)

    def call(kernels, a, o):
        (kernels.geglu_backward if gated else kernels.gelu_backward)(a["dy"], a["x"], o["dx"])

    def truth(i):
        x = i["x"].double().requires_grad_()
        return {"dx": torch.autograd.grad(function(x), x, i["dy"].double())[0]}

    entrants = [ours(device, "pydiff", lambda _: {"dx": device.nan(*x_shape, dtype=TYPES[dtype])}, call)]
    entrants += list(torch_contenders(device, function, "dx")) if peers else []
    elements = shape[0] * shape[1] * (5 if gated else 3)  # x and dy read, dx written
    return Case(
        f"{label} backward", words(shape), dtype, lambda random: make(random, shape, dtype, gated), truth, entrants,
        nbytes=elements * TYPES[dtype].itemsize,
    )  # fmt: skip


def words(shape):
    """The shape in words."""
    return " x ".join(map(str, shape))


def torch_contenders(device, function, output):
    """torch, eager and compiled."""
    for name, f in (("torch eager", function), ("torch.compile", device.compile(function))):

        def prepare(i, f=f):
            x = i["x"].clone()
            if output == "y":
                return torch.no_grad()(lambda: [f(x)])
            x = x.requires_grad_()
            y = f(x)
            return lambda: torch.autograd.grad(y, [x], i["dy"], retain_graph=True)

        yield Contender(name, PEER, prepare, lambda arrays: {output: arrays[0]})

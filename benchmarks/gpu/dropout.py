"""dropout: y = m x with masks drawn on the spot; its gradient is the same launch. Peer: torch's, which draws and keeps
a mask; it is judged by the mask it drew itself.
"""

import math

import numpy as np
import torch

from benchmarks.gpu.case import PEER, Case, Contender, ours
from benchmarks.gpu.device import TYPES
from pydiff import random as philox

SEED, SHARE, CHECKED = 7, 0.1, 4  # samples whose mask is made again in NumPy, which takes a while

CHECKS = [(1, 3), (3, 7), (5, 64), (2, 1023), (4, 3072), (130, 192)]
TIMINGS = [(128, 128 * 32 * 32), (64, 128 * 64 * 64)]
TINY = [(3, 7), (2, 96)]


def checks(device):
    """Cases of the correctness stage."""
    for n, size in TINY if device.tiny else CHECKS:
        for dtype in TYPES:
            yield forward(device, n, size, dtype, peers=False)


def timings(device):
    """Cases of the timing stage."""
    for n, size in TINY[1:] if device.tiny else reversed(TIMINGS):
        for dtype in TYPES:
            yield forward(device, n, size, dtype, peers=True)


def forward(device, n, size, dtype, peers):
    """y"""

    def make(random):
        counters = {"sample": random.integers(2**31 - 1, n), "step": random.integers(9, n)}
        return {"x": random.normal(n, size, dtype=TYPES[dtype])} | counters

    def call(kernels, a, o):
        kernels.dropout_forward(
            a["x"], SHARE, 1 / (1 - SHARE), SEED, philox.DROPOUT, a["sample"], a["step"], o["y"]
        )  # fmt: skip

    def truth(i):
        sample, step = (i[name][:CHECKED].cpu().numpy().astype(np.uint32) for name in ("sample", "step"))
        u = philox.uniform(philox.key(SEED, philox.DROPOUT, sample, step), (size,))
        mask = torch.from_numpy((u >= SHARE) / (1 - SHARE)).to(i["x"].device)
        return {"y": mask * i["x"][:CHECKED].double()}

    entrants = [ours(device, "pydiff", lambda _: {"y": device.nan(n, size, dtype=TYPES[dtype])}, call)]
    entrants += list(torch_contenders(device)) if peers else []
    nbytes = 2 * n * size * TYPES[dtype].itemsize  # x read, y written
    return Case("dropout", f"{n} x {size}", dtype, make, truth, entrants, nbytes=nbytes)


def dropout(x):
    """torch's, as in training."""
    return torch.nn.functional.dropout(x, SHARE, training=True)


def torch_contenders(device):
    """That, eager and compiled."""

    def exact(i, got):
        kept = (got["y"] != 0).double()
        fine = abs(kept.mean() - (1 - SHARE)) <= 6 * math.sqrt(SHARE * (1 - SHARE) / kept.numel())
        return {"y": kept / (1 - SHARE) * i["x"].double() if fine else torch.full_like(kept, math.nan)}

    for name, f in (("torch eager", dropout), ("torch.compile", device.compile(dropout))):
        yield Contender(
            name, PEER, lambda i, f=f: torch.no_grad()(lambda: [f(i["x"])]), lambda arrays: {"y": arrays[0]}, exact
        )

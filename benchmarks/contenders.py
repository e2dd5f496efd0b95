"""Who takes part: pydiff's array path, its C++ kernels at every instruction set, and torch where it is installed."""

import ctypes
import importlib
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pydiff import backend, compiled
from pydiff.tensor import Tensor

OURS, PEER, OTHER = "ours", "peer", "other"  # a ratio is the best peer's time over ours; the others are for orientation


class Contender(NamedTuple):
    """One way to compute a case.

    make(inputs) -> call: prepares everything that is not timed (layouts, saved forward results); call() does the work
    and returns a tuple of results. outputs(results) -> list of arrays in pydiff's layout, to compare with the truth.
    exact: None, or exact(inputs, outputs) -> the truth for a contender that drew its own random numbers.
    """

    name: str
    kind: str
    make: Callable
    outputs: Callable
    exact: Callable | None = None


def keep_freed_memory():
    """Makes glibc keep what is freed for the next request instead of returning it to the system, in all this process.

    For contenders that have no memory of their own as pydiff has. Where the C library is another, nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # from malloc.h
        for what, value in ((mmap_threshold, 1 << 30), (trim_threshold, 2**31 - 1), (top_pad, 64 << 20)):
            mallopt(what, value)


class kernels:
    """Inside, the ops use this compiled module; None: the array path."""

    def __init__(self, module):
        self.module = module

    def __enter__(self):
        self.before, backend.cpu = backend.cpu, self.module

    def __exit__(self, *_):
        backend.cpu = self.before


def levels(every=False):
    """{name: compiled module} of the instruction set in use or, with `every`, of all built ones it has."""
    if backend.cpu is None:
        return {}
    names = compiled.levels() if every else [backend.cpu_reason.split()[-1]]
    return {name: importlib.import_module(compiled.LEVELS[name]) for name in names}


def house(build, every=False):
    """The array path and the C++ kernels as contenders. build(inputs) -> call, returning arrays or Tensors."""

    def under(module):
        def make(inputs):
            with kernels(module):
                call = build(inputs)

            def run():
                with kernels(module):
                    return call()

            return run

        return make

    yield Contender("array path", OTHER, under(None), arrays)
    for name, module in levels(every).items():
        yield Contender(f"C++ {name}", OURS, under(module), arrays)


def arrays(results):
    """The arrays in a result of our ops: Tensors unpacked, gradients that nobody asked for left out."""
    results = results if isinstance(results, tuple | list) else (results,)
    return [r.data if isinstance(r, Tensor) else r for r in results if r is not None]


def peer(name):
    """The module called `name`, or None where it is not installed. A broken installation is an error."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


# ---- torch's layouts: pydiff's images are (N, H, W, C) and its filters (kH, kW, Cin, Cout) ----


def to_torch(x, channels_last):
    """(N, H, W, C) array -> (N, C, H, W) tensor, stored in either order."""
    torch = peer("torch")
    x = torch.from_numpy(x).permute(0, 3, 1, 2)
    return x.clone() if channels_last else x.contiguous()


def filters_to_torch(w, channels_last):
    """(kH, kW, Cin, Cout) array -> (Cout, Cin, kH, kW) tensor, stored in either order."""
    torch = peer("torch")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.from_numpy(w).permute(3, 2, 0, 1).contiguous(memory_format=layout)


def from_torch(x):
    """A tensor back in pydiff's order of axes."""
    x = x.detach()
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy()


def filters_from_torch(w):
    """(Cout, Cin, kH, kW) -> (kH, kW, Cin, Cout)"""
    return w.detach().permute(2, 3, 1, 0).numpy()


# ---- threads ----


def available_threads():
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(n):
    """Gives all contenders the same number of threads: our kernels, NumPy's BLAS and torch, if that was imported.

    RuntimeError if NumPy's BLAS would have to be told and threadpoolctl is not there to do it.
    """
    for module in levels(every=True).values():
        module.set_threads(n)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(n)
    limiter = peer("threadpoolctl")
    if limiter:
        limiter.threadpool_limits(n, user_api="blas")
    elif n != available_threads():
        raise RuntimeError(
            f"{n} threads for NumPy's BLAS need the package threadpoolctl, which is not installed; install it, or "
            f"leave out --threads"
        )


def variants(make, nbytes, rng, reserve=64e6):
    """Sets of inputs to rotate through, so that no contender works on inputs that its last call left in the cache: as
    many as fill `reserve` bytes, 1 to 8. make(rng) -> inputs of `nbytes` bytes."""
    return [make(rng) for _ in range(int(np.clip(np.ceil(reserve / max(nbytes, 1)), 1, 8)))]

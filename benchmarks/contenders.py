"""Who may be there: C++ kernels of every instruction set, libraries to compare with; and threads and memory for all."""

import ctypes
import importlib
import os
import sys

from pydiff import backend, compiled


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


def peer(name):
    """The module called `name`, or None where it is not installed. A broken installation is an error."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


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

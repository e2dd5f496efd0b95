"""The one switch: on which device this thread computes, and which compiled kernels serve an array.

Everything above this file asks `native(x, "group_norm_forward")` for a compiled function; a None means "use the array
path" (arrays.py has what NumPy and CuPy share). Environment, read once at import:

    PYDIFF_NATIVE   auto (default): compiled kernels where they exist; require: an error without them; off: arrays only
    PYDIFF_SIMD     baseline, avx2 or avx512: use this instruction set instead of the best one the processor has
    PYDIFF_WINOGRAD on (default) or off: see use_winograd
    PYDIFF_THREADS  threads of the compiled CPU kernels (default: the processors this process may run on)

A device is "cpu" (NumPy), "cuda" (CuPy and the CUDA kernels) or "simt": NumPy arrays and the same CUDA kernels, run on
the CPU by the emulator of csrc/simt, for tests and for stepping through one (docs/simt.md). Each Python thread is on a
device of its own: a new one begins on the CPU, whatever the thread that started it is doing.
"""

import contextlib
import os
import threading
from typing import Any

import numpy as np

from pydiff import compiled

FLOAT32 = np.dtype(np.float32)


def _setting(name, allowed, default):
    value = os.environ.get(name) or default
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(a for a in allowed if a)}; got {value!r}")
    return value


NATIVE = _setting("PYDIFF_NATIVE", ("auto", "require", "off"), "auto")

cpu: Any
cpu, cpu_reason = compiled.load_cpu(NATIVE, _setting("PYDIFF_SIMD", ("", *compiled.LEVELS), ""))
cuda = None  # pydiff._cuda, once `use_device("cuda")` has loaded it
DEVICES = ("cpu", "cuda", "simt")
# Goes up with every commit that changes the arithmetic of a kernel, and so the last bits of a training: checkpoints
# remember it, and a run that goes on with another generation says so. 2: Winograd's algorithm for 3 x 3 kernels of more
# than 512 x 512 weights, too. 3: layer norm, GELU and GEGLU have kernels. 4: causal and masked attention, too.
KERNEL_GENERATION = 4


class _Here(threading.local):
    """The devices that this thread has entered and not yet left, innermost last, and what follows from them."""

    def __init__(self):
        self.entered = []  # [device], each a list of its own, so that two of one name are two entries
        self.emulator = None  # pydiff._simt where the innermost is "simt"
        self.arena = None  # the scope in which NumPy's arrays come from the arena, where one of them is "cpu"


here = _Here()


def _follow(state):
    """Makes kernels and memory of a thread those of what it has entered now. state: its here.__dict__."""
    entered = [device for (device,) in state["entered"]]
    simt = bool(entered) and entered[-1] == "simt"
    state["emulator"] = _emulator() if simt else None
    if state is not here.__dict__:
        return  # NumPy knows the memory of its own thread only; that follows when the thread itself next comes by
    if "cpu" in entered and state["arena"] is None:
        state["arena"] = arena()
        state["arena"].__enter__()
    elif "cpu" not in entered and state["arena"] is not None:
        state["arena"].__exit__(None, None, None)
        state["arena"] = None


def __getattr__(name):
    if name == "emulator":  # of this thread: pydiff._simt inside `use_device("simt")`, else None
        return here.emulator
    raise AttributeError(f"module 'pydiff.backend' has no attribute {name!r}")


@contextlib.contextmanager
def use_device(device):
    """Inside, this thread computes on this device: yields the array library, numpy or cupy. On "cpu" in `arena`.

    Blocks may end in another order than they began, as in generators that take turns: the innermost that is still open
    counts. A generator that is itself to be on a device, wherever it is asked for its next item, wants `on_device`.
    RuntimeError, in one sentence, if the device cannot be used here; ValueError for an unknown name.
    """
    global cuda
    if device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    xp = _cupy() if device == "cuda" else np
    if device == "cuda" and cuda is None and NATIVE != "off":
        cuda = compiled.load("pydiff._cuda", "the module of CUDA kernels")
    state, entry = here.__dict__, [device]  # this thread's: the block of a generator may be left by another one
    state["entered"].append(entry)
    try:
        _follow(state)
        yield xp
    finally:
        state["entered"][:] = [other for other in state["entered"] if other is not entry]
        _follow(state)


def on_device(device, steps):
    """The items of a generator that runs on this device, while whoever takes them may be elsewhere."""
    with trimmed(), contextlib.closing(steps):
        while True:
            with use_device(device):
                try:
                    item = next(steps)
                except StopIteration:
                    return
            yield item


def arena():
    """A context manager: inside, in this thread, new NumPy arrays take the memory of earlier ones (csrc/cpu/arena.h).
    The arrays may outlive it. Without compiled kernels nothing changes.
    """
    return contextlib.nullcontext() if cpu is None else cpu.Arena()


def trim():
    """Hands back to the system what the arena holds and no array uses, and this thread's scratch memory."""
    if cpu is not None:
        cpu.arena_trim()
        cpu.release_scratch()


@contextlib.contextmanager
def trimmed():
    """`trim` afterwards. Also a decorator."""
    try:
        yield
    finally:
        trim()


def _emulator():
    """The emulator's module, which takes a minute to compile when it is asked for the first time."""
    from pydiff.emulator import load

    return load()


def _cupy():
    """CuPy, once it is known to work: importing it succeeds on machines without a driver."""
    try:
        import cupy
    except ImportError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]  # CuPy's own text is a page
        raise RuntimeError(
            f"device cuda needs CuPy, which could not be imported ({reason}); pip install 'pydiff[cuda13]', "
            "or [cuda12] for a driver of CUDA 12"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # whatever CuPy raises without a driver
        raise RuntimeError(f"device cuda needs a GPU with a driver, and CuPy finds none: {error}") from error
    if count < 1:
        raise RuntimeError("device cuda needs a GPU, and CuPy finds none")
    return cupy


def is_bfloat16(dtype):
    """Whether this is the bfloat16 of ml_dtypes, whose kind is V, as if unknown."""
    return dtype.kind == "V" and dtype.name == "bfloat16"


def widened(a):
    """a, or if it is bfloat16 the same in float32: NumPy multiplies no matrices of it, and rounds after every step."""
    return a.astype(FLOAT32) if is_bfloat16(a.dtype) else a


def bfloat16():
    """The dtype, which NumPy and CuPy do not have of their own. RuntimeError in one sentence without its package."""
    try:
        import ml_dtypes
    except ImportError:
        raise RuntimeError("bfloat16 needs the package ml_dtypes; pip install ml_dtypes") from None
    return np.dtype(ml_dtypes.bfloat16)


def native(x, name):
    """The compiled function `name` (`csrc/kernels.h` lists them) that serves arrays like x, or None: array path.

    x: ndarray. The CPU kernels are float32, the CUDA kernels float32 and bfloat16; the rest takes the array path.
    """
    kernels = (here.emulator or cpu) if type(x) is np.ndarray else cuda
    served = kernels is not None and (x.dtype == FLOAT32 or (kernels is not cpu and is_bfloat16(x.dtype)))
    return getattr(kernels, name) if served else None


_winograd = True


def arithmetic():
    """What the last bits of a training on the CPU depend on, as JSON: checkpoints remember it."""
    level = "arrays" if cpu is None else cpu_reason.split()[-1]
    return {"generation": KERNEL_GENERATION, "kernels": level, "winograd": _winograd and cpu is not None}


def use_winograd(on):
    """Whether the compiled CPU kernels may compute 3 x 3 convolutions by Winograd's algorithm (docs/winograd.md).

    It is about twice as fast as the plain one; its rounding errors are 3 to 8 times larger. The environment variable
    PYDIFF_WINOGRAD=off does the same from the start.
    """
    global _winograd
    _winograd = bool(on)
    if cpu is not None:
        cpu.use_winograd(_winograd)


if _setting("PYDIFF_WINOGRAD", ("on", "off"), "on") == "off":
    use_winograd(False)


def threads():
    """Threads that the compiled CPU kernels use; 1 without them."""
    return cpu.threads() if cpu is not None else 1


def set_threads(n):
    """Set the number of threads of the compiled CPU kernels (n >= 1). Results do not depend on it, bit for bit."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"threads must be a whole number of at least 1, got {n!r}")
    if cpu is not None:
        cpu.set_threads(int(n))

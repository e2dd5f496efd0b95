"""The only switch: on which device this thread computes, and which compiled kernels serve an array.

Everything above this file asks `native(x, "group_norm_forward")` for a compiled function; a None means "use the array
path" (arrays.py has what NumPy and CuPy share). Environment, read once at import:

    PYDIFF_NATIVE   auto (default): compiled kernels where they exist; require: an error without them; off: arrays only
    PYDIFF_SIMD     baseline, avx2 or avx512: use this instruction set instead of the best one the processor has
    PYDIFF_WINOGRAD on (default) or off: see use_winograd
    PYDIFF_THREADS  threads of the compiled CPU kernels (default: the processors this process may run on)

A name that is nearly one of these is warned of.

A device is "cpu" (NumPy), "cuda" (CuPy and the CUDA kernels) or "simt": NumPy arrays and the same CUDA kernels, run on
the CPU by the emulator of csrc/simt, for tests and for stepping through a kernel (docs/simt.md). Each Python thread has
its own current device: a new thread begins on the CPU, whatever the thread that started it is using.
"""

import contextlib
import os
import threading
from typing import Any

import numpy as np

from pydiff import compiled

FLOAT32 = np.dtype(np.float32)
compiled.warn_of_misspelt(os.environ)
compiled.check_threads(os.environ)


def _setting(name, allowed, default):
    value = os.environ.get(name) or default
    if value not in allowed:
        raise compiled.wrong_setting(f"{name} must be one of {', '.join(a for a in allowed if a)}; got {value!r}")
    return value


NATIVE = _setting("PYDIFF_NATIVE", ("auto", "require", "off"), "auto")

cpu: Any
cpu, cpu_reason = compiled.load_cpu(NATIVE, _setting("PYDIFF_SIMD", ("", *compiled.LEVELS), ""))
cuda = None  # pydiff._cuda, once `use_device("cuda")` has loaded it
DEVICES = ("cpu", "cuda", "simt")
# Increases with every commit that changes the arithmetic of a kernel, and so the last bits of a training: checkpoints
# record it, and a run that resumes with another generation says so. 2: Winograd's algorithm also for 3 x 3 kernels of
# more than 512 x 512 weights. 3: layer norm, GELU and GEGLU have kernels. 4: causal and masked attention, too. 5: layer
# norm reads a row twice instead of four times, and the gradient of linear weights adds up longer blocks of rows.
KERNEL_GENERATION = 5


class _Here(threading.local):
    """The devices that this thread has entered and not yet left, innermost last, and the state that follows
    from them.
    """

    def __init__(self):
        self.entered = []  # [device], each a separate list, so that equal names are distinct entries
        self.emulator = None  # pydiff._simt if the innermost is "simt"
        self.arena = None  # the scope in which NumPy's arrays come from the arena, if one of them is "cpu"


here = _Here()


def _follow(state):
    """Sets a thread's kernels and memory according to the devices it has entered. state: its here.__dict__."""
    entered = [device for (device,) in state["entered"]]
    simt = bool(entered) and entered[-1] == "simt"
    state["emulator"] = _emulator() if simt else None
    if state is not here.__dict__:
        return  # NumPy's allocator is per thread; it is set when that thread itself next calls this
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
    """Inside, this thread computes on this device: yields the array library, numpy or cupy. "cpu" also enters `arena`.

    Blocks may end in another order than they began, as in interleaved generators: the innermost that is still open
    counts. To run a generator on a device, wherever its items are consumed, use `on_device`. Raises RuntimeError if the
    device cannot be used here, ValueError for an unknown name.
    """
    global cuda
    if device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    xp = _cupy() if device == "cuda" else np
    if device == "cuda" and cuda is None and NATIVE != "off":
        cuda = compiled.load("pydiff._cuda", "the module of CUDA kernels")
    state, entry = here.__dict__, [device]  # this thread's: another thread may leave a generator's block
    state["entered"].append(entry)
    try:
        _follow(state)
        yield xp
    finally:
        state["entered"][:] = [other for other in state["entered"] if other is not entry]
        _follow(state)


def on_device(device, steps):
    """Yields the items of a generator that runs on this device, while its consumer may be on another."""
    with trimmed(), contextlib.closing(steps):
        while True:
            with use_device(device):
                try:
                    item = next(steps)
                except StopIteration:
                    return
            yield item


def arena():
    """A context manager: inside, in this thread, new NumPy arrays reuse the memory of earlier ones (csrc/cpu/arena.h).

    The arrays may outlive it. Without compiled kernels it does nothing.
    """
    return contextlib.nullcontext() if cpu is None else cpu.Arena()


def trim():
    """Returns to the system the memory that the arena holds but no array uses, and this thread's scratch memory."""
    if cpu is not None:
        cpu.arena_trim()
        cpu.release_scratch()


@contextlib.contextmanager
def trimmed():
    """Calls `trim` at the end. Also a decorator."""
    try:
        yield
    finally:
        trim()


def _emulator():
    """The emulator's module, which takes a minute to compile when first used."""
    from pydiff.emulator import load

    return load()


def _cupy():
    """CuPy, after checking that it works: importing it succeeds on machines without a driver."""
    try:
        import cupy
    except ImportError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]  # CuPy's own message is a page long
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
    """Whether this is the bfloat16 of ml_dtypes, whose kind is V, like unknown types."""
    return dtype.kind == "V" and dtype.name == "bfloat16"


def widened(a):
    """a, converted to float32 if it is bfloat16: NumPy cannot multiply bfloat16 matrices, and rounds at every step."""
    return a.astype(FLOAT32) if is_bfloat16(a.dtype) else a


def bfloat16():
    """The bfloat16 dtype of ml_dtypes, as NumPy and CuPy have none. Raises RuntimeError if that package is missing."""
    try:
        import ml_dtypes
    except ImportError:
        raise RuntimeError("bfloat16 needs the package ml_dtypes; pip install ml_dtypes") from None
    return np.dtype(ml_dtypes.bfloat16)


def native(x, name):
    """The compiled function `name` (`csrc/kernels.h` lists them) that serves arrays like x; None means the array path.

    x: ndarray. The CPU kernels take float32, the CUDA kernels float32 and bfloat16; all else takes the array path.
    """
    kernels = (here.emulator or cpu) if type(x) is np.ndarray else cuda
    served = kernels is not None and (x.dtype == FLOAT32 or (kernels is not cpu and is_bfloat16(x.dtype)))
    return getattr(kernels, name) if served else None


_winograd = True


def arithmetic():
    """What determines the last bits of a training on the CPU, as JSON, for checkpoints."""
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
    """Sets the number of threads of the compiled CPU kernels (n >= 1). Results do not depend on it, bit for bit."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"threads must be a whole number of at least 1, got {n!r}")
    if cpu is not None:
        cpu.set_threads(int(n))

"""The one switch: which array library an array belongs to, and which compiled kernels serve it.

Everything above this file writes `xp = array_module(x)` and asks `native(x, "group_norm_forward")` for a compiled
function; a None means "use the array path". Environment, read once at import:

    PYDIFF_NATIVE   auto (default): compiled kernels where they exist; require: an error without them; off: arrays only
    PYDIFF_SIMD     baseline, avx2 or avx512: use this instruction set instead of the best one the processor has
    PYDIFF_WINOGRAD on (default) or off: see use_winograd
    PYDIFF_THREADS  threads of the compiled CPU kernels (default: the processors this process may run on)

A device is "cpu" (NumPy), "cuda" (CuPy and the CUDA kernels) or "simt": NumPy arrays and the same CUDA kernels, run on
the CPU by the emulator of csrc/simt, for tests and for stepping through one (docs/simt.md). Pictures, parameters and
all that has their size live on the device. One number for each picture (t, alpha, sigma, labels, keys) stays a NumPy
array, in float64 or integers, until it meets a picture: `column` moves it there. Nothing else moves by itself.
"""

import contextlib
import math
import os
import sys

import numpy as np

from pydiff import compiled

FLOAT32 = np.dtype(np.float32)


def _setting(name, allowed, default):
    value = os.environ.get(name) or default
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(a for a in allowed if a)}; got {value!r}")
    return value


NATIVE = _setting("PYDIFF_NATIVE", ("auto", "require", "off"), "auto")


cpu, cpu_reason = compiled.load_cpu(NATIVE, _setting("PYDIFF_SIMD", ("", *compiled.LEVELS), ""))
cuda = None  # pydiff._cuda, once `use_device("cuda")` has loaded it
emulator = None  # pydiff._simt, inside `use_device("simt")`
DEVICES = ("cpu", "cuda", "simt")
LARGE = 1 << 15  # elements: below, waking threads costs more than they save


@contextlib.contextmanager
def use_device(device):
    """Inside, new arrays belong on this device: yields the array library, numpy or cupy. On "cpu" in `arena`.

    RuntimeError, in one sentence, if the device cannot be used here; ValueError for an unknown name.
    """
    global cuda, emulator
    if device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    xp = _cupy() if device == "cuda" else np
    if device == "cuda" and cuda is None and NATIVE != "off":
        cuda = compiled.load("pydiff._cuda", "the module of CUDA kernels")
    before = emulator
    emulator = _emulator() if device == "simt" else None
    try:
        with arena() if device == "cpu" else contextlib.nullcontext():
            yield xp
    finally:
        emulator = before


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
    The arrays may outlive it. Without compiled kernels nothing changes."""
    return contextlib.nullcontext() if cpu is None else cpu.Arena()


@contextlib.contextmanager
def trimmed():
    """Afterwards, what the arena holds and no array uses goes back to the system. Also a decorator."""
    try:
        yield
    finally:
        if cpu is not None:
            cpu.arena_trim()


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


def array_module(*arrays):
    """numpy or cupy: the library that the first array-like argument belongs to. CuPy is never imported here."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and any(isinstance(a, cupy.ndarray) for a in arrays):
        return cupy
    return np


def is_bfloat16(dtype):
    """Whether this is the bfloat16 of ml_dtypes, whose kind is V, as if unknown."""
    return dtype.kind == "V" and dtype.name == "bfloat16"


def to_host(a):
    """The NumPy array with a's values: a itself where it is one, else a copy from the GPU, which waits for it."""
    return np.asarray(a) if array_module(a) is np else a.get()


def column(values, like):
    """(N,) numbers -> (N, 1, ..) of like's dtype where like is, to multiply every element of a sample."""
    return array_module(like).asarray(values, like.dtype).reshape((-1,) + (1,) * (like.ndim - 1))


def add(a, b):
    """a + b. On all threads for large float32 arrays, if b has a's shape or is a row, (N, 1, .., C), for every sample.

    The bits are NumPy's, which does this on one thread: in a training step that cost as much as a tenth.
    """
    if not _for_threads(a, b) or (a.shape[0], a.shape[-1]) != (b.shape[0], b.shape[-1]):
        return a + b
    size = a.size if a.shape == b.shape else a.shape[-1]
    if a.shape != b.shape and b.size != b.shape[0] * size:
        return a + b
    out = np.empty_like(a)
    cpu.add_rows(a.reshape(-1, size), b.reshape(-1, size), out.reshape(-1, size))
    return out


def join(a, b):
    """a (N, .., A) and b (N, .., B) side by side, (N, .., A + B); on all threads like `add`."""
    if not _for_threads(a, b) or a.shape[:-1] != b.shape[:-1]:
        return array_module(a).concatenate([a, b], axis=-1)
    out = np.empty((*a.shape[:-1], a.shape[-1] + b.shape[-1]), a.dtype)
    cpu.join_rows(_rows(a), _rows(b), _rows(out))
    return out


def split(x, size):
    """The first `size` channels of x (N, .., C), and the others: large arrays are copied on all threads like `add`, so
    that both parts are contiguous for whoever adds or convolves them; small ones and the GPU's are cut into views."""
    a, b = x[..., :size], x[..., size:]
    if _for_threads(x, x):
        a, b = np.empty(a.shape, x.dtype), np.empty(b.shape, x.dtype)
        cpu.split_rows(_rows(x), _rows(a), _rows(b))
    return a, b


def _rows(x):
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _for_threads(a, b):
    """Whether both are arrays that the helpers of csrc/cpu/elementwise.h take, and large enough to be worth it."""
    return (
        cpu is not None
        and type(a) is type(b) is np.ndarray
        and a.dtype == b.dtype == FLOAT32
        and a.size >= LARGE
        and a.ndim == b.ndim
        and a.flags.c_contiguous
        and b.flags.c_contiguous
    )


def native(x, name):
    """The compiled function `name` (`csrc/cpu/kernels.h` lists them) that serves arrays like x, or None: array path.

    x: ndarray. The CPU kernels are float32, the CUDA kernels float32 and bfloat16; the rest takes the array path.
    """
    kernels = (emulator or cpu) if type(x) is np.ndarray else cuda
    served = kernels is not None and (x.dtype == FLOAT32 or (kernels is not cpu and is_bfloat16(x.dtype)))
    return getattr(kernels, name) if served else None


def empty(like, shape):
    """An uninitialised C-ordered array of like's dtype on like's device: where every op's output comes from."""
    return array_module(like).empty(shape, like.dtype)


def contiguous(x):
    """x itself when C-contiguous, else a copy that is (0-d arrays stay 0-d, unlike in np.ascontiguousarray)."""
    return x if x.flags.c_contiguous else x.copy(order="C")


def use_winograd(on):
    """Whether the compiled CPU kernels may compute 3 x 3 convolutions by Winograd's algorithm (docs/winograd.md).

    It is about twice as fast as the plain one; its rounding errors are 3 to 8 times larger. The environment variable
    PYDIFF_WINOGRAD=off does the same from the start.
    """
    if cpu is not None:
        cpu.use_winograd(bool(on))


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

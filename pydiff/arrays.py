"""What NumPy and CuPy share: which of the two an array belongs to, moves between host and device, and the few copies
and sums over whole images that compiled helpers do on all threads.

Images, parameters and all arrays of their size live on the device. Arrays with one number per image (t, alpha, sigma,
labels, keys) stay NumPy arrays, in float64 or integers, until they meet an image: `column` moves them. Nothing else
moves implicitly.
"""

import math
import sys
import threading
import weakref

import numpy as np

from pydiff import backend
from pydiff.backend import FLOAT32

LARGE = 1 << 15  # elements; below this, waking threads costs more than they save


def array_module(*arrays):
    """numpy or cupy: the library that the first array-like argument belongs to. CuPy is never imported here."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and any(isinstance(a, cupy.ndarray) for a in arrays):
        return cupy
    return np


def to_host(a):
    """The NumPy array with a's values: a itself if it is one, else a copy from the GPU, which waits for it."""
    return np.asarray(a) if array_module(a) is np else a.get()


def column(values, like):
    """(N,) numbers -> (N, 1, ..) of like's dtype on its device, to multiply every element of a sample."""
    return array_module(like).asarray(values, like.dtype).reshape((-1,) + (1,) * (like.ndim - 1))


def add(a, b):
    """a + b, on all threads for large float32 arrays, if b has a's shape or is one row per sample, (N, 1, .., C).

    The result is bitwise NumPy's, which uses one thread: that took up to a tenth of a training step.
    """
    if not _for_threads(a, b) or (a.shape[0], a.shape[-1]) != (b.shape[0], b.shape[-1]):
        return a + b
    size = a.size if a.shape == b.shape else a.shape[-1]
    if a.shape != b.shape and b.size != b.shape[0] * size:
        return a + b
    out = np.empty_like(a)
    backend.cpu.add_rows(a.reshape(-1, size), b.reshape(-1, size), out.reshape(-1, size))
    return out


def join(a, b):
    """a (N, .., A) and b (N, .., B) concatenated, (N, .., A + B); on all threads like `add`."""
    if not _for_threads(a, b) or a.shape[:-1] != b.shape[:-1]:
        return array_module(a).concatenate([a, b], axis=-1)
    out = np.empty((*a.shape[:-1], a.shape[-1] + b.shape[-1]), a.dtype)
    backend.cpu.join_rows(_rows(a), _rows(b), _rows(out))
    return out


def split(x, size):
    """The first `size` channels of x (N, .., C), and the others. Large arrays are copied on all threads like `add`, so
    that both parts are contiguous for later operations; small ones and the GPU's are cut into views.
    """
    a, b = x[..., :size], x[..., size:]
    if _for_threads(x, x):
        a, b = np.empty(a.shape, x.dtype), np.empty(b.shape, x.dtype)
        backend.cpu.split_rows(_rows(x), _rows(a), _rows(b))
    return a, b


def _rows(x):
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _for_threads(a, b):
    """Whether the helpers of csrc/cpu/elementwise.h take both arrays, and they are large enough to be worth it."""
    return (
        backend.cpu is not None
        and type(a) is type(b) is np.ndarray
        and a.dtype == b.dtype == FLOAT32
        and a.size >= LARGE
        and a.ndim == b.ndim
        and a.flags.c_contiguous
        and b.flags.c_contiguous
    )


def empty(like, shape):
    """An uninitialised C-ordered array of like's dtype on like's device, for the output of an operation."""
    return array_module(like).empty(shape, like.dtype)


class _Sent(threading.local):
    """What this thread has moved with `sent`: {id of a host array: (reference to it, its copy on the device)}."""

    def __init__(self):
        self.copies = {}


_sent = _Sent()


def sent(a, like):
    """The read-only NumPy array `a` on like's device: moved only once, however often it is needed.

    Every small transfer stalls a GPU's stream. The copy lives as long as `a` does.
    """
    xp = array_module(like)
    if xp is np or a.flags.writeable:
        return xp.asarray(a)
    copies, number = _sent.copies, id(a)
    if number not in copies:
        copies[number] = weakref.ref(a, lambda _: copies.pop(number, None)), xp.asarray(a)
    return copies[number][1]


def contiguous(x):
    """x itself when C-contiguous, else a copy that is (0-d arrays stay 0-d, unlike in np.ascontiguousarray)."""
    return x if x.flags.c_contiguous else x.copy(order="C")

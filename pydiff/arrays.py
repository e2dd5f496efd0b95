"""What NumPy and CuPy have in common: which of the two an array belongs to, moving between host and device, and the few
copies and sums over whole images that the compiled helpers do on all threads.

Images, parameters and all that has their size live on the device. One number for each image (t, alpha, sigma,
labels, keys) stays a NumPy array, in float64 or integers, until it meets an image: `column` moves it there. Nothing
else moves by itself.
"""

import math
import sys
import threading
import weakref

import numpy as np

from pydiff import backend
from pydiff.backend import FLOAT32

LARGE = 1 << 15  # elements: below, waking threads costs more than they save


def array_module(*arrays):
    """numpy or cupy: the library that the first array-like argument belongs to. CuPy is never imported here."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and any(isinstance(a, cupy.ndarray) for a in arrays):
        return cupy
    return np


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
    backend.cpu.add_rows(a.reshape(-1, size), b.reshape(-1, size), out.reshape(-1, size))
    return out


def join(a, b):
    """a (N, .., A) and b (N, .., B) side by side, (N, .., A + B); on all threads like `add`."""
    if not _for_threads(a, b) or a.shape[:-1] != b.shape[:-1]:
        return array_module(a).concatenate([a, b], axis=-1)
    out = np.empty((*a.shape[:-1], a.shape[-1] + b.shape[-1]), a.dtype)
    backend.cpu.join_rows(_rows(a), _rows(b), _rows(out))
    return out


def split(x, size):
    """The first `size` channels of x (N, .., C), and the others: large arrays are copied on all threads like `add`, so
    that both parts are contiguous for whoever adds or convolves them; small ones and the GPU's are cut into views.
    """
    a, b = x[..., :size], x[..., size:]
    if _for_threads(x, x):
        a, b = np.empty(a.shape, x.dtype), np.empty(b.shape, x.dtype)
        backend.cpu.split_rows(_rows(x), _rows(a), _rows(b))
    return a, b


def _rows(x):
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _for_threads(a, b):
    """Whether both are arrays that the helpers of csrc/cpu/elementwise.h take, and large enough to be worth it."""
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
    """An uninitialised C-ordered array of like's dtype on like's device: where every op's output comes from."""
    return array_module(like).empty(shape, like.dtype)


class _Sent(threading.local):
    """What this thread has moved by `sent`: {id of a host array: (reference to it, its copy on the device)}."""

    def __init__(self):
        self.copies = {}


_sent = _Sent()


def sent(a, like):
    """`a`, a NumPy array that cannot be written to, where like is: moved once, however often it is asked for.

    Every small array that is moved costs a GPU's stream a gap. The copy lives as long as `a` does.
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

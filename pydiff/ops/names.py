"""Further names of the operations, as used in NumPy and PyTorch, and further methods of arrays.

Nothing here has a derivative of its own. If the two libraries mean different things by one name, NumPy's meaning is
taken, and PyTorch's keyword (`dim`) is refused with a message that says what to write.
"""

import math
import operator

import numpy as np

from pydiff.mistakes import of_tensor
from pydiff.ops.elementwise import clip, multiply, power, relu, sigmoid, sqrt, tanh
from pydiff.ops.reduction import log_softmax, softmax, summation
from pydiff.ops.shape import broadcast_to, reshape, transpose
from pydiff.tensor import Tensor


def listed(arguments):
    """A shape or axes, given one by one or as one tuple or list, as a tuple."""
    return tuple(arguments[0]) if len(arguments) == 1 and isinstance(arguments[0], tuple | list) else arguments


def axis_called_dim(operation, same=True):
    """The same method, which also accepts `dim` and `keepdim`.

    same: whether PyTorch's method of that name gives the same result; otherwise these keywords are refused.
    """

    def method(x, *options, **named):
        theirs = {"dim": "axis", "keepdim": "keepdims"}
        if not same and not theirs.keys().isdisjoint(named):
            raise TypeError(
                "this method is NumPy's: max and min give no places (argmax does), and var and std divide by the "
                "count; write axis= for dim=, and ddof=1 for PyTorch's var and std"
            )
        return operation(x, *options, **{theirs.get(name, name): value for name, value in named.items()})

    return method


def limited(x, low=None, high=None, min=None, max=None):
    """x limited to [low, high], also called min and max; one of the two may be omitted. See `clip`."""
    low, high = min if low is None else low, max if high is None else high
    if low is None and high is None:
        raise ValueError("clip needs min or max")
    return clip(x, low, high)


def counted(x, axis):
    """An axis of x, counted from the front. Raises numpy.exceptions.AxisError if x has no such axis."""
    if not -x.ndim <= operator.index(axis) < x.ndim:
        raise np.exceptions.AxisError(axis, x.ndim)
    return axis % x.ndim


def swapaxes(x, first, second):
    """x with two of its axes exchanged."""
    first, second, order = counted(x, first), counted(x, second), list(range(x.ndim))
    order[first], order[second] = order[second], order[first]
    return transpose(x, tuple(order))


def flatten(x, start_dim=0, end_dim=-1, order="C"):
    """x with the axes from start_dim to end_dim made one; all of them by default. order: NumPy's, which is "C" here."""
    if start_dim == "C":  # where NumPy has the order
        start_dim = 0
    in_order(order if start_dim not in ("F", "A", "K") else start_dim)
    first, last = (counted(x, axis) for axis in (start_dim, end_dim)) if x.ndim else (0, 0)
    if first > last:
        raise ValueError(f"start_dim {start_dim} comes after end_dim {end_dim} in {x.shape}")
    return reshape(x, (*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :]))


def in_order(order):
    """Raises ValueError unless the order of elements is that of the rows, NumPy's "C"."""
    if order not in (None, "C"):
        raise ValueError(f"the elements of a Tensor are in order 'C', that of its rows, got order={order!r}")


def squeeze(x, axis=None):
    """x without its axes of length 1, or without the given ones. Raises ValueError if one of these is longer."""
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    gone = {counted(x, a) for a in axes if axis is not None or x.shape[a] == 1}
    if any(x.shape[a] != 1 for a in gone):
        raise ValueError(f"an axis of {x.shape} that is longer than 1 cannot be taken away, axis={axis}")
    return reshape(x, tuple(n for a, n in enumerate(x.shape) if a not in gone))


def unsqueeze(x, axis):
    """x with a new axis of length 1 at this position. Raises ValueError for a position out of range."""
    if not -x.ndim - 1 <= axis <= x.ndim:
        raise ValueError(f"axis {axis} is none that {x.shape} can get, expected {-x.ndim - 1} .. {x.ndim}")
    at = axis % (x.ndim + 1)
    return reshape(x, (*x.shape[:at], 1, *x.shape[at:]))


def copied(x):
    """A copy of the values; the gradient passes through."""
    return multiply(x, 1) if x.requires_grad else Tensor(x.data.copy())


def norm(x, p=2, axis=None, keepdims=False):
    """The square root of the sum of squares. p: PyTorch's, of which there is 2 (also called "fro")."""
    if p not in (2, "fro"):
        raise ValueError(f"norm is the root of the sum of squares, p=2, got p={p!r}")
    return sqrt(summation(multiply(x, x), axis, keepdims))


def astype(x, dtype):
    """The values in another dtype. Raises TypeError for a Tensor that requires a gradient."""
    if x.requires_grad:
        raise TypeError("a Tensor that wants a gradient keeps its dtype; convert the array that it was made of")
    return Tensor(x.data.astype(dtype))


def _array_method(name):
    return lambda x, *arguments, **options: Tensor(getattr(x.data, name)(*arguments, **options))


def _missing(x, name):
    from pydiff import ops

    of_tensor(x, name, ops.__all__)


METHODS = {
    "__getattr__": _missing,
    "__pos__": copied,
    "all": _array_method("all"),
    "any": _array_method("any"),
    "astype": astype,
    "clamp": limited,
    "clone": copied,
    "copy": copied,
    "dim": lambda x: x.ndim,
    "expand": lambda x, *shape: broadcast_to(x, listed(shape)),
    "isfinite": lambda x: np.isfinite(x),
    "isinf": lambda x: np.isinf(x),
    "isnan": lambda x: np.isnan(x),
    "log_softmax": axis_called_dim(log_softmax),
    "norm": axis_called_dim(norm),
    "numel": lambda x: x.size,
    "permute": lambda x, *axes: transpose(x, listed(axes)),
    "pow": power,
    "ravel": lambda x, order="C": flatten(x, order=order),
    "relu": relu,
    "sigmoid": sigmoid,
    "softmax": axis_called_dim(softmax),
    "square": lambda x: multiply(x, x),
    "squeeze": axis_called_dim(squeeze),
    "swapaxes": swapaxes,
    "tanh": tanh,
    "tolist": lambda x: x.numpy().tolist(),
    "unsqueeze": axis_called_dim(unsqueeze),
    "view": lambda x, *shape: reshape(x, listed(shape)),
}


class Count(int):
    """x.size, NumPy's number of elements, which says what to write where PyTorch has a method of that name."""

    __slots__ = ()

    def __call__(self, *_):
        raise TypeError("size is the number of elements here, as in NumPy; PyTorch's x.size(0) is x.shape[0]")


PROPERTIES = {
    "mT": lambda x: swapaxes(x, -1, -2),
    "nbytes": lambda x: x.data.nbytes,
    "size": lambda x: Count(x.data.size),
}

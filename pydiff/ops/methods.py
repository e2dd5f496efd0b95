"""The operators and methods of Tensor, made of the operations. tensor.py itself defines none of them.

NumPy's functions also work: np.exp(x), np.sum(x) and `array * x` are operations on the Tensor. Where NumPy would
convert it to an array, a TypeError says what to write instead.
"""

import math

import numpy as np

from pydiff.arrays import array_module
from pydiff.ops.elementwise import (
    absolute,
    add,
    divide,
    elementwise_maximum,
    elementwise_minimum,
    exp,
    log,
    multiply,
    negative,
    power,
    sqrt,
    subtract,
    tanh,
)
from pydiff.ops.names import METHODS, PROPERTIES, axis_called_dim, flatten, in_order, limited, listed
from pydiff.ops.reduction import matmul, maximum, mean, summation
from pydiff.ops.shape import index, reshape, transpose
from pydiff.tensor import Tensor, as_tensor


def minimum(x, axis=None, keepdims=False):
    """The smallest element along an axis; arguments as for `max`."""
    return negative(maximum(negative(x), axis, keepdims))


def variance(x, axis=None, keepdims=False, ddof=0):
    """mean((x - mean)^2) along an axis. ddof: subtracted from the count; 1 for the unbiased estimate."""
    off = subtract(x, mean(x, axis, True))
    square = mean(multiply(off, off), axis, keepdims)
    count = x.size // max(square.size, 1)
    if ddof >= count > 0:
        raise ValueError(f"ddof {ddof} leaves nothing of the {count} numbers that the variance is of")
    return square if not ddof else multiply(square, count / (count - ddof))


def standard_deviation(x, axis=None, keepdims=False, ddof=0):
    """Square root of the variance."""
    return sqrt(variance(x, axis, keepdims, ddof))


def product(x, y):
    """x @ y as in NumPy, including vectors: they become rows or columns, and the extra axis is removed again."""
    x, y = as_tensor(x), as_tensor(y)
    row, column = x.ndim == 1, y.ndim == 1
    x = reshape(x, (1, *x.shape)) if row else x
    y = reshape(y, (*y.shape, 1)) if column else y
    z = matmul(x, y)
    shape = z.shape[: -2 if row else -1] if column else (*z.shape[:-2], z.shape[-1]) if row else z.shape
    return z if shape == z.shape else reshape(z, shape)


def exponential(base, x):
    """base ** x for a positive base, a number or an array. Raises ValueError for any other base."""
    if not np.all(base > 0):
        raise ValueError(f"base ** x needs a positive base, got {base!r}")
    return exp(multiply(x, math.log(base) if isinstance(base, int | float) else np.log(base)))


def _reshape_method(x, *shape, order="C", copy=None, **named):
    in_order(order)
    if copy:
        raise ValueError("reshape copies no elements of a Tensor; leave out copy=True, or write x.copy()")
    return reshape(x, *(() if named and not shape else (listed(shape),)), **named)


def _transpose_method(x, *axes, **named):
    axes = None if axes == (None,) else listed(axes)
    if axes and len(axes) != x.ndim:
        raise ValueError(f"transpose takes all {x.ndim} axes, as NumPy's does; x.swapaxes(a, b) exchanges two of them")
    return transpose(x, *((axes or None,) if axes else ()), **named)


def _place_of(name):
    def method(x, axis=None, out=None, keepdims=False):
        if out is not None:
            raise TypeError(f"{name} makes a new array; leave out= away")
        return getattr(x.data, name)(axis, keepdims=bool(keepdims))

    return method


def _compared(name):
    """An elementwise comparison: a Tensor of bool, without a gradient."""

    def compare(x, y):
        return Tensor(getattr(x.data, name)(y.data if isinstance(y, Tensor) else y))

    return compare


def _tested(ufunc):
    return lambda x: Tensor(getattr(array_module(x.data), ufunc.__name__)(x.data))


def _not(x):
    return Tensor(~x.data)


def _without_out(operation):
    """A method that accepts the out=None and dtype=None that np.sum(x) and similar functions pass."""

    def method(x, *options, out=None, dtype=None, **named):
        if out is not None or dtype is not None:
            raise TypeError("a Tensor's methods make new tensors of its own dtype; leave out= away, and dtype=")
        return operation(x, *options, **named)

    return method


def _format(x, spec):
    if spec and x.size == 1:
        return format(x.item(), spec)
    try:
        return format(str(x), spec)
    except ValueError:
        raise TypeError(f"{spec!r} is the format of a single number, but this Tensor has shape {x.shape}") from None


def _not_assigned(_x, index, _value):
    raise TypeError(
        f"no Tensor is changed in place, which its history would not show; x.data[{index!r:.40}] = .. changes the "
        "values, and ops.where(condition, x, y) makes a new one"
    )


def _no_array(_x, *_arguments, **_options):
    raise TypeError("NumPy cannot make an array of a Tensor, for its history would be lost; use x.data or x.numpy()")


# NumPy's ufuncs that are operations here.
_UFUNCS = {
    np.add: add, np.subtract: subtract, np.multiply: multiply, np.true_divide: divide, np.negative: negative,
    np.power: lambda x, y: power(x, y) if isinstance(x, Tensor) else exponential(x, y), np.matmul: product,
    np.square: lambda x: multiply(x, x), np.positive: lambda x: x.copy(),
    np.isnan: _tested(np.isnan), np.isinf: _tested(np.isinf), np.isfinite: _tested(np.isfinite),
    np.exp: exp, np.log: log, np.sqrt: sqrt, np.tanh: tanh, np.absolute: absolute,
    np.maximum: elementwise_maximum, np.minimum: elementwise_minimum,
    np.less: lambda x, y: as_tensor(x) < y, np.less_equal: lambda x, y: as_tensor(x) <= y,
    np.greater: lambda x, y: as_tensor(x) > y, np.greater_equal: lambda x, y: as_tensor(x) >= y,
    np.equal: lambda x, y: as_tensor(x) == y, np.not_equal: lambda x, y: as_tensor(x) != y,
}  # fmt: skip


def _of_numpy(_x, ufunc, method, *inputs, **options):
    if options.get("out"):
        raise TypeError("an array cannot be changed by a Tensor, for its history would be lost; write a = a + x")
    if method != "__call__" or options or ufunc not in _UFUNCS:
        raise TypeError(f"np.{ufunc.__name__} has no derivative here; use an operation of pydiff.ops, or x.data")
    return _UFUNCS[ufunc](*inputs)


def _function_of_numpy(_x, function, _types, arguments, options):
    """What NumPy's functions that are no ufuncs do with a Tensor: call its method of that name, or ask for an array,
    which is refused. Those that would take the refusal for an answer compare the values.
    """
    if function in (np.array_equal, np.array_equiv):
        arguments = tuple(x.numpy() if isinstance(x, Tensor) else x for x in arguments)
    return np.empty(0).__array_function__(function, (), arguments, options)


class _Ufunc:
    """`__array_ufunc__` as both libraries need it. NumPy looks it up on the class. CuPy looks it up on the Tensor next
    to one of its arrays, and leaves the operation to the Tensor's own operators only if it is None.
    """

    def __get__(self, tensor, _owner):
        return _of_numpy if tensor is None else None


_METHODS = {
    "__add__": add,
    "__radd__": lambda x, y: add(y, x),
    "__sub__": subtract,
    "__rsub__": lambda x, y: subtract(y, x),
    "__mul__": multiply,
    "__rmul__": lambda x, y: multiply(y, x),
    "__truediv__": divide,
    "__rtruediv__": lambda x, y: divide(y, x),
    "__neg__": negative,
    "__abs__": absolute,
    "__pow__": power,
    "__rpow__": lambda x, y: exponential(y, x),
    "__matmul__": product,
    "__rmatmul__": lambda x, y: product(y, x),
    "__getitem__": index,
    "__setitem__": _not_assigned,
    "__lt__": _compared("__lt__"),
    "__le__": _compared("__le__"),
    "__gt__": _compared("__gt__"),
    "__ge__": _compared("__ge__"),
    "__eq__": _compared("__eq__"),
    "__ne__": _compared("__ne__"),
    "__and__": _compared("__and__"),  # of booleans
    "__or__": _compared("__or__"),
    "__invert__": _not,
    "__hash__": object.__hash__,
    "__float__": lambda x: float(x.item()),
    "__int__": lambda x: int(x.item()),
    "__format__": _format,
    "__array__": _no_array,
    "__array_ufunc__": _Ufunc(),
    "__array_function__": _function_of_numpy,
    "abs": absolute,
    "exp": exp,
    "log": log,
    "sqrt": sqrt,
    "clip": _without_out(limited),
    "dot": product,
    "matmul": product,
    "sum": axis_called_dim(_without_out(summation)),
    "mean": axis_called_dim(_without_out(mean)),
    "max": axis_called_dim(_without_out(maximum), same=False),
    "min": axis_called_dim(_without_out(minimum), same=False),
    "var": axis_called_dim(_without_out(variance), same=False),
    "std": axis_called_dim(_without_out(standard_deviation), same=False),
    "argmax": axis_called_dim(_place_of("argmax")),
    "argmin": axis_called_dim(_place_of("argmin")),
    "flatten": flatten,
    "reshape": _reshape_method,
    "transpose": _transpose_method,
}


def _method(operation):
    # `Add.apply` is already bound to its class, so Python would not pass it the tensor; to a plain function it does.
    return (lambda *args, **options: operation(*args, **options)) if hasattr(operation, "__self__") else operation


def attach():
    """Adds the operators and methods to Tensor."""
    for name, operation in (_METHODS | METHODS).items():
        setattr(Tensor, name, _method(operation))
    for name, operation in ({"T": transpose} | PROPERTIES).items():
        setattr(Tensor, name, property(operation))

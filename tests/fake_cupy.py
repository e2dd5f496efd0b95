"""A stand-in for CuPy on machines without a GPU: arrays in host memory that behave as CuPy's do where NumPy's differ.

- They are no NumPy arrays and never become one by themselves; `.get()` makes one.
- They do not mix with NumPy arrays. Python's and NumPy's numbers are welcome.
- What NumPy would answer with a number is an array without axes, and indexing always gives a view of the same memory.
- NumPy's functions find their way here (`__array_ufunc__`, `__array_function__`), if CuPy has one of that name.

`happened` lists what a program with a GPU pays for: "wait" whenever the host asks for a value, "upload" for every array
that is moved to the device, and the names of the kernels. A `Pool` tells when CuPy's would ask the device for memory.

It has the names that pydiff uses and no others; tests/test_device.py holds them against the real CuPy where that is
installed. Stricter than CuPy in two places: indices and nested lists may not be NumPy arrays either.
"""

import importlib.machinery
import operator
import types
import weakref
from collections import Counter

import numpy as np

NUMBERS = (bool, int, float, np.generic)
happened = []


class Pool:
    """Within `with Pool() as pool`, what CuPy's memory pool would do: an array gets a block of its size, in units of
    512 bytes, that was given back before, or else a new one of the device. (CuPy would also cut larger blocks.)

    new: how many blocks the device gave. asked: the size of every array, in order.
    """

    active: "Pool | None" = None
    UNIT = 512

    def __init__(self):
        self.new, self.asked, self.free, self.owners = 0, [], Counter(), set()

    def __enter__(self):
        Pool.active = self
        return self

    def __exit__(self, *_):
        Pool.active = None

    def take(self, host):
        """A block for the memory of a host array, unless it is a view of one that has its block already."""
        while isinstance(host.base, np.ndarray):
            host = host.base
        if id(host) in self.owners or host.nbytes == 0:
            return
        size = -(-host.nbytes // self.UNIT) * self.UNIT
        self.asked.append(size)
        if self.free[size]:
            self.free[size] -= 1
        else:
            self.new += 1
        self.owners.add(id(host))
        weakref.finalize(host, self.give_back, id(host), size)

    def give_back(self, owner, size):
        """The memory of an array is no longer needed."""
        self.owners.remove(owner)
        self.free[size] += 1


def _unwrap(value, of="argument"):
    """What stands behind an argument: memory for an array, itself for a number; TypeError where CuPy has one."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)} as {of}: it has to be moved to the device first")
    if isinstance(value, tuple | list):
        return type(value)(_unwrap(v, of) for v in value)
    return value


def _wrap(result):
    """An array of the device for whatever NumPy computed; lists of arrays stay lists."""
    if isinstance(result, list):
        return [_wrap(r) for r in result]
    array = object.__new__(ndarray)
    array._host = np.asarray(result)
    if Pool.active is not None:
        Pool.active.take(array._host)
    return array


def _operand(value):
    """The other side of an operator: an array or a number, or else NotImplemented or TypeError as in CuPy."""
    if getattr(value, "__array_ufunc__", value) is None:  # pydiff.Tensor, which has operators of its own
        return NotImplemented
    if not isinstance(value, (ndarray, *NUMBERS)):
        raise TypeError(f"Unsupported type {type(value)}")
    return _unwrap(value)


class ndarray:
    """cupy.ndarray, as far as pydiff uses it."""

    __slots__ = ("_host",)
    __hash__ = None

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if method != "__call__" or ufunc.__name__ not in FUNCTIONS:
            return NotImplemented
        return FUNCTIONS[ufunc.__name__](*inputs, **options)

    def __array_function__(self, function, _types, args, options):
        if function.__module__ != "numpy" or function.__name__ not in FUNCTIONS:
            return NotImplemented
        return FUNCTIONS[function.__name__](*args, **options)

    def __getitem__(self, index):
        index = _unwrap(index, "index")
        found = self._host[index]
        if isinstance(found, np.generic):  # an element: CuPy gives a view of it
            found = self._host[(*(index if isinstance(index, tuple) else (index,)), ...)]
        return _wrap(found)

    def __setitem__(self, index, value):
        if not isinstance(value, (ndarray, *NUMBERS)):
            raise TypeError(f"Unsupported type {type(value)}")
        self._host[_unwrap(index, "index")] = _unwrap(value)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __len__(self):
        return len(self._host)

    def __bool__(self):
        happened.append("wait")
        return bool(self._host)

    def __int__(self):
        happened.append("wait")
        return int(self._host)

    def __float__(self):
        happened.append("wait")
        return float(self._host)

    def __repr__(self):
        return f"on the device: {self._host!r}"

    def get(self):
        """A NumPy array with a copy of the values."""
        happened.append("wait")
        return self._host.copy(order="C")

    @property
    def flags(self):
        """With the fields that CuPy has."""
        flags = self._host.flags
        return types.SimpleNamespace(
            c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous, owndata=flags.owndata
        )


def _attribute(name):
    return property(lambda self: getattr(self._host, name))


def _method(name):
    def method(self, *args, **options):
        result = getattr(self._host, name)(*_unwrap(args), **{k: _unwrap(v) for k, v in options.items()})
        if name in ("tolist", "item"):
            happened.append("wait")
            return result
        return _wrap(result)

    return method


def _unary(function):
    return lambda self: _wrap(function(self._host))


def _operator(function, swapped=False):
    def method(self, other):
        other = _operand(other)
        if other is NotImplemented:
            return NotImplemented
        return _wrap(function(other, self._host) if swapped else function(self._host, other))

    return method


def _in_place(function):
    def method(self, other):
        if not isinstance(other, (ndarray, *NUMBERS)):
            raise TypeError(f"Unsupported type {type(other)}")
        self._host = function(self._host, _unwrap(other))
        return self

    return method


ATTRIBUTES = ("dtype", "itemsize", "nbytes", "ndim", "shape", "size", "strides")
METHODS = (
    "all", "any", "astype", "clip", "copy", "item", "max", "mean", "min", "ravel", "reshape", "std", "sum", "swapaxes",
    "tolist", "transpose",
)  # fmt: skip
OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")

for _name in ATTRIBUTES:
    setattr(ndarray, _name, _attribute(_name))
for _name in METHODS:
    setattr(ndarray, _name, _method(_name))
for _name in COMPARISONS:
    setattr(ndarray, f"__{_name}__", _operator(getattr(operator, _name)))
for _name in OPERATORS:
    _plain = getattr(operator, f"__{_name}__")
    setattr(ndarray, f"__{_name}__", _operator(_plain))
    setattr(ndarray, f"__r{_name}__", _operator(_plain, swapped=True))
    if _name != "matmul":
        setattr(ndarray, f"__i{_name}__", _in_place(getattr(operator, f"__i{_name}__")))
for _name in ("neg", "abs", "invert"):
    setattr(ndarray, f"__{_name}__", _unary(getattr(operator, _name)))
ndarray.T = property(lambda self: _wrap(self._host.T))


def _function(name):
    def function(*args, **options):
        return _wrap(getattr(np, name)(*_unwrap(args), **{k: _unwrap(v) for k, v in options.items()}))

    return function


def asarray(a, dtype=None, order=None):
    """What moves host arrays, numbers and lists of numbers to the device; an array there of that dtype stays itself."""
    if isinstance(a, ndarray):
        return a if dtype is None or a.dtype == dtype else a.astype(dtype)
    happened.append("upload")
    return _wrap(np.array(_numbers(a), dtype, order=order or "C"))


def array(obj, dtype=None):
    """As asarray, but always a copy."""
    return obj.astype(dtype or obj.dtype) if isinstance(obj, ndarray) else asarray(obj, dtype)


def _numbers(a):
    return a if isinstance(a, np.ndarray) else _unwrap(a)


def shape(a):
    """A tuple, for numbers too."""
    return np.shape(_unwrap(a))


def ndim(a):
    """An int, for numbers too."""
    return np.ndim(_unwrap(a))


FUNCTIONS = {"array": array, "asarray": asarray, "ndim": ndim, "shape": shape} | {
    name: _function(name)
    for name in (
        "abs", "arange", "array_equal", "broadcast_to", "clip", "concatenate", "copysign", "empty", "exp", "isfinite",
        "log", "maximum", "minimum", "ones_like", "pad", "quantile", "repeat", "rint", "sign", "split", "sqrt", "tanh",
        "where", "zeros", "zeros_like",
        # where operators arrive when a NumPy number is on the left
        "add", "subtract", "multiply", "divide", "less", "less_equal", "greater", "greater_equal", "equal", "not_equal",
    )
}  # fmt: skip


def module(devices=("Pretended GPU",)):
    """The module `cupy` of a machine with these GPUs, or, given an exception, of one whose driver says that."""

    def count():
        if isinstance(devices, Exception):
            raise devices
        return len(devices)

    def properties(i):
        return {"name": devices[i].encode()}

    fake = types.ModuleType("cupy")
    fake.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    runtime = types.SimpleNamespace(getDeviceCount=count, getDeviceProperties=properties)
    vars(fake).update(FUNCTIONS, ndarray=ndarray, cuda=types.SimpleNamespace(runtime=runtime))
    return fake


class Kernels:
    """Stands in for pydiff._cuda: the same kernels under the emulator, for arrays of this module and no others."""

    def __init__(self, emulator):
        self.emulator = emulator

    def __getattr__(self, name):
        kernel = getattr(self.emulator, name)

        def call(*args):
            happened.append(name)
            return kernel(*_unwrap(args))

        return call

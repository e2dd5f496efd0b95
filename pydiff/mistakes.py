"""What is said where somebody gives something else than is expected: arrays of other libraries, lists for arrays,
arguments that a function does not have, attributes that PyTorch's and NumPy's classes have.
"""

import inspect
from typing import Any

import numpy as np

from pydiff.arrays import array_module


def plain(a):
    """An array of NumPy or CuPy, a number or a list as it is; an array of another library as NumPy's.

    Raises TypeError for masked arrays, whose sums leave elements out, but whose gradients would not, and for
    np.matrix, whose * is a matrix product.
    """
    if isinstance(a, np.ndarray):
        if hasattr(a, "mask"):
            raise TypeError(f"expected a plain array, got a {type(a).__name__}; .filled(value) makes one")
        if isinstance(a, np.matrix):
            raise TypeError("expected a plain array, got a matrix, which multiplies otherwise; np.asarray(a) makes one")
    elif hasattr(a, "dtype") and not isinstance(a, np.generic) and array_module(a) is np:
        return np.asarray(a)
    return a


def described(value):
    """What somebody has put in the place of an array."""
    shape = getattr(value, "shape", None)
    return f"{value!r}"[:50] if shape is None else f"{type(value).__name__} of shape {shape}"


def refuse_call(function, name, arguments, options, error):
    """Raises TypeError with the reason if a call failed because the function's signature is another, or because it got
    a list, a number or a text where it needs an array. Otherwise does nothing.
    """
    try:
        inspect.signature(function).bind(None, *arguments, **options)
    except TypeError:
        reason = str(error).replace(f"{function.__qualname__}()", name)
        raise TypeError(f"{reason}{'; write axis=' * ('dim' in options)}") from error
    kind = next((type(a).__name__ for a in arguments if isinstance(a, list | tuple | str | int | float)), None)
    if kind is not None and isinstance(error, AttributeError):
        raise TypeError(f"{name} needs arrays or Tensors, got {kind}; np.array(..) makes one") from error


def at_least_one(name, value):
    """A size as a Python int. Raises ValueError unless it is a whole number of at least 1."""
    if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


# What PyTorch's users look for in a Module -> what it is here.
_OF_MODULE = {
    **dict.fromkeys(("train", "eval"), "; there is no mode, dropout works inside of pydiff.nn.training(..) alone"),
    **dict.fromkeys(("cuda", "cpu"), '; write .to("cuda") or .to("cpu")'),
    "half": '; write .astype("float16")',
    "float": '; write .astype("float32")',
    "double": '; write .astype("float64")',
    "modules": "; write named_modules()",
}
_OF_TENSOR = {
    **dict.fromkeys(
        ("to", "cpu", "cuda", "device"),
        "; it lies where its array x.data does, model.to(device) moves a model, x.numpy() is the values here",
    ),
    "requires_grad_": "; write Tensor(x.data, requires_grad=True)",
    "float": "; write x.astype('float32')",
    "double": "; write x.astype('float64')",
    "half": "; write x.astype('float16')",
    "long": "; write x.astype('int64')",
    "int": "; write x.astype('int32')",
    "bool": "; write x.astype('bool')",
}


def of_module(module, name):
    """Raises AttributeError for an attribute that a Module does not have, and says what to write in its place."""
    raise AttributeError(f"{type(module).__name__!r} object has no attribute {name!r}{_OF_MODULE.get(name, '')}")


def of_tensor(tensor, name, operations):
    """Raises AttributeError for an attribute that a Tensor does not have, and says what to write in its place.

    operations: names of those in pydiff.ops.
    """
    if name in ("shape", "dtype", "ndim", "size"):
        said = f"the .data of this Tensor was replaced by {described(tensor.data)}, which is no array"
        raise AttributeError(said)
    instead = _OF_TENSOR.get(name, "")
    if not instead and name in operations:
        instead = f"; write pydiff.ops.{name}(x, ..)"
    elif not instead and not name.startswith("_"):
        if name.endswith("_"):
            instead = "; no Tensor is changed in place, write x = f(x) or change x.data"
        elif hasattr(np.ndarray, name):
            instead = f"; x.data.{name} is that of the values alone, without a gradient"
    raise AttributeError(f"{type(tensor).__name__!r} object has no attribute {name!r}{instead}")


class Places:
    """Where the Parameters of a model are, to notice that one was replaced by another."""

    def __init__(self, model):
        self.found = []  # (name, module, attribute, number in that list or None, Parameter)
        for prefix, module in model.named_modules():
            for name, child in module.children():
                attribute, _, number = name.partition(".")
                if not hasattr(child, "named_modules"):
                    full = f"{prefix}.{name}" if prefix else name
                    self.found.append((full, module, attribute, int(number) if number else None, child))

    def check(self):
        """Raises ValueError if the model has another Parameter in the place of one."""
        for name, module, attribute, number, p in self.found:
            now: Any = getattr(module, attribute, None)
            if (now if number is None else now[number]) is not p:
                raise ValueError(f"{name} is another Parameter now; assign to {name}.data, or make a new optimiser")

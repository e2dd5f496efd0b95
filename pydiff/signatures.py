"""The operators and methods of a Tensor as type checkers and editors see them.

At run time there is no such base class: `methods.attach` adds the functions to Tensor, and tests/test_types.py compares
names and parameters. Arrays here may be NumPy's or CuPy's.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

Axis: TypeAlias = int | Sequence[int] | None


class Methods:
    """What `pydiff.ops` adds to Tensor."""

    __array_ufunc__: Any
    T: Any

    # Operators: the other operand is a Tensor, an array or a number.
    def __add__(self, y: Any) -> Any: ...
    def __radd__(self, y: Any) -> Any: ...
    def __sub__(self, y: Any) -> Any: ...
    def __rsub__(self, y: Any) -> Any: ...
    def __mul__(self, y: Any) -> Any: ...
    def __rmul__(self, y: Any) -> Any: ...
    def __truediv__(self, y: Any) -> Any: ...
    def __rtruediv__(self, y: Any) -> Any: ...
    def __neg__(self) -> Any: ...
    def __abs__(self) -> Any: ...
    def __pow__(self, exponent: Any) -> Any: ...
    def __rpow__(self, y: Any) -> Any: ...
    def __matmul__(self, y: Any) -> Any: ...
    def __rmatmul__(self, y: Any) -> Any: ...
    def __getitem__(self, index: Any) -> Any: ...
    def __setitem__(self, index: Any, value: Any) -> None: ...
    def __lt__(self, y: Any) -> Any: ...
    def __le__(self, y: Any) -> Any: ...
    def __gt__(self, y: Any) -> Any: ...
    def __and__(self, y: Any) -> Any: ...
    def __or__(self, y: Any) -> Any: ...
    def __invert__(self) -> Any: ...
    def __ge__(self, y: Any) -> Any: ...
    def __eq__(self, y: Any) -> Any: ...
    def __ne__(self, y: Any) -> Any: ...
    def __hash__(self) -> int: ...
    def __float__(self) -> float: ...
    def __int__(self) -> int: ...
    def __format__(self, spec: str) -> str: ...
    def __array__(self, *_arguments: Any, **_options: Any) -> Any: ...
    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any: ...

    # Elementwise.
    def abs(self) -> Any:
        """The absolute value of every element."""

    def exp(self) -> Any:
        """e to the power of every element."""

    def log(self) -> Any:
        """The natural logarithm of every element."""

    def sqrt(self) -> Any:
        """The square root of every element."""

    def clip(self, low: Any = None, high: Any = None) -> Any:
        """Every element, clipped to [low, high]; one of the two may be left out."""

    # Along axes.
    def sum(self, axis: Axis = None, keepdims: bool = False) -> Any:
        """The sum along axes, or of everything."""

    def mean(self, axis: Axis = None, keepdims: bool = False) -> Any:
        """The mean along axes, or of everything."""

    def max(self, axis: Axis = None, keepdims: bool = False) -> Any:
        """The largest element along axes, or of all."""

    def min(self, axis: Axis = None, keepdims: bool = False) -> Any:
        """The smallest element along axes, or of all."""

    def var(self, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Any:
        """The variance along axes; ddof is subtracted from the count."""

    def std(self, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Any:
        """The square root of the variance."""

    def argmax(self, axis: int | None = None) -> Any:
        """The index of the largest element: an array, not a Tensor."""

    def argmin(self, axis: int | None = None) -> Any:
        """The index of the smallest element: an array, not a Tensor."""

    def dot(self, y: Any) -> Any:
        """The matrix product, as NumPy has it."""

    def matmul(self, y: Any) -> Any:
        """The matrix product, as NumPy has it."""

    # Of shape.
    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Any:
        """All elements in one row, or the axes from one to another as one axis."""

    def reshape(self, *shape: Any, **named: Any) -> Any:
        """The same elements in another shape, given as numbers or as a tuple."""

    def transpose(self, *axes: Any, **named: Any) -> Any:
        """The axes in another order; reversed if none is given."""

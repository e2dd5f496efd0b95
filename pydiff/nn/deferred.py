"""Parameters that stay in their file until they are used, for large networks that are only evaluated.

defer(network, {name: read})     nothing is read yet
network(x, ..)                   every parameter is read when first used, and kept
keep(network, False)             .. or dropped after each use: less memory, read again every time
release(network)                 drops the values that were kept
"""

from collections.abc import Callable, Mapping

import numpy as np

from pydiff.nn.module import Module, Parameter


class Deferred(Parameter):
    """Takes the place of the parameter `like`. read: gives its values, in like's layout, as float32; read.rows, if it
    has that, those of some numbers (N,) along the first axis.

    kept: whether values stay in memory once read. Values that were set always stay.
    """

    __slots__ = ("_read", "_set", "_shape", "_values", "kept")

    def __init__(self, like: Parameter, read: Callable[[], np.ndarray]):
        super().__init__(np.empty(0, np.float32), like.bound, like.file_axes)
        self._shape, self._read, self.kept = like.shape, read, True
        self._values, self._set = None, False

    @property
    def data(self):
        """The values, read now unless they are in memory."""
        if self._values is not None:
            return self._values
        values = self._read()
        if self.kept:
            self._values = values
        return values

    def excerpt(self, numbers):
        """(table, places) with table[places] = data[numbers]: while the values are in the file, no others are read, if
        `read` has a way to.
        """
        rows = getattr(self._read, "rows", None)
        if (
            self._values is None
            and rows is not None
            and numbers.size
            and 0 <= numbers.min() <= numbers.max() < len(self)
        ):
            some, places = np.unique(numbers, return_inverse=True)
            return rows(some), places.reshape(numbers.shape)
        return self, numbers

    @data.setter
    def data(self, values):
        """Values in place of the file's."""
        self._values, self._set = values, True

    shape = property(lambda self: self._shape if self._values is None else self._values.shape)
    dtype = property(lambda self: np.dtype(np.float32) if self._values is None else self._values.dtype)
    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: int(np.prod(self.shape)))

    def __len__(self):
        return self.shape[0]

    def to(self, xp):
        """See Parameter.to. For NumPy, values that are still in the file are not read."""
        if xp is not np or self._values is not None:
            super().to(xp)

    def release(self):
        """Drops values that can be read again."""
        if not self._set:
            self._values = None

    @property
    def waiting(self) -> int:
        """Bytes of memory that reading it will take."""
        return 4 * self.size if self._values is None else 0


def defer(model: Module, reads: Mapping[str, Callable[[], np.ndarray]]):
    """Replaces every parameter whose name is in `reads` by a Deferred."""
    made = {}  # by the parameter, which several modules may share
    for prefix, module in model.named_modules():
        for name, child in list(module.children()):
            full = f"{prefix}.{name}" if prefix else name
            if not isinstance(child, Parameter) or full not in reads:
                continue
            deferred = made.setdefault(id(child), Deferred(child, reads[full]))
            place, _, i = name.partition(".")
            if i:
                getattr(module, place)[int(i)] = deferred
            else:
                setattr(module, place, deferred)


def _deferred(model: Module):
    return [p for p in model.parameters() if isinstance(p, Deferred)]


def keep(model: Module, on: bool):
    """Whether values that are read from now on stay in memory; False also releases those that were kept."""
    for p in _deferred(model):
        p.kept = on
        if not on:
            p.release()


def release(model: Module):
    """Drops all values that can be read again."""
    for p in _deferred(model):
        p.release()


def waiting(model: Module) -> int:
    """Bytes of memory that parameters not yet read will take, if they are kept."""
    return sum(p.waiting for p in _deferred(model) if p.kept)


def releasable(model: Module) -> int:
    """Bytes of memory that `release` would free."""
    return sum(4 * p.size - p.waiting for p in _deferred(model) if not p._set)

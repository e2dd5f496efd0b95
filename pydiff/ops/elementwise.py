"""Operations on corresponding elements, with NumPy's broadcasting. Forward and derivative are side by side.

In every backward, g is the gradient of the output; `unbroadcast` sums it over the axes that broadcasting had added.
"""

import numpy as np

from pydiff.arrays import add as add_arrays
from pydiff.arrays import array_module
from pydiff.backend import FLOAT32
from pydiff.tensor import Function


def unbroadcast(g, shape):
    """Sums g down to `shape`: the transpose of broadcasting `shape` up to g.shape."""
    if g.shape == shape:
        return g
    added = tuple(range(g.ndim - len(shape)))
    stretched = tuple(i + len(added) for i, size in enumerate(shape) if size == 1 and g.shape[i + len(added)] != 1)
    return g.sum(axis=added + stretched).reshape(shape)


def exact(result):
    """Returns `result`; raises TypeError if it has an integer type in which arithmetic easily wraps around."""
    dtype = getattr(result, "dtype", FLOAT32)
    if dtype.kind in "iub" and not (dtype.kind == "i" and dtype.itemsize >= 4):
        raise TypeError(f"arithmetic in {dtype} would wrap around; use .astype(np.float32), or int64, first")
    return result


class Add(Function):
    integers = True

    def forward(self, x, y):
        self.shapes = np.shape(x), np.shape(y)
        return exact(add_arrays(x, y))

    def backward(self, g):
        return tuple(unbroadcast(g, s) if need else None for s, need in zip(self.shapes, self.needs, strict=True))


class Subtract(Function):
    integers = True

    def forward(self, x, y):
        self.shapes = np.shape(x), np.shape(y)
        return exact(x - y)

    def backward(self, g):
        dx = unbroadcast(g, self.shapes[0]) if self.needs[0] else None
        return dx, unbroadcast(-g, self.shapes[1]) if self.needs[1] else None


class Multiply(Function):
    integers = True

    def forward(self, x, y):
        self.x, self.y = x, y
        return exact(x * y)

    def backward(self, g):
        dx = unbroadcast(g * self.y, self.x.shape) if self.needs[0] else None
        return dx, unbroadcast(g * self.x, self.y.shape) if self.needs[1] else None


class Divide(Function):
    integers = True

    def forward(self, x, y):
        self.x, self.y = x, y
        return x / y

    def backward(self, g):
        dx = unbroadcast(g / self.y, self.x.shape) if self.needs[0] else None
        return dx, unbroadcast(-g * self.x / (self.y * self.y), self.y.shape) if self.needs[1] else None


class Negative(Function):
    integers = True

    def forward(self, x):
        return exact(-x)

    def backward(self, g):
        return -g


class Power(Function):
    """x ** exponent for a constant exponent."""

    integers = True

    def forward(self, x, exponent):
        if self.needs[1]:
            raise TypeError("the exponent of a power must be a constant; write exp(y * log(x)) for a gradient in y")
        self.x, self.exponent = x, exponent
        return exact(x**exponent)

    def backward(self, g):
        if np.ndim(self.exponent) == 0 and self.exponent == 0:
            return 0 * g, None  # 0 x^-1 would be 0/0 where x is 0
        return g * (self.exponent * self.x ** (self.exponent - 1)), None


class Exp(Function):
    def forward(self, x):
        self.y = array_module(x).exp(x)
        return self.y

    def backward(self, g):
        return g * self.y


class Log(Function):
    def forward(self, x):
        self.x = x
        return array_module(x).log(x)

    def backward(self, g):
        return g / self.x


class Sqrt(Function):
    def forward(self, x):
        self.y = array_module(x).sqrt(x)
        return self.y

    def backward(self, g):
        return 0.5 * g / self.y


class Tanh(Function):
    def forward(self, x):
        self.y = array_module(x).tanh(x)
        return self.y

    def backward(self, g):
        return g * (1 - self.y * self.y)


def stable_sigmoid(x):
    """1 / (1 + exp(-x)) without overflow: exp is evaluated only at -|x|."""
    xp = array_module(x)
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, xp.ones_like(e), e) / (1 + e)


class Sigmoid(Function):
    def forward(self, x):
        self.y = stable_sigmoid(x)
        return self.y

    def backward(self, g):
        return g * (self.y * (1 - self.y))


class SiLU(Function):
    """x sigmoid(x) (Hendrycks & Gimpel 2016; Elfwing et al. 2018)."""

    def forward(self, x):
        self.x, self.sigmoid = x, stable_sigmoid(x)
        return x * self.sigmoid

    def backward(self, g):
        return g * (self.sigmoid * (1 + self.x * (1 - self.sigmoid)))


class ReLU(Function):
    integers = True

    def forward(self, x):
        self.positive = x > 0
        return array_module(x).maximum(x, 0)

    def backward(self, g):
        return g * self.positive


class Maximum(Function):
    """The larger of two numbers; where they are equal, each gets half of the gradient. NaN if one of them is."""

    integers, choose, first = True, "maximum", "__gt__"

    def forward(self, x, y):
        xp = array_module(x, y)
        larger = xp.asarray(x)
        self.share = 0.5 * (larger == y) + getattr(larger, self.first)(y)
        self.shapes = np.shape(x), np.shape(y)
        return getattr(xp, self.choose)(x, y)

    def backward(self, g):
        share = self.share.astype(g.dtype)
        dx = unbroadcast(g * share, self.shapes[0]) if self.needs[0] else None
        return dx, unbroadcast(g * (1 - share), self.shapes[1]) if self.needs[1] else None


class Minimum(Maximum):
    """The smaller of two numbers; like `Maximum` in all else."""

    choose, first = "minimum", "__lt__"


class Abs(Function):
    integers = True

    def forward(self, x):
        self.x = x
        return exact(array_module(x).abs(x))

    def backward(self, g):
        return g * array_module(g).sign(self.x)


class Clip(Function):
    """x limited to [low, high], None for no bound; the gradient passes inside and at the bounds."""

    integers = True

    def forward(self, x, low, high):
        low, high = -np.inf if low is None else low, np.inf if high is None else high
        self.inside = (x >= low) & (x <= high)
        return array_module(x).clip(x, low, high)

    def backward(self, g):
        return g * self.inside, None, None


class Where(Function):
    """x where the condition holds, else y."""

    integers = True

    def forward(self, condition, x, y):
        xp = array_module(condition, x, y)
        self.condition, self.shapes = xp.asarray(condition, dtype=bool), (np.shape(x), np.shape(y))
        return xp.where(self.condition, x, y)

    def backward(self, g):
        dx = unbroadcast(g * self.condition, self.shapes[0]) if self.needs[1] else None
        return None, dx, unbroadcast(g * ~self.condition, self.shapes[1]) if self.needs[2] else None


add, subtract, multiply, divide, negative = Add.apply, Subtract.apply, Multiply.apply, Divide.apply, Negative.apply
power, exp, log, sqrt, tanh, sigmoid = Power.apply, Exp.apply, Log.apply, Sqrt.apply, Tanh.apply, Sigmoid.apply
elementwise_maximum, elementwise_minimum = Maximum.apply, Minimum.apply
silu, relu, absolute, clip, where = SiLU.apply, ReLU.apply, Abs.apply, Clip.apply, Where.apply

"""Operations that combine the elements of some axes: sum, mean, max, softmax, matmul, and the losses made of them."""

from pydiff.arrays import array_module
from pydiff.ops.elementwise import exact, unbroadcast
from pydiff.tensor import Function


def _axes(axis):
    """Axes as NumPy takes them: several as a tuple."""
    return tuple(axis) if isinstance(axis, list) else axis


def _keep(g, shape, axis):
    """g with the reduced axes put back as axes of length 1, ready to broadcast to `shape`."""
    if axis is None:
        return g.reshape((1,) * len(shape))
    axes = {a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,))}
    return g.reshape(tuple(1 if i in axes else size for i, size in enumerate(shape)))


class Sum(Function):
    integers = True

    def forward(self, x, axis=None, keepdims=False):
        self.shape, self.axis = x.shape, _axes(axis)
        return x.sum(axis=self.axis, keepdims=keepdims)

    def backward(self, g):
        # A real array rather than a broadcast view: consumers may need contiguous memory.
        return array_module(g).broadcast_to(_keep(g, self.shape, self.axis), self.shape).copy()


class Max(Function):
    """The largest element; equal largest elements share the gradient evenly."""

    integers = True

    def forward(self, x, axis=None, keepdims=False):
        if isinstance(axis, float) or getattr(axis, "ndim", 0):
            raise TypeError("maximum is taken along axes; np.maximum(x, y) is that of two, element by element")
        self.axis = axis = _axes(axis)
        y = x.max(axis=axis, keepdims=keepdims)
        self.largest = x == _keep(y, x.shape, axis)
        return y

    def backward(self, g):
        share = self.largest / self.largest.sum(axis=self.axis, keepdims=True)
        return (_keep(g, self.largest.shape, self.axis) * share).astype(g.dtype)


def mean(x, axis=None, keepdims=False):
    """Arithmetic mean over `axis` (int, tuple or None for all)."""
    total = Sum.apply(x, axis=axis, keepdims=keepdims)
    return total * (total.size / x.size) if x.size else total * float("nan")


class Softmax(Function):
    """exp(x) / sum(exp(x)) along an axis, with the largest element subtracted first so that nothing overflows."""

    def forward(self, x, axis=-1):
        e = array_module(x).exp(x - x.max(axis=axis, keepdims=True))
        self.axis, self.y = axis, e / e.sum(axis=axis, keepdims=True)
        return self.y

    def backward(self, g):
        return self.y * (g - (g * self.y).sum(axis=self.axis, keepdims=True))


class LogSoftmax(Function):
    """log(softmax(x)) along an axis: x - log(sum(exp(x))), with the largest element subtracted first. It never takes
    the logarithm of a probability that was rounded to zero.
    """

    def forward(self, x, axis=-1):
        self.axis, self.y = axis, log_softmax_array(x, axis)
        return self.y

    def backward(self, g):
        """y_i = x_i - log(sum_j exp(x_j)): dx = g - softmax(x) sum(g)"""
        return g - array_module(g).exp(self.y) * g.sum(axis=self.axis, keepdims=True)


def log_softmax_array(x, axis):
    """LogSoftmax of an array."""
    xp, shifted = array_module(x), x - x.max(axis=axis, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))


class Matmul(Function):
    """x @ y with NumPy's rules for stacks of matrices; both arguments have at least two axes."""

    integers = True

    def forward(self, x, y):
        if x.ndim < 2 or y.ndim < 2:
            raise ValueError(f"matmul needs matrices or stacks of them, got shapes {x.shape} and {y.shape}")
        if x.shape[-1] != y.shape[-2]:
            raise ValueError(f"matmul needs as many columns of x as rows of y, got shapes {x.shape} and {y.shape}")
        self.x, self.y = x, y
        return exact(x @ y)

    def backward(self, g):
        dx = unbroadcast(g @ self.y.swapaxes(-1, -2), self.x.shape) if self.needs[0] else None
        return dx, unbroadcast(self.x.swapaxes(-1, -2) @ g, self.y.shape) if self.needs[1] else None


class MeanSquaredError(Function):
    """mean((x - y)²), a scalar; x and y have the same shape."""

    def forward(self, x, y):
        if x.shape != y.shape:
            raise ValueError(f"mean squared error compares arrays of the same shape, got {x.shape} and {y.shape}")
        self.difference = x - y
        return (self.difference * self.difference).mean(dtype=x.dtype)

    def backward(self, g):
        dx = self.difference * (g * (2 / self.difference.size))
        return dx, -dx if self.needs[1] else None


class CrossEntropy(Function):
    """Mean over the batch of -log softmax(logits)[label].

    logits: (N, K) floating point; labels: (N,) integers in 0..K-1.
    """

    def forward(self, logits, labels):
        xp = array_module(logits)
        if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(
                f"cross entropy needs logits (N, K) and integer labels (N,), "
                f"got {logits.shape} and {labels.dtype} {labels.shape}"
            )
        if labels.size and not (labels.min() >= 0 and labels.max() < logits.shape[1]):
            raise ValueError(f"labels must lie in 0..{logits.shape[1] - 1}, got {labels.min()}..{labels.max()}")
        log_p = log_softmax_array(logits, axis=1)
        self.rows, self.labels, self.p = xp.arange(len(labels)), labels, xp.exp(log_p)
        return -log_p[self.rows, labels].mean(dtype=logits.dtype)

    def backward(self, g):
        d = self.p.copy()
        d[self.rows, self.labels] -= 1
        return d * (g / len(self.labels)), None


summation, maximum, matmul = Sum.apply, Max.apply, Matmul.apply
softmax, log_softmax = Softmax.apply, LogSoftmax.apply
mean_squared_error, cross_entropy = MeanSquaredError.apply, CrossEntropy.apply

"""The layers, each an operation with its parameters: linear, convolutions, normalisations, embeddings, dropout.

Weights are stored channels-last; initial values have PyTorch's distributions.
"""

import math
from typing import Any

import numpy as np

from pydiff import ops
from pydiff.mistakes import at_least_one
from pydiff.nn.deferred import Deferred
from pydiff.nn.module import Module, Parameter
from pydiff.nn.module import _state as state
from pydiff.ops.conv2d import as_pair
from pydiff.tensor import Tensor, grad_enabled


class Linear(Module):
    """y = x weight + bias (+ add) on the last axis; weight (cin, cout)."""

    def __init__(self, cin, cout, bias=True):
        cin, cout = at_least_one("cin", cin), at_least_one("cout", cout)
        bound = 1 / math.sqrt(cin)  # PyTorch's default: He et al. 2015 with a = sqrt(5)
        self.weight = Parameter(np.zeros((cin, cout), np.float32), bound, file_axes=(1, 0))
        self.bias = Parameter(np.zeros(cout, np.float32), bound) if bias else None

    def forward(self, x, add=None):
        return ops.linear(x, self.weight, self.bias, add)


class Conv2d(Module):
    """ops.conv2d; weight (height, width, cin / groups, cout). size: of the filter, int or (height, width).

    shift: (N, cout), added to every pixel of its sample.
    """

    def __init__(self, cin, cout, size, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups=1, bias=True):
        cin, cout, (height, width) = at_least_one("cin", cin), at_least_one("cout", cout), as_pair(size, "size", 1)
        bound = 1 / math.sqrt(cin // groups * height * width)
        weight = np.zeros((height, width, cin // groups, cout), np.float32)
        self.weight = Parameter(weight, bound, file_axes=(3, 2, 0, 1))
        self.bias = Parameter(np.zeros(cout, np.float32), bound) if bias else None
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def forward(self, x, shift=None, add=None, upsample: Any = 1):
        bias = self.bias
        if shift is not None:
            bias = shift if bias is None else shift + bias
        return ops.conv2d(
            x, self.weight, bias, self.stride, self.padding, upsample, add, dilation=self.dilation, groups=self.groups
        )


class ConvTranspose2d(Module):
    """ops.conv_transpose2d; weight (height, width, cout / groups, cin)."""

    def __init__(self, cin, cout, size, stride=1, padding=0, output_padding=0, dilation=1, groups=1, bias=True):
        cin, cout, (height, width) = at_least_one("cin", cin), at_least_one("cout", cout), as_pair(size, "size", 1)
        bound = 1 / math.sqrt(cout // groups * height * width)  # PyTorch counts the outputs here
        weight = np.zeros((height, width, cout // groups, cin), np.float32)
        self.weight = Parameter(weight, bound, file_axes=(3, 2, 0, 1))
        self.bias = Parameter(np.zeros(cout, np.float32), bound) if bias else None
        self.options = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
        self.groups = groups

    def forward(self, x):
        return ops.conv_transpose2d(x, self.weight, self.bias, **self.options, groups=self.groups)


def _positive(eps: Any) -> float:
    """The number that keeps a normalisation from dividing by zero. Raises ValueError for what is none."""
    if not isinstance(eps, int | float | np.floating) or not 0 <= eps < math.inf:
        raise ValueError(f"eps of a normalisation must be a number of at least 0, got {eps!r:.60}")
    return float(eps)


class GroupNorm(Module):
    """ops.group_norm with a scale and a shift per channel; activation None or "silu"."""

    def __init__(self, groups, channels, eps=1e-5, activation=None):
        if groups < 1 or channels % groups:
            raise ValueError(f"{channels} channels do not divide into {groups} groups; choose another norm_num_groups")
        self.weight = Parameter(np.ones(channels, np.float32))
        self.bias = Parameter(np.zeros(channels, np.float32))
        self.groups, self.eps, self.activation = groups, _positive(eps), activation

    def forward(self, x):
        return ops.group_norm(x, self.weight, self.bias, self.groups, self.eps, self.activation)


class LayerNorm(Module):
    """ops.layer_norm with a scale and a shift per channel; affine False omits both, bias False omits the shift."""

    def __init__(self, channels, eps=1e-5, affine=True, bias=True):
        self.weight = Parameter(np.ones(channels, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(channels, np.float32)) if affine and bias else None
        self.eps = _positive(eps)

    def forward(self, x):
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class Embedding(Module):
    """A table of vectors, looked up by number: integers (N,), on the host -> Tensor (N, dim)."""

    def __init__(self, count, dim):
        count, dim = at_least_one("count", count), at_least_one("dim", dim)
        # Uniform with the variance 1 of PyTorch's normal default.
        self.weight = Parameter(np.zeros((count, dim), np.float32), bound=math.sqrt(3))

    def forward(self, labels):
        labels = np.asarray(labels.numpy() if isinstance(labels, Tensor) else labels)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(f"labels must be a list of integers, got {labels.dtype} {labels.shape}")
        if labels.size and not (labels.min() >= 0 and labels.max() < len(self.weight)):
            raise ValueError(f"labels must lie in 0..{len(self.weight) - 1}, got {labels.min()}..{labels.max()}")
        return ops.embedding(self.weight, labels)


class TokenEmbedding(Embedding):
    """An Embedding for integers of any shape, (N, T) -> (N, T, dim): arrays or Tensors, on host or device."""

    def forward(self, ids):
        if isinstance(self.weight, Deferred) and not grad_enabled():
            return ops.embedding(*self.weight.excerpt(ids))
        return ops.embedding(self.weight, ids)


class Dropout(Module):
    """Sets a fraction p of the elements to zero and scales the others by 1 / (1 - p); only inside `training`."""

    def __init__(self, p):
        if not 0 <= p < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {p}")
        self.p = p

    def forward(self, x):
        key = getattr(state, "dropout", None)
        if not self.p or key is None:
            return x
        # The number of the dropout call goes into the upper bits of the purpose, so that every layer draws its own
        # mask.
        state.dropout = key._replace(purpose=key.purpose + 256)
        return ops.dropout(x, self.p, key)

"""Layers: Module, Parameter, and the handful of layers a U-Net is made of.

A Module is a plain object: its parameters and sub-modules are its attributes, found by looking, so that the attribute
path is the parameter's name (`down_blocks.0.resnets.0.conv1.weight`). Names and default values are those of the
checkpoints that Hugging Face's diffusers writes; weights are stored channels-last here and transposed only in files.
"""

import contextlib
import math
import threading
import zlib

import numpy as np

from pydiff import ops, random
from pydiff.arrays import array_module, to_host
from pydiff.recompute import recompute
from pydiff.tensor import Tensor, grad_enabled

_state = threading.local()


class Parameter(Tensor):
    """A Tensor that is trained.

    bound: initial values are drawn uniformly from [-bound, bound] by Module.initialize; 0 keeps the given ones.
    file_axes: the order of axes in a checkpoint file (PyTorch's layout); without it, the same.
    """

    __slots__ = ("bound", "file_axes")

    def __init__(self, data, bound=0.0, file_axes=None):
        super().__init__(data, requires_grad=True)
        self.bound, self.file_axes = bound, file_axes or tuple(range(self.ndim))


class Module:
    """Base of all layers and models. A subclass sets attributes in __init__ and defines forward.

    recompute: whether to forget in forward what backward needs, and compute it again there. For modules that take
    Tensors and return one.
    """

    recompute = False

    def __call__(self, *args, **kwargs):
        if self.recompute and grad_enabled():
            output = recompute(self.forward, _with_the_same_dropout(self.forward), self.parameters(), args)
        else:
            output = self.forward(*args, **kwargs)
        if getattr(_state, "observer", None):
            _state.observer(self, output)
        return output

    def children(self):
        """(name, Parameter or Module) for every attribute that is one; list elements are named by their number."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter | Module):
                yield name, value
            elif isinstance(value, list):
                yield from ((f"{name}.{i}", v) for i, v in enumerate(value) if isinstance(v, Parameter | Module))

    def named_modules(self, prefix=""):
        """(name, module) for this module, named "", and everything inside, in order of construction."""
        yield prefix.rstrip("."), self
        for name, child in self.children():
            if isinstance(child, Module):
                yield from child.named_modules(f"{prefix}{name}.")

    def named_parameters(self):
        """(name, Parameter) in order of construction."""
        for prefix, module in self.named_modules():
            for name, child in module.children():
                if isinstance(child, Parameter):
                    yield (f"{prefix}.{name}" if prefix else name), child

    def parameters(self):
        """All parameters, in order of construction; one that several modules share comes once."""
        return list({id(p): p for _, p in self.named_parameters()}.values())

    def initialize(self, seed=0):
        """Fills every parameter that has a bound with values that depend on (seed, its name) alone. Returns self.

        Does nothing inside `blank`, for models whose weights will be loaded.
        """
        if getattr(_state, "blank", False):
            return self
        for name, p in self.named_parameters():
            if p.bound:
                key = random.key(seed, random.INIT, sample=[zlib.crc32(name.encode())], step=0)
                p.data[...] = array_module(p.data).asarray((2 * random.uniform(key, p.shape)[0] - 1) * p.bound)
        return self

    def astype(self, dtype):
        """Converts every parameter (to float64 for checks, say). Returns self."""
        for p in self.parameters():
            p.data, p.grad, p.grad_buffer = p.data.astype(dtype), None, None
        return self

    def to(self, xp):
        """Moves every parameter to the device of this array library, numpy or cupy. Returns self."""
        for p in self.parameters():
            if array_module(p.data) is not xp:
                p.data, p.grad, p.grad_buffer = xp.asarray(to_host(p.data)), None, None
        return self

    def state_dict(self):
        """{name: NumPy array in the layout of checkpoint files}."""
        return {name: p.numpy().transpose(p.file_axes).copy(order="C") for name, p in self.named_parameters()}

    def load_state_dict(self, state):
        """Copies such a dict into the parameters; names and shapes must match exactly. Returns self."""
        parameters = dict(self.named_parameters())
        missing, extra = sorted(parameters.keys() - state.keys()), sorted(state.keys() - parameters.keys())
        if missing or extra:
            raise ValueError(
                f"the weights do not fit this model: missing {missing[:3] or 'none'}, unknown {extra[:3] or 'none'}"
            )
        for name, p in parameters.items():  # all of them before the first is changed
            expected = tuple(p.shape[i] for i in p.file_axes)
            if state[name].shape != expected:
                raise ValueError(f"{name} must have shape {expected}, got {state[name].shape}")
        for name, p in parameters.items():
            p.data[...] = array_module(p.data).asarray(state[name].transpose(tuple(np.argsort(p.file_axes))))
        return self


class Linear(Module):
    """y = x weight + bias (+ add) on the last axis; weight (cin, cout)."""

    def __init__(self, cin, cout, bias=True):
        bound = 1 / math.sqrt(cin)  # PyTorch's default: He et al. 2015 with a = sqrt(5)
        self.weight = Parameter(np.zeros((cin, cout), np.float32), bound, file_axes=(1, 0))
        self.bias = Parameter(np.zeros(cout, np.float32), bound) if bias else None

    def forward(self, x, add=None):
        return ops.linear(x, self.weight, self.bias, add)


class Conv2d(Module):
    """ops.conv2d with a square kernel; weight (size, size, cin, cout). shift: (N, cout), added to a sample's pixels."""

    def __init__(self, cin, cout, size, stride=1, padding=0):
        bound = 1 / math.sqrt(cin * size * size)
        self.weight = Parameter(np.zeros((size, size, cin, cout), np.float32), bound, file_axes=(3, 2, 0, 1))
        self.bias = Parameter(np.zeros(cout, np.float32), bound)
        self.stride, self.padding = stride, padding

    def forward(self, x, shift=None, add=None, upsample=1):
        bias = self.bias if shift is None else shift + self.bias
        return ops.conv2d(x, self.weight, bias, self.stride, self.padding, upsample, add)


class GroupNorm(Module):
    """ops.group_norm with a scale and a shift per channel; activation None or "silu"."""

    def __init__(self, groups, channels, eps=1e-5, activation=None):
        if groups < 1 or channels % groups:
            raise ValueError(f"{channels} channels do not divide into {groups} groups; choose another norm_num_groups")
        self.weight = Parameter(np.ones(channels, np.float32))
        self.bias = Parameter(np.zeros(channels, np.float32))
        self.groups, self.eps, self.activation = groups, eps, activation

    def forward(self, x):
        return ops.group_norm(x, self.weight, self.bias, self.groups, self.eps, self.activation)


class Embedding(Module):
    """A table of vectors: integers (N,), on the host -> (N, dim)."""

    def __init__(self, count, dim):
        # Uniform with the variance 1 of PyTorch's normal default.
        self.weight = Parameter(np.zeros((count, dim), np.float32), bound=math.sqrt(3))

    def forward(self, labels):
        labels = np.asarray(labels)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(f"labels must be a list of integers, got {labels.dtype} {labels.shape}")
        if labels.size and not (labels.min() >= 0 and labels.max() < len(self.weight)):
            raise ValueError(f"labels must lie in 0..{len(self.weight) - 1}, got {labels.min()}..{labels.max()}")
        return self.weight[labels]


class Dropout(Module):
    """Sets a share p of the elements to zero and scales the others by 1 / (1 - p); does nothing outside `training`."""

    def __init__(self, p):
        if not 0 <= p < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {p}")
        self.p = p

    def forward(self, x):
        key = getattr(_state, "dropout", None)
        if not self.p or key is None:
            return x
        if len(key.sample) != len(x):
            raise ValueError(f"got dropout masks for {len(key.sample)} samples, but an input of shape {x.shape}")
        # The number of the dropout call goes into the purpose's upper bits: every layer draws its own mask.
        _state.dropout = key._replace(purpose=key.purpose + 256)
        xp = array_module(x.data)
        keep = xp.asarray(random.uniform(key, x.shape[1:]) >= self.p)
        return x * (keep / (1 - self.p)).astype(x.dtype)


@contextlib.contextmanager
def training(seed, step, sample):
    """Inside, dropout is active; its masks are a pure function of (seed, step, sample index, layer)."""
    before, _state.dropout = getattr(_state, "dropout", None), random.key(seed, random.DROPOUT, sample, step)
    try:
        yield
    finally:
        _state.dropout = before


@contextlib.contextmanager
def blank():
    """Inside, new models keep zeros instead of drawing initial weights, which would be replaced at once."""
    before, _state.blank = getattr(_state, "blank", False), True
    try:
        yield
    finally:
        _state.blank = before


def _with_the_same_dropout(forward):
    """A function that calls forward with the masks that it would draw now."""
    key = getattr(_state, "dropout", None)

    def again(*args):
        before, _state.dropout = getattr(_state, "dropout", None), key
        try:
            return forward(*args)
        finally:
            _state.dropout = before

    return again


@contextlib.contextmanager
def observe(callback):
    """Inside, callback(module, output) is called after every forward, innermost modules first."""
    before, _state.observer = getattr(_state, "observer", None), callback
    try:
        yield
    finally:
        _state.observer = before


class Attention(Module):
    """Multi-head attention of every position to all others (or to a context): normalisation before, x added after.

    x: (N, ..., C) -> same shape. heads·head_dim channels inside; groups None leaves the normalisation out.
    """

    def __init__(self, channels, head_dim, groups, eps=1e-5, output_scale=1.0, context_channels=None):
        if not 1 <= head_dim <= channels:
            raise ValueError(f"attention_head_dim must be from 1 to the {channels} channels at hand, got {head_dim}")
        heads = channels // head_dim
        inner = heads * head_dim
        self.group_norm = GroupNorm(groups, channels, eps) if groups else None
        self.to_q = Linear(channels, inner)
        self.to_k = Linear(context_channels or channels, inner)
        self.to_v = Linear(context_channels or channels, inner)
        self.to_out = [Linear(inner, channels)]
        self.heads, self.output_scale = heads, output_scale

    def forward(self, x, context=None):
        h = self.group_norm(x) if self.group_norm else x
        h = h.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])  # (N, T, C)
        context = h if context is None else context
        q, k, v = self.to_q(h), self.to_k(context), self.to_v(context)
        residual = x.reshape((*q.shape[:2], x.shape[-1]))
        h = self.to_out[0](ops.attention(q, k, v, self.heads), add=residual).reshape(x.shape)
        return h if self.output_scale == 1 else h * (1 / self.output_scale)

"""Module and Parameter, of which layers and models are made, and context managers that affect all of them.

A Module is a plain object: its parameters and sub-modules are found among its attributes, so that the attribute path is
the parameter's name (`down_blocks.0.resnets.0.conv1.weight`). Names and default values are those of the checkpoints
that Hugging Face's diffusers writes; weights are stored channels-last here and transposed only in files.
"""

import contextlib
import functools
import math
import threading
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pydiff import backend, random
from pydiff.arrays import array_module, to_host
from pydiff.mistakes import described, of_module, refuse_lists, refuse_misnamed
from pydiff.recompute import recompute
from pydiff.tensor import Tensor, grad_enabled

_state = threading.local()
SPARE = 8  # times the numbers of its weights that a network may take: constructors replace layers that they have made


class Parameter(Tensor):
    """A Tensor that is trained.

    bound: initial values are drawn uniformly from [-bound, bound] by Module.initialize; 0 keeps the given ones.
    file_axes: the order of axes in a checkpoint file (PyTorch's layout); by default the order here.
    """

    __slots__ = ("bound", "file_axes")

    def __init__(self, data, bound=0.0, file_axes=None):
        super().__init__(data, requires_grad=True)
        if (room := getattr(_state, "room", None)) is not None:
            _state.room = room - self.size
            if _state.room < 0:
                raise ValueError("it describes a larger network than its weights are of")
        self.bound, self.file_axes = bound, file_axes or tuple(range(self.ndim))

    def to(self, xp):
        """Moves the values to the device of this array library."""
        if array_module(self.data) is not xp:
            self.data, self.grad, self.grad_buffer = xp.asarray(to_host(self.data)), None, None


class Module:
    """Base class of all layers and models. A subclass sets attributes in __init__ and defines forward.

    recompute: whether forward discards the values that backward needs, which are then computed again; for modules that
    take Tensors and return one.
    """

    recompute = False
    config: dict[str, Any]  # of a model: the keyword arguments it was constructed with
    forward: Callable[..., Any]

    def __new__(cls, *_, **options):
        refuse_misnamed(cls, options)
        return super().__new__(cls)

    def __call__(self, *args, **kwargs) -> Any:
        if self.recompute and grad_enabled():
            forward = functools.partial(self.forward, **kwargs) if kwargs else self.forward
            output = recompute(forward, _with_the_same_dropout(forward), self.parameters(), args)
        else:
            try:
                output = self.forward(*args, **kwargs)
            except AttributeError as error:
                refuse_lists(type(self).__name__, args, error)
                raise
        if getattr(_state, "observer", None):
            _state.observer(self, output)
        return output

    def children(self):
        """(name, Parameter or Module) for every attribute that is one; list elements are named by their index."""
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
        """All parameters, in order of construction; one that several modules share appears once."""
        return list({id(p): p for _, p in self.named_parameters()}.values())

    def initialize(self, seed=0):
        """Fills every parameter that has a bound with values that depend only on (seed, its name). Returns self.

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
        """Moves every parameter to the device of this array library, numpy or cupy, or to "cpu", "cuda" or "simt".
        Returns self.
        """
        if isinstance(xp, str):
            with backend.use_device(xp) as library:
                return self.to(library)
        for p in self.parameters():
            p.to(xp)
        return self

    def zero_grad(self):
        """Sets the gradient of every parameter to None."""
        for p in self.parameters():
            p.grad = None

    __getattr__ = of_module

    def state_dict(self):
        """{name: NumPy array in the layout of checkpoint files}."""
        return {name: p.numpy().transpose(p.file_axes).copy(order="C") for name, p in self.named_parameters()}

    def load_state_dict(self, state):
        """Copies a dict such as `state_dict` returns into the parameters. Returns self.

        Raises ValueError unless names and shapes match exactly.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"weights are a dict of arrays, as state_dict() gives them, got {described(state)}")
        parameters = dict(self.named_parameters())
        missing, extra = sorted(parameters.keys() - state.keys()), sorted(state.keys() - parameters.keys())
        if missing or extra:
            raise ValueError(
                f"the weights do not fit this model: missing {missing[:3] or 'none'}, unknown {extra[:3] or 'none'}"
            )
        state = {name: v if array_module(v) is not np else np.asarray(v) for name, v in state.items()}
        for name, p in parameters.items():  # check all before changing any
            expected = tuple(p.shape[i] for i in p.file_axes)
            if state[name].shape != expected:
                raise ValueError(f"{name} must have shape {expected}, got {state[name].shape}")
        for name, p in parameters.items():
            p.data[...] = array_module(p.data).asarray(state[name].transpose(tuple(np.argsort(p.file_axes))))
        return self


@contextlib.contextmanager
def training(seed, step, sample):
    """Inside, dropout is active; its masks are a pure function of (seed, step, sample index, layer)."""
    before, _state.dropout = getattr(_state, "dropout", None), random.key(seed, random.DROPOUT, sample, step)
    try:
        yield
    finally:
        _state.dropout = before


@contextlib.contextmanager
def blank(most: int | None = None):
    """Inside, new models keep zeros instead of drawing initial weights, for weights that are loaded next.

    most: how many numbers the parameters may have together, for a configuration of unknown origin. One that goes beyond
    raises ValueError as soon as it does: before memory is filled, and however many layers would follow.
    """
    before = getattr(_state, "blank", False), getattr(_state, "room", None)
    _state.blank, _state.room = True, most
    try:
        yield
    finally:
        _state.blank, _state.room = before


def room_for(weights: Mapping[str, Any]) -> int:
    """How many numbers a network with these weights, arrays by name, may take while it is built: the `most` of
    `blank`.
    """
    return SPARE * sum(math.prod(weight.shape) for weight in weights.values())


def _with_the_same_dropout(forward):
    """A function that calls forward with the dropout masks that it would draw now."""
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

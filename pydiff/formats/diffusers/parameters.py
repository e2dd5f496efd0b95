"""Copies arrays of a file into a network's parameters and back: handles names of earlier versions, and compares shapes
before reading the first array.
"""

import contextlib
import functools
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from pydiff import backend
from pydiff.formats.safetensors import CheckpointError, Made, Weight
from pydiff.formats.schema import UNFIT
from pydiff.nn import Module
from pydiff.nn.deferred import defer
from pydiff.printed import printable

TILE = 128  # rows and columns of a matrix that is transposed by tiles
LARGE = 1 << 22  # numbers of an array that are read at a time, about
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # inside an attention


class Checked(NamedTuple):
    """A config.json that passed its checks. config: the options of the class, all of them valid. notes: sentences on
    what was ignored.
    """

    class_name: str
    config: dict
    notes: list[str]


def attention_renamed(name: str) -> str:
    """The name that diffusers has given an attention's parameter since 2023; other names unchanged."""
    parts = name.split(".")
    if len(parts) > 3 and "attentions" in parts:
        parts[-2] = OLD_NAMES.get(parts[-2], parts[-2])
    return ".".join(parts)


@functools.cache
def _defaults(cls) -> dict:
    return {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}


def with_defaults(cls: type[Module], config: Mapping) -> dict:
    """A configuration with the class's own values for the options that it leaves out."""
    return {**_defaults(cls), **config}


@contextlib.contextmanager
def misfits(source: object) -> Iterator[None]:
    """Inside, what a network's constructor, or the comparison of its options with weights, objects to is raised as a
    CheckpointError about `source`, of one short line whatever the options are.
    """
    try:
        yield
    except UNFIT as error:
        said = printable(str(error))[:400] or type(error).__name__
        raise CheckpointError(f"{source}: {said}: use another.") from error


def fill(model: Module, weights: Mapping[str, Weight], deferred: bool = False):
    """Reads every array into its parameter; names and shapes are compared before the first is read.

    deferred: each is read on first use, see nn/deferred.py.
    """
    parameters = dict(model.named_parameters())
    missing, extra = sorted(parameters.keys() - weights.keys()), sorted(weights.keys() - parameters.keys())
    if missing or extra:
        raise ValueError(
            f"the weights do not fit this model: missing {missing[:3] or 'none'}, unknown {extra[:3] or 'none'}"
        )
    for name, p in parameters.items():
        expected = tuple(p.shape[i] for i in p.file_axes)
        if tuple(weights[name].shape) != expected:
            raise ValueError(f"{name} must have shape {expected}, got {tuple(weights[name].shape)}")
        if not weights[name].floating:
            raise ValueError(f"{name} holds no fractions, expected floating numbers")
    if deferred:
        defer(model, {name: Reader(weights[name], p.file_axes) for name, p in parameters.items()})
        return
    for name, p in parameters.items():
        p.data[...] = weights[name].read().transpose(tuple(np.argsort(p.file_axes)))


class Reader:
    """Reads an array of a file into the layout of a parameter, float32, contiguous, whenever it is called. Where the
    file lets it, a part at a time, so that a large one is never held twice.
    """

    def __init__(self, weight: Weight, file_axes):
        self.weight, self.file_axes, self.axes = weight, tuple(file_axes), tuple(np.argsort(file_axes))
        self.shape = tuple(weight.shape[i] for i in self.axes)

    def __call__(self):
        made, part = np.empty(self.shape, np.float32), self.weight.part
        if part is None:
            self._put(self.weight.read(), made, 0)
            return made
        rows = self.weight.shape[0]
        step = max(TILE, LARGE * rows // max(1, math.prod(self.shape)) // TILE * TILE)
        for first in range(0, rows, step):
            self._put(part(first, min(first + step, rows)), made, first)
        return made

    def rows(self, numbers):
        """Those with these numbers (N,) along the parameter's first axis."""
        part = self.weight.part
        if part is None or self.axes[0] != 0:
            return self()[numbers]
        made = np.empty((len(numbers), *self.shape[1:]), np.float32)
        for i, number in enumerate(numbers):
            made[i] = part(number, number + 1).transpose(self.axes)[0]
        return made

    def _put(self, rows, made, first):
        """Rows from `first` on, as the file has them, to their place in `made`."""
        last = len(self.shape) - 1
        turned = self.file_axes == (last, last - 1, *range(last - 1))  # (outputs, inputs, ..) to (.., inputs, outputs)
        if last and turned and backend.cpu is not None and rows.dtype in (np.float16, np.float32):
            taps = math.prod(self.shape[:-2])
            rows = np.ascontiguousarray(rows).reshape(*rows.shape[:2], taps)
            backend.cpu.turn_weights(rows, first, made.reshape(taps, *self.shape[-2:]))
        else:
            here = (slice(None),) * self.file_axes[0] + (slice(first, first + len(rows)),)
            _copy(rows.transpose(self.axes), made[here])


def _copy(array, made):
    """The array's values to `made`, of the same shape; tile by tile, which is faster where axes change places."""
    if array.ndim < 2 or array.flags.c_contiguous:
        made[...] = array
        return
    for i in range(0, array.shape[-1], TILE):
        for j in range(0, array.shape[-2], TILE):
            made[..., j : j + TILE, i : i + TILE] = array[..., j : j + TILE, i : i + TILE]


def reshaped(weights: Mapping[str, Weight], model: Module) -> dict[str, Weight]:
    """Weights with the shapes that the model's linear layers and 1 x 1 convolutions need: (o, i, 1, 1) of a file
    becomes a matrix (o, i), and vice versa.
    """
    made = dict(weights)
    for name, p in model.named_parameters():
        if name not in weights:
            continue
        shape, expected = tuple(weights[name].shape), tuple(p.shape[i] for i in p.file_axes)
        longer = shape if len(shape) > len(expected) else expected
        if (
            {len(shape), len(expected)} == {2, 4}
            and longer[2:] == (1, 1)
            and longer[:2] == min(shape, expected, key=len)
        ):
            made[name] = _in_shape(weights[name], expected)
    return made


def _in_shape(weight: Weight, shape) -> Weight:
    """The same numbers in another shape; the first axis keeps its length."""
    part = None if weight.part is None else lambda first, last: weight.part(first, last).reshape(-1, *shape[1:])  # pyright: ignore[reportOptionalCall]
    return weight._replace(shape=shape, read=lambda: weight.read().reshape(shape), part=part)


def ways_to_write(model: Module) -> dict:
    """The parameters as checkpoint.save_model takes them: created one at a time, in the layout of the file."""

    def made(p):
        shape = tuple(p.shape[i] for i in p.file_axes)
        return Made(shape, lambda: p.numpy().transpose(p.file_axes), p.dtype)

    return {name: made(p) for name, p in model.named_parameters()}


def places(model: Module, trained) -> dict[str, list]:
    """{name: [first, shape, file_axes]}, JSON: where each parameter is in the flat arrays of an optimiser of the
    parameters `trained`.
    """
    firsts, end = {}, 0
    for p in trained:
        firsts[id(p)], end = end, end + p.size
    return {name: [firsts[id(p)], list(p.shape), list(p.file_axes)] for name, p in model.named_parameters()}


def placed(extra: Mapping, flat: np.ndarray, source) -> dict[str, dict[str, Weight]]:
    """{file: {name: weight}} of the parameters that extra["parameters"] locates in a flat array (P,).

    Raises CheckpointError if they do not fit.
    """
    found, ends = {}, [0]
    try:
        for file, described in extra["parameters"].items():
            found[file] = {}
            for name, (first, shape, axes) in described.items():
                ends.append(first + math.prod(shape))
                part = flat[first : ends[-1]].reshape(shape).transpose(axes)
                found[file][name] = Weight(part.shape, lambda part=part: part)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{source} describes another network than the checkpoints beside it.") from error
    if max(ends) != flat.size:
        raise CheckpointError(f"{source} describes another network than the checkpoints beside it.")
    return found

"""Reverse-mode automatic differentiation on arrays: Tensor, Function, backward, no_grad.

A `Tensor` is an array plus, if it was computed from something that requires a gradient, the `Function` that made it.
Calling `backward` on a result walks those Functions from the newest to the oldest and applies the chain rule in each:

    y = f(x)      forward   stores what the derivative will need
    dx = f'(x)ᵀ dy  backward  turns the gradient of the output into gradients of the inputs

Newest to oldest is a valid order because a Function can only use what existed before it, so neither a graph search nor
recursion is needed: depth is limited only by memory.
"""

import contextlib
import heapq
import inspect
import itertools
import operator
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pydiff.arrays import add, array_module
from pydiff.backend import FLOAT32, is_bfloat16
from pydiff.mistakes import array_of, described, plain, refuse_call

if TYPE_CHECKING:
    from pydiff.signatures import Methods  # which pydiff.ops adds to Tensor
else:
    Methods = object


class _State(threading.local):
    """Each Python thread records, or does not record, independently."""

    enabled = True
    listener = None  # see applied


_state = _State()
_counter = itertools.count()


def grad_enabled():
    """True unless inside `no_grad` (in this thread)."""
    return _state.enabled


@contextlib.contextmanager
def _recording(on):
    before, _state.enabled = _state.enabled, on
    try:
        yield
    finally:
        _state.enabled = before


def no_grad(function=None):
    """Inside, operations are not recorded: for sampling and evaluation. Also works as a decorator, `@no_grad()` or
    `@no_grad`.
    """
    return _recording(False) if function is None else _recording(False)(function)


@contextlib.contextmanager
def applied(listener):
    """Inside, listener(class, arguments, options, outputs) is called after every operation; for graph.py."""
    before, _state.listener = _state.listener, listener
    try:
        yield
    finally:
        _state.listener = before


def _floating(dtype):
    return dtype.kind == "f" or is_bfloat16(dtype)


def _array(data):
    """The array that a Tensor made from `data` holds: numbers, lists and NumPy scalars become arrays."""
    if isinstance(data, Tensor):
        raise TypeError("got a Tensor where an array was expected; use .data, or .detach() to cut the graph")
    data = plain(data)
    if hasattr(data, "dtype"):
        return np.asarray(data) if isinstance(data, np.generic) else data
    data = array_of(data)
    return data.astype(np.float32) if data.dtype.kind in "fi" else data


class Tensor(Methods):
    """An array that can be differentiated.

    data: ndarray (NumPy or CuPy) of any shape in float32, float64 or, for the CUDA kernels, bfloat16; Python numbers
    and lists become float32, integer arrays are kept as they are but cannot require a gradient. The array is shared,
    not copied. grad: None, or after `backward` an array of the same shape, for tensors made with requires_grad=True.
    """

    __slots__ = ("__weakref__", "data", "grad", "grad_buffer", "maker", "output_index", "requires_grad")
    __array_ufunc__ = None  # makes `array * tensor` call Tensor.__rmul__ instead of NumPy's element loop

    def __init__(self, data, requires_grad=False):
        if type(data) is not np.ndarray:
            data = _array(data)
        if data.dtype.kind not in "fiub" and not _floating(data.dtype):
            found = described(data) if data.dtype.hasobject and data.shape == () else f"dtype {data.dtype}"
            raise TypeError(f"a Tensor holds real numbers, got {found}")
        if requires_grad and not _floating(data.dtype):
            raise TypeError(f"only floating-point tensors can require a gradient, got dtype {data.dtype}")
        self.data: Any = data  # NumPy's or CuPy's
        self.grad: Any = None
        self.grad_buffer: Any = None  # where .grad is written; the optimiser keeps all of them in one flat array
        self.requires_grad = requires_grad
        self.maker: Function | None = None  # the Function this is an output of, if that was recorded
        self.output_index = 0

    shape = property(operator.attrgetter("data.shape"))
    dtype = property(operator.attrgetter("data.dtype"))
    ndim = property(operator.attrgetter("data.ndim"))
    size = property(operator.attrgetter("data.size"))

    def __len__(self):
        if not self.ndim:
            raise TypeError("a Tensor without axes has no length; it is a single number, x.item()")
        return len(self.data)

    def __repr__(self):
        return f"Tensor({self.data!r}{', requires_grad=True' if self.requires_grad else ''})"

    def __bool__(self):
        return bool(self.data)

    def item(self):
        """The only element, as a Python number."""
        return self.data.item()

    def numpy(self):
        """The values as a NumPy array; shared with the tensor if it is on the CPU."""
        return self.data if isinstance(self.data, np.ndarray) else self.data.get()

    def detach(self):
        """The same data without its history: a constant from here on."""
        return Tensor(self.data)

    def backward(self, grad=None, finished=None, retain_graph=False):
        """Adds d(self)/d(leaf), contracted with `grad`, to the .grad of every leaf that requires one.

        grad: array of self's shape, the gradient of the final quantity with respect to self; optional for a tensor with
        a single element, where it defaults to 1. finished: called with each leaf as soon as its .grad is final, while
        the rest is still being computed. Frees the graph: a second backward through it raises RuntimeError, and
        retain_graph, PyTorch's option against that, is refused.
        """
        if retain_graph:
            raise ValueError("backward frees the graph; add the losses and call backward once, or compute them again")
        if grad is None:
            if self.size != 1:
                raise ValueError(
                    f"backward() without a gradient needs a single number, this tensor has shape {self.shape}"
                )
            grad = array_module(self.data).ones_like(self.data)
        grad = grad.data if isinstance(grad, Tensor) else grad
        if getattr(grad, "shape", None) != self.shape:
            raise ValueError(
                f"the gradient must be an array of shape {self.shape}, got {getattr(grad, 'shape', grad)!r}"
            )
        if not self.requires_grad:
            raise RuntimeError("this tensor does not depend on anything that requires a gradient")
        _run_backward(self, grad.astype(self.dtype, copy=False), finished)


class Function:
    """One differentiable operation. Subclasses define two methods, side by side:

    forward(self, x, y, option=default, *, option) -> array or tuple of arrays, storing on self what backward needs.
    Its arguments are the parameters without a default that come before a `*`, or all of `*arrays`; the others are
    options. backward(self, *grads) -> one gradient (or None) for each argument, in that order. A grad of an unused
    output is None, unless the op has a single output. `self.needs[i]` says whether the i-th argument requires a
    gradient, so that backward can skip the work.

    Instead of a backward, `replay(self)` may compute the outputs again, as Tensors whose history continues from
    self.inputs (None where no gradient is required); see recompute.py.

    `MyOp.apply(x, y, option=...)` unwraps Tensors, runs forward and, if recording, stores the call. Arguments and
    options may be given by position or by name, as for any function. Raises TypeError for masked arrays, and for
    integers or booleans as the first argument, with which real-valued formulas would wrap around or truncate, unless
    `integers` says that the operation supports them.
    """

    replay: Callable[[], list] | None = None  # an operation has a backward instead
    integers = False
    backward: Callable[..., Any]
    needs: list[bool]  # of a call, these four: whether each argument wants a gradient, the Tensors that do (no list
    inputs: Any  # any more, but None, once the graph is freed), how many outputs there are, and when it was made
    outputs: int
    order: int

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        cls.read_signature()

    @classmethod
    def read_signature(cls):
        """Inspects forward, once per class: the names of parameters taken by position, and how many are arguments."""
        parameters = list(inspect.signature(cls.forward).parameters.values())[1:]
        cls.names = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
        cls.arguments = sum(p.kind == p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters)
        if any(p.kind == p.VAR_POSITIONAL for p in parameters):
            cls.names, cls.arguments = [], -1  # any number, given by position

    def forward(self, *arrays):
        """The operation on arrays."""
        raise NotImplementedError

    @classmethod
    def bind(cls, args, options):
        """(arguments by position, options by name) of the same call. Raises TypeError for values given twice or too
        many.
        """
        if cls.arguments < 0:
            return args, options
        for name, option in zip(cls.names[cls.arguments :], args[cls.arguments :], strict=False):
            if name in options:
                raise TypeError(f"{cls.__name__}: {name} is given twice, by position and by name")
            options[name] = option
        if len(args) > len(cls.names):
            raise TypeError(f"{cls.__name__} takes {', '.join(cls.names)}; got {len(args)} values by position")
        named = [options.pop(name) for name in cls.names[len(args) : cls.arguments] if name in options]
        return (*args[: cls.arguments], *named), options

    @classmethod
    def apply(cls, *args, **options) -> Any:
        if len(args) != cls.arguments:
            args, options = cls.bind(args, options)
        function, recording, arrays, needs = cls(), _state.enabled, [], []
        for a in args:
            if isinstance(a, Tensor):
                arrays.append(a.data)
                needs.append(recording and a.requires_grad)
            else:
                arrays.append(a if type(a) is np.ndarray else plain(a))
                needs.append(False)
        if not cls.integers and arrays and getattr(arrays[0], "dtype", FLOAT32).kind in "iub":
            raise TypeError(
                f"{cls.__name__} needs floating-point numbers, got {arrays[0].dtype}; use .astype(np.float32)"
            )
        function.needs = needs
        try:
            result = function.forward(*arrays, **options)
        except (TypeError, AttributeError) as error:
            refuse_call(cls.forward, cls.__name__, arrays, options, error)
            raise
        outputs = tuple(map(Tensor, result)) if isinstance(result, tuple) else (Tensor(result),)
        if True in needs:
            function.order = next(_counter)
            function.inputs = [a if need else None for a, need in zip(args, needs, strict=True)]
            function.outputs = len(outputs)
            for index, output in enumerate(outputs):
                if _floating(output.data.dtype):
                    output.requires_grad, output.maker, output.output_index = True, function, index
        if _state.listener:
            _state.listener(cls, args, options, outputs)
        return outputs if isinstance(result, tuple) else outputs[0]


def _run_backward(root, grad, finished=None):
    """The chain rule from `root` to the leaves, newest Function first."""
    pending = [] if finished is None else _leaves(root)
    waiting = {}  # Function -> gradients of its outputs accumulated so far
    queue = []  # the same Functions as a heap, newest on top

    def give(tensor, gradient):
        function = tensor.maker
        if function is None:
            _accumulate(tensor, gradient)
            return
        if function.inputs is None:
            raise RuntimeError(
                "backward was called a second time through the same computation, whose intermediate values were freed "
                "by the first; compute the result again, or add the losses and call backward once"
            )
        if function not in waiting:
            waiting[function] = [None] * function.outputs
            heapq.heappush(queue, (-function.order, function))
        grads, index = waiting[function], tensor.output_index
        # A sum of two makes a new array: a gradient may be shared with another consumer, so it is never added into.
        grads[index] = gradient if grads[index] is None else add(grads[index], gradient)

    give(root, grad)
    while queue:
        while pending and pending[-1][0] > -queue[0][0]:  # all users of this leaf are done, or were never reached
            finished(pending.pop()[1])  # pyright: ignore[reportOptionalCall]
        _, function = heapq.heappop(queue)
        inputs, gradients, needs = function.inputs, waiting.pop(function), function.needs
        if function.replay:
            with _recording(True):
                inputs = function.replay()
            needs = [True] * len(inputs)
        else:
            gradients = function.backward(*gradients)
            gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        if len(gradients) != len(inputs):
            raise AssertionError(f"{type(function).__name__}: {len(gradients)} gradients for {len(inputs)} inputs")
        function.__dict__.clear()  # frees what forward stored; the rest of the graph may be large
        function.inputs = None
        for tensor, gradient, need in zip(inputs, gradients, needs, strict=True):
            if need and gradient is not None:
                if gradient.shape != tensor.shape:
                    raise AssertionError(
                        f"{type(function).__name__}: gradient {gradient.shape} for input {tensor.shape}"
                    )
                give(tensor, gradient.astype(_gradient_dtype(tensor, gradient), copy=False))
    for _, leaf in reversed(pending):
        finished(leaf)  # pyright: ignore[reportOptionalCall]


def _gradient_dtype(tensor, gradient):
    """The dtype in which a gradient is kept: the tensor's own, whatever was computed after it (a loss in float64 of a
    network in float32). But float32 for a 16-bit leaf whose gradient arrives with more bits: 1e-9 is 0 in float16.
    """
    low = tensor.maker is None and tensor.dtype.itemsize < FLOAT32.itemsize <= gradient.dtype.itemsize
    return FLOAT32 if low else tensor.dtype


def _leaves(root):
    """[(order of the oldest Function that used it, leaf)] of all leaves below `root`, the oldest use first.

    What a Function replays is newer than the Function, so its own order counts for everything it will record.
    """
    if root.maker is None:
        return [(0, root)]
    oldest, seen, queue = {}, set(), [root.maker]
    while queue:
        function = queue.pop()
        if function is None or function.inputs is None or function in seen:
            continue
        seen.add(function)
        for tensor in (t for t in function.inputs if t is not None):
            if tensor.maker is None:
                order = min(function.order, oldest.get(id(tensor), (function.order,))[0])
                oldest[id(tensor)] = (order, tensor)
            queue.append(tensor.maker)
    return sorted(oldest.values(), key=lambda entry: entry[0])


def _accumulate(leaf, gradient):
    """Adds to leaf.grad, an array that only the leaf owns: the incoming one may be shared with other tensors.

    Raises ValueError if somebody has put something else in its place.
    """
    if leaf.grad is not None:
        if isinstance(leaf.grad, Tensor) or getattr(leaf.grad, "shape", None) != leaf.shape:
            raise ValueError(
                f"the gradient is added to .grad, but that was replaced by {described(leaf.grad)}, expected an array "
                f"{leaf.shape}; to begin with zero write p.grad = None"
            )
        if leaf.grad.dtype.itemsize < gradient.dtype.itemsize:
            leaf.grad = leaf.grad.astype(gradient.dtype)
        leaf.grad += gradient
    elif leaf.grad_buffer is not None:
        leaf.grad_buffer[...] = gradient
        leaf.grad = leaf.grad_buffer
    else:
        leaf.grad = array_module(leaf.data).array(gradient)


def as_tensor(x, like=None):
    """x if it is a Tensor, else a constant Tensor; Python numbers take the dtype of the array `like`."""
    if isinstance(x, Tensor):
        return x
    if like is not None and not hasattr(x, "dtype"):
        x = array_module(like).asarray(x, dtype=like.dtype if _floating(like.dtype) else None)
    return Tensor(x)

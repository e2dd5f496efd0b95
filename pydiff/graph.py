"""A network's forward pass as a list of operations: recorded once, then played without the Python around them.

A sampler asks one network for the same shapes dozens of times. What layers do in Python besides their operations, such
as finding parameters, checking shapes and wrapping arrays, costs as much as the operations where pictures are small.
So the first call is recorded, as a frame a CUDA graph would record, and the others go through the list:

    values = [arguments, parameters, constants, room for every result]
    for each step:  values[result] = Operation().forward(*values[sources])

Every operation is the same code on the same numbers as before, so the results are the same bits.
"""

import weakref
from typing import NamedTuple

from pydiff.arrays import contiguous
from pydiff.tensor import Tensor, applied, no_grad


class Step(NamedTuple):
    """One operation: its class and options, where among the values its arguments are and its first result goes, and
    which values nobody needs afterwards.
    """

    operation: type
    options: dict
    sources: list
    result: int
    done: list


class Plan:
    """function(*tensors) -> Tensor, recorded from one call without gradients; to be called with arrays, gives an array.

    first: the array that the recorded call gave; whoever takes it may set this to None.
    What is recorded holds for arguments of the same shapes and dtypes. Parameters are looked up at every call, so they
    may change; whatever else `function` read or decided is fixed. ValueError if it used a tensor that is neither an
    argument nor a parameter nor an operation's result: that may depend on what it was given.
    """

    def __init__(self, function, *arrays):
        self.signature = [(a.shape, a.dtype) for a in arrays]
        self.values, self.parameters, self.steps = [None] * len(arrays), [], []
        self._places = {}  # id of a tensor -> the tensor (weakly: recording shall not keep results) and its place
        arguments = [Tensor(a) for a in arrays]
        for place, argument in enumerate(arguments):
            self._places[id(argument)] = weakref.ref(argument), place
        with no_grad(), applied(self._record):
            result = function(*arguments)
        self.first, self.result = result.data, self._place(result)
        del self._places
        self._find_last_uses()

    def _place(self, value, parameter=False):
        known = self._places.get(id(value))
        if known and known[0]() is value:
            return known[1]
        if not isinstance(value, Tensor):
            self.values.append(value)  # a constant
        elif parameter or value.requires_grad or value.size == 1:  # of one element: a number in the program's text
            self.parameters.append((len(self.values), value))
            self.values.append(None)
            self._places[id(value)] = weakref.ref(value), len(self.values) - 1
        else:
            raise ValueError(f"a plan cannot tell where a tensor of shape {value.shape} comes from")
        return len(self.values) - 1

    def _record(self, operation, arguments, options, outputs):
        sources = [self._place(a) for a in arguments]
        first = len(self.values)
        self.values += [None] * len(outputs)
        for place, output in enumerate(outputs, first):
            self._places[id(output)] = weakref.ref(output), place
        self.steps.append(Step(operation, options, sources, first, []))

    def _find_last_uses(self):
        kept = {place for place, _ in self.parameters} | {self.result}
        for step in reversed(self.steps):
            for place in {step.result, *step.sources} - kept:
                if self.values[place] is None:  # constants stay
                    step.done.append(place)
                    kept.add(place)

    def __call__(self, *arrays):
        if [(a.shape, a.dtype) for a in arrays] != self.signature:
            raise ValueError(f"the plan is for {self.signature}, got {[(a.shape, a.dtype) for a in arrays]}")
        values = self.values.copy()
        values[: len(arrays)] = arrays
        for place, parameter in self.parameters:
            values[place] = parameter.data
        for operation, options, sources, result, done in self.steps:
            function = operation()
            function.needs = [False] * len(sources)
            made = function.forward(*[values[i] for i in sources], **options)
            if isinstance(made, tuple):
                values[result : result + len(made)] = made
            else:
                values[result] = made
            for place in done:
                values[place] = None
        return values[self.result]


class Played:
    """A network for sampling: what comes after the encoding of step and condition is played from a plan, one for each
    combination of argument names, shapes and dtypes.

    model: what has `encoded` and `body`, as UNet2D does; another network is called as it is. Its parameters may change,
    the rest may not.
    """

    def __init__(self, model):
        self.model, self.plans = model, {}

    def __call__(self, x, t, **condition):
        """x (N, ...) array, t and condition as the network takes them -> array."""
        with no_grad():
            if not hasattr(self.model, "body"):
                return self.model(x, t, **condition).data
            x = contiguous(self.model.checked(x).data)
            encoded = {name: contiguous(e.data) for name, e in self.model.encoded(x, t, **condition).items()}
            key = tuple((name, a.shape, a.dtype) for name, a in (("x", x), *encoded.items()))
            if key in self.plans:
                return self.plans[key](x, *encoded.values())

            def body(x, *arrays):
                return self.model.body(x, **dict(zip(encoded, arrays, strict=True)))

            plan = self.plans[key] = Plan(body, x, *encoded.values())
            first, plan.first = plan.first, None
            return first

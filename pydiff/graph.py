"""A network's forward pass as a list of operations: recorded once, then replayed without the Python around them.

A sampler evaluates one network for the same shapes dozens of times. What layers do in Python besides their operations,
such as finding parameters, checking shapes and wrapping arrays, costs as much as the operations where images are small.
So the first call is recorded, much as a CUDA graph is captured, and later calls go through the list:


    values = [arguments, parameters, constants, room for every result]
    for each step:  values[result] = Operation().forward(*values[sources])

Every operation is the same code on the same numbers as before, so the results are the same bits.
"""

import weakref
from typing import Any, NamedTuple

from pydiff.arrays import contiguous
from pydiff.tensor import Tensor, applied, no_grad

CONTEXTS = 4  # a prompt, a negative prompt, and two more


class Step(NamedTuple):
    """One operation: its class and options; where in the list of values its arguments are, where its first result goes,
    and how many results it has; and which values are not needed afterwards.
    """

    operation: type
    options: dict
    sources: list
    result: int
    results: int
    done: list


class Plan:
    """function(*tensors) -> Tensor, recorded from one call without gradients. Called with arrays, it returns an array.

    first: the array that the recorded call returned; a caller that uses it may set this to None. fixed: positions of
    arguments that stay the same from call to call: what depends only on them, such as the keys and values of a prompt,
    is computed once, by `early`, and passed to the calls. A recording is valid for arguments of the same shapes and
    dtypes. Parameters are looked up at every call, so they may change; whatever else `function` read or decided is
    fixed. Raises ValueError if it used a tensor that is neither an argument nor a parameter nor an operation's result:
    such a tensor may depend on the arguments.
    """

    def __init__(self, function, *arrays, fixed=()):
        self.signature = [(a.shape, a.dtype) for a in arrays]
        self.values: list[Any] = [None] * len(arrays)
        self.steps = []
        self._places = {}  # id of a tensor -> the tensor (weakly: recording shall not keep results) and its place
        arguments = [Tensor(a) for a in arrays]
        for place, argument in enumerate(arguments):
            self._places[id(argument)] = weakref.ref(argument), place
        with no_grad(), applied(self._record):
            result = function(*arguments)
        self.first, self.result = result.data, self._place(result)
        del self._places
        self._split(fixed)
        self._find_last_uses()

    def _place(self, value, parameter=False):
        known = self._places.get(id(value))
        if known and known[0]() is value:
            return known[1]
        if not isinstance(value, Tensor):
            self.values.append(value)  # a constant
        elif parameter or value.requires_grad or value.size == 1:  # of one element: a number in the program's text
            self.values.append(value)
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
        self.steps.append(Step(operation, options, sources, first, len(outputs), []))

    def _split(self, fixed):
        """Moves the steps that depend only on fixed arguments and parameters from `steps` to `once`."""
        given = {*range(len(self.signature)), *(s.result + i for s in self.steps for i in range(s.results))}
        known = set(range(len(self.values))) - given  # parameters and constants
        told, self.once, late = set(fixed), [], []
        for step in self.steps:
            early = set(step.sources) <= known | told and set(step.sources) & told
            (self.once if early else late).append(step)
            told |= set(range(step.result, step.result + step.results)) if early else set()
        used = {place for step in late for place in step.sources} | {self.result}
        self.handed_on = sorted((told - set(fixed)) & used)
        self.steps = late

    def _find_last_uses(self):
        kept = {self.result, *self.handed_on}
        for step in reversed(self.steps):
            for place in {step.result, *step.sources} - kept:
                if self.values[place] is None:  # not a constant or parameter
                    step.done.append(place)
                    kept.add(place)

    def early(self, *arrays):
        """The values that all calls with these fixed arguments share: a list to pass to those calls."""
        values = self._values(arrays)
        self._run(self.once, values)
        return [values[place] for place in self.handed_on]

    def __call__(self, *arrays, early=None):
        values = self._values(arrays)
        if early is None and self.once:
            early = self.early(*arrays)
        for place, value in zip(self.handed_on, early or (), strict=True):
            values[place] = value
        self._run(self.steps, values)
        return values[self.result]

    def _values(self, arrays):
        if [(a.shape, a.dtype) for a in arrays] != self.signature:
            raise ValueError(f"the plan is for {self.signature}, got {[(a.shape, a.dtype) for a in arrays]}")
        values = self.values.copy()
        values[: len(arrays)] = arrays
        return values

    @staticmethod
    def _run(steps, values):
        for operation, options, sources, result, _, done in steps:
            function = operation()
            function.needs = [False] * len(sources)
            arrays = [values[i] for i in sources]  # a parameter's array is read here: it may still be in its file
            made = function.forward(*[a.data if isinstance(a, Tensor) else a for a in arrays], **options)
            if isinstance(made, tuple):
                values[result : result + len(made)] = made
            else:
                values[result] = made
            for place in done:
                values[place] = None


class Played:
    """A network for sampling: what follows the embedding of step and condition is replayed from a plan, one for each
    combination of argument names, shapes and dtypes.

    model: has `encoded` and `body`, as UNet2D does; any other network is called unchanged. Its parameters may change,
    everything else may not. What depends only on its `fixed` arguments, such as the keys and values of a context, is
    computed when such an argument (identified as the same array) is first seen, with the parameters at that time.
    """

    def __init__(self, model):
        self.model, self.plans, self.early = model, {}, {}

    def __call__(self, x, t, **condition):
        """x (N, ...) array, t and condition as the network takes them -> the network's output, an array."""
        with no_grad():
            if not hasattr(self.model, "body"):
                return self.model(x, t, **condition).data
            x = contiguous(self.model.checked(x).data)
            encoded = {name: contiguous(e.data) for name, e in self.model.encoded(x, t, **condition).items()}
            key = tuple((name, a.shape, a.dtype) for name, a in (("x", x), *encoded.items()))
            if key in self.plans:
                return self.plans[key](x, *encoded.values(), early=self._early(key, x, encoded))

            def body(x, *arrays):
                return self.model.body(x, **dict(zip(encoded, arrays, strict=True)))

            names = ("x", *encoded)
            fixed = [names.index(name) for name in getattr(self.model, "fixed", ()) if name in encoded]
            plan = self.plans[key] = Plan(body, x, *encoded.values(), fixed=fixed)
            first, plan.first = plan.first, None
            return first

    def _early(self, key, x, encoded):
        """The values that all calls with this plan and these fixed arguments share, cached for the last few
        arguments.
        """
        plan, fixed = self.plans[key], [encoded[name] for name in getattr(self.model, "fixed", ()) if name in encoded]
        if not plan.once:
            return None
        seen = key, *map(id, fixed)
        if seen not in self.early:
            while len(self.early) >= CONTEXTS:
                del self.early[next(iter(self.early))]
            self.early[seen] = fixed, plan.early(x, *encoded.values())  # the arrays, so that no other gets their id
        return self.early[seen][1]

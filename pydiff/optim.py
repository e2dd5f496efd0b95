"""The optimiser: AdamW with an average of the weights, clipping, and learning rates as functions of the step.

All parameters are in one flat buffer, and so are their gradients, Adam's two moments and the average: one kernel call
updates everything, one reduction gives the global norm. The model's parameters become views of the buffer.
"""

import math

import numpy as np

from pydiff import ops
from pydiff.arrays import array_module
from pydiff.mistakes import Places, by_name, described, of_optimizer


def warmup_cosine(step, total, peak, warmup=0, floor=0.0):
    """Learning rate of optimiser step `step` (1, 2, .., total): linear up to `peak` over `warmup` steps, then half a
    cosine down to floor·peak at `total` (Loshchilov & Hutter 2017, eq. 5, without restarts).
    """
    if step <= warmup:
        return peak * step / warmup
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def ema_decay(step, maximum):
    """Decay of the average at optimiser step `step`: small at first, so that early averages forget the random initial
    weights. (1 + t) / (10 + t) as in TensorFlow's ExponentialMovingAverage, at most `maximum`.
    """
    return min(maximum, (1 + step) / (10 + step))


class AdamW:
    """Adam with decoupled weight decay for the parameters of one model.

    model: nn.Module, all parameters of one dtype; they become views of one flat array, and are again after model and
    optimiser were copied or unpickled together. A replaced p.data or p.grad is noticed: the next step adopts the new
    values. A step leaves parameters as they are that no longer require a gradient. beta1, beta2, eps, weight_decay: as
    in Loshchilov & Hutter 2019. low: None, or bfloat16: matrices and filters become views of a copy of p in it
    (training/precision.py). Attributes p, g, m, v, ema: flat arrays (P,). ema starts as a copy of p. low: the copy, or
    None.
    """

    __getattr__ = of_optimizer

    @by_name
    def __init__(self, model, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, low=None):
        if not hasattr(model, "named_parameters"):
            raise TypeError(
                f"AdamW takes a model, whose parameters it then knows by name, got {type(model).__name__}; write "
                "AdamW(model), and give the learning rate to step(step, lr)"
            )
        self.hyper = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
        self.parameters = model.parameters()
        names = {id(p): name for name, p in reversed(list(model.named_parameters()))}  # of a shared weight, the first
        self.names = [names[id(p)] for p in self.parameters]
        self._places = Places(model)
        dtypes = {p.dtype for p in self.parameters}
        if len(dtypes) != 1:
            raise ValueError(f"AdamW needs parameters of one dtype, got {sorted(map(str, dtypes))}")
        xp = array_module(self.parameters[0].data)
        self.p = xp.concatenate([p.data.ravel() for p in self.parameters])
        self.g, self.m, self.v = (xp.zeros_like(self.p) for _ in range(3))
        self.ema = self.p.copy()
        self.low = None if low is None else self.p.astype(low)
        self._make_views()
        for p, data, grad in zip(self.parameters, self._data, self._grads, strict=True):
            p.data, p.grad, p.grad_buffer = data, None, grad

    def _make_views(self):
        self.masters, self._grads = self.views(self.p), self.views(self.g)
        copies = self.masters if self.low is None else self.views(self.low)
        self._data = [copy if copy.ndim > 1 else own for copy, own in zip(copies, self.masters, strict=True)]

    def __setstate__(self, state):
        """After copy.deepcopy or pickle, which make an array of its own of every view."""
        self.__dict__.update(state)
        old = list(zip(self._data, self._grads, strict=True))
        self._make_views()
        for p, data, grad, (was_data, was_grad) in zip(self.parameters, self._data, self._grads, old, strict=True):
            p.grad_buffer = grad
            if p.data is was_data:  # else it was replaced, which the next step will notice
                p.data = data
            if p.grad is was_grad:
                p.grad = grad

    def views(self, flat):
        """Views of a flat buffer in the parameters' shapes."""
        ends = np.cumsum([p.size for p in self.parameters]).tolist()
        return [flat[end - p.size : end].reshape(p.shape) for p, end in zip(self.parameters, ends, strict=True)]

    def zero_grad(self):
        """Sets the gradient of every parameter to None."""
        for p in self.parameters:
            p.grad = None

    def gather(self):
        """The flat gradient: zeros for parameters that had no part in the loss; a replaced p.grad is copied in."""
        for name, p, grad in zip(self.names, self.parameters, self._grads, strict=True):
            if p.grad is None:
                grad[...] = 0
            elif p.grad is not grad:
                self._take(name, grad, p.grad, "grad")
                p.grad = grad
            p.grad_buffer = grad
        return self.g

    def adopt(self):
        """Copies in the values of every p.data that was replaced by another array. Raises ValueError if the model has
        another Parameter in the place of one.
        """
        self._places.check()
        for name, p, data, master in zip(self.names, self.parameters, self._data, self.masters, strict=True):
            if p.data is not data:
                self._take(name, master, p.data, "data")
                if data is not master:
                    data[...] = master
                p.data = data

    def round_copy(self):
        """Updates the bfloat16 copy after p was written to."""
        if self.low is not None:
            self.low[...] = self.p

    def _take(self, name, target, source, what):
        if not isinstance(source, type(target)) or source.shape != target.shape:
            raise ValueError(
                f"{name}.{what} was replaced by {described(source)}, "
                f"expected an array {target.shape} on the optimiser's device; make a new optimiser for another model"
            )
        target[...] = source

    def step(self, step, lr, ema_decay=0.999, clip=None, norm2=None):
        """One update with the gathered gradient; returns the square of its global norm before clipping, an array (1,).

        step: 1 for the first. lr: finite, at least 0. clip: largest norm allowed, None for any (Pascanu et al. 2013,
        algorithm 1). norm2: `ops.squared_norm` of the gradient if already known. A gradient that is not finite changes
        nothing.
        """
        if step < 1:
            raise ValueError(f"the first optimiser step is 1, got {step}")
        if not 0 <= lr < math.inf:
            raise ValueError(f"the learning rate must be a number of at least 0, got {lr}")
        self.adopt()
        frozen = [(m, m.copy()) for p, m in zip(self.parameters, self.masters, strict=True) if not p.requires_grad]
        norm2 = ops.squared_norm(self.gather()) if norm2 is None else norm2
        schedule = array_module(self.p).asarray([lr, step, ema_decay, clip or 0.0], "float64")
        ops.adamw(self.p, self.g, self.m, self.v, self.ema, schedule, norm2, **self.hyper, low=self.low)
        for master, before in frozen:
            master[...] = before
        if frozen:
            self.round_copy()
        return norm2

    def first_bad_gradient(self):
        """Name of the first parameter, from the input side, whose gradient is not all finite; None if all are."""
        xp = array_module(self.g)
        for name, grad in zip(self.names, self.views(self.gather()), strict=True):
            if not bool(xp.isfinite(grad).all()):
                return name
        return None

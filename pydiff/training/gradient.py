"""Loss and gradient of one step: the batch is cut into shards (shards.py), computed by one process or several
(distributed.py), and added in a tree.

How the gradients of all shards are combined is in sums.py (through MPI) and nccl.py (from GPU to GPU).

Nothing in a step waits for a GPU: the forward and backward pass, the norm and the optimiser's step are launched one
after the other; if the loss or the gradient is not finite, the optimiser's step changes nothing. Loss and norm are then
read together. Several processes must agree before the optimiser's step, so they read them before it.
"""

import math
import time
from typing import NamedTuple

import numpy as np

from pydiff import nn, ops
from pydiff.arrays import array_module, to_host
from pydiff.training.nccl import FastWiredSum, WiredSum, wires_of
from pydiff.training.shards import cut
from pydiff.training.sums import ExactSum, FastSum, PlainSum


class Part(NamedTuple):
    """The result of one shard's forward pass. loss: its contribution to the mean. bad: None, or why it is not
    finite.
    """

    loss: float
    bad: str | None
    seen: dict


class Outcome(NamedTuple):
    """The result of a step. loss: the batch's mean. norm2: the squared norm of its gradient, NaN if the loss is not
    finite. bad: None, or why the step was skipped. seen: see `Task.seen`. traffic: entries for the log on several
    processes.
    """

    loss: float
    norm2: float
    bad: str | None
    seen: dict
    traffic: dict


class Gradient:
    """Computes the mean loss of a batch and leaves its gradient in the optimiser's flat array.

    task, options, optimizer: of the Trainer. group: distributed.Group. explain(task, batch): names the module that went
    wrong.
    """

    def __init__(self, task, options, optimizer, group, explain):
        self.task, self.options, self.optimizer, self.group, self.explain = task, options, optimizer, group, explain
        wanted = group.size if options.reduce == "fast" and group.size > 1 else max(1, options.shards)
        self.shards = cut(options.batch_size, wanted)
        self.owned = cut(len(self.shards), group.size)
        self.before = ""  # the result of the last step, which must be the same in all processes
        wires, fast = wires_of(group, optimizer.g), options.reduce == "fast" and group.size > 1
        self.through = "MPI" if wires is None else "NCCL"
        if fast:
            self.sum = FastSum(optimizer, group) if wires is None else FastWiredSum(optimizer, wires)
        elif len(self.shards) > 1:
            kind, through = (ExactSum, group) if wires is None else (WiredSum, wires)
            self.sum = kind(optimizer, through, len(self.shards), self.owned)
        else:
            self.sum = PlainSum(optimizer)

    def of_step(self, step, update):
        """Computes loss and gradient of this step, calls update, and returns the Outcome.

        update(norm2): takes the optimiser's step; norm2 is an array (1,), and if it is not finite, the step must change
        nothing.
        """
        computed, numbers, group = [], np.arange(self.options.batch_size), self.group
        began, seconds, sent, stream = time.monotonic(), group.seconds, group.sent, self.task.stream
        waited, failed = (0.0, {}) if stream is None else (stream.waited, dict(stream.failed))
        self.sum.begin()
        for shard in range(*self.owned[self.group.rank]):
            self.optimizer.zero_grad()
            computed.append(self._computed(step, shard, numbers[slice(*self.shards[shard])]))
        self.sum.finish()
        losses, norm2 = [loss for *_, loss in computed], ops.squared_norm(self.optimizer.gather())
        if group.size == 1:
            update(norm2 + 0 * tree_sum(losses))  # not finite, unless both are
        *values, value2 = to_host(array_module(norm2).concatenate([*losses, norm2])).tolist()
        parts = [self._part(step, n, batch, loss) for (n, batch, _), loss in zip(computed, values, strict=True)]
        dtypes = [(name, rows.dtype) for name, rows in parts[0].seen.items()]
        lost = {} if stream is None else {name: why for name, why in stream.failed.items() if name not in failed}
        parts, lost = self._all_parts(step, parts, lost)
        bad = next((part.bad for part in parts if part.bad), None)
        loss = tree_sum([part.loss for part in parts])
        if bad is None and not math.isfinite(loss):
            bad = f"the loss is {loss}"
        if bad is not None:
            value2 = math.nan
        elif not math.isfinite(value2):
            bad = f"the gradient of {self.optimizer.first_bad_gradient()} is not finite"
        elif group.size > 1:
            update(norm2)
        self.before = f"{loss.hex()} {value2.hex()}"
        seen = {name: np.concatenate([np.asarray(part.seen[name], dtype) for part in parts]) for name, dtype in dtypes}
        traffic = {}
        if group.size > 1:
            share = (group.seconds - seconds) / max(time.monotonic() - began, 1e-9)
            traffic = {"processes": group.size, "sent_bytes": group.sent - sent, "communication": round(share, 3)}
            traffic["through"] = self.through
        if stream is not None:
            traffic["waited_for_data"] = round(stream.waited - waited, 4)
        if lost:
            traffic["replaced"] = stream.give_up(lost)  # what one process cannot read is excluded in all  # pyright: ignore[reportOptionalMemberAccess]
        return Outcome(loss, value2, bad, seen, traffic)

    def _all_parts(self, step, parts, lost):
        """(parts, samples that could not be read) of all processes. Raises RuntimeError if their results of the last
        step differ.
        """
        if self.group.size == 1:
            return parts, lost
        mine = [[loss, bad, {name: rows.tolist() for name, rows in seen.items()}] for loss, bad, seen in parts]
        told = self.group.everyone([mine, self.before, lost])
        strangers = [rank for rank, (_, before, _) in enumerate(told) if before != self.before]
        if any(before != told[0][1] for _, before, _ in told):
            raise RuntimeError(
                f"the processes came to different results in step {step - 1} (process {strangers or 0} is not like "
                f"process {self.group.rank}); the machines' memory or arithmetic cannot be relied on"
            )
        all_lost = {name: why for *_, theirs in told for name, why in theirs.items()}
        return [Part(*part) for those, *_ in told for part in those], all_lost

    def _computed(self, step, shard, numbers):
        """(numbers, batch, loss) of a shard whose gradient has been launched. loss: its contribution to the mean,
        float64 (1,).
        """
        batch = self.task.batch(step, numbers)
        with nn.training(self.options.seed, step, numbers):
            loss = ops.summation(self.task.losses(batch)) * (1.0 / self.options.batch_size)
            self.sum.add(shard, loss)
        return numbers, batch, loss.data.astype("float64").reshape(1)

    def _part(self, step, numbers, batch, loss):
        bad = None
        if not math.isfinite(loss):
            with nn.training(self.options.seed, step, numbers):
                bad = f"the loss is {loss}; {self.explain(self.task, batch)}"
        return Part(loss, bad, self.task.seen(batch))


def tree_sum(numbers):
    """The sum of numbers or arrays over the tree of shards."""
    while len(numbers) > 1:
        numbers = [sum(numbers[i + 1 : i + 2], numbers[i]) for i in range(0, len(numbers), 2)]
    return numbers[0]

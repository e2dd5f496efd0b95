"""Loss and gradient of one step: the batch cut into shards (shards.py), computed by one process or several
(distributed.py), added in a tree.

How the gradients of all shards become one is in sums.py (through MPI) and nccl.py (from GPU to GPU).
"""

import math
import time
from typing import NamedTuple

import numpy as np

from pydiff import nn, ops
from pydiff.training.nccl import FastWiredSum, WiredSum, wires_of
from pydiff.training.shards import cut
from pydiff.training.sums import ExactSum, FastSum, PlainSum


class Part(NamedTuple):
    """What one shard's forward pass said. loss: its share of the mean. bad: None or why it is not finite."""

    loss: float
    bad: str | None
    seen: dict


class Outcome(NamedTuple):
    """Of a step. loss: the batch's mean. norm2: of its gradient, an array (1,), or None without one. bad: None, or why
    the step cannot be taken. seen: see `Task.seen`. traffic: what the log says of several processes.
    """

    loss: float
    norm2: np.ndarray | None
    bad: str | None
    seen: dict
    traffic: dict


class Gradient:
    """Computes the mean loss of a batch and leaves its gradient in the optimiser's flat array.

    task, options, optimizer: of the Trainer. group: distributed.Group. explain(task, batch): says which module went
    wrong.
    """

    def __init__(self, task, options, optimizer, group, explain):
        self.task, self.options, self.optimizer, self.group, self.explain = task, options, optimizer, group, explain
        wanted = group.size if options.reduce == "fast" and group.size > 1 else max(1, options.shards)
        self.shards = cut(options.batch_size, wanted)
        self.owned = cut(len(self.shards), group.size)
        self.before = ""  # what the last step came to, which all must agree in
        wires, fast = wires_of(group, optimizer.g), options.reduce == "fast" and group.size > 1
        self.through = "MPI" if wires is None else "NCCL"
        if fast:
            self.sum = FastSum(optimizer, group) if wires is None else FastWiredSum(optimizer, wires)
        elif len(self.shards) > 1:
            kind, through = (ExactSum, group) if wires is None else (WiredSum, wires)
            self.sum = kind(optimizer, through, len(self.shards), self.owned)
        else:
            self.sum = PlainSum(optimizer)

    def of_step(self, step):
        """Computes loss and gradient of this step, and returns its Outcome."""
        parts, numbers, group = [], np.arange(self.options.batch_size), self.group
        began, seconds, sent, stream = time.monotonic(), group.seconds, group.sent, self.task.stream
        waited, failed = (0.0, {}) if stream is None else (stream.waited, dict(stream.failed))
        self.sum.begin()
        for shard in range(*self.owned[self.group.rank]):
            self.optimizer.zero_grad()
            parts.append(self._part(step, shard, numbers[slice(*self.shards[shard])]))
        self.sum.finish()
        dtypes = [(name, rows.dtype) for name, rows in parts[0].seen.items()]
        lost = {} if stream is None else {name: why for name, why in stream.failed.items() if name not in failed}
        parts, lost = self._all_parts(step, parts, lost)
        bad = next((part.bad for part in parts if part.bad), None)
        loss, norm2 = tree_of_numbers([part.loss for part in parts]), None
        if bad is None and not math.isfinite(loss):
            bad = f"the loss is {loss}"
        if bad is None:
            norm2 = ops.squared_norm(self.optimizer.gather())
            if not math.isfinite(norm2.item()):
                bad = f"the gradient of {self.optimizer.first_bad_gradient()} is not finite"
        self.before = f"{loss.hex()} {norm2 if norm2 is None else norm2.item().hex()}"
        seen = {name: np.concatenate([np.asarray(part.seen[name], dtype) for part in parts]) for name, dtype in dtypes}
        traffic = {}
        if group.size > 1:
            share = (group.seconds - seconds) / max(time.monotonic() - began, 1e-9)
            traffic = {"processes": group.size, "sent_bytes": group.sent - sent, "communication": round(share, 3)}
            traffic["through"] = self.through
        if stream is not None:
            traffic["waited_for_data"] = round(stream.waited - waited, 4)
        if lost:
            traffic["replaced"] = stream.give_up(lost)  # what one process could not read, none reads from now on  # pyright: ignore[reportOptionalMemberAccess]
        return Outcome(loss, norm2, bad, seen, traffic)

    def _all_parts(self, step, parts, lost):
        """(parts, samples that could not be read) of all processes; RuntimeError if they came to different results in
        the step before.
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

    def _part(self, step, shard, numbers):
        task, options = self.task, self.options
        batch = task.batch(step, numbers)
        with nn.training(options.seed, step, numbers):
            loss = ops.summation(task.losses(batch)) * (1.0 / options.batch_size)
            value, bad = loss.item(), None
            if not math.isfinite(value):
                bad = f"the loss is {value}; {self.explain(task, batch)}"
            self.sum.add(shard, loss, bad)
        return Part(value, bad, task.seen(batch))


def tree_of_numbers(numbers):
    """The sum of Python numbers over the tree of shards."""
    while len(numbers) > 1:
        numbers = [sum(numbers[i + 1 : i + 2], numbers[i]) for i in range(0, len(numbers), 2)]
    return numbers[0]

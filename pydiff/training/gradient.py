"""Loss and gradient of one step: the batch cut into shards (shards.py), computed by one process or several
(distributed.py), added in a tree.

The flat gradient is cut into pieces. As soon as the gradients of a piece's parameters are known, while the layers
before them are still computed, the piece's sums travel to the process that adds them up, every piece to another
one, and its total comes back to all: no process sends or receives more than in a ring all-reduce, as long as everybody
owns one node of the tree.
"""

import bisect
import math
import time
from typing import NamedTuple

import numpy as np

from pydiff import nn, ops
from pydiff.arrays import array_module, to_host
from pydiff.training.shards import Node, TreeSum, cut, is_root, whole_nodes

LEAST, MOST = 1 << 14, 500  # elements of a piece; pieces
OFTEN = 1e-3  # seconds between looks at what has arrived
SLOTS = 64  # tags of a piece's messages: one for each node that a process may send, the last for the total


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
        if options.reduce == "fast" and group.size > 1:
            self.sum = FastSum(optimizer, group)
        elif len(self.shards) > 1:
            self.sum = ExactSum(optimizer, group, len(self.shards), self.owned)
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


def pieces_of(elements, processes):
    """Into how many pieces so many processes cut a gradient."""
    wanted = 1 if processes == 1 else min(MOST, max(64, 2 * processes))
    return max(1, min(wanted, elements // LEAST))


def tree_of_numbers(numbers):
    """The sum of Python numbers over the tree of shards."""
    while len(numbers) > 1:
        numbers = [sum(numbers[i + 1 : i + 2], numbers[i]) for i in range(0, len(numbers), 2)]
    return numbers[0]


class PlainSum:
    """One process, one shard: nothing to add."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def begin(self):
        """Before the first shard of a step."""

    def add(self, _shard, loss, bad):
        """Computes the gradient of a shard's loss and adds it."""
        if bad is None:
            loss.backward()

    def finish(self):
        """After the last one: the optimiser has the gradient of the whole batch."""

    def _take_over(self):
        """What the flat gradient holds is every parameter's, even if it had no part in this process's losses."""
        for parameter in self.optimizer.parameters:
            parameter.grad = parameter.grad_buffer


class FastSum(PlainSum):
    """MPI's own all-reduce: its order of addition is its own affair."""

    def __init__(self, optimizer, group):
        super().__init__(optimizer)
        self.group = group

    def add(self, _shard, loss, _bad):
        """Computes this process's gradient; one that is not finite is computed, too, as others wait for it."""
        loss.backward()

    def finish(self):
        """Adds up all processes' gradients."""
        flat = self.optimizer.gather()
        host = to_host(flat)
        self.group.add_up(host)
        if host is not flat:
            flat[...] = array_module(flat).asarray(host)
        self._take_over()


class ExactSum(PlainSum):
    """Adds in the tree of shards, whoever computes them; see the top of this file.

    shards: how many. owned: [(first, end)] of every rank. overlap: whether pieces travel while others are computed;
    False is for benchmarks.
    """

    overlap = True

    def __init__(self, optimizer, group, shards, owned):
        super().__init__(optimizer)
        self.group, self.shards, self.last = group, shards, owned[group.rank][1] - 1
        self.nodes = [whole_nodes(*some, shards) for some in owned]  # which every rank can add up by itself  # pyright: ignore[reportCallIssue]
        self.pieces = cut(optimizer.g.size, pieces_of(optimizer.g.size, group.size))
        self.views = [optimizer.g[first:end] for first, end in self.pieces]
        self.spare = {end - first: [] for first, end in self.pieces}  # buffers by length
        self.touched = self._touched(optimizer.parameters)

    def _touched(self, parameters):
        """{id(parameter): the pieces that it lies in}."""
        firsts, ends = zip(*self.pieces, strict=True)
        found, first = {}, 0
        for parameter in parameters:
            end = first + parameter.size
            found[id(parameter)] = range(bisect.bisect_right(ends, first), bisect.bisect_left(firsts, end))
            first = end
        return found

    def root(self, piece):
        """The rank that adds up a piece."""
        return piece % self.group.size

    def begin(self):
        """Makes room for what will arrive."""
        self.sums = [TreeSum(self.shards, self._copy, self._free) for _ in self.pieces]
        self.incoming, self.outgoing, self.missing, self.polled = [], [], len(self.pieces), time.monotonic()
        for rank, nodes in enumerate(self.nodes):
            for piece in range(self.group.rank, len(self.pieces), self.group.size) if rank != self.group.rank else ():
                for slot, node in enumerate(nodes):
                    self._expect(piece, node, self._buffer(piece), rank, slot)

    def add(self, shard, loss, _bad):
        """Computes the gradient of a shard and adds every piece of it as soon as it is known.

        A gradient that is not finite is added, too: others wait for it, and the step is left out afterwards.
        """
        unknown = [0] * len(self.pieces)
        for pieces in self.touched.values():
            for piece in pieces:
                unknown[piece] += 1

        def finished(parameter):
            if parameter.grad is not None and parameter.grad is parameter.grad_buffer:
                for piece in self.touched.get(id(parameter), ()):
                    unknown[piece] -= 1
                    if not unknown[piece]:
                        self.group.listen()
                        self._arrived(piece, shard)
                if time.monotonic() - self.polled > OFTEN:  # MPI moves data only when it is asked for something
                    with self.group.clock():
                        self._poll()

        loss.backward(finished=finished if self.overlap else None)
        self.optimizer.gather()  # zeros for what had no part in the loss
        for piece, left in enumerate(unknown):
            if left:
                self._arrived(piece, shard)

    def finish(self):
        """Returns when every total has been added up here and is on its way to all processes."""
        self.group.wait(self._done)
        self._take_over()

    def _done(self):
        self._poll()
        return not (self.missing or self.incoming or self.outgoing)

    def _arrived(self, piece, shard):
        """The optimiser's array holds this shard's gradient of a piece."""
        view, group = self.views[piece], self.group
        with group.clock():
            if group.size == 1 or isinstance(view, np.ndarray):
                node = self.sums[piece].add(Node(0, shard), view, borrowed=True)
            else:
                node = self.sums[piece].add(Node(0, shard), to_host(view))
            if self.root(piece) == group.rank:
                self._added(piece, node)
            else:
                if node in self.nodes[group.rank]:
                    array, slot = self.sums[piece].take(node), self.nodes[group.rank].index(node)
                    self.outgoing.append((group.send(array, self.root(piece), piece * SLOTS + slot), array))
                if shard == self.last:
                    target = view if isinstance(view, np.ndarray) else self._buffer(piece)
                    self._expect(piece, None, target, self.root(piece), SLOTS - 1)
            self._poll()

    def _added(self, piece, node):
        """The total, if this is it, goes to everybody."""
        if is_root(node, self.shards):
            total, view = self.sums[piece].take(node), self.views[piece]
            self._settle(piece, total)
            shared = view if isinstance(view, np.ndarray) else total
            for rank in range(self.group.size):
                if rank != self.group.rank:
                    self.outgoing.append((self.group.send(shared, rank, piece * SLOTS + SLOTS - 1), None))
            if shared is not total or self.group.size == 1:
                self._free(total)

    def _settle(self, piece, total):
        """The optimiser gets the total of a piece."""
        view = self.views[piece]
        if total is not view:
            view[...] = array_module(view).asarray(total)
        self.missing -= 1

    def _expect(self, piece, node, buffer, rank, slot):
        self.incoming.append((self.group.receive(buffer, rank, piece * SLOTS + slot), piece, node, buffer))

    def _poll(self):
        """Adds what has arrived, and sends on what that completes."""
        if self.group.size == 1:
            return
        self.polled = time.monotonic()
        arrived, self.incoming = self.group.finished(self.incoming)
        for _, piece, node, buffer in arrived:
            if node is None:
                self._settle(piece, buffer)
            else:
                self._added(piece, self.sums[piece].add(node, buffer))
        done, self.outgoing = self.group.finished(self.outgoing)
        for _, array in done:
            if array is not None:
                self._free(array)

    # ---- buffers -----------------------------------------------------------------------------------------------------

    def _buffer(self, piece):
        first, end = self.pieces[piece]
        spare = self.spare[end - first]
        return spare.pop() if spare else np.empty(end - first, self.optimizer.g.dtype)

    def _copy(self, array):
        spare = self.spare[array.size]
        if not spare:
            return array.copy()
        own = spare.pop()
        own[...] = array
        return own

    def _free(self, array):
        self.spare[array.size].append(array)

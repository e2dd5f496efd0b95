"""How the gradients of a batch's shards are combined: by one process, or by several over MPI.

The flat gradient is cut into pieces. As soon as the gradients of a piece's parameters are known, while earlier layers
are still computed, the piece's sums are sent to the process that adds them up (pieces are assigned to the processes in
turn), and its total is sent back to all: no process sends or receives more than in a ring all-reduce, as long as each
owns one node of the tree.
"""

import bisect
import time

import numpy as np

from pydiff.arrays import array_module, to_host
from pydiff.training.shards import Node, TreeSum, cut, is_root, whole_nodes

LEAST, MOST = 1 << 14, 500  # elements of a piece; pieces
OFTEN = 1e-3  # seconds between looks at what has arrived
SLOTS = 64  # tags of a piece's messages: one for each node that a process may send, the last for the total


def pieces_of(elements, processes):
    """The number of pieces into which this many processes cut a gradient."""
    wanted = 1 if processes == 1 else min(MOST, max(64, 2 * processes))
    return max(1, min(wanted, elements // LEAST))


class PlainSum:
    """One process, one shard: nothing to add."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def begin(self):
        """Called before the first shard of a step."""

    def add(self, _shard, loss):
        """Computes the gradient of a shard's loss and adds it."""
        loss.backward()

    def finish(self):
        """Called after the last shard: the optimiser then has the gradient of the whole batch."""

    def _take_over(self):
        """Makes the flat gradient every parameter's gradient, even if it had no part in this process's losses."""
        for parameter in self.optimizer.parameters:
            parameter.grad = parameter.grad_buffer


class FastSum(PlainSum):
    """MPI's all-reduce, which adds in an unspecified order."""

    def __init__(self, optimizer, group):
        super().__init__(optimizer)
        self.group = group

    def finish(self):
        """Sums the gradients of all processes."""
        flat = self.optimizer.gather()
        host = to_host(flat)
        self.group.add_up(host)
        if host is not flat:
            flat[...] = array_module(flat).asarray(host)
        self._take_over()


class PieceSum(PlainSum):
    """Sums in the tree of shards, piece by piece, whichever process computes them.

    shards: their number. owned: [(first, end)] of every rank. overlap: whether pieces are sent while others are
    computed; False is for benchmarks. A subclass defines `_arrived`.
    """

    overlap = True

    def __init__(self, optimizer, group, shards, owned):
        super().__init__(optimizer)
        self.group, self.shards, self.last = group, shards, owned[group.rank][1] - 1
        self.nodes = [whole_nodes(*some, shards) for some in owned]  # which each rank can compute alone  # pyright: ignore[reportCallIssue]
        self.pieces = cut(optimizer.g.size, pieces_of(optimizer.g.size, group.size))
        self.views = [optimizer.g[first:end] for first, end in self.pieces]
        self.touched = self._touched(optimizer.parameters)

    def _touched(self, parameters):
        """{id(parameter): the pieces that contain it}."""
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

    def add(self, shard, loss):
        """Computes the gradient of a shard and adds every piece of it as soon as it is known.

        A gradient that is not finite is also added: others wait for it, and the step is skipped afterwards.
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
                self._computed_more()

        loss.backward(finished=finished if self.overlap else None)
        self.optimizer.gather()  # zeros for parameters that had no part in the loss
        for piece, left in enumerate(unknown):
            if left:
                self._arrived(piece, shard)

    def _computed_more(self):
        """Called repeatedly during a backward pass."""

    def _arrived(self, piece, shard):
        """Called when the optimiser's array holds this shard's gradient of a piece."""
        raise NotImplementedError


class ExactSum(PieceSum):
    """A PieceSum through MPI and host memory; see the top of this file."""

    def __init__(self, optimizer, group, shards, owned):
        super().__init__(optimizer, group, shards, owned)
        self.spare = {end - first: [] for first, end in self.pieces}  # buffers by length

    def begin(self):
        """Posts the receives of a step."""
        self.sums = [TreeSum(self.shards, self._copy, self._free) for _ in self.pieces]
        self.incoming, self.outgoing, self.missing, self.polled = [], [], len(self.pieces), time.monotonic()
        for rank, nodes in enumerate(self.nodes):
            for piece in range(self.group.rank, len(self.pieces), self.group.size) if rank != self.group.rank else ():
                for slot, node in enumerate(nodes):
                    self._expect(piece, node, self._buffer(piece), rank, slot)

    def _computed_more(self):
        """Polls MPI, which progresses data only when called."""
        if time.monotonic() - self.polled > OFTEN:
            with self.group.clock():
                self._poll()

    def finish(self):
        """Waits until every total is here and has been sent to all."""
        self.group.wait(self._done)
        self._take_over()

    def _done(self):
        self._poll()
        return not (self.missing or self.incoming or self.outgoing)

    def _arrived(self, piece, shard):
        """Called when the optimiser's array holds this shard's gradient of a piece."""
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
        """Sends the total to all processes, if this node is the total."""
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
        """Writes the total of a piece into the optimiser's array."""
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

"""Gradients that travel from GPU to GPU, through NCCL: one process per GPU, the tree of shards.py, the same bits.

NCCL has no tags: between two processes, what is sent first is received first. So all processes exchange the pieces of
the gradient in one order, from the last layer to the first, as a backward pass computes them; each piece as soon as all
before it have been exchanged. That happens in a separate stream, while earlier layers are still computed. Losses and
other small data go through MPI.
"""

import contextlib
import sys
from typing import Any

from pydiff.training.distributed import place_of
from pydiff.training.shards import Node, TreeSum, is_root
from pydiff.training.sums import FastSum, PieceSum


def wires_of(group, flat):
    """Wires between the GPUs of a group's processes; None if arrays like `flat` go through MPI: without GPUs, without
    NCCL, and if two processes share a GPU, which NCCL does not support.
    """
    cupy: Any = sys.modules.get("cupy")
    on_gpu = cupy is not None and isinstance(flat, cupy.ndarray)
    if group.size == 1 or not group.any(on_gpu):
        return None
    usable = on_gpu and bool(cupy.cuda.nccl.available)  # pyright: ignore[reportOptionalMemberAccess]
    told = group.everyone([usable, place_of(cupy) if on_gpu else ""])
    places = [place for _, place in told]
    if not all(usable for usable, _ in told) or len(set(places)) < len(places):
        return None
    return Wires(group)


class Wires:
    """An NCCL communicator between all processes of a group, each with its own GPU, and a stream for it.

    The stream waits for what is computed before (`after_computing`), and what is computed afterwards waits for it
    (`before_computing`). Arrays that are sent must live until then.
    """

    def __init__(self, group):
        cupy = sys.modules["cupy"]
        self.group, self.cupy, self.nccl = group, cupy, cupy.cuda.nccl
        made = list(self.nccl.get_unique_id()) if group.first else None
        self.communicator = self.nccl.NcclCommunicator(group.size, tuple(group.agree(made)), group.rank)
        self.stream = cupy.cuda.Stream(non_blocking=True)

    @contextlib.contextmanager
    def after_computing(self):
        """Inside, NCCL's stream is the current one; it waits for everything launched so far."""
        ready = self.cupy.cuda.get_current_stream().record()
        self.stream.wait_event(ready)
        with self.stream:
            yield

    def before_computing(self):
        """Returns when everything has arrived; ends this process if another one has ended meanwhile."""
        arrived = self.stream.record()
        try:
            self.group.wait(lambda: arrived.done)
        except SystemExit:
            self.close(at_once=True)
            raise
        self.cupy.cuda.get_current_stream().wait_event(arrived)

    def exchange(self, sent, received):
        """Sends and receives float32 arrays, [(array, rank)], all at once."""
        self.nccl.groupStart()
        for calls, arrays in ((self.communicator.send, sent), (self.communicator.recv, received)):
            for array, rank in arrays:
                calls(array.data.ptr, array.size, self.nccl.NCCL_FLOAT32, rank, self.stream.ptr)
        self.nccl.groupEnd()
        self.group.sent += sum(array.nbytes for array, _ in sent)

    def add_up(self, array):
        """Sums the arrays of all processes in place, in the order that NCCL chooses."""
        pointer = array.data.ptr
        kind = self.nccl.NCCL_FLOAT32, self.nccl.NCCL_SUM
        self.communicator.allReduce(pointer, pointer, array.size, *kind, self.stream.ptr)
        self.group.sent += 2 * array.nbytes * (self.group.size - 1) // self.group.size  # for a ring, the minimum

    def close(self, at_once=False):
        """Closes the communicator. at_once: whether some of its work may never finish."""
        (self.communicator.abort if at_once else self.communicator.destroy)()


class FastWiredSum(FastSum):
    """NCCL's all-reduce, which adds in an unspecified order."""

    def __init__(self, optimizer, wires):
        super().__init__(optimizer, wires.group)
        self.wires = wires

    def finish(self):
        """Sums the gradients of all processes."""
        flat = self.optimizer.gather()
        with self.wires.after_computing():
            self.wires.add_up(flat)
        self.wires.before_computing()
        self._take_over()


class WiredSum(PieceSum):
    """A PieceSum from GPU to GPU. wires: Wires; the other arguments: see PieceSum."""

    def __init__(self, optimizer, wires, shards, owned):
        super().__init__(optimizer, wires.group, shards, owned)
        self.wires = wires

    def begin(self):
        """Resets the sums: no piece is known yet."""
        self.sums = [TreeSum(self.shards, lambda array: array.copy(), lambda _: None) for _ in self.pieces]
        self.known, self.next = set(), len(self.pieces) - 1
        self.kept = []  # arrays that the stream may still be reading

    def finish(self):
        """Waits until every total is here."""
        with self.group.clock():
            self.wires.before_computing()
        self.kept.clear()
        self._take_over()

    def _arrived(self, piece, shard):
        """Called when the optimiser's array holds this shard's gradient of a piece."""
        self.sums[piece].add(Node(0, shard), self.views[piece], borrowed=True)
        if shard == self.last:
            self.known.add(piece)
            while self.next in self.known:
                with self.wires.after_computing():
                    self._exchange(self.next)
                self.next -= 1

    def _exchange(self, piece):
        """Sends a piece to the process that adds it up, and its total back to all."""
        group, view, root = self.group, self.views[piece], self.root(piece)
        own = [(node, self.sums[piece].take(node)) for node in self.nodes[group.rank]]
        self.kept += [array for _, array in own]
        if root != group.rank:
            self.wires.exchange([(array, root) for _, array in own], [])
            self.wires.exchange([], [(view, root)])
            return
        others = [rank for rank in range(group.size) if rank != group.rank]
        arriving = [(node, self.wires.cupy.empty(view.size, view.dtype), rank) for rank in others
                    for node in self.nodes[rank]]  # fmt: skip
        self.wires.exchange([], [(array, rank) for _, array, rank in arriving])
        self.kept += [array for _, array, _ in arriving]
        tree = TreeSum(self.shards, lambda array: array.copy(), lambda _: None)
        for node, array in [*own, *((node, array) for node, array, _ in arriving)]:
            highest = tree.add(node, array)
        assert is_root(highest, self.shards)
        view[...] = tree.take(highest)
        self.wires.exchange([(view, rank) for rank in others], [])

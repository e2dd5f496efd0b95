"""A stand-in for what CuPy has for several GPUs: `cuda.nccl`, streams, events, devices. The processes are threads.

As strict as CuPy and NCCL are, and in places stricter: pointers, counts and numbers of types are Python integers, the
unique id is a tuple of 128 of them, a communicator is made by all ranks and not used after its end, what is sent has
the length that is received, no rank sends to itself, and groups are closed. Arrays may be sent in a stream only after
it has waited for the stream that computed them, and what computes may go on only after it has waited in turn; that is
kept in a list of calls, `calls`, of every rank.
"""

import queue
import threading
import types

import numpy as np

from tests import fake_cupy

here = threading.local()
memory = {}  # pointer -> array that is alive
UNIQUE = 128


class NcclError(RuntimeError):
    """As cupy.cuda.nccl.NcclError, which says what NCCL said."""


class Event:
    """A moment in a stream."""

    def __init__(self, stream, moment):
        self.stream, self.moment = stream, moment

    @property
    def done(self):
        """All that was asked for happens at once."""
        return True


class Stream:
    """A queue of work of this thread's GPU."""

    made = 0

    def __init__(self, null=False, non_blocking=False):
        Stream.made += 1
        self.ptr, self.non_blocking = 0 if null else 1000 + Stream.made, non_blocking
        self.moment, self.waited_for = 0, {}

    def __enter__(self):
        streams().append(self)
        return self

    def __exit__(self, *_):
        assert streams().pop() is self

    def record(self):
        """An event that is done when all that was asked for so far is."""
        self.moment += 1
        return Event(self, self.moment)

    def wait_event(self, event):
        """What is asked for from now on happens after the event."""
        assert isinstance(event, Event)
        self.waited_for[event.stream.ptr] = event.moment


def streams():
    """Those that this thread is in; the null stream is the first."""
    if not hasattr(here, "streams"):
        here.streams = [Stream(null=True)]
    return here.streams


def get_current_stream():
    """The innermost."""
    return streams()[-1]


class Device:
    """A GPU; `use` makes it this thread's."""

    def __init__(self, device=None):
        self.id = getattr(here, "device", 0) if device is None else device

    def use(self):
        """From now on."""
        here.device = self.id

    @property
    def pci_bus_id(self):
        """Of which there is one in a machine."""
        return f"0000:{self.id:02X}:00.0"


class World:
    """What the communicators of one unique id share."""

    def __init__(self, size):
        self.size, self.wires = size, {(a, b): queue.Queue() for a in range(size) for b in range(size)}
        self.ranks, self.all_there = {}, threading.Barrier(size)


worlds, lock = {}, threading.Lock()


def get_unique_id():
    """A tuple of 128 numbers of a byte, with a sign."""
    with lock:
        return (-1, len(worlds) % 128, *[7] * (UNIQUE - 2))


def _integers(*values):
    for value in values:
        if type(value) is not int:
            raise TypeError(f"an integer is required, got {type(value).__name__}")


class NcclCommunicator:
    """Of one rank, in a thread of its own."""

    def __init__(self, ndev, commId, rank):
        _integers(ndev, rank)
        if type(commId) is not tuple:
            raise TypeError("Argument 'commId' has incorrect type")
        assert len(commId) == UNIQUE
        assert all(type(byte) is int and -128 <= byte < 128 for byte in commId)
        with lock:
            world = worlds.setdefault(commId, World(ndev))
        if not 0 <= rank < ndev or ndev != world.size or rank in world.ranks:
            raise NcclError("NCCL_ERROR_INVALID_ARGUMENT: invalid argument")
        if Device().id in {communicator.device for communicator in world.ranks.values()}:
            raise NcclError("NCCL_ERROR_INVALID_USAGE: invalid usage: a GPU twice")
        self.world, self.rank, self.device, self.alive, self.calls = world, rank, Device().id, True, []
        world.ranks[rank] = self
        world.all_there.wait(60)

    def send(self, sendbuf, count, datatype, peer, stream):
        """To a peer, as soon as the group is closed."""
        self._checked("send", sendbuf, count, datatype, peer, stream)

    def recv(self, recvbuf, count, datatype, peer, stream):
        """From a peer."""
        self._checked("recv", recvbuf, count, datatype, peer, stream)

    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):
        """The sum of all, in an order of its own: from the last rank to the first."""
        _integers(sendbuf, recvbuf, op)
        assert op == nccl.NCCL_SUM
        self._usable(sendbuf, count, datatype, stream)
        for rank in range(self.world.size):
            self.world.wires[self.rank, rank].put(memory[sendbuf].copy())
        parts = [self.world.wires[rank, self.rank].get(timeout=60) for rank in range(self.world.size)]
        memory[recvbuf][...] = sum(parts[-2::-1], parts[-1])
        self.calls.append(("allReduce", count))

    def destroy(self):
        """The end, in good order."""
        self.alive = False

    abort = destroy

    def _checked(self, kind, pointer, count, datatype, peer, stream):
        _integers(peer)
        if not 0 <= peer < self.world.size:
            raise NcclError("NCCL_ERROR_INVALID_ARGUMENT: invalid argument")
        assert peer != self.rank, "a rank sends nothing to itself"
        assert getattr(here, "group", None) is not None, "send and recv outside of a group wait for each other"
        self._usable(pointer, count, datatype, stream)
        here.group.append((self, kind, pointer, count, peer))

    def _usable(self, pointer, count, datatype, stream):
        _integers(pointer, count, datatype, stream)
        if not self.alive:
            raise NcclError("NCCL_ERROR_INVALID_ARGUMENT: invalid argument: the communicator is gone")
        assert datatype == nccl.NCCL_FLOAT32
        assert memory[pointer].dtype == np.float32
        assert memory[pointer].flags.c_contiguous
        assert memory[pointer].size == count, "another length than the array's"
        current, null = get_current_stream(), streams()[0]
        assert current.ptr == stream, "sent in another stream than the one that is current"
        assert current.waited_for.get(null.ptr) == null.moment, "the stream has not waited for what computes"
        current.moment += 1


def groupStart():
    """What follows happens together."""
    assert getattr(here, "group", None) is None
    here.group = []


def groupEnd():
    """All of it: sends first, which wait for nobody here."""
    calls, here.group = here.group, None
    for communicator, kind, pointer, count, peer in calls:
        communicator.calls.append((kind, count, peer))
        if kind == "send":
            communicator.world.wires[communicator.rank, peer].put(memory[pointer].copy())
    for communicator, kind, pointer, count, peer in calls:
        if kind == "recv":
            data = communicator.world.wires[peer, communicator.rank].get(timeout=60)
            assert data.size == count, "what is received is not as long as what was sent"
            memory[pointer][...] = data


nccl = types.SimpleNamespace(
    available=True, NcclCommunicator=NcclCommunicator, NcclError=NcclError, get_unique_id=get_unique_id,
    groupStart=groupStart, groupEnd=groupEnd, NCCL_SUM=0, NCCL_FLOAT32=7,
)  # fmt: skip


class Pointer:
    """ndarray.data: where the memory of an array is."""

    def __init__(self, host):
        self.ptr = int(host.__array_interface__["data"][0])
        memory[self.ptr] = host


def module(gpus):
    """The module `cupy` of a machine with so many GPUs."""
    fake = fake_cupy.module(("Pretended GPU",) * gpus)
    fake_cupy.ndarray.data = property(lambda self: Pointer(self._host))
    vars(fake.cuda).update(nccl=nccl, Stream=Stream, get_current_stream=get_current_stream, Device=Device)
    return fake

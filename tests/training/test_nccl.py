"""Gradients from GPU to GPU, on the stand-ins fake_cupy.py and fake_nccl.py: every process is a thread with a pretended
GPU of its own. The bits are those of one process; what is asked of NCCL is what it allows.
"""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pydiff import backend
from pydiff.training import DiffusionTask, Options, Trainer, training_steps
from pydiff.training.distributed import Group, Processes
from pydiff.training.nccl import WiredSum, Wires, wires_of
from tests import fake_nccl
from tests.training import mpi_worker
from tests.training.numbered_images import dataset


class Threads(Group):
    """Processes that are threads. shared: a list and a barrier."""

    def __init__(self, rank, size, shared):
        super().__init__(shared=True)
        self.rank, self.size, (self.board, self.barrier) = rank, size, shared

    def everyone(self, value):
        self.board[self.rank] = value
        self.barrier.wait(60)
        told = list(self.board)
        self.barrier.wait(60)
        return told

    def wait(self, done):
        while not done():
            pass


def together(size, work, gpus=None):
    """[work(group)] of so many threads, each with a GPU of its own, or as many as there are."""
    shared = [None] * size, threading.Barrier(size)

    def one(rank):
        fake_nccl.Device(rank % (gpus or size)).use()
        return work(Threads(rank, size, shared))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


@pytest.fixture(autouse=True)
def several_gpus(monkeypatch):
    """CuPy and NCCL, or so pydiff believes; without kernels, so that the arithmetic is NumPy's."""
    monkeypatch.setitem(sys.modules, "cupy", fake_nccl.module(4))
    for name, value in (("NATIVE", "off"), ("cpu", None), ("cuda", None)):
        monkeypatch.setattr(backend, name, value)
    yield
    fake_nccl.memory.clear()


def trained(group, task=DiffusionTask, **options):
    """(digest, what the log says of each step) of a training on a GPU."""
    options = Options(**mpi_worker.SMALL | {"steps": 4, "shards": 5} | options)
    trainer = Trainer(task(dataset(), options), options, "cuda", group)
    steps = list(training_steps(trainer))
    return json.loads(json.dumps(mpi_worker.digest(trainer, steps))), [
        step.traffic for step in steps
    ]  # one NaN for all


RANDOM = {"conditional": True, "dropout": 0.2, "flip": True, "timestep_sampling": "loss_aware"}


@pytest.mark.parametrize(("size", "least"), [(2, 1 << 14), (3, 50)])
def test_any_number_of_gpus_gives_the_same_bits(size, least, monkeypatch):
    """In one piece and in many; with everything that is random, and with steps that go wrong."""
    monkeypatch.setattr("pydiff.training.sums.LEAST", least)
    for task, options in ((DiffusionTask, RANDOM), (mpi_worker.Faulty, {"shards": 6, "steps": 5})):
        alone, _ = trained(Group(shared=True), task, **options)
        results = together(size, lambda group, task=task, options=options: trained(group, task, **options))
        assert [result for result, _ in results] == [alone] * size
        for _, traffic in results:
            assert {entry["through"] for entry in traffic} == {"NCCL"}
            assert all(entry["sent_bytes"] > 0 for entry in traffic)


def test_reduce_fast_is_nccls_own_sum():
    losses = [
        [state[1] for state in result["states"]]
        for result, _ in together(3, lambda group: trained(group, reduce="fast", batch_size=9, shards=0))
    ]
    assert losses[0] == losses[1] == losses[2]
    options = {"batch_size": 9, "shards": 3}
    exact = [state[1] for state in trained(Group(shared=True), **options)[0]["states"]]
    np.testing.assert_allclose(losses[0], exact, rtol=1e-5)


def test_pieces_are_exchanged_in_one_order_while_the_rest_is_computed(monkeypatch):
    """From the last to the first, on all ranks, and most of them before the backward pass has ended."""
    monkeypatch.setattr("pydiff.training.sums.LEAST", 50)
    seen = {}
    exchange, finish = WiredSum._exchange, WiredSum.finish

    def noted(self, piece):
        seen.setdefault(self.group.rank, []).append(piece)
        exchange(self, piece)

    def last(self):
        null = fake_nccl.streams()[0]
        finish(self)
        assert null.waited_for[self.wires.stream.ptr] == self.wires.stream.moment
        assert self.wires.stream.non_blocking
        assert self.kept == []

    monkeypatch.setattr(WiredSum, "_exchange", noted)
    monkeypatch.setattr(WiredSum, "finish", last)
    during = []
    arrived = WiredSum._arrived
    monkeypatch.setattr(WiredSum, "_arrived", lambda self, *some: (arrived(self, *some), during.append(self.next)))
    together(2, lambda group: trained(group, steps=1, shards=2))
    pieces = len(seen[0])
    assert pieces > 20
    assert seen[0] == seen[1] == list(reversed(range(pieces)))
    assert len(set(during)) > 10  # a few at a time, not all at the end


def test_a_communicator_ends_once_and_is_used_no_more():
    def work(group):
        wires = Wires(group)
        array = sys.modules["cupy"].asarray(np.zeros(3, np.float32))
        with wires.after_computing():
            wires.add_up(array)
        wires.close()
        with pytest.raises(fake_nccl.NcclError, match="gone"), wires.after_computing():
            wires.add_up(array)
        return wires.communicator.alive

    assert together(2, work) == [False, False]


def test_nccl_wants_a_gpu_for_every_process_and_all_of_them_on_gpus(monkeypatch):
    def kind(group):
        with backend.use_device("cuda") as cupy:
            return type(wires_of(group, cupy.asarray(np.zeros(3, np.float32)))).__name__

    assert together(2, kind) == ["Wires", "Wires"]
    assert together(2, kind, gpus=1) == ["NoneType"] * 2  # two processes on one
    assert together(2, lambda group: wires_of(group, np.zeros(3, np.float32))) == [None, None]
    monkeypatch.setattr(fake_nccl.nccl, "available", False)
    assert together(2, kind) == ["NoneType"] * 2
    assert wires_of(Group(), None) is None


def test_processes_of_a_host_take_its_gpus_in_turns(monkeypatch):
    class Told(Processes):
        def __init__(self, rank):
            self.rank, self.size = rank, 6

        def everyone(self, _):
            return ["a", "b", "a", "a", "a", "a"]

    monkeypatch.setenv("PYDIFF_THREADS", "1")
    used = []
    for rank in range(6):
        with Told(rank).own_processors("cuda"):
            used.append(fake_nccl.Device().id)
    assert used == [0, 0, 1, 2, 3, 0]

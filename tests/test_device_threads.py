"""A device belongs to the thread that entered it: two threads on two devices, generators in turns, worker threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import pydiff
from pydiff import backend, ops
from pydiff.backend import use_device
from pydiff.data import load
from pydiff.tensor import Tensor, no_grad
from pydiff.training import training_steps
from tests.emulated import simt
from tests.trainers import diffusion_trainer

TINY = {
    "steps": 3,
    "batch_size": 2,
    "channels": (4,),
    "groups": 2,
    "head_dim": 4,
    "warmup": 1,
    "timesteps": 20,
    "seed": 5,
}


def kernels():
    """The modules of kernels that serve float32 arrays in this thread now."""
    return backend.native(np.zeros(1, np.float32), "group_norm_forward")


@pytest.fixture
def native_cpu():
    if backend.cpu is None:
        pytest.skip("needs compiled kernels")
    return backend.cpu.group_norm_forward


def test_another_thread_keeps_its_own_kernels(native_cpu):
    entered, asked = threading.Event(), threading.Event()

    def emulated():
        with use_device("simt"):
            entered.set()
            assert asked.wait(60)
            return kernels()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(emulated)
        assert entered.wait(60)
        here = kernels()
        asked.set()
        assert other.result() == simt.group_norm_forward
    assert here == native_cpu


def test_one_thread_trains_on_the_emulator_while_another_draws_on_the_cpu():
    """Both get the bits that they get alone."""
    options = pydiff.Options(**TINY)
    run = pydiff.train("digits", progress=False, **TINY)

    def train():
        trainer = diffusion_trainer(load("digits"), options, "simt")
        losses = [state.loss for state in training_steps(trainer)]
        return losses, trainer.optimizer.p.copy()

    def draw(_=None):
        return run.sample(2, steps=3).tobytes()

    alone, drawn = train(), draw()
    with ThreadPoolExecutor(2) as pool:
        together = pool.submit(train)
        images = [draw()]
        while not together.done():
            images.append(draw())
    assert set(images) == {drawn}
    assert together.result()[0] == alone[0]
    assert np.array_equal(together.result()[1], alone[1])


def test_blocks_that_end_in_another_order_leave_nothing_behind(native_cpu):
    first, second = use_device("simt"), use_device("simt")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert kernels() == simt.group_norm_forward  # the second is still open
    second.__exit__(None, None, None)
    assert kernels() == native_cpu
    cpu, emulator = use_device("cpu"), use_device("simt")
    cpu.__enter__()
    emulator.__enter__()
    cpu.__exit__(None, None, None)
    assert kernels() == simt.group_norm_forward
    emulator.__exit__(None, None, None)
    assert kernels() == native_cpu


def test_generators_in_turns_are_each_on_their_device(native_cpu):
    def steps():
        for _ in range(3):
            yield kernels()

    generators = [backend.on_device(device, steps()) for device in ("simt", "cpu", "simt")]
    turns = zip(*generators, strict=True)
    for emulated, cpu, again in turns:
        assert emulated == again == simt.group_norm_forward
        assert cpu == native_cpu
        assert kernels() == native_cpu


def test_a_generator_may_be_asked_by_another_thread_each_time(native_cpu):
    def steps():
        for _ in range(4):
            yield kernels()

    generator, found = backend.on_device("simt", steps()), []
    for _ in range(4):
        worker = threading.Thread(target=lambda: found.append(next(generator)))
        worker.start()
        worker.join()
    assert found == [simt.group_norm_forward] * 4
    generator.close()
    assert kernels() == native_cpu


def test_a_block_that_is_left_by_another_thread_does_not_stay_on(native_cpu):
    def careless():
        with use_device("simt"):
            yield kernels()

    generator = careless()
    assert next(generator) == simt.group_norm_forward
    closing = threading.Thread(target=generator.close)
    closing.start()
    closing.join()
    assert kernels() == native_cpu
    with use_device("cpu"):
        assert kernels() == native_cpu
    assert kernels() == native_cpu


def test_the_arena_ends_with_the_last_block_on_the_cpu():
    if backend.cpu is None:
        pytest.skip("needs compiled kernels")

    def from_arena():
        before = backend.cpu.arena_counters()["blocks"]
        array = np.empty(1 << 16, np.float32)
        return backend.cpu.arena_counters()["blocks"] > before and array is not None

    assert not from_arena()
    first, second = use_device("cpu"), use_device("cpu")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert from_arena()
    second.__exit__(None, None, None)
    assert not from_arena()


def test_a_new_thread_begins_on_the_cpu(native_cpu):
    with use_device("simt"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(kernels).result() == native_cpu
        assert kernels() == simt.group_norm_forward


def test_backward_is_on_the_device_of_its_thread():
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 8)).astype(np.float32)
    weight, bias = np.ones(8, np.float32), np.zeros(8, np.float32)

    def gradient():
        tensor = Tensor(x, requires_grad=True)
        ops.group_norm(tensor, Tensor(weight), Tensor(bias), 4).sum().backward()
        return tensor.grad

    with use_device("simt"):
        expected = gradient()
    simt.counters()
    with use_device("simt"):
        assert np.array_equal(gradient(), expected)
    assert simt.counters()["switches"] > 0
    with no_grad():
        assert simt.counters()["switches"] == 0

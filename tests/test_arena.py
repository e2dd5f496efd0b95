"""The arena that arrays of a step come from (csrc/cpu/arena.h): its blocks, NumPy's use of it, when it is in force."""

import functools
import gc
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pydiff
from pydiff import backend
from pydiff.data import load
from pydiff.training import training_steps
from tests import emulated
from tests.trainers import diffusion_trainer

pytestmark = pytest.mark.skipif(backend.cpu is None, reason="no compiled CPU kernels in use")

ROOT = Path(__file__).parents[1]
LEAST = 32 << 10  # bytes: smaller requests go to malloc
HEADER = 64
MB = 1 << 20
TINY = {"steps": 3, "batch_size": 4, "channels": (8, 8), "groups": 4, "warmup": 1, "timesteps": 20}


def counters():
    """What the arena says, after it was checked block by block."""
    backend.cpu.arena_check()
    return backend.cpu.arena_counters()


def in_use():
    return counters()["in_use"]


def handler(a=None):
    """Who allocated the array or, without one, who allocates here."""
    name = np._core.multiarray.get_handler_name
    return name() if a is None else name(a)


def in_force():
    return handler() == "pydiff arena"


def in_an_arena_of_its_own(test):
    """Runs the test in a process of its own, for those that know where a block must lie: what other tests left in the
    arena has holes.
    """

    @functools.wraps(test)
    def run():
        code = f"from tests import test_arena; test_arena.{test.__name__}.__wrapped__()"
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Every test hands back all it took and leaves NumPy as it was."""
    gc.collect()
    before, outside = in_use(), handler()
    yield
    gc.collect()
    assert in_use() <= before  # less where a cache let go of what another test had left there
    assert handler() == outside == "default_allocator"
    backend.cpu.arena_trim()
    assert before or counters()["reserved"] == 0


# ---- blocks --------------------------------------------------------------------------------------------------------

SIZES = st.one_of(
    st.integers(0, 300),
    st.integers(LEAST - 3, LEAST + 3),
    st.integers(LEAST, 600_000),
    st.sampled_from([2 * MB - 128, 2 * MB, 2 * MB + 1, 5 * MB]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["empty", "zeros"]), st.just(0), SIZES),
        st.tuples(st.just("resize"), st.integers(0, 50), SIZES),
        st.tuples(st.just("free"), st.integers(0, 50), st.just(0)),
        st.tuples(st.just("trim"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


def span(a):
    """First address of its memory, and the one behind it."""
    first = a.__array_interface__["data"][0]
    return first, first + a.nbytes


@settings(max_examples=100)
@given(STEPS)
def test_arrays_keep_what_they_hold(steps):
    """Arrays are made, resized and freed in any order; each holds a pattern of its own, and no two overlap."""
    held, number = [], 0
    before = counters()
    for what, which, size in steps:
        if what in ("empty", "zeros"):
            with backend.arena():
                a = getattr(np, what)(size, np.uint8)
            assert what == "empty" or not a.any()
            assert size < LEAST or span(a)[0] % 64 == 0
            number = number % 255 + 1
            a[:] = number
            held.append((a, number))
        elif what == "resize" and held:
            a, value = held[which % len(held)]
            kept = min(a.size, size)
            a.resize(size, refcheck=False)
            assert (a[:kept] == value).all()
            assert not a[kept:].any()
            a[:] = value
        elif what == "free" and held:
            held.pop(which % len(held))
        elif what == "trim":
            backend.cpu.arena_trim()
        a = None  # or a freed one would live on
        large = [held_one.nbytes for held_one, _ in held if held_one.nbytes >= LEAST]
        now = counters()
        assert now["blocks"] - before["blocks"] == len(large)
        least = sum(large) + HEADER * len(large)
        assert least <= now["in_use"] - before["in_use"] <= least + len(large) * 2 * LEAST
        assert now["in_use"] <= now["touched"] <= now["reserved"]
        assert now["in_use"] <= now["peak"]
    spans = sorted(span(a) for a, _ in held if a.nbytes)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert all((a == value).all() for a, value in held)
    held.clear()
    assert counters()["blocks"] == before["blocks"]


@in_an_arena_of_its_own
def test_the_smallest_block_that_fits_is_taken():
    with backend.arena():
        arrays = [np.empty(n << 10, np.uint8) for n in (400, 50, 200, 50, 300, 50)]
        large, between, middle = (span(arrays[i])[0] for i in (0, 1, 2))
        arrays[0] = arrays[2] = arrays[4] = None  # holes of 400, 200 and 300 KB
        a = np.empty(190 << 10, np.uint8)
        assert span(a)[0] == middle
        b = np.empty(390 << 10, np.uint8)
        assert span(b)[0] == large < between
        assert counters()["blocks"] >= 5


@in_an_arena_of_its_own
def test_neighbours_that_are_free_become_one_block():
    with backend.arena():
        arrays = [np.empty(100 << 10, np.uint8) for _ in range(5)]
        first = span(arrays[1])[0]
        for i in (1, 3, 2):  # the last one has a free neighbour on either side
            arrays[i] = None
        assert span(np.empty(300 << 10, np.uint8))[0] == first


def test_memory_is_used_again_without_asking_the_system():
    def step():
        arrays = [np.ones(n * 10_007, np.float32) for n in (1, 30, 7, 80)]
        return arrays[0] + arrays[0]

    with backend.arena():
        step()
        before = counters()
        for _ in range(50):
            step()
        after = counters()
    assert {k: before[k] for k in ("system_calls", "touched", "peak")} == {
        k: after[k] for k in ("system_calls", "touched", "peak")
    }


@in_an_arena_of_its_own
def test_an_array_grows_where_it_is_if_there_is_room():
    with backend.arena():
        a = np.ones(10 * MB, np.uint8)
        where = span(a)[0]
        a.resize(30 * MB, refcheck=False)
        assert span(a)[0] == where
        a.resize(LEAST, refcheck=False)
        assert span(a)[0] == where
        assert in_use() < 10 * MB
        assert a.all()


def test_trim_returns_what_is_free_and_keeps_what_is_used():
    with backend.arena():
        kept = np.ones(3 * MB, np.uint8)
        large = np.ones(300 * MB, np.uint8)  # more than a chunk usually has
        between, behind = np.ones(20 * MB, np.uint8), np.full(3 * MB, 7, np.uint8)
    reserved, resident = counters()["reserved"], memory()
    del large, between
    assert counters()["reserved"] == reserved
    backend.cpu.arena_trim()
    assert reserved - counters()["reserved"] >= 300 * MB
    assert memory() is None or resident - memory() > 310 * MB  # the 20 MB between the two others, too
    assert kept.all()
    assert (behind == 7).all()


def memory():
    """Bytes of this process in memory, where the system says."""
    if not os.path.exists("/proc/self/statm"):
        return None
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_empty_arrays_and_odd_types():
    with backend.arena():
        wide = np.empty(0, "V100000")  # NumPy allocates an element and says, when it frees it, that it was a byte
        objects = np.array([{"a": 1}] * 10_000, dtype=object)
        grown = np.fromiter(range(100_000), np.int64)
        empty = np.zeros((0, 5))
    assert wide.shape == (0,)
    assert objects[-1] == {"a": 1}
    assert grown[-1] == 99_999
    assert empty.size == 0


# ---- when the system refuses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2**52, 2**62, 2**63 - 1])
@pytest.mark.parametrize("make", [np.empty, np.zeros])
def test_more_than_there_is(make, size):
    with backend.arena():
        a = np.ones(100_000, np.uint8)
        with pytest.raises(MemoryError):
            make(size, np.uint8)
        with pytest.raises(MemoryError):
            a.resize(size, refcheck=False)
    assert a.all()


LIMITED = """
import resource
import numpy as np
from pydiff import backend
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (150 << 20), resource.RLIM_INFINITY))  # less than a chunk
with backend.arena():
    held = []
    try:
        while True:
            held.append(np.full(20 << 20, len(held), np.uint8))
    except MemoryError:
        print(len(held))
    assert all(a.min() == a.max() == i for i, a in enumerate(held))  # without memory for a comparison of them all
    del held[1:]
    larger = np.ones(60 << 20, np.uint8)  # room for it comes from chunks that are free
    assert larger.min() == 1 and held[0].max() == 0
backend.cpu.arena_check()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space as Linux has them")
def test_a_limit_on_memory_is_met_with_smaller_chunks():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert 3 <= int(done.stdout) <= 7


# ---- threads and forks ---------------------------------------------------------------------------------------------


def test_other_threads_are_left_alone():
    seen = []
    with backend.arena():
        thread = threading.Thread(target=lambda: seen.append(handler()))
        thread.start()
        thread.join()
        assert in_force()
    assert seen == ["default_allocator"]


def test_threads_share_the_arena():
    """Each makes and frees its own arrays, and frees some of another's."""
    shared, errors = [], []

    def work(number):
        draw = np.random.default_rng(number)
        try:
            with backend.arena():
                own = []
                for _ in range(300):
                    own.append(np.full(draw.integers(1000, 200_000), number, np.uint8))
                    if len(own) > 10:
                        a = own.pop(draw.integers(10))
                        if not (a == number).all():
                            errors.append(number)
                        shared.append(a)
                    if len(shared) > 20:
                        shared.pop()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    backend.cpu.arena_check()
    shared.clear()


FORKED = """
import os, sys, threading
import numpy as np
from pydiff import backend
backend.set_threads(1)
stop = threading.Event()

def work():
    with backend.arena():
        while not stop.is_set():
            np.ones(100_000, np.uint8)

thread = threading.Thread(target=work)
thread.start()  # the parent is in the arena at almost any time
with backend.arena():
    mine = np.full(1 << 20, 3, np.uint8)
    for _ in range(30):
        child = os.fork()
        if child == 0:
            other = np.full(2 << 20, 4, np.uint8)
            right = (mine == 3).all() and (other == 4).all()
            mine[:] = 5
            del mine, other
            backend.cpu.arena_check()
            backend.cpu.arena_trim()
            os._exit(0 if right else 1)
        assert os.waitpid(child, 0)[1] == 0
stop.set()
thread.join()
assert (mine == 3).all()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_a_copy():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


# ---- when it is in force -------------------------------------------------------------------------------------------


def test_inside_and_outside():
    with backend.arena() as given:
        assert given is None
        a = np.empty(100_000)
        with backend.arena():
            assert in_force()
        assert in_force()
    assert not in_force()
    b = np.empty(100_000)
    assert (handler(a), handler(b)) == ("pydiff arena", "default_allocator")


def test_the_same_context_twice():
    twice = backend.arena()
    with twice:
        with twice:
            assert in_force()
        assert in_force()
    assert not in_force()
    with pytest.raises(RuntimeError, match="entered"):
        twice.__exit__(None, None, None)


def test_an_exception_leaves_it():
    with pytest.raises(ZeroDivisionError), backend.arena():
        raise ZeroDivisionError
    assert not in_force()


def test_arrays_outlive_it():
    with backend.arena():
        a = np.arange(100_000)
        view = a[::2]
    blocks = counters()["blocks"]
    del a
    backend.cpu.arena_trim()
    assert view[-1] == 99_998
    assert counters()["blocks"] == blocks
    with backend.arena():
        copy = view.copy()
    del view
    assert copy[-1] == 99_998


@pytest.mark.parametrize("device", ["cpu", "simt"])
def test_which_devices_have_it(device):
    if device == "simt":
        emulated.module()
    with backend.use_device(device):
        assert in_force() == (device == "cpu")


def test_a_generator_on_a_device_has_it_only_while_it_runs():
    inside = []

    def steps():
        for i in range(3):
            inside.append(in_force())
            yield np.full(100_000, i)

    kept = []
    for a in backend.on_device("cpu", steps()):
        assert not in_force()
        kept.append(a)
    assert inside == [True] * 3
    assert [int(a[-1]) for a in kept] == [0, 1, 2]
    assert {handler(a) for a in kept} == {"pydiff arena"}


def test_a_generator_that_is_left_early_is_closed_and_trimmed():
    closed = []

    def steps():
        try:
            while True:
                large = np.ones(50 * MB, np.uint8)
                yield int(large[0])
        finally:
            closed.append(True)

    states = backend.on_device("cpu", steps())
    assert next(states) == 1
    assert counters()["in_use"] > 50 * MB
    states.close()
    assert closed == [True]
    assert counters()["reserved"] == 0


def test_a_generator_that_fails():
    def steps():
        yield 1
        raise ZeroDivisionError

    states = backend.on_device("cpu", steps())
    next(states)
    with pytest.raises(ZeroDivisionError):
        next(states)
    assert not in_force()


def test_without_compiled_kernels(monkeypatch):
    monkeypatch.setattr(backend, "cpu", None)
    with backend.arena(), backend.trimmed():
        assert not in_force()


# ---- training and sampling -----------------------------------------------------------------------------------------


def test_steps_of_a_training_use_the_same_memory():
    """No call of the system after the first steps."""
    trainer = diffusion_trainer(load("digits"), pydiff.Options(**{**TINY, "steps": 6}))
    seen = []
    for state in training_steps(trainer):
        assert not in_force()
        if state.step > 2:
            now = counters()
            seen.append((now["system_calls"], now["touched"]))
    assert len(set(seen)) == 1


def test_training_returns_its_memory():
    before = in_use()  # by what other tests left in caches
    run = pydiff.train("digits", progress=False, **TINY)
    assert not in_force()
    now = counters()
    assert now["peak"] > 0
    images = run.sample(4, steps=3)
    assert images.shape == (4, 8, 8, 1)
    del run
    gc.collect()
    backend.cpu.arena_trim()
    assert in_use() == before
    assert before or counters()["reserved"] == 0


def test_what_training_computes_does_not_depend_on_it(monkeypatch):
    ours = pydiff.train("digits", progress=False, **TINY).model.state_dict()
    monkeypatch.setattr(backend, "arena", backend.contextlib.nullcontext)
    theirs = pydiff.train("digits", progress=False, **TINY).model.state_dict()
    assert [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()] == []

"""Blocks on several CPU threads: the same bits, faults and counts as on one, and nothing is left behind."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.emulated import simt

rng = np.random.default_rng(0)
x = rng.standard_normal(64 * 200 + 9).astype(np.float32)  # 201 blocks of block_sum: worth helping
a, b = rng.standard_normal((100, 40)).astype(np.float32), rng.standard_normal((40, 90)).astype(np.float32)
whole = rng.integers(-1000, 1000, 64 * 150).astype(np.int32)


@pytest.fixture(autouse=True)
def settings_put_back():
    before = simt.threads()
    yield
    simt.set_threads(before)
    simt.set_seed(0)


def on(threads, seed, kernel, *arguments):
    """(result, or the fault's words; counters) of one launch."""
    simt.set_threads(threads)
    simt.set_seed(seed)
    simt.counters()
    try:
        result = getattr(simt, kernel)(*arguments).tobytes()
    except simt.Fault as fault:
        result = str(fault)
    return result, simt.counters()


RUNS = {
    "block_sum": ("block_sum", x),
    "missing_barrier": ("block_sum", x, "missing_barrier"),  # the result depends on the order within each block
    "uninitialised": ("block_sum", x, "uninitialised"),
    "off_by_one": ("block_sum", x, "off_by_one"),
    "overrun": ("block_sum", x, "overrun"),
    "divergent_barrier": ("block_sum", x, "divergent_barrier"),
    "misaligned": ("scale", np.resize(x, 128 * 200), 2.0, "misaligned"),
    "past_end": ("scale", np.resize(x, 128 * 200), 2.0, "past_end"),
    "missed_tail": ("scale", np.resize(x, 128 * 200 + 3), 2.0, "missed_tail"),
    "matmul_bf16": ("matmul_bf16", np.resize(a, (500, 64)), np.resize(b, (64, 200))),
    "matmul_tf32": ("matmul_tf32", np.resize(a, (500, 64)), np.resize(b, (64, 200))),
}
FAULTS = ("off_by_one", "overrun", "divergent_barrier", "misaligned", "past_end")


@pytest.mark.parametrize("name", RUNS)
def test_the_same_on_any_number_of_threads(name):
    for seed in range(4):
        expected, counted = on(1, seed, *RUNS[name])
        assert isinstance(expected, str) == (name in FAULTS)
        assert counted["helpers"] == 0
        for threads in (2, 4, 8):
            got, counted_then = on(threads, seed, *RUNS[name])
            assert got == expected
            assert counted_then["helpers"] == threads - 1
            if name not in FAULTS:  # other blocks have gone on for a while when one has a fault
                assert counted_then | {"helpers": 0} == counted


def test_the_order_of_a_block_comes_from_the_seed_and_its_number():
    """Racing sums differ from seed to seed, and from block to block of the same numbers."""
    runs = []
    for seed in (1, 2):
        simt.set_seed(seed)
        runs.append(simt.block_sum(np.tile(x[:64], 200), "missing_barrier"))
    assert (runs[0] != runs[1]).mean() > 0.5
    assert len(set(runs[0].tolist())) > 100


def test_a_fault_leaves_the_emulator_usable_with_helpers():
    expected = on(1, 0, "block_sum", x)[0]
    for seed in range(10):
        assert "out of bounds" in on(4, seed, "block_sum", x, "off_by_one")[0]
        assert on(4, seed, "block_sum", x)[0] == expected


def test_atomics_of_different_blocks_do_not_get_lost():
    simt.set_threads(4)
    simt.counters()
    for _ in range(20):
        totals, halves = simt.atomics(whole)
        assert totals.tolist() == [whole.sum(), whole.max(), whole.sum(), (-1) ** np.sum(whole < 0)]
        assert halves == whole.size / 2
    assert simt.counters()["helpers"] == 60


def test_small_launches_get_no_help():
    simt.set_threads(8)
    simt.counters()
    for _ in range(5):
        simt.block_sum(x[:64])  # one block
    assert simt.counters()["helpers"] == 0


def test_launches_of_several_python_threads_at_once():
    simt.set_threads(2)
    expected = simt.block_sum(x).tobytes()

    def work(seed):
        simt.set_seed(seed)
        return {simt.block_sum(x).tobytes() for _ in range(5)}

    with ThreadPoolExecutor(4) as pool:
        assert set().union(*pool.map(work, range(8))) == {expected}


@pytest.mark.parametrize("n", [0, -1, 9, 10**6])
def test_wrong_numbers_of_threads(n):
    before = simt.threads()
    with pytest.raises(ValueError, match=f"threads must be from 1 to 8, got {n}"):
        simt.set_threads(n)
    assert simt.threads() == before


def run(code, **environment):
    """(exit status, output, last line of the error) of a fresh Python with these PYDIFF_ variables and no others."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYDIFF_")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout.strip(), (done.stderr.strip().splitlines() or [""])[-1]


@pytest.mark.parametrize(("value", "threads"), [("1", "1"), ("5", "5"), ("64", "8")])
def test_threads_of_the_environment(value, threads):
    show = "from pydiff.emulator import load; print(load().threads())"
    assert run(show, PYDIFF_THREADS=value, PYDIFF_NATIVE="off") == (0, threads, "")
    assert 1 <= int(run(show)[1]) <= 8


FORK = """
import os, threading, numpy as np
from pydiff.emulator import load
simt = load()
simt.set_threads(4)
x = np.arange(64 * 200, dtype=np.float32)
expected = simt.block_sum(x)
stop = threading.Event()
def work():
    while not stop.is_set(): simt.block_sum(x)
other = threading.Thread(target=work)
other.start()
for _ in range(5):
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(simt.block_sum(x), expected) else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), end=" ")
stop.set()
other.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_launches_too():
    """Whether it was forked between launches of its thread, and while another thread launches."""
    assert run(FORK)[:2] == (0, "0 0 0 0 0")

"""Threads of the compiled CPU kernels where things end or fail: the process, the system's patience, a fork. Each in a
process of its own, several times where it is a matter of moments."""

import os
import subprocess
import sys

import pytest

from pydiff import backend
from tests import emulated

if backend.cpu is None:
    pytest.skip("no compiled CPU kernels in this install", allow_module_level=True)


def run(code, **environment):
    """(exit status, what it printed, what it said on stderr)"""
    environment = os.environ | {"PYDIFF_THREADS": "3"} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    return done.returncode, done.stdout.strip(), done.stderr


# ---- the end of the process ----------------------------------------------------------------------------------------

# A thread is in a kernel for most of its life; the main thread ends when it has seen it work.
DAEMON = """
import sys, threading, time, numpy as np
from pydiff import backend
from tests import emulated
from pydiff.emulator import load
q, lse = np.zeros((1, {tokens}, 32), np.float32), np.zeros((1, 1, {tokens}), np.float32)
out, calls = np.zeros_like(q), []
kernels = {kernels}
def work():
    while True:
        {call}
        calls.append(1)
for _ in range({threads}):
    threading.Thread(target=work, daemon=True).start()
while len(calls) < 3: time.sleep(0.01)
print("ends", flush=True)
"""
ATTENTION = "kernels.attention_forward(q, q, q, 1, 1.0, False, None, out, lse)"
LONG = DAEMON.format(kernels="backend.cpu", call=ATTENTION, tokens=3000, threads=1)


def test_a_daemon_thread_in_a_kernel_does_not_abort_the_process():
    for _ in range(6):
        assert run(LONG) == (0, "ends", "")


def test_nor_do_several_that_call_short_kernels():
    for _ in range(6):
        assert run(DAEMON.format(kernels="backend.cpu", call=ATTENTION, tokens=20, threads=3)) == (0, "ends", "")


def test_nor_one_that_waits_for_the_pool():
    code = DAEMON.format(kernels="backend.cpu", call="kernels.set_threads(1 + len(calls) % 3)", tokens=20, threads=2)
    for _ in range(4):
        assert run(code) == (0, "ends", "")


def test_nor_one_in_an_emulated_kernel():
    emulated.module()  # built, if need be
    code = DAEMON.format(kernels="load()", call=ATTENTION, tokens=70, threads=1)
    for _ in range(3):
        assert run(code) == (0, "ends", "")


# ---- no more threads -----------------------------------------------------------------------------------------------

# A thread's stack takes address space, of which there is none left for the last of so many.
FEW = """
import resource, numpy as np
from pydiff import backend
from tests import emulated
cpu = backend.cpu
x, y = np.ones((64, 4096), np.float32), np.zeros((64, 4096), np.float32)
def compute(): cpu.add_rows(x, x, y); return bool((y == 2).all())
def used(): return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
cpu.set_threads(1)
assert compute()
limits = resource.getrlimit(resource.RLIMIT_AS)
cpu.set_threads(64)
resource.setrlimit(resource.RLIMIT_AS, (used() + (64 << 20), limits[1]))
for _ in range(2):
    y[:] = 0
    try: compute(); print("no error")
    except MemoryError as error: print(error)
cpu.set_threads(1)
assert compute()
cpu.set_threads(64)
resource.setrlimit(resource.RLIMIT_AS, limits)
assert compute()
print("computes with", cpu.threads())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address space is limited on Linux only")
def test_a_thread_that_cannot_start_is_a_memory_error_and_the_pool_recovers():
    status, text, stderr = run(FEW, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    assert status == 0, text + stderr
    *errors, last = text.splitlines()
    assert last == "computes with 64"
    assert len(errors) == 2
    for error in errors:
        assert error.startswith("the system allows only "), error
        assert "of 64 threads" in error
        assert "set PYDIFF_THREADS to that number or less" in error


# ---- a forked child ------------------------------------------------------------------------------------------------

# Without a pool of its own a child would compute on one thread, and wait for ever for threads that only its parent has
# when their number changes.
FORK = """
import os, signal, time, numpy as np
from pydiff import backend
from tests import emulated
cpu = backend.cpu
x, y = np.ones((256, 16384), np.float32), np.zeros((256, 16384), np.float32)
def threads():
    cpu.add_rows(x, x, y)
    return len(os.listdir("/proc/self/task"))
cpu.set_threads(3)
before = threads()
child = os.fork()
if child == 0:
    signal.alarm(60)
    alone = len(os.listdir("/proc/self/task"))
    with_pool = threads()
    cpu.set_threads(2)
    os._exit(0 if (alone, with_pool - alone, threads() - alone, bool((y == 2).all())) == (1, 2, 1, True) else 1)
print(before > 2, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
def test_a_forked_child_has_a_pool_of_its_own():
    assert run(FORK, OPENBLAS_NUM_THREADS="1")[:2] == (0, "True 0")

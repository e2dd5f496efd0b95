"""What signals do to a training: the first asks it to stop, a second Ctrl-C stops it at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pydiff.training.interrupt import Interrupted, stop_request


def arrived(stop, seconds=10):
    """Whether the signal's handler has run within this time."""
    end = time.monotonic() + seconds
    while not stop.is_set() and time.monotonic() < end:
        time.sleep(0.001)
    return stop.is_set()


HEEDED = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def as_before():
    """The handlers that were there."""
    before = {number: signal.getsignal(number) for number in HEEDED}
    yield
    assert {number: signal.getsignal(number) for number in HEEDED} == before


@pytest.mark.parametrize("number", HEEDED, ids=lambda n: n.name)
def test_the_first_signal_asks(number):
    with stop_request() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert arrived(stop)


def test_a_second_ctrl_c_does_not_wait():
    def twice():
        with stop_request() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert arrived(stop)
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(10)

    with pytest.raises(KeyboardInterrupt):
        twice()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_other_signals_are_patient(number):
    with stop_request() as stop:
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert arrived(stop)


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_request() as stop:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            assert not arrived(stop, 0.05)
            os.kill(os.getpid(), signal.SIGTERM)
            assert arrived(stop)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_beside_leaves_signals_alone():
    seen = []

    def work():
        with stop_request() as stop:
            seen.extend([stop.is_set(), signal.getsignal(signal.SIGTERM)])

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False, before]


def test_what_an_interruption_says():
    stopped = Interrupted(12)
    assert (str(stopped), stopped.step, stopped.run) == ("stopped after step 12", 12, None)
    assert str(Interrupted(3, "the disk is full")) == "stopped after step 3; the disk is full"


# At every line of the handler, and of what it calls, another signal arrives.
NESTED = """
import os, signal, sys
from pydiff.training.interrupt import stop_request

sent = 0

def trace(frame, event, _):
    global sent
    if event == "line" and sent < 100:
        sent += 1
        os.kill(os.getpid(), signal.SIGTERM)
    return trace

with stop_request() as stop:
    sys.settrace(trace)
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(10):
        pass
    sys.settrace(None)
assert stop.is_set() and sent > 1
"""


def test_signals_that_interrupt_the_handler_of_others_do_not_hang():
    done = subprocess.run([sys.executable, "-c", NESTED], timeout=60, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

"""What signals do to a training: the first asks it to stop, a second Ctrl-C stops it at once."""

import os
import signal
import threading

import pytest

from pydiff.training.interrupt import Interrupted, stop_request

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
        assert stop.wait(10)


def test_a_second_ctrl_c_does_not_wait():
    def twice():
        with stop_request() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.wait(10)
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(10)

    with pytest.raises(KeyboardInterrupt):
        twice()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_other_signals_are_patient(number):
    with stop_request() as stop:
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert stop.wait(10)


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_request() as stop:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.wait(0.05)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.wait(10)
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

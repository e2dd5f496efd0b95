"""Ctrl-C and termination requests, so that no training step is cut in half."""

import contextlib
import signal
import threading


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training, after everything was put in order. step: the last one taken. run: the Run so far, where
    `pydiff.train` was asked.
    """

    def __init__(self, step):
        super().__init__(f"stopped after step {step}")
        self.step, self.run = step, None


@contextlib.contextmanager
def stop_request():
    """An Event that Ctrl-C or a termination request sets; a second Ctrl-C is a KeyboardInterrupt at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread only
        return

    def request(number, _frame):
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Ctrl-C and termination requests, so that no training step is cut in half."""

import contextlib
import signal
import threading
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training, after everything was saved. step: the last step taken. unsaved: why it has no checkpoint.
    run: the Run so far, if raised by `pydiff.train`.
    """

    def __init__(self, step, unsaved=""):
        super().__init__(f"stopped after step {step}" + (f"; {unsaved}" if unsaved else ""))
        self.step = step
        self.run: Any = None


class Stop:
    """Whether a stop was requested: `set` may be called in a signal's handler at any moment.

    It is no threading.Event, whose lock is not reentrant: a signal that arrives while the handler of another holds that
    lock would wait for it forever.
    """

    asked = False

    def is_set(self) -> bool:
        """Whether a stop was requested."""
        return self.asked

    def set(self):
        """Requests it."""
        self.asked = True


@contextlib.contextmanager
def stop_request():
    """A Stop that is set by Ctrl-C, a termination request or a lost terminal. A second Ctrl-C raises
    KeyboardInterrupt.

    An ignored signal stays ignored: under nohup, a lost terminal stops nothing.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread only
        return

    def request(number, _frame):
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt(
                "stopped at once; the same command goes on from the newest checkpoint, if there is one"
            )
        stop.set()

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, request) for number in heeded}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

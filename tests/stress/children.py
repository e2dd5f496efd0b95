"""Work in a process of its own, whose crash or hang is an answer."""

import contextlib
import os
import signal
import time


def in_child(work, timeout) -> int:
    """work() in a forked process group; its number, 1 if it did not return one, 124 if it took too long."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            code = int(work())
        finally:
            os._exit(code)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.02)
    else:
        status = 124 << 8
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if status == 124 << 8:
        os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)

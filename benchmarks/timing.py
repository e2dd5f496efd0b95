"""Timing on a machine that others use too.

Contenders take turns, A B C A B C .., so that whatever slows the machine down slows all of them down. Linux counts for
every thread how long it was ready to run while another one had the processor; a repetition in which that is more than a
twentieth of its duration is thrown away, and the median is taken over the others.
"""

import contextlib
import gc
import glob
import os
import statistics
import threading
import time
from functools import partial
from typing import NamedTuple

DISTURBED = 0.05  # thread-seconds spent waiting for a processor, for every second of a repetition
ENOUGH = 5  # undisturbed repetitions that make a median worth printing
SHORT = 0.1  # seconds: calls below this are preceded by one that is not timed
RESOLUTION = 5e-4  # seconds: calls shorter than this are timed several at once


class Repetition(NamedTuple):
    """One timed call: its duration in seconds, and thread-seconds of waiting for a processor per second."""

    seconds: float
    waited: float


class Timing(NamedTuple):
    """A contender's repetitions, summed up. quiet: whether enough of them were undisturbed; if not, the figures are
    those of the least disturbed ones."""

    median: float
    minimum: float
    kept: int
    discarded: int
    quiet: bool


@contextlib.contextmanager
def waiting_clock():
    """A function that returns the nanoseconds that threads of this process have been ready to run without running, or
    None if the system hides it. It knows the threads there are at the beginning.

    The files are opened beforehand: to find and open them takes so long that a pool's threads fall asleep meanwhile.
    """
    with contextlib.ExitStack() as stack:
        files = []
        for path in glob.glob("/proc/self/task/*/schedstat"):
            with contextlib.suppress(OSError):  # the thread has ended since
                files.append(stack.enter_context(open(path, "rb", buffering=0)))
        yield partial(_waited, files)


def _waited(files):
    total = 0 if files else None
    for file in files:
        try:
            total += int(os.pread(file.fileno(), 128, 0).split()[1])
        except ProcessLookupError:
            continue  # the thread ended
        except (OSError, IndexError, ValueError):
            return None
    return total


def running_threads():
    """How many other threads of this process have a processor or want one; 0 if the system hides it."""
    running, own = 0, str(threading.get_native_id())
    try:
        for thread in os.listdir("/proc/self/task"):
            try:
                with open(f"/proc/self/task/{thread}/stat") as file:
                    running += thread != own and file.read().rpartition(")")[2].split()[0] == "R"
            except (FileNotFoundError, ProcessLookupError):
                continue  # the thread ended between the two lines
    except OSError:
        return 0
    return running


def settle(limit=0.25):
    """Returns once no other thread of this process runs: thread pools keep theirs looking for work for a while, those
    of OpenBLAS for 100 ms, and the next contender shall not pay for that. Gives up after `limit` seconds.

    The threads' states tell, not the processor time of the process: Linux brings the time of a thread that runs on
    another processor up to date every few milliseconds only, so a short look at it sees nothing.
    """
    end, quiet = time.perf_counter() + limit, 0
    while quiet < 2 and time.perf_counter() < end:
        quiet = 0 if running_threads() else quiet + 1
        time.sleep(0.0005)


def repeat(call, times, warm_up=0):
    """Calls call(i) for i = 0, 1, .. and returns the Repetition of one of them, the first `warm_up` left out."""
    with waiting_clock() as waited:
        for i in range(warm_up):
            call(i)
        before, start = waited(), time.perf_counter()
        for i in range(warm_up, warm_up + times):
            call(i)
        seconds = time.perf_counter() - start
        after = waited()
    share = 0.0 if before is None or after is None else max(after - before, 0) * 1e-9 / seconds
    return Repetition(seconds / times, share)


def calls_at_once(call):
    """How many calls make one repetition."""
    return max(1, round(RESOLUTION / min(repeat(call, 1).seconds for _ in range(2))))


def take_turns(calls, rounds, seconds):
    """Times the contenders in turns until each has `rounds` undisturbed repetitions, or until `seconds` are over.

    calls: {name: call}; call(i) does the work once on the i-th of the contender's inputs (any i >= 0).
    Returns {name: Timing}.
    """

    def repetition_of(call):
        times = calls_at_once(call)
        long = repeat(call, 1).seconds > SHORT

        def one(turn):
            settle()
            return repeat(lambda i: call(turn + i), times, warm_up=0 if long else 1)

        return one

    gc.collect()
    gc.disable()
    try:
        return alternate({name: repetition_of(call) for name, call in calls.items()}, rounds, seconds)
    finally:
        gc.enable()


def alternate(measure, rounds, seconds, least=3):
    """The turns themselves. measure: {name: function(turn) -> Repetition}. Returns {name: Timing}."""
    repetitions = {name: [] for name in measure}
    end, turn, done = time.perf_counter() + seconds, 0, False
    while not done:
        for name, one in measure.items():
            repetitions[name].append(one(turn))
        turn += 1
        enough = all(sum(r.waited <= DISTURBED for r in rs) >= rounds for rs in repetitions.values())
        done = enough or (turn >= least and time.perf_counter() > end)
    return {name: summary(rs) for name, rs in repetitions.items()}


def summary(repetitions):
    """The Timing of a list of Repetitions."""
    kept = [r.seconds for r in repetitions if r.waited <= DISTURBED]
    quiet = len(kept) >= min(ENOUGH, len(repetitions))
    if not quiet:
        kept = [r.seconds for r in sorted(repetitions, key=lambda r: r.waited)[:ENOUGH]]
    return Timing(statistics.median(kept), min(kept), len(kept), len(repetitions) - len(kept), quiet)


def figures(timing):
    """A row's part about time."""
    return {
        "median_ms": timing.median * 1e3,
        "min_ms": timing.minimum * 1e3,
        "kept": timing.kept,
        "discarded": timing.discarded,
        "quiet": timing.quiet,
    }

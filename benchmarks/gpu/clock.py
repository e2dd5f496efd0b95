"""Times programs in turns, A B C A B C .., by the GPU's own events.

What is timed is a CUDA graph of one call on each of several sets of inputs, together more than three times the cache,
so that no call finds its inputs there because it has just used them; replaying it costs no launches. Where a contender
cannot be captured, its calls are launched one by one, and its row says so.
"""

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.harness import in_a_line

ROUNDS, LEAST = 24, 5  # turns to aim at, and the fewest
CASE_SECONDS = 0.8  # for all turns of a case
REPETITION = 2e-3  # seconds: shorter programs are repeated within a turn


class Program(NamedTuple):
    """Something to time: run() does `calls` calls. how: "graph" or "launches"."""

    run: Callable
    calls: int
    how: str
    keep: tuple = ()  # what has to stay alive while it runs


def record(device, calls):
    """The calls as one program."""
    for call in [*calls, *calls]:  # compiles, chooses algorithms, fills pools
        call()
    device.synchronize()
    launches = Program(lambda: [call() for call in calls], len(calls), "launches")
    if not device.cuda:
        return launches
    graph = torch.cuda.CUDAGraph()
    try:
        pool, allocating = memory(device)
        with allocating:
            graph.capture_begin(capture_error_mode="relaxed")  # CuPy may have to ask for memory
            try:
                for call in calls:
                    call()
            finally:
                graph.capture_end()
        graph.replay()
        device.synchronize()
    except Exception as error:  # what cannot be captured can still be launched
        device.synchronize()  # raises if the GPU itself is lost
        return launches._replace(how=f"launches: {in_a_line(error)[:120]}")
    return Program(graph.replay, len(calls), "graph", (graph, pool, calls))


def memory(device):
    """A pool of memory for the kernels' outputs and workspaces, and a context in which CuPy uses it. A graph keeps the
    addresses it was captured with, so nobody else may ever get memory of this pool."""
    if device.reason:
        return None, torch.no_grad()  # nothing of CuPy's will be called
    pool = device.xp.cuda.MemoryPool()
    return pool, device.xp.cuda.using_allocator(pool.malloc)


def take_turns(device, programs):
    """{name: figures of a row}"""
    once = {name: device.seconds(p.run, 1) for name, p in programs.items()}
    shortest = REPETITION if device.cuda else 0.0
    times = {name: max(1, math.ceil(shortest / max(t, 1e-7))) for name, t in once.items()}
    turn = max(sum(max(once[name] * times[name], 1e-6) for name in programs), 1e-6)
    rounds = max(LEAST, min(ROUNDS, int(CASE_SECONDS / turn))) if device.cuda else 2
    found = {name: [] for name in programs}
    for _ in range(rounds):
        for name, p in programs.items():
            found[name].append(device.seconds(p.run, times[name]) / (times[name] * p.calls))
    return {name: figures(seconds, programs[name]) for name, seconds in found.items()}


def figures(seconds, program):
    """A row's part about time, of the seconds of a call in every turn."""
    median, quartiles = statistics.median(seconds), statistics.quantiles(seconds, n=4)
    return {
        "median_ms": median * 1e3,
        "min_ms": min(seconds) * 1e3,
        "spread": (quartiles[2] - quartiles[0]) / median,
        "turns": len(seconds),
        "sets": program.calls,
        "how": program.how,
        "quiet": True,
    }

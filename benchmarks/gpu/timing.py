"""Times the contenders of a case in turns, A B C A B C .., by the GPU's own events.

What is timed is a CUDA graph of one call on each of several sets of inputs, together more than three times the cache,
so that no call finds its inputs there because it has just used them; replaying it costs no launches. Where a contender
cannot be captured, its calls are launched one by one, and its row says so.
"""

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks import harness
from benchmarks.gpu.case import Random, Unsupported, error_of, finite, in_a_line, worst

ROUNDS, LEAST = 24, 5  # turns to aim at, and the fewest
CASE_SECONDS = 0.8  # for all turns of a case
REPETITION = 2e-3  # seconds: shorter programs are repeated within a turn
MOST_SETS = 32
ROTATION = 3.0  # times the cache


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
        pool, allocating = workspaces(device)
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


def workspaces(device):
    """A pool of memory for the kernels' workspaces, and a context in which CuPy uses it. A graph keeps the addresses it
    was captured with, so nobody else may ever get memory of this pool."""
    cupy = device.xp if device.kernels is not None else None
    if cupy is None:
        return None, torch.no_grad()  # nothing of CuPy's will be called
    pool = cupy.cuda.MemoryPool()
    return pool, cupy.cuda.using_allocator(pool.malloc)


def take_turns(device, programs, rounds=ROUNDS, seconds=CASE_SECONDS):
    """{name: [seconds of a call, a number for every turn]}"""
    once = {name: device.seconds(p.run, 1) for name, p in programs.items()}
    shortest = REPETITION if device.cuda else 0.0
    times = {name: max(1, math.ceil(shortest / max(t, 1e-7))) for name, t in once.items()}
    turn = max(sum(max(once[name] * times[name], 1e-6) for name in programs), 1e-6)
    rounds = max(LEAST, min(rounds, int(seconds / turn))) if device.cuda else 2
    found = {name: [] for name in programs}
    for _ in range(rounds):
        for name, p in programs.items():
            found[name].append(device.seconds(p.run, times[name]) / (times[name] * p.calls))
    return found


def sets_of(device, case, seed):
    """Sets of inputs to rotate through."""
    random = Random(device, seed, case.title)
    first = case.make(random)
    nbytes = sum(t.numel() * t.element_size() for t in first.values())
    wanted = math.ceil(ROTATION * device.cache_bytes() / max(nbytes, 1))
    return [first, *(case.make(random) for _ in range(min(wanted, 2 if device.tiny else MOST_SETS) - 1))]


def measure(device, case, seed, limits):
    """(rows, ratio) of one case: everyone checked against float64, then those who are right are timed.

    limits: the ceilings, perhaps empty. ratio: the best peer's median over ours, or None.
    """
    device.release()
    sets = sets_of(device, case, seed)
    exact = case.truth(sets[0])
    rows, programs = [], {}
    for contender in case.contenders:
        row = {"op": case.op, "shape": case.shape, "dtype": case.dtype, "name": contender.name, "kind": contender.kind}
        row |= {"error": None, "wrong": True, "quiet": True}
        rows.append(row)
        try:
            error = worst(error_of(contender, sets[0], exact))
            device.synchronize()
            row["error"] = finite(error)
            allowed = contender.limit or case.allowed
            if error <= allowed:
                programs[contender.name] = record(device, [contender.prepare(inputs) for inputs in sets])
                row["wrong"] = False
            else:
                row["failure"] = f"error {error:.1e}, allowed {allowed:.1e}"
        except Unsupported as reason:
            row["unsupported"] = str(reason)
        except Exception as error:  # the other contenders want their turn
            device.synchronize()
            row["failure"] = in_a_line(error)
    timings = take_turns(device, programs) if programs else {}
    for row in rows:
        if row["name"] in timings:
            row |= figures(case, timings[row["name"]], limits) | {"how": programs[row["name"]].how}
            row["sets"] = len(sets)
    return rows, harness.ratio(rows)


def figures(case, seconds, limits):
    """A row's part about time."""
    median = statistics.median(seconds)
    amount, unit, scale = (case.flops, "tflops", 1e-12) if case.flops else (case.nbytes, "gbs", 1e-9)
    rate = amount / median * scale
    ceiling = limits.get(case.bound)
    quartiles = statistics.quantiles(seconds, n=4)
    return {
        "median_ms": median * 1e3,
        "min_ms": min(seconds) * 1e3,
        "spread": (quartiles[2] - quartiles[0]) / median,
        "turns": len(seconds),
        unit: rate,
        "share": rate / ceiling if ceiling else None,
    }


def line_of(row):
    """A row as text."""
    head = f"  {row['kind']:<6}{row['name']:<30}"
    if "unsupported" in row:
        return f"{head}not possible: {row['unsupported']}"
    if row["wrong"]:
        return f"{head}NOT TIMED: {row['failure']}"
    rate = f"{row['tflops']:8.1f} TFLOP/s" if "tflops" in row else f"{row['gbs']:8.1f} GB/s   "
    share = "" if row["share"] is None else f"{row['share']:6.1%}"
    return f"{head}{row['median_ms']:10.4f} ms {rate} {share}  error {row['error']:.1e}  {row['how']}"

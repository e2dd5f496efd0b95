"""How the cost of pydiff's training step grows: with threads, with images a step, and with their size.

    python -m benchmarks.scaling [--json FILE] [--quick] [--rounds 7] [--seconds 30]

One dimension changes at a time; every point runs in a process of its own, so that its peak memory is its own. The
U-Net is that of cifar32 (benchmarks/workloads.py), which fits any multiple of 4 pixels.
"""

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path

from benchmarks.machine import ceilings, describe
from benchmarks.processes import workers
from benchmarks.timing import alternate
from benchmarks.training import Pydiff

WORKLOAD = "cifar32"
THREADS, BATCHES, SIZES = (1, 2, 3, 4), (1, 2, 4, 8, 16, 32, 64, 128), (8, 16, 32, 64, 128)
BATCH, SIZE = 16, 32  # while something else changes


def points(most_threads, quick):
    """(what changes, threads, batch, size) of every point."""
    if quick:
        return [("threads", 1, 1, 8), ("batch", 1, 2, 8)]
    threads = [("threads", n, BATCH, SIZE) for n in THREADS if n <= most_threads]
    batches = [("batch", most_threads, n, SIZE) for n in BATCHES]
    # the same number of pixels in every step, as far as that goes
    sizes = [("size", most_threads, max(1, BATCH * SIZE**2 // n**2), n) for n in SIZES]
    return threads + batches + sizes


def measure(what, threads, batch, size, options):
    """One row of the report."""
    factory = partial(Pydiff, WORKLOAD, batch, size=size)
    with workers({"pydiff": factory}, threads) as running:
        worker = running["pydiff"]
        for _ in range(2):
            worker.ask("step")
        timing = alternate({"pydiff": worker.repetition}, options.rounds, options.seconds)["pydiff"]
        memory, operations = worker.ask("peak_memory"), worker.ask("operations")
    return {
        "what": what,
        "threads": threads,
        "batch": batch,
        "size": size,
        "median_ms": timing.median * 1e3,
        "min_ms": timing.minimum * 1e3,
        "kept": timing.kept,
        "discarded": timing.discarded,
        "quiet": timing.quiet,
        "images_s": batch / timing.median,
        "gflops": operations / timing.median * 1e-9,
        "peak_rss_mb": memory,
    }


def main(argv=None):
    """Prints a line a point and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="two small points: to see whether it runs")
    parser.add_argument("--rounds", type=int, default=7, help="undisturbed repetitions wanted (default: 7)")
    parser.add_argument("--seconds", type=float, default=30.0, help="stop then with what there is (default: 30)")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.seconds = 3, 1.0
    most = min(max(THREADS), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    report = {"machine": describe(most), "ceilings": ceilings(most, options.quick), "scaling": []}
    for point in points(most, options.quick):
        row = measure(*point, options)
        report["scaling"].append(row)
        print(
            f"{row['what']:<8} {row['threads']} threads, {row['batch']:>3} x {row['size']:>3}x{row['size']:<3}"
            f"{row['median_ms']:9.1f} ms {row['images_s']:8.1f} images/s {row['gflops']:6.0f} GFLOP/s"
            f" {row['peak_rss_mb']:6.0f} MB{'' if row['quiet'] else '  disturbed'}",
            flush=True,
        )
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

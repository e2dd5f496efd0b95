"""Checks the CUDA kernels against float64 and times them against torch, on the GPU of this machine:

python -m benchmarks.gpu --out DIR                  everything, within nine minutes; DIR/gpu-NAME.json and DIR/log.txt
python -m benchmarks.gpu --out DIR --stages timing,models       some of it; the rest of DIR's report stays
python -m benchmarks.gpu --out DIR --device simt    without a GPU: tiny shapes in the emulator, times mean nothing
"""

import argparse
import re
import sys
import time
from pathlib import Path

from benchmarks.gpu.machine import smi
from benchmarks.gpu.stages import BUDGETS, Run
from benchmarks.gpu.summary import summary

TOTAL = 530  # seconds


def main(arguments=None):
    """Returns the exit status: 1 if something was wrong."""
    p = argparse.ArgumentParser(
        prog="benchmarks.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="where report and log go")
    p.add_argument("--device", choices=("cuda", "simt"), default="cuda", help="simt: the emulator, a rehearsal")
    p.add_argument("--stages", metavar="A,B", help=f"which of {', '.join(BUDGETS)} (default: all)")
    p.add_argument("--total", type=float, default=TOTAL, metavar="S", help=f"seconds for all of it (default {TOTAL})")
    p.add_argument("--seed", type=int, help="of the inputs (default: from the clock)")
    options = p.parse_args(arguments)
    stages = options.stages.split(",") if options.stages else list(BUDGETS)
    if options.device == "simt":
        stages = [stage for stage in stages if stage not in ("build", "driver", "warm", "sanitizer")]
    unknown = [stage for stage in stages if stage not in BUDGETS]
    if unknown:
        p.error(f"unknown stages: {', '.join(unknown)}; choose from {', '.join(BUDGETS)}")
    seed = int(time.time()) % 2**31 if options.seed is None else options.seed
    report = Run(options.out, name_of(options.device), options.device, stages, options.total, seed).go()
    print(summary(report))
    return 1 if wrong(report) else 0


def name_of(device):
    """The report's name: that of the GPU."""
    gpu = smi().get("name", "gpu") if device == "cuda" else "rehearsal"
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower().removeprefix("nvidia")).strip("-")


def wrong(report):
    """Whether anything failed."""
    rows = [row for stage in ("correctness", "timing", "models") for row in report.get(stage, {}).get("rows", [])]
    failed = [row for row in rows if "failure" in row or row.get("ok") is False]
    programs = [row for stage in ("driver", "sanitizer") for row in report.get(stage, {}).get("rows", [])]
    failed += [row for row in programs if row["ok"] is False]
    return bool(failed) or any(stage["failures"] for stage in report["stages"].values())


if __name__ == "__main__":
    sys.exit(main())

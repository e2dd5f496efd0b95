"""compute-sanitizer on csrc/cuda/check.cu, a program that runs every kernel at small sizes without Python or torch: bad
addresses (memcheck), races in shared memory (racecheck), barriers (synccheck), memory read before it was written
(initcheck)."""

import os
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.gpu.build import CHECKOUT, PLACE, gencode
from benchmarks.gpu.machine import tool

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
SECONDS = 40  # for a tool
FAULTS = 99  # exit status of compute-sanitizer when it found something
SOURCE = CHECKOUT / "csrc" / "cuda" / "check.cu"


def sanitize(log, seconds):
    """Rows of the report: the build, the program alone, and every tool. Output goes to the open file `log`."""
    end = time.perf_counter() + seconds
    if not SOURCE.exists():
        return [{"tool": "build", "ok": None, "skipped": f"{SOURCE.name} does not exist"}]
    if not shutil.which(tool("nvcc")):
        return [{"tool": "build", "ok": None, "skipped": "nvcc was not found"}]
    built = run("build", lambda left: compile_program(log, left), end - time.perf_counter())
    if not built["ok"]:
        return [built]
    program = str(PLACE / "check")
    rows = [built, run("alone", lambda left: execute([program], log, left), end - time.perf_counter())]
    sanitizer = tool("compute-sanitizer")
    if not shutil.which(sanitizer):
        return [*rows, {"tool": "compute-sanitizer", "ok": None, "skipped": "it was not found"}]
    for name in TOOLS:
        command = [sanitizer, "--tool", name, "--error-exitcode", str(FAULTS), "--print-limit", "20", program]
        rows.append(run(name, lambda left, c=command: execute(c, log, left), end - time.perf_counter()))
    return rows


def run(name, job, left):
    """A row: whether job(seconds) went well, and if not, the end of what was said."""
    left = left if name == "build" else min(left, SECONDS)
    if left < 1:
        return {"tool": name, "ok": None, "skipped": "no time was left"}
    start = time.perf_counter()
    try:
        status, text = job(left)
        row = {"tool": name, "ok": status == 0, "status": status}
        row |= {} if status == 0 else {"failure": text[-600:]}
    except subprocess.TimeoutExpired:
        row = {"tool": name, "ok": False, "failure": f"took more than {left:.0f} s"}
    return row | {"seconds": time.perf_counter() - start}


def execute(command, log, seconds):
    """(status, output) of a program."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, text=True)
    print(*command, f"(status {done.returncode})", done.stdout[-20000:], sep="\n", file=log, flush=True)
    return done.returncode, done.stdout


def sources():
    """check.cu and the kernels' files, without those that it includes itself."""
    included = set(re.findall(r'#include "(?:\./)?(\w+\.cu)"', SOURCE.read_text()))
    others = sorted(SOURCE.parent.glob("*.cu"))
    return [SOURCE, *(path for path in others if path != SOURCE and path.name not in included)]


def compile_program(log, seconds):
    """(status, output) of nvcc: the objects side by side, then the program."""
    folder = PLACE / "check-objects"
    folder.mkdir(parents=True, exist_ok=True)
    nvcc, flags = tool("nvcc"), ["-std=c++17", "-O3", "-lineinfo", gencode()]
    objects = [folder / f"{path.stem}.o" for path in sources()]

    def compiled(pair):
        path, target = pair
        return execute([nvcc, *flags, "-c", str(path), "-o", str(target)], log, seconds)

    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // 2)) as pool:
        results = list(pool.map(compiled, zip(sources(), objects, strict=True)))
    worst = max(results, key=lambda result: result[0] != 0)
    if worst[0]:
        return worst
    return execute([nvcc, *flags, *map(str, objects), "-o", str(Path(PLACE / "check"))], log, seconds)

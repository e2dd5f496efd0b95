"""compute-sanitizer on csrc/cuda/check, a program that runs every launcher at small sizes without Python or torch: bad
addresses (memcheck), races in shared memory (racecheck), barriers (synccheck), memory read before it was written
(initcheck)."""

import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.gpu.build import CHECKOUT, PLACE, gencode
from benchmarks.gpu.machine import tool

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
FAULTS = 99  # exit status of compute-sanitizer when it found something
SOURCES = CHECKOUT / "csrc" / "cuda"


def program():
    """The program's path."""
    return PLACE / "check"


def compile_program(log, seconds):
    """Builds it with nvcc, files side by side: a row of the report. Output goes to the open file `log`."""
    if not (SOURCES / "check").is_dir():
        return {"tool": "build", "ok": None, "skipped": "csrc/cuda/check does not exist"}
    nvcc = tool("nvcc")
    if not shutil.which(nvcc):
        return {"tool": "build", "ok": None, "skipped": "nvcc was not found"}
    folder = PLACE / "check-objects"
    folder.mkdir(parents=True, exist_ok=True)
    program().unlink(missing_ok=True)  # that of an earlier build
    flags = ["-std=c++17", "-O3", "-lineinfo", "-DPYDIFF_GPU", gencode()]
    objects = {path: folder / f"{path.parent.name}-{path.stem}.o" for path in sources()}

    def compiled(item):
        path, target = item
        return execute([nvcc, *flags, "-c", str(path), "-o", str(target)], log, seconds)

    def job(_):
        with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // 2)) as pool:
            for status, text in pool.map(compiled, objects.items()):
                if status:
                    return status, text
        return execute([nvcc, *flags, *map(str, objects.values()), "-o", str(program())], log, seconds)

    return run("build", job, seconds)


def sources():
    """The kernels' files and the program's."""
    return [*sorted(SOURCES.glob("*.cu")), *sorted((SOURCES / "check").glob("*.cpp"))]


def sanitize(log, seconds):
    """Rows of the report: the program alone, then with every tool, all tools at a time."""
    if not program().exists():
        return [{"tool": "alone", "ok": None, "skipped": "the program was not built"}]
    end = time.perf_counter() + seconds
    alone = run("alone", lambda left: execute([str(program())], log, left), min(seconds, 30))
    sanitizer = tool("compute-sanitizer")
    if not shutil.which(sanitizer):
        return [alone, {"tool": "compute-sanitizer", "ok": None, "skipped": "it was not found"}]

    def with_tool(name):
        command = [sanitizer, "--tool", name, "--error-exitcode", str(FAULTS), "--print-limit", "20", str(program())]
        return run(name, lambda left: execute(command, log, left), end - time.perf_counter())

    with ThreadPoolExecutor(len(TOOLS)) as pool:
        return [alone, *pool.map(with_tool, TOOLS)]


def run(name, job, seconds):
    """A row: whether job(seconds) went well, and if not, the end of what was said."""
    if seconds < 1:
        return {"tool": name, "ok": None, "skipped": "no time was left"}
    start = time.perf_counter()
    try:
        status, text = job(seconds)
        row = {"tool": name, "ok": status == 0, "status": status}
        row |= {} if status == 0 else {"failure": text[-600:]}
    except subprocess.TimeoutExpired:
        row = {"tool": name, "ok": False, "failure": f"took more than {seconds:.0f} s"}
    return row | {"seconds": time.perf_counter() - start}


def execute(command, log, seconds):
    """(status, output) of a program."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, text=True)
    print(*command, f"(status {done.returncode})", done.stdout[-20000:], sep="\n", file=log, flush=True)
    return done.returncode, done.stdout

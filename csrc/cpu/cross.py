"""Build the CPU kernels for every instruction set as programs of their own, without Python, and run their checks.

    python csrc/cpu/cross.py DIR                          every level that can be run here
    python csrc/cpu/cross.py DIR --level neon baseline    these; the status is 2 if one of them cannot be run here
    python csrc/cpu/cross.py DIR --sanitize               with the address and undefined-behaviour sanitizers
    python csrc/cpu/cross.py DIR --thread-sanitize        with ThreadSanitizer: see below
    python csrc/cpu/cross.py DIR --op noise               one op instead of all
    DIR/avx2/check noise                                  what it has built, once more

The checks are those of the CUDA kernels (csrc/cuda/check) and of cpu/check: small awkward shapes, arrays exactly as
long as they must be and no better aligned than a float, against the equation in double; the same bits with one thread
and with three. The largest error of every kernel is printed.

--thread-sanitize looks for races between the threads of the pool: every kernel runs on 8 threads, while another thread
changes their number every 2 milliseconds, so that pools end and begin between regions. One level is as good as another
(--level baseline). What was found, and which planted faults, stands in docs/threads.md.

A level runs here if the processor has its instructions. That of another processor, NEON on x86, is cross-compiled and
emulated (Debian: apt-get install g++-aarch64-linux-gnu qemu-user). The compiler's flags are those of CMakeLists.txt,
and warnings are errors. Exit status: 0 right, 1 a wrong result, a sanitizer's report or a failed build.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

CPU = Path(__file__).parent.resolve()
CHECKS = [CPU / "check", CPU.parent / "cuda/check"]


class Level(NamedTuple):
    """An instruction set: its processors, the compiler's flags, and what Linux calls the features it needs."""

    machine: str
    flags: list[str]
    features: set[str]


LEVELS = {
    "baseline": Level("x86_64", ["-msse2"], set()),
    "avx2": Level("x86_64", ["-mavx2", "-mfma"], {"avx2", "fma"}),
    "avx512": Level(
        "x86_64",
        ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512"],
        {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"},
    ),
    "neon": Level("aarch64", ["-fno-schedule-insns"], set()),
}
WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi", "-Werror"]
COMMON = ["-std=c++17", "-pthread", "-DPYDIFF_CPU", "-fno-math-errno", "-fno-trapping-math", *WARNINGS]
PLAIN = ["-O3"]
RACES = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=thread"]
SANITIZED = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def ops():
    """{op: its check}"""
    return {path.stem: path for folder in CHECKS for path in sorted(folder.glob("*.cpp")) if path.stem != "main"}


def tools(level):
    """(compiler, what stands before the program to run it, None), or (None, None, why it cannot be run here)."""
    compiler, runner = os.environ.get("CXX", "g++"), []
    lacking = sorted(level.features - processor_features())
    if level.machine != platform.machine():
        compiler = f"{level.machine}-linux-gnu-g++"
        runner = [f"qemu-{level.machine}", "-L", f"/usr/{level.machine}-linux-gnu"]
        lacking = sorted(level.features)
    if lacking:
        return None, None, f"this processor has no {' '.join(lacking)}"
    missing = [tool for tool in [compiler, *runner[:1]] if not shutil.which(tool)]
    return (None, None, f"{' and '.join(missing)} not installed") if missing else (compiler, runner, None)


def processor_features():
    """What this processor can do, in Linux's words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def build(compiler, flags, wanted, directory):
    """Compile two files at a time into `directory`/check; the compiler's messages are visible. True if it succeeds."""
    directory.mkdir(parents=True, exist_ok=True)
    known = ops()
    checks = [CHECKS[1] / "main.cpp", *(known[op] for op in wanted)]
    kernels = {path for op in wanted for path in CPU.glob(f"{op}*.cpp")}
    kernels = sorted(kernels | {CPU / "gemm.cpp", CPU / "parallel.cpp"})
    objects = {path: directory / f"{path.parent.name}_{path.stem}.o" for path in [*kernels, *checks]}
    commands = [[compiler, *COMMON, *flags, "-c", path, "-o", made] for path, made in objects.items()]
    with ThreadPoolExecutor(2) as pool:
        compiled = all(pool.map(run, commands))
    return compiled and run([compiler, *COMMON, *flags, *objects.values(), "-o", directory / "check"])


def run(command):
    """Run it, its messages visible; True when it succeeds."""
    return subprocess.run([str(word) for word in command]).returncode == 0


def main():
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--level", nargs="+", choices=LEVELS, metavar="LEVEL", help=f"of {', '.join(LEVELS)}")
    parser.add_argument("--op", nargs="+", choices=ops(), metavar="OP", help=f"of {', '.join(ops())}")
    parser.add_argument("--sanitize", action="store_true", help="with address and undefined-behaviour sanitizers")
    parser.add_argument("--thread-sanitize", action="store_true", help="with ThreadSanitizer and 8 restless threads")
    options = parser.parse_args()
    words, before = [], []
    if options.thread_sanitize:
        words = ["", "0", "8"]  # all that was built, seed, threads
        before = ["setarch", "-R"] if shutil.which("setarch") else []  # ThreadSanitizer needs its addresses free
    os.environ["ASAN_OPTIONS"] = "detect_leaks=0"  # it would need to trace the process, which an emulator cannot
    failed, impossible = [], []
    for name in options.level or LEVELS:
        compiler, runner, reason = tools(LEVELS[name])
        if compiler is None:
            print(f"{name}: not run: {reason}", flush=True)
            impossible.append(name)
            continue
        how = SANITIZED if options.sanitize else RACES if options.thread_sanitize else PLAIN
        flags = LEVELS[name].flags + how
        program = options.directory / name
        if not build(compiler, flags, options.op or list(ops()), program):
            failed.append(f"the build for {name} failed; the compiler's message is above")
            continue
        print(f"{name}:", flush=True)
        if not run([*before, *runner, program / "check", *words]):
            failed.append(f"the check of {name} failed; what it wrote is above")
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 2 if options.level and impossible else 0


if __name__ == "__main__":
    sys.exit(main())

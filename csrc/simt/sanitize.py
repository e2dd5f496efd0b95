"""Build the CUDA kernels with a sanitizer, under the emulator and as programs of their own: no Python in the process.

    python csrc/simt/sanitize.py race DIR       ThreadSanitizer, a TSan fiber for every CUDA thread
    python csrc/simt/sanitize.py address DIR    AddressSanitizer (gaps of shared memory included) and UBSan's alignment
    python csrc/simt/sanitize.py debug DIR      no sanitizer and no optimisation, for gdb
    python csrc/simt/sanitize.py race DIR --run and run check, all ops and two seeds
    DIR/check noise 1                           one of the ops, or all of them; seed
    DIR/selftest block_sum missing_barrier 1    kernel of the emulator's own test, plant, seed

Behind DIR may stand what to build: selftest, or ops (noise, ..), which make a check of these alone; everything, if
nothing does. Exit status of both programs: 0 silent, 1 a wrong result or a fault that the emulator reported, 66 or
another a sanitizer's report.

In the race build the kernels are instrumented and the emulator is not, so what its fibers do to one another is not
taken for a race; barriers tell TSan of the order they make. In a container TSan may need `setarch -R`.
"""

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent.resolve()
CUDA = HERE.parent / "cuda"
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas"]  # such as unroll
COMMON = ["-std=c++17", "-pthread", *WARNINGS, "-g", "-fno-omit-frame-pointer", "-ffp-contract=off"]
# Flags of the emulator, of the kernels, and of the linker.
BUILDS = {
    "race": (["-O0", "-DPYDIFF_SIMT_RACE"], ["-O1", "-DPYDIFF_SIMT_RACE", "-fsanitize=thread"], ["-fsanitize=thread"]),
    "address": (
        ["-O0", "-fsanitize=address"],
        ["-O1", "-fsanitize=address,alignment", "-fno-sanitize-recover=alignment"],
        ["-fsanitize=address,undefined"],
    ),
    "debug": (["-O0"], ["-O0"], []),
}
OPS = sorted(path.stem for path in CUDA.glob("*.cu"))


def commands(build, directory, wanted, compiler):
    """The compilers' commands, and the linkers'. Files are included into others of this directory, one a command."""
    emulator_flags, kernel_flags, link_flags = BUILDS[build]
    compile_all, link_all = [], []

    def compiled(name, sources, flags):
        (directory / f"{name}.cpp").write_text("".join(f'#include "{path}"\n' for path in sources))
        compile_all.append([compiler, *COMMON, *flags, "-c", f"{directory / name}.cpp", "-o", f"{directory / name}.o"])
        return f"{directory / name}.o"

    python = ("bindings", "call")  # the two files that talk to it
    emulator = compiled("emulator", [p for p in sorted(HERE.glob("*.cpp")) if p.stem not in python], emulator_flags)

    def program(name, host, kernels):
        objects = [compiled(f"{name}_main", host, emulator_flags)]
        objects += [compiled(f"{name}_{path.stem}", [path], kernel_flags) for path in kernels]
        link_all.append([compiler, "-pthread", *link_flags, emulator, *objects, "-o", str(directory / name)])

    if "selftest" in wanted:
        program("selftest", [HERE / "selftest/main.cpp"], sorted((HERE / "selftest").glob("*.cu")))
    if ops := [op for op in OPS if op in wanted]:
        host = [CUDA / f"check/{name}.cpp" for name in ("main", *ops)]
        program("check", host, [CUDA / f"{op}.cu" for op in ops])
    return compile_all, link_all


def run(command):
    """Run it, its messages visible; True when it succeeds."""
    return subprocess.run(command).returncode == 0


def main():
    """Compile two files at a time, then link; the compiler's messages say what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", choices=BUILDS)
    parser.add_argument("directory", type=Path)
    parser.add_argument("wanted", nargs="*", metavar="selftest|op", help=f"ops: {', '.join(OPS)}")
    parser.add_argument("--run", action="store_true", help="run check afterwards")
    options = parser.parse_args()
    if unknown := {*options.wanted} - {"selftest", *OPS}:
        parser.error(f"nothing is called {', '.join(sorted(unknown))}")
    options.directory.mkdir(parents=True, exist_ok=True)
    wanted = options.wanted or ["selftest", *OPS]
    compile_all, link_all = commands(options.build, options.directory, wanted, os.environ.get("CXX", "g++"))
    with ThreadPoolExecutor(2) as pool:
        compiled = all(pool.map(run, compile_all))
    if not (compiled and all(map(run, link_all))):
        sys.exit(f"the {options.build} build failed; the compiler's message is above")
    os.environ.setdefault("ASAN_OPTIONS", "detect_leaks=0")  # after a fault nobody unwinds the other fibers
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []  # TSan needs its addresses free
    for seed in ("0", "1") if options.run else ():
        if not run([*fixed, str(options.directory / "check"), "", seed]):
            sys.exit(f"check failed in the {options.build} build with seed {seed}; what it wrote is above")


if __name__ == "__main__":
    main()

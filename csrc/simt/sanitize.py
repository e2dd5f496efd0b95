"""Build the emulator's selftest with a sanitizer, as a program of its own: no Python in the process.

    python csrc/simt/sanitize.py race DIR       ThreadSanitizer, a TSan fiber for every CUDA thread
    python csrc/simt/sanitize.py address DIR    AddressSanitizer (gaps of shared memory included) and UBSan's alignment
    python csrc/simt/sanitize.py debug DIR      no sanitizer and no optimisation, for gdb
    DIR/selftest block_sum missing_barrier 1    kernel, plant, seed

Exit status of the selftest: 0 silent, 1 a fault that the emulator reported, 66 or another a sanitizer's report.

In the race build the kernels are instrumented and the emulator is not, so what its fibers do to one another is not
taken for a race; barriers tell TSan of the order they make. In a container TSan may need `setarch -R`.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
COMMON = ["-std=c++17", "-pthread", "-Wall", "-Wextra", "-g", "-fno-omit-frame-pointer", "-ffp-contract=off"]
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


def commands(build, directory, compiler):
    """Write one file that includes the emulator and one that includes the kernels; their compilers, and the linker."""
    emulator = [
        *(path for path in sorted(HERE.glob("*.cpp")) if path.stem not in ("bindings", "call")),
        HERE / "selftest/main.cpp",
    ]
    kernels = sorted((HERE / "selftest").glob("*.cu"))
    emulator_flags, kernel_flags, link_flags = BUILDS[build]
    compile_all, objects = [], []
    for name, sources, flags in (("emulator", emulator, emulator_flags), ("kernels", kernels, kernel_flags)):
        (directory / f"{name}.cpp").write_text("".join(f'#include "{path}"\n' for path in sources))
        objects.append(str(directory / f"{name}.o"))
        compile_all.append([compiler, *COMMON, *flags, "-c", str(directory / f"{name}.cpp"), "-o", objects[-1]])
    return compile_all, [compiler, "-pthread", *link_flags, *objects, "-o", str(directory / "selftest")]


def run(command):
    """Run it, its messages visible; True when it succeeds."""
    return subprocess.run(command).returncode == 0


def main():
    """Compile both at a time, then link; the compiler's messages say what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", choices=BUILDS)
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    compile_all, link = commands(options.build, options.directory, os.environ.get("CXX", "g++"))
    with ThreadPoolExecutor(2) as pool:
        compiled = all(pool.map(run, compile_all))
    if not (compiled and run(link)):
        sys.exit(f"the {options.build} build failed; the compiler's message is above")


if __name__ == "__main__":
    main()

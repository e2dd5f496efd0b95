"""The CPU kernels as programs of their own (csrc/cpu/cross.py): NEON under an emulator, and what the checks find."""

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
if not CSRC.is_dir():
    pytest.skip("the sources are not here, only the installed package", allow_module_level=True)

HERE = {"x86_64": "baseline", "aarch64": "neon"}.get(platform.machine(), "none")  # a level that any such processor has


def cross(directory, *words, source=CSRC):
    """(exit status, what cross.py wrote); skips where the level cannot be run."""
    command = [sys.executable, source / "cpu/cross.py", directory, *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode == 2 and "not run" in done.stdout:
        pytest.skip(done.stdout.strip().replace("not run", "was not checked"))
    return done.returncode, done.stdout + done.stderr


def test_neon_kernels_are_right(tmp_path):
    status, text = cross(tmp_path, "--level", "neon")
    assert status == 0, text
    errors = dict(re.findall(r"^    (\w+) +(\S+)$", text, re.M))
    kernels = re.findall(r"^void (\w+)\(", (CSRC / "kernels.h").read_text(), re.M)
    assert len(kernels) >= 14
    assert set(kernels) <= set(errors), text
    assert all(0 <= float(errors[kernel]) < 5e-6 for kernel in kernels), text


@pytest.mark.parametrize(
    ("words", "before", "after", "message"),
    [
        ([], "step.d * fs;", "step.d * fs * 1.001f;", r"denoise_forward float .* is .*, expected"),
        (["--sanitize"], "load_upto(dx_next + at, count);", "load(dx_next + at);", r"heap-buffer-overflow(?s:.*)load"),
        ([], "const vint passes", "int unused; const vint passes", r"unused variable"),
    ],
    ids=["wrong", "overrun", "warning"],
)
def test_what_a_kernel_does_wrong_is_found(words, before, after, message, tmp_path):
    shutil.copytree(CSRC, tmp_path / "csrc")
    kernel = tmp_path / "csrc/cpu/denoise.cpp"
    right = kernel.read_text()
    assert right.count(before) == 1
    kernel.write_text(right.replace(before, after))
    if HERE == "none":
        pytest.skip(f"no instruction set of {platform.machine()} is known to cross.py")
    status, text = cross(tmp_path, "--level", HERE, "--op", "denoise", *words, source=tmp_path / "csrc")
    assert status == 1
    assert re.search(message, text), text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("left_.wait(lock, [this] { return seated_ == 0; });", ""),
        ("        pthread_atfork(", "        if (!state_pointer) pthread_atfork("),
        ("if (region.failed) std::rethrow_exception(region.error);", ""),
    ],
    ids=["does not wait", "no fork handler", "exception swallowed"],
)
def test_what_the_pool_does_wrong_is_found(before, after, tmp_path):
    """By which check it is found first depends on when threads run; that the program compiled, the message says."""
    if HERE != "baseline":
        pytest.skip("the check forks on x86_64 only")
    shutil.copytree(CSRC, tmp_path / "csrc")
    pool = tmp_path / "csrc/cpu/parallel.cpp"
    right = pool.read_text()
    assert right.count(before) == 1
    pool.write_text(right.replace(before, after))
    status, text = cross(tmp_path, "--level", HERE, "--op", "parallel", source=tmp_path / "csrc")
    assert status == 1
    assert f"the check of {HERE} failed" in text, text


def test_a_level_that_cannot_run_says_why(tmp_path):
    """Another processor, and no emulator on an empty PATH; -S -I: nothing but the standard library."""
    other = "neon" if platform.machine() == "x86_64" else "baseline"
    command = [sys.executable, "-S", "-I", CSRC / "cpu/cross.py", tmp_path, "--level", other]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env={"PATH": "/nowhere"})
    assert done.returncode == 2
    assert re.search(rf"{other}: not run: .*g\+\+ and qemu-\w+ not installed", done.stdout)


def test_flags_and_files_are_those_of_the_build():
    cmake = (CSRC.parent / "CMakeLists.txt").read_text()
    script = (CSRC / "cpu/cross.py").read_text()
    levels = re.findall(r"^ +set\(PYDIFF_FLAGS_\w+ (.*)\)$", cmake, re.M)
    assert len(levels) == 4
    for flags in levels:
        for flag in re.findall(r"-[\w=-]+(?=[ >)]|$)", flags):
            assert f'"{flag}"' in script, flag
    assert "target_compile_options(${name} PRIVATE -O3 ${PYDIFF_CPU_FLAGS} ${ARGN})" in cmake
    for flag in ["-O3", *re.search(r"set\(PYDIFF_CPU_FLAGS (.*)\)", cmake)[1].split()]:
        assert f'"{flag}"' in script, flag
    # every source that computes belongs to an op that has a check
    checks = {path.stem for folder in ("cpu/check", "cuda/check") for path in (CSRC / folder).glob("*.cpp")}
    others = {"bindings", "array_memory", "levels", "gemm", "arena", "pages"}
    sources = {path.stem for path in (CSRC / "cpu").glob("*.cpp")} - others
    assert [name for name in sources if not any(name.startswith(check) for check in checks)] == []

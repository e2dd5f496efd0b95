"""The same kernels in other hands: nvcc accepts them, and the sanitizers see what they should and no more."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SIMT = Path(__file__).parents[2] / "csrc/simt"
OP = "noise"  # whose kernels are built here; `python csrc/simt/sanitize.py race DIR` builds all (docs/simt.md)
if not SIMT.is_dir():
    pytest.skip("the sources are not here, only the installed package", allow_module_level=True)


def test_nvcc_compiles_the_kernels(tmp_path):
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("nvcc is not installed: whether these kernels are CUDA was not checked")
    kernels = sorted((SIMT / "selftest").glob("*.cu"))
    (tmp_path / "all.cu").write_text("".join(f'#include "{path}"\n' for path in kernels))
    command = [nvcc, "-std=c++17", "-gencode=arch=compute_90a,code=sm_90a", "-Werror", "all-warnings", "-c", "all.cu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def programs(build, directory, wanted=("selftest", OP), source=SIMT.parent):
    """selftest or check, built by sanitize.py: (program, words) -> (exit status, what it wrote)."""
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler) or platform.system() != "Linux":
        pytest.skip("needs g++ on Linux")
    library = {"race": "libtsan.so", "address": "libasan.so", "debug": "libstdc++.so"}[build]
    found = subprocess.run([compiler, f"-print-file-name={library}"], capture_output=True, text=True).stdout.strip()
    if not Path(found).is_file():
        pytest.skip(f"{compiler} has no {library}")
    command = [sys.executable, source / "simt/sanitize.py", build, directory, *wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []  # TSan needs its addresses free

    def run(program, *words):
        environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": ""}
        done = subprocess.run([*fixed, directory / program, *words], capture_output=True, text=True, env=environment)
        if "unexpected memory mapping" in done.stderr or "failed to set personality" in done.stderr:
            pytest.skip("ThreadSanitizer cannot run here: addresses are randomised and setarch may not change that")
        return done.returncode, done.stdout + done.stderr

    return run


RIGHT = [(kernel, "none", seed) for kernel in ("block_sum", "stage", "matmul_bf16", "collectives") for seed in "01"]


def test_the_race_build_finds_the_missing_barrier(tmp_path):
    run = programs("race", tmp_path)
    for words in RIGHT:
        assert run("selftest", *words)[0] == 0, words
    assert run("check", OP) == (0, f"{OP}: right\n")
    line = 1 + (SIMT / "selftest/block_sum.cu").read_text().splitlines().index(
        "        if (t < half) partial[t] += partial[t + half];"
    )
    status, text = run("selftest", "block_sum", "missing_barrier", "1")
    assert status == 66
    assert re.search(rf"data race(?s:.*)block_sum_kernel.*block_sum.cu:{line}\b", text), text


def test_the_address_build_finds_what_leaves_its_array(tmp_path):
    run = programs("address", tmp_path)
    for words in [*RIGHT, ("scale", "none")]:
        assert run("selftest", *words)[0] == 0, words
    assert run("check", OP) == (0, f"{OP}: right\n")
    for kernel, plant, message in (
        ("block_sum", "overrun", r"use-after-poison(?s:.*)block_sum_kernel.*block_sum.cu:17"),
        ("scale", "past_end", r"heap-buffer-overflow(?s:.*)scale_kernel.*scale.cu:\d+"),
        ("block_sum", "off_by_one", r"out of bounds: index 64 of 'partial'"),
    ):
        status, text = run("selftest", kernel, plant)
        assert status != 0
        assert re.search(message, text), text


def test_the_driver_finds_what_a_kernel_does_wrong(tmp_path):
    """A copy of the sources whose vector.h reads one element too many, and one that forgets a factor."""
    shutil.copytree(SIMT.parent, tmp_path / "csrc")
    vector = tmp_path / "csrc/cuda/vector.h"
    right = vector.read_text()
    for build, before, after, message in (
        (
            "address",
            "= i < left ? to_float(p[i])",
            "= i <= left ? to_float(p[i])",
            r"heap-buffer-overflow(?s:.*)load_upto",
        ),
        ("debug", "from_float<T>(x[i])", "from_float<T>(2 * x[i])", r"noise_forward float .* is .*, expected"),
    ):
        assert right.count(before) == 1
        vector.write_text(right.replace(before, after))
        status, text = programs(build, tmp_path / build, [OP], tmp_path / "csrc")("check", OP)
        assert status != 0
        assert re.search(message, text), text

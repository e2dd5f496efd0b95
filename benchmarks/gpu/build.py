"""Builds and installs the checkout, into a folder of its own: pydiff._cuda comes from there, as a user would get it."""

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.machine import first_line, tool

CHECKOUT = Path(__file__).parents[2]
PLACE = CHECKOUT / "build" / "gpu"  # ignored by git


def site():
    """Where the package is installed."""
    return PLACE / "site"


def architecture():
    """CMake's name for this GPU's architecture; 90a-real for Hopper, which has instructions of its own."""
    capability = first_line(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]) or "9.0"
    number = capability.replace(".", "")
    return f"{number}a-real" if number in ("90", "100", "120") else f"{number}-real"


def gencode():
    """The same for nvcc."""
    name = architecture().removesuffix("-real")
    return f"-gencode=arch=compute_{name},code=sm_{name}"


def build(log, seconds):
    """Runs pip for at most so long; its output goes to the open file `log`. Returns a dict for the report."""
    start = time.perf_counter()
    # --target leaves the Python installation alone; one architecture, because only one is here
    settings = {
        "build-dir": PLACE / "cmake",
        "cmake.define.CMAKE_CUDA_ARCHITECTURES": architecture(),
        "cmake.define.PYDIFF_CUDA": "ON",
    }
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "--upgrade"]
    command += ["--target", str(site()), str(CHECKOUT)]
    command += [f"--config-settings={name}={value}" for name, value in settings.items()]
    nvcc = tool("nvcc")
    environment = os.environ | {"PYDIFF_REQUIRE_NATIVE": "1", "CUDACXX": nvcc}
    environment["CMAKE_BUILD_PARALLEL_LEVEL"] = str(len(os.sched_getaffinity(0)))
    found = {"architecture": architecture(), "nvcc": nvcc, "ok": False}
    try:
        run = subprocess.run(command, stdout=log, stderr=log, env=environment, timeout=max(seconds, 1))
        modules = sorted(path.name for path in (site() / "pydiff").glob("_*.so"))
        found |= {"status": run.returncode, "modules": modules}
        found["ok"] = run.returncode == 0 and any(name.startswith("_cuda") for name in modules)
        if run.returncode == 0 and not found["ok"]:
            found["failure"] = "pip succeeded without building pydiff._cuda; the log says why"
        elif run.returncode:
            found["failure"] = f"pip ended with status {run.returncode}; the log says why"
    except subprocess.TimeoutExpired:
        found["failure"] = f"building took more than {seconds:.0f} s"
    return found | {"seconds": time.perf_counter() - start}

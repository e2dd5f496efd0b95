"""What the figures were measured on: the machine in words, and the two rates that bound what a kernel can do."""

import datetime
import importlib.metadata
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks import restraint
from benchmarks.contenders import available_threads, kernels, levels, peer
from pydiff import backend, ops
from pydiff.tensor import Tensor, no_grad

PACKAGES = ("pydiff", "numpy", "torch", "diffusers", "openvino")


def describe(threads):
    """The machine and the software, as a dict for JSON."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "cpu": processor_name(),
        "cores": available_threads(),
        "threads": threads,
        "simd": backend.cpu_reason,
        "restrained": restraint.in_force(),
        "instruction_sets": restraint.instruction_sets(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            "blas": f"{blas['name']} {blas['version']}",
            **{
                name: installed(name)
                for name in ("pydiff", "numpy", "torch", "diffusers", "openvino")
                if installed(name)
            },
        },
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def installed(package):
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor_name():
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def stolen_time():
    """Seconds that other machines of the same host took from this one's processors; None if the system hides it."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()
        return int(fields[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None


def ceilings(threads, quick=False):
    """The best rates seen here and now, whoever reached them: dict of sgemm_gflops, sgemm_by, copy_gbs.

    sgemm: float32 matrix products through NumPy's BLAS, torch and our 1x1 convolution. copy: one large array copied in
    as many slices as threads; bytes read and bytes written both count.
    """
    rates = {}
    for size in (512,) if quick else (1024, 2048):
        a, b = np.random.default_rng(0).standard_normal((2, size, size), np.float32)
        for name, multiply in sgemms(a, b).items():
            rates[name] = max(rates.get(name, 0.0), 2 * size**3 / best(multiply, 3 if quick else 8) * 1e-9)
    by = max(rates, key=rates.get)
    return {"sgemm_gflops": rates[by], "sgemm_by": by, "copy_gbs": copy_rate(threads, 2**22 if quick else 2**26)}


def sgemms(a, b):
    """{name: function} of everyone who can multiply two square matrices."""
    found = {"NumPy": lambda: a @ b}
    torch = peer("torch")
    if torch:
        ta, tb = torch.from_numpy(a), torch.from_numpy(b)
        found["torch"] = lambda: ta @ tb
    for name, module in levels().items():

        def ours(module=module):
            with kernels(module), no_grad():
                ops.linear(Tensor(a), Tensor(b))

        found[f"C++ {name}"] = ours
    return found


def copy_rate(threads, elements):
    """GB/s of copying a float32 array of this size."""
    source, target = np.ones(elements, np.float32), np.zeros(elements, np.float32)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))  # views
    with ThreadPoolExecutor(threads) as pool:
        seconds = best(lambda: list(pool.map(lambda part: np.copyto(*part), parts)), 8)
    return 2 * source.nbytes / seconds * 1e-9


def best(function, times):
    """Seconds of the fastest of `times` calls, after one that does not count."""
    durations = []
    for _ in range(times + 1):
        start = time.perf_counter()
        function()
        durations.append(time.perf_counter() - start)
    return min(durations[1:])

"""What this installation of pydiff consists of: what is built, found and used, and why the rest is not."""

import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np


def describe():
    """A table as text, one line for each thing that can make pydiff faster or more capable."""
    import pydiff

    rows = [
        (
            "pydiff",
            f"{pydiff.__version__}, Python {platform.python_version()}, NumPy {np.__version__}, {platform.machine()}",
        ),
        ("CPU kernels", _cpu()),
        ("threads", _threads()),
        ("memory", _memory()),
        ("CUDA kernels", _cuda_kernels()),
        ("CuPy", _package("cupy", "arrays on a GPU; pip install 'pydiff[cuda13]' or 'pydiff[cuda12]'")),
        ("GPU", _cuda()),
        ("CUDA emulator", _emulator()),
        ("PyTorch", _package("torch", "only for comparisons in tests and benchmarks")),
        ("diffusers", _package("diffusers", "only for comparisons in tests and benchmarks")),
        ("scikit-image", _package("skimage", "the data set of faces; pip install 'pydiff[faces]'")),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def _cpu():
    from pydiff import backend, compiled

    if backend.cpu is None:
        return f"not used: {backend.cpu_reason}; everything runs in NumPy, several times slower"
    supported, built = backend.cpu.supported_levels(), compiled.built()
    text = f"used: {backend.cpu_reason} (built: {', '.join(built)}; this processor runs: {', '.join(supported)})"
    if supported[0] not in built:
        text += f"; to have {supported[0]} as well, install pydiff again on this machine"
    return text


def _threads():
    from pydiff import backend

    source = "PYDIFF_THREADS" if os.environ.get("PYDIFF_THREADS") else "the processors this process may run on"
    return f"{backend.threads()} ({source})" if backend.cpu is not None else "NumPy's own"


def _memory():
    from pydiff import backend

    if backend.cpu is None:
        return "NumPy's own"
    try:
        choices = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "arena"
    return (
        "arena, in small pages: the system has huge ones switched off" if "[never]" in choices else "arena, huge pages"
    )


def _cuda_kernels():
    from pydiff import compiled

    return "built" if importlib.util.find_spec("pydiff._cuda") else f"not built: {compiled.why_not('cuda')}"


def _emulator():
    from pydiff import emulator

    return emulator.describe()


def _cuda():
    """The GPUs found, or what is missing. This imports CuPy, which takes a moment."""
    from pydiff import backend

    try:
        with backend.use_device("cuda") as cupy:
            runtime = cupy.cuda.runtime  # pyright: ignore[reportAttributeAccessIssue]
            gpus = [runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())]
    except RuntimeError as error:
        return f"cannot be used: {error}"
    return f"can be used: {', '.join(gpus)}"


def _package(name, purpose):
    """Whether a package is installed, without importing it."""
    if importlib.util.find_spec(name) is None:
        return f"not installed ({purpose})"
    from importlib import metadata

    distribution: Any = {"skimage": "scikit-image"}.get(name, name)
    try:
        return f"{metadata.version(distribution)} installed ({purpose})"
    except metadata.PackageNotFoundError:
        return f"installed ({purpose})"

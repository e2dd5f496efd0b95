"""The GPU and the software in words."""

import datetime
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from benchmarks.machine import installed, processor_name

QUERIES = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "temperature.gpu",
           "power.draw", "power.limit", "memory.total")  # fmt: skip
PACKAGES = ("pydiff", "numpy", "ml_dtypes", "cupy-cuda13x", "cupy-cuda12x", "torch", "triton", "diffusers")


def describe(device):
    """As a dict for JSON."""
    found = {
        "device": device.name,
        "gpu": torch.cuda.get_device_name() if device.cuda else f"none: emulated on {processor_name()}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"python": platform.python_version()}
        | {name: installed(name) for name in PACKAGES if installed(name)},
        "nvcc": first_line([tool("nvcc"), "--version"], "release"),
        "smi": smi(),
    }
    if device.cuda:
        properties = torch.cuda.get_device_properties(device.at)
        found["sms"], found["memory_gb"] = properties.multi_processor_count, properties.total_memory * 1e-9
        found["l2_mb"], found["capability"] = properties.L2_cache_size * 1e-6, list(torch.cuda.get_device_capability())
        found["versions"] |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    return found


def smi():
    """What nvidia-smi says now: clocks, temperature, power. Empty without it."""
    query = f"--query-gpu={','.join(QUERIES)}"
    line = first_line(["nvidia-smi", query, "--format=csv,noheader"])
    return dict(zip(QUERIES, line.split(", "), strict=False)) if line else {}


def tool(name):
    """The path of a program of the CUDA toolkit, or its name if it cannot be found."""
    usual = Path("/usr/local/cuda/bin") / name
    return shutil.which(name) or (str(usual) if usual.exists() else name)


def first_line(command, containing=""):
    """The first line of a program's output that contains this; None if there is none, or no such program."""
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next((line.strip() for line in output.splitlines() if containing in line), None)

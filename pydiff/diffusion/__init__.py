"""Noise schedules, the process of noising and denoising, and the samplers that walk it backwards."""

import sys

from pydiff.diffusion.path import Path, path, path_of_levels, path_through, timesteps
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers import SamplerState, ddim, ddpm, initial_noise
from pydiff.diffusion.schedule import Schedule, schedule

__all__ = [
    "Path",
    "Process",
    "SamplerState",
    "Schedule",
    "ddim",
    "ddpm",
    "initial_noise",
    "path",
    "path_of_levels",
    "path_through",
    "schedule",
    "timesteps",
]


def __getattr__(name):
    if (moved := sys.modules.get(f"{__name__}.{name}")) is None:  # an old name, see moved.py
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return moved

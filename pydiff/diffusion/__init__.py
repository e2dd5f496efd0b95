"""Noise schedules, the process of noising and denoising, and the samplers that walk it backwards."""

from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers import SamplerState, ddim, ddpm, initial_noise
from pydiff.diffusion.schedule import Path, Schedule, path, path_through, schedule, timesteps

__all__ = [
    "Path",
    "Process",
    "SamplerState",
    "Schedule",
    "ddim",
    "ddpm",
    "initial_noise",
    "path",
    "path_through",
    "schedule",
    "timesteps",
]

"""Samplers: from noise to images along a path of (t, alpha, sigma). They are plain generators without hidden state.

    x = initial_noise((32, 32, 3), seed=0, sample=range(16))
    for state in dpm_solver(model, x, process, path(process.schedule, 20), seed=0):
        show(state.x0)
    images = state.x

All take (model, x, process, path), their own options, and the keywords of `walk`. Every update is one call of
`ops.denoise` with coefficients computed from the path before the first step (`walk.Stage`). The noise of step i
(counted from 1) is a pure function of (seed, sample, i): an image is the same alone and in any batch.
"""

import functools
from collections.abc import Callable

from pydiff.diffusion.samplers.adaptive_steps import adaptive
from pydiff.diffusion.samplers.ancestral import ddim, ddim_inversion, ddim_step, ddpm, ddpm_step, euler_ancestral
from pydiff.diffusion.samplers.exponential import dpm_solver, dpm_solver_singlestep
from pydiff.diffusion.samplers.multistep import deis, lms, pndm
from pydiff.diffusion.samplers.predictor_corrector import unipc
from pydiff.diffusion.samplers.runge_kutta import dpm2, euler, flow_euler, flow_heun, heun
from pydiff.diffusion.samplers.walk import SamplerState, Stage, initial_noise, start_scale, walk

# What a user can ask for by name: `pydiff sample --sampler` and Run.sample.
SAMPLERS: dict[str, Callable] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpm2": dpm2,
    "lms": lms,
    "pndm": pndm,
    "deis": deis,
    "dpm_solver": dpm_solver,
    "dpm_solver_singlestep": dpm_solver_singlestep,
    "dpm_solver_sde": functools.partial(dpm_solver, kind="data sde"),
    "unipc": unipc,
    "flow_euler": flow_euler,
    "flow_heun": flow_heun,
    "adaptive": adaptive,
}

__all__ = [
    "SAMPLERS",
    "SamplerState",
    "Stage",
    "adaptive",
    "ddim",
    "ddim_inversion",
    "ddim_step",
    "ddpm",
    "ddpm_step",
    "deis",
    "dpm2",
    "dpm_solver",
    "dpm_solver_singlestep",
    "euler",
    "euler_ancestral",
    "flow_euler",
    "flow_heun",
    "heun",
    "initial_noise",
    "lms",
    "pndm",
    "start_scale",
    "unipc",
    "walk",
]

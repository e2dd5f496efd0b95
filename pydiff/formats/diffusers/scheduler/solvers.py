"""DPM-Solver (multistep and singlestep), DEIS and UniPC: sigma from a table, in the scale of the training process."""

import math

import numpy as np

from pydiff.diffusion import samplers
from pydiff.diffusion.path import Path
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers.exponential import halved
from pydiff.diffusion.schedule import schedule, shifted
from pydiff.formats.diffusers.scheduler.plan import BETAS, PREDICTION_TYPES, Plan, clipping, level_by_index, process_of
from pydiff.formats.diffusers.scheduler.tables import (
    alpha_bar_of,
    last_unclipped,
    respaced,
    sigma_table,
    spaced,
    t_of_sigma,
)

KINDS = {
    "dpmsolver++": "data",
    "dpmsolver": "noise",
    "sde-dpmsolver++": "data sde",
    "sde-dpmsolver": "noise sde",
    "deis": "data",
}


def _path(config, steps, literal, mu, repeated=False, begin=0):
    """(process, path, sigmas) without the first `begin` steps. repeated: respaced levels end with their own last one
    twice instead of with the table's first.
    """
    if config["use_flow_sigmas"]:
        t, sigma, process = _flow_levels(config, steps, mu)
        first = math.sqrt(1.0 / alpha_bar_of(config, floor=True)[0] - 1.0)
        repeats = repeated
    else:
        alpha_bar = alpha_bar_of(config, floor=True)
        table = sigma_table(alpha_bar)
        first, process, repeats = table[0], process_of(config, alpha_bar_of(config, floor=False)), False
        last = last_unclipped(config, alpha_bar)
        t = np.round(spaced(config, steps, extra=1, last=last))
        sigma = np.interp(t, np.arange(len(table)), table)
        if (levels := respaced(config, steps, table[-1], table[0])) is not None:
            sigma, t, repeats = levels, t_of_sigma(levels, table), repeated
            rounds = config.get("use_karras_sigmas") or config.get("use_lu_lambdas")
            cosine = config["rounds_cosine"] is False and config["beta_schedule"] == "squaredcos_cap_v2"
            t = np.round(t) if rounds and not cosine else t
    t = np.trunc(t + 1e-4).astype(np.int64) if literal else t  # a t that is whole but for rounding stays whole
    end = sigma[-1] if repeats else first
    sigma = np.append(sigma, 0.0 if config["final_sigmas_type"] == "zero" else end)
    sigma = sigma.astype(np.float32).astype(np.float64)
    t, sigma = t[begin:], sigma[begin:]
    alpha = 1.0 - sigma if config["use_flow_sigmas"] else 1.0 / np.hypot(sigma, 1.0)
    return process, Path(t, alpha, sigma if config["use_flow_sigmas"] else sigma * alpha), sigma


def _flow_levels(config, steps, mu):
    T, shift = config["num_train_timesteps"], math.exp(mu) if mu is not None else config["flow_shift"]
    kind = PREDICTION_TYPES.get(config["prediction_type"])
    if kind not in ("flow", "x0", "eps"):
        raise ValueError(f"use_flow_sigmas takes flow_prediction, got prediction_type {config['prediction_type']!r}")
    process = Process(schedule("flow", T), kind)
    if not config["starts_at_one"]:
        sigma = shifted(1.0 - np.linspace(1, 1 / T, steps + 1), shift)[::-1][:-1]
        return sigma * T, sigma, process
    sigma = np.linspace(1, 1 / T, steps + 1)[:-1]
    if config.get("use_karras_sigmas"):
        raise ValueError("use_karras_sigmas together with use_flow_sigmas is not supported; leave out one")
    sigma = shifted(sigma, shift)
    if config.get("shift_terminal"):
        sigma = 1.0 - (1.0 - sigma) * (1.0 - config["shift_terminal"]) / (1.0 - sigma[-1])
    if abs(sigma[0] - 1.0) < 1e-6:
        sigma[0] -= 1e-6
    return sigma * T, sigma, process


def _plan(process, path, sigmas, sample, config):
    level = level_by_index(path.t, path.alpha, path.sigma)
    return Plan(process, path.t, sigmas, 1.0, sample, clipping(config), level)


def _form(config):
    return "taylor" if config["solver_type"] == "heun" else "midpoint"


def multistep_orders(config, steps, begin=0) -> list[int]:
    """diffusers' rule: lower orders at the end with fewer than 15 steps, order 1 to a clean end.

    begin: how many steps are skipped.
    """
    few, order = config["lower_order_final"] and steps < 15, config["solver_order"]
    orders = [min(order, i + 1) for i in range(steps - begin)]
    if few and len(orders) > 1:
        orders[-2] = min(orders[-2], 2)
    if few or config.get("euler_at_final") or config["final_sigmas_type"] == "zero":
        orders[-1] = 1
    return orders


def singlestep_orders(config, steps) -> list[int]:
    """diffusers' groups 1, 2, 3, .., with the remainder at the end."""
    order, clean = config["solver_order"], config["final_sigmas_type"] == "zero"
    group = list(range(1, order + 1))
    if config["lower_order_final"] or clean or steps % order:
        spare = (steps - 1) % order + 1
        ends = {1: [1], 2: [1, 1] if order == 2 else [1, 2], 3: [1, 2, 1]}
        orders = group * ((steps - spare) // order) + ends[spare]
    else:
        orders = group * (steps // order)
    return [*orders[:-1], 1] if clean else orders


def _third(config, kind, singlestep):
    """How diffusers' steps of order 3 differ from the table in samplers/exponential.py."""

    def sde(q, h):
        alpha = -q[0] / math.expm1(-2.0 * h)
        return q[0], q[1], (q[2] - alpha) / (1.0 if singlestep else 2.0)  # -1/2 where the integral has +1/2

    if kind == "data sde" and (not singlestep or _form(config) == "taylor"):
        return sde
    return None if singlestep else halved


def dpm_multistep_sampler(config, steps, path, literal, begin=0):
    """A function that samples with multistep DPM-Solver++ along any path."""
    kind = KINDS[config["algorithm_type"]]
    fixed = {"kind": kind, "form": _form(config), "orders": multistep_orders(config, steps, begin)}
    fixed |= {"order": config["solver_order"], "adjust": _third(config, kind, singlestep=False) if literal else None}
    return lambda model, x, process, **options: samplers.dpm_solver(model, x, process, path, **fixed, **options)


def dpm_multistep(config, steps, literal=True, mu=None, begin=0):
    """Builds the Plan of diffusers' DPMSolverMultistepScheduler."""
    process, path, sigmas = _path(config, steps, literal, mu, begin=begin)
    kind = KINDS[config["algorithm_type"]]
    if "learned" in config.get("variance_type", ""):
        raise ValueError("variance_type is not supported for solvers; cut the network's answer to its first half")
    if kind == "noise sde" and config["solver_order"] == 3:
        raise ValueError("sde-dpmsolver has no order 3, neither here nor in diffusers; use order 2")
    return _plan(process, path, sigmas, dpm_multistep_sampler(config, steps, path, literal, begin), config)


def dpm_singlestep(config, steps, literal=True, mu=None):
    """Builds the Plan of diffusers' DPMSolverSinglestepScheduler."""
    process, path, sigmas = _path({**config, "timestep_spacing": "linspace", "steps_offset": 0}, steps, literal, mu)
    kind = KINDS[config["algorithm_type"]]

    def sample(model, x, process, **options):
        fixed = {"kind": kind, "form": _form(config), "orders": singlestep_orders(config, steps)}
        adjust = _third(config, kind, singlestep=True) if literal else None
        return samplers.dpm_solver_singlestep(
            model, x, process, path, order=config["solver_order"], adjust=adjust, **fixed, **options
        )

    return _plan(process, path, sigmas, sample, config)


def deis(config, steps, literal=True, mu=None, begin=0):
    """Builds the Plan of diffusers' DEISMultistepScheduler."""
    config = {**config, "final_sigmas_type": "sigma_min"}
    process, path, sigmas = _path(config, steps, literal, mu, repeated=True, begin=begin)
    few = config["lower_order_final"] and steps < 15

    def sample(model, x, process, **options):
        return samplers.deis(model, x, process, path, order=config["solver_order"], lower_order_final=few, **options)

    return _plan(process, path, sigmas, sample, config)


def unipc(config, steps, literal=True, mu=None, begin=0):
    """Builds the Plan of diffusers' UniPCMultistepScheduler."""
    process, path, sigmas = _path(config, steps, literal, mu, repeated=True, begin=begin)
    corrector = config["disable_corrector"] or True

    def sample(model, x, process, **options):
        return samplers.unipc(
            model, x, process, path,
            order=config["solver_order"],
            kind="data" if config["predict_x0"] else "noise",
            b=config["solver_type"] if config["solver_type"] in ("bh1", "bh2") else "bh2",
            corrector=corrector,
            lower_order_final=config["lower_order_final"],
            **options,
        )  # fmt: skip

    return _plan(process, path, sigmas, sample, config)


SOLVER = {
    **BETAS,
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "solver_order": 2,
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "solver_type": "midpoint",
    "algorithm_type": "dpmsolver++",
    "rounds_cosine": True,
    "starts_at_one": False,
}
UNIPC = {**SOLVER, "predict_x0": True, "solver_type": "bh2", "disable_corrector": (), "starts_at_one": True}
SCHEDULERS = {
    "DPMSolverMultistepScheduler": (dpm_multistep, {**SOLVER, "rounds_cosine": False}),
    "DPMSolverSinglestepScheduler": (dpm_singlestep, {**SOLVER, "lower_order_final": False}),
    "DEISMultistepScheduler": (deis, SOLVER),
    "UniPCMultistepScheduler": (unipc, UNIPC),
}

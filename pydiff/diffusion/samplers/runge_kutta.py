"""Euler and methods of order 2 with two evaluations per step: Heun, DPM2 (midpoint), and Euler and Heun on a straight
flow.

With rho = sigma / alpha (the noise level of Karras et al. 2022, where alpha = 1) and y = x / alpha, the
probability-flow equation is dy / d rho = eps. A step goes from t to the next, less noisy point s of the path.

    here                              Karras et al. 2022, algorithm 2      Liu et al. 2023
    rho_t, rho_s                      t_i, t_{i+1}
    eps, eps'                         d_i, d_i'
    x0                                D(x; t)
    eps - x0                                                               velocity v
    s = sigma / (alpha + sigma)                                            time

The x between evaluations is at an intermediate level, and the t for the network there follows from the schedule.
"""

import math
from typing import NamedTuple

from pydiff.diffusion.path import Path
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers.ancestral import ddim, ddim_step, steps_of
from pydiff.diffusion.samplers.walk import Stage, walk
from pydiff.mistakes import is_number


class Churn(NamedTuple):
    """Karras et al. 2022, algorithm 2: S_churn, (S_tmin, S_tmax) and S_noise."""

    amount: float = 0.0
    least: float = 0.0
    most: float = math.inf
    noise: float = 1.0


def euler(model, x, process: Process, path: Path, churn=0.0, churn_range=(0.0, math.inf), churn_noise=1.0, **more):
    """Euler's method in rho: y_s = y + (rho_s - rho_t) eps. Karras et al. 2022, algorithm 2 without lines 6 to 8.

    Without churn it is `ddim` with eta = 0. churn: see `heun`. One evaluation per step, order 1. Good for: a baseline.
    Other arguments: see `walk`.
    """
    stages = []
    for i, (_, (alpha, _, *end)) in enumerate(steps_of(path)):
        stage, sigma = raised(process, path, i, Churn(churn, *churn_range, churn_noise))  # pyright: ignore[reportCallIssue]
        a, b, _ = ddim_step(alpha, sigma, *end)
        stages.append(stage._replace(x=a, x0=b))
    return walk(model, x, process, stages, **more)


def heun(model, x, process: Process, path: Path, churn=0.0, churn_range=(0.0, math.inf), churn_noise=1.0, **more):
    """Heun's method in rho: an Euler step, repeated with the mean of the slopes at both ends; the last step is Euler's.

    Karras et al. 2022, algorithm 2: y' = y + (rho_s - rho_t) eps, y_s = y + (rho_s - rho_t) (eps + eps') / 2.
    churn (S_churn): before a step whose rho is within churn_range (S_tmin, S_tmax), noise of standard deviation
    churn_noise (S_noise) is added to bring rho up to (1 + gamma) rho, gamma = min(churn / steps, sqrt(2) - 1), but
    not beyond the last t of the schedule's table.
    2 S - 1 evaluations, order 2. Good for: few evaluations at high quality with Karras spacing. Others: see `walk`.
    """
    stages = []
    for i, (_, (alpha, _, alpha_s, sigma_s)) in enumerate(steps_of(path)):
        first, sigma = raised(process, path, i, Churn(churn, *churn_range, churn_noise))  # pyright: ignore[reportCallIssue]
        a, b, _ = ddim_step(alpha, sigma, alpha_s, sigma_s)
        begin = len(stages)
        stages.append(first._replace(x=a, x0=b))
        if sigma_s == 0 or alpha == 0:  # no second slope at the clean end, no slope in rho where rho is infinite
            continue
        half = (sigma_s - sigma * alpha_s / alpha) / 2
        past = ((begin, "x", alpha_s / alpha), (begin, "eps", half))
        stages[-1] = stages[-1]._replace(last=False)
        stages.append(Stage(told(process, path, i + 1), alpha_s, sigma_s, eps=half, past=past))
    return walk(model, x, process, stages, **more)


def dpm2(model, x, process: Process, path: Path, eta=0.0, **more):
    """The midpoint method in log rho: evaluates at rho_m = sqrt(rho_t rho_end); y_end = y + (rho_end - rho_t) eps_m.

    DPM-Solver-2 (Lu et al. 2022, "DPM-Solver", algorithm 1) in the coordinates of Karras et al. 2022; k-diffusion's
    "DPM2". eta = 0: rho_end = rho_s. eta = 1: "DPM2 a": down to rho_end = rho_down as in `euler_ancestral`, then fresh
    noise back up to rho_s. 2 S - 1 evaluations; order 2 for eta = 0. Good for: as `heun`. Other arguments: see `walk`.
    """
    if not (is_number(eta) and 0.0 <= eta <= 1.0):
        raise ValueError(f"eta is {eta!r:.60}, expected 0 (deterministic) .. 1 (ancestral); choose a number between")
    stages = []
    for t, (alpha, sigma, alpha_s, sigma_s) in steps_of(path):
        begin, rho = len(stages), sigma / alpha if alpha else math.inf
        a, b, std = ddim_step(alpha, sigma, alpha_s, sigma_s, eta)
        down = math.sqrt(max(sigma_s**2 - std**2, 0.0)) / alpha_s
        if down == 0 or alpha == 0:
            stages.append(Stage(t, alpha, sigma, x=a, x0=b, std=std))
            continue
        middle = math.sqrt(rho * down)
        t_middle = float(process.schedule.t_at(1.0, middle))
        a, b, _ = ddim_step(alpha, sigma, alpha_s, alpha_s * middle)
        stages.append(Stage(t, alpha, sigma, x=a, x0=b, last=False))
        past = ((begin, "x", alpha_s / alpha),)
        stages.append(Stage(t_middle, alpha_s, alpha_s * middle, eps=alpha_s * (down - rho), past=past, std=std))
    return walk(model, x, process, stages, **more)


def flow_euler(model, x, process: Process, path: Path, stochastic=False, **more):
    """Euler's method along the straight line x = (1 - s) x0 + s eps: x + (s_next - s) v with v = eps - x0.

    Liu et al. 2023 ("Flow straight and fast", eq. 1), Esser et al. 2024. It arrives at alpha_s x0 + sigma_s eps, as
    `ddim` does, in any scale. stochastic: arrives at alpha_s x0 + sigma_s z with fresh z instead. One evaluation a
    step, order 1. Good for: flows, whose lines are nearly straight, with 20 to 50 steps. Other arguments: see `walk`.
    """
    if not stochastic:
        return ddim(model, x, process, path, **more)
    stages = [Stage(t, alpha, sigma, x0=alpha_s, std=sigma_s) for t, (alpha, sigma, alpha_s, sigma_s) in steps_of(path)]
    return walk(model, x, process, stages, **more)


def flow_heun(model, x, process: Process, path: Path, **more):
    """Heun's method along the straight line: the mean of the velocities v = eps - x0 at both ends of a step.

    With s = sigma / (alpha + sigma) and z = x / (alpha + sigma): z_next = z + (s_next - s) (v + v') / 2. Differs from
    `heun` in which curve is taken as straight: dz / ds here, dy / d rho there; and it may start where alpha = 0.
    2 S - 1 evaluations (the last step is Euler's), order 2. Good for: flows with 10 to 20 steps. Others: see `walk`.
    """
    stages = []
    for i, (t, (alpha, sigma, alpha_s, sigma_s)) in enumerate(steps_of(path)):
        a, b, _ = ddim_step(alpha, sigma, alpha_s, sigma_s)
        begin = len(stages)
        stages.append(Stage(t, alpha, sigma, x=a, x0=b))
        if sigma_s == 0:
            continue
        size = alpha_s + sigma_s
        half = size * (sigma_s / size - sigma / (alpha + sigma)) / 2
        past = ((begin, "x", size / (alpha + sigma)), (begin, "eps", half), (begin, "x0", -half))
        stages[-1] = stages[-1]._replace(last=False)
        stages.append(Stage(told(process, path, i + 1), alpha_s, sigma_s, eps=half, x0=-half, past=past))
    return walk(model, x, process, stages, **more)


def told(process, path, i):
    """The t of level i of the path; for its end, where no step starts, it follows from the schedule."""
    return path.t[i].item() if i < len(path.t) else float(process.schedule.t_at(path.alpha[i], path.sigma[i]))


def raised(process, path, i, churn: Churn) -> tuple[Stage, float]:
    """(the stage that begins step i, with noise added first if churn requires it; the sigma at which it begins)."""
    t, alpha, sigma = path.t[i].item(), path.alpha[i].item(), path.sigma[i].item()
    rho = sigma / alpha if alpha else math.inf
    if not churn.amount or not churn.least <= rho <= churn.most or rho == math.inf:
        return Stage(t, alpha, sigma), sigma
    highest = math.inf
    if process.schedule.alpha[-1] > 0:  # there is no t beyond the table's last
        highest = alpha * process.schedule.sigma[-1] / process.schedule.alpha[-1]
    hat = max(sigma, min(sigma * (1.0 + min(churn.amount / len(path.t), math.sqrt(2.0) - 1.0)), highest))
    if hat == sigma:
        return Stage(t, alpha, sigma), sigma
    std = churn.noise * math.sqrt(hat**2 - sigma**2)
    return Stage(float(process.schedule.t_at(alpha, hat)), alpha, sigma, churn=(std, alpha, hat)), hat

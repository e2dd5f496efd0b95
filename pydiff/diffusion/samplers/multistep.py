"""Linear multistep methods: LMS, DEIS and PNDM reuse eps-hat of earlier steps, so that a higher order costs no
evaluations.

With rho = sigma / alpha and y = x / alpha the probability-flow equation is dy / d rho = eps, so that

    y_s = y + integral of eps over rho from rho_t to rho_s

and eps is replaced by the polynomial through its last values: a polynomial in rho (LMS), in log rho (DEIS), or, as if
steps were uniform, in the step number (PNDM, with Adams-Bashforth weights). One evaluation per step, except for PNDM's
first steps. The first steps have fewer earlier values and are of lower order.
"""

import functools
import math

import numpy as np

from pydiff.diffusion.path import Path
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers.ancestral import ddim_step, steps_of
from pydiff.diffusion.samplers.walk import Stage, walk

# eps at the middle of the next step from its last 1, 2, 3, 4 values, newest first (Liu et al. 2022, eq. 9 and 12)
ADAMS_BASHFORTH = [(1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24)]


@functools.cache  # not at import, as it is rarely needed
def gauss_legendre():
    """(points, weights) of Gauss-Legendre quadrature with 24 points on [-1, 1]."""
    return np.polynomial.legendre.leggauss(24)


def lms(model, x, process: Process, path: Path, order=4, **more):
    """Linear multistep in rho: y_s = y + sum_k w_k eps_k, w_k = integral of the k-th Lagrange polynomial in rho.

    Adams-Bashforth (1883) for non-uniform steps; k-diffusion's "LMS". order: 1 .. 4. One evaluation per step, order
    `order`. Good for: smooth late stages; at large steps it is less stable than `dpm_solver`. Others: see `walk`.
    """
    return walk(model, x, process, adams_stages(path, order, np.asarray), **more)


def deis(model, x, process: Process, path: Path, order=3, lower_order_final=True, **more):
    """Diffusion exponential integrator: as `lms`, but with a polynomial in log rho (Zhang and Chen 2023, log-rho AB).

    Their tAB-DEIS weights (eq. 15) with t = log rho, integrated exactly. order: 1 .. 4; lower_order_final: whether the
    last two steps are of order 2 and 1, which is more stable with few steps. One evaluation per step, order `order`.
    Good for: 10 to 20 steps. The step to a clean end, where log rho is infinite, is of order 1. Others: see `walk`.
    """
    return walk(model, x, process, adams_stages(path, order, np.log, lower_order_final), **more)


def pndm(model, x, process: Process, path: Path, warmup="heun", **more):
    """Pseudo linear multistep, Liu et al. 2022 ("PNDM"): a DDIM step with a weighted mean of the last four eps-hats.

    Eq. 11, the transfer: x_s = (alpha_s / alpha_t) x + (sigma_s - sigma_t alpha_s / alpha_t) e; eq. 12, e from four.
    warmup: how e is computed until there are four. "heun": the first step is taken twice, with the mean of eps at both
    ends, then weights for two and three (S + 1 evaluations, the PLMS of latent diffusion); "runge_kutta": three steps
    of the pseudo Runge-Kutta method, eq. 13 (S + 9 evaluations). Order 2. Good for: checkpoints configured for it; it
    assumes steps that are uniform in t. Raises ValueError for a path that starts where alpha = 0. Other arguments: see
    `walk`.
    """
    if warmup not in ("heun", "runge_kutta"):
        raise ValueError(f"there is no warmup {warmup!r}; choose one of heun, runge_kutta")
    stages, values = [], []  # values: the stages whose eps-hat counts, newest last
    for i, (t, ends) in enumerate(steps_of(path)):
        begin, t_next = len(stages), path.t[i + 1].item() if i + 1 < len(path.t) else None
        values.append(begin)
        if warmup == "runge_kutta" and i < 3 and t_next is not None:
            stages += _runge_kutta(process, t, t_next, ends, begin)
        elif warmup == "heun" and i == 0 and t_next is not None:
            grown, away = transfer(*ends)
            stages.append(Stage(t, *ends[:2], x=grown, eps=away, last=False))
            past = ((begin, "x", grown), (begin, "eps", away / 2))
            stages.append(Stage(t_next, *ends[2:], eps=away / 2, past=past))
        else:
            stages.append(weighted_stage(t, ends, values[-4:], ADAMS_BASHFORTH[min(len(values), 4) - 1]))
    return walk(model, x, process, stages, **more)


def transfer(alpha_t, sigma_t, alpha_s, sigma_s) -> tuple[float, float]:
    """(grown, away): x_s = grown x + away eps. PNDM eq. 11, which is DDIM's step."""
    if alpha_t == 0:
        raise ValueError("PNDM cannot start where alpha = 0; leave that t out of the path, or use dpm_solver")
    grown = alpha_s / alpha_t
    return grown, sigma_s - sigma_t * grown


def weighted_stage(t, ends, values, weights) -> Stage:
    """A transfer with a weighted mean of eps-hat at the stages `values`, the last being now; weights newest first."""
    grown, away = transfer(*ends)
    past = tuple((j, "eps", w * away) for j, w in zip(values[-2::-1], weights[1:], strict=True))
    return Stage(t, *ends[:2], x=grown, eps=weights[0] * away, past=past)


def _runge_kutta(process, t, t_next, ends, begin) -> list[Stage]:
    """Four evaluations: at t, twice half way (by t), at the next t; weights 1/6, 1/3, 1/3, 1/6 (PNDM eq. 13)."""
    alpha, sigma, alpha_s, sigma_s = ends
    t_middle = (t + t_next) / 2
    t_middle = int(t_middle) if t_middle == int(t_middle) else t_middle
    middle = tuple(float(level) for level in process.schedule.at(np.asarray(t_middle)))
    if not math.isclose(alpha**2 + sigma**2, middle[0] ** 2 + middle[1] ** 2):  # the path has another scale
        size = math.hypot(alpha_s, sigma_s) / math.hypot(*middle)
        middle = (middle[0] * size, middle[1] * size)
    half, whole = transfer(alpha, sigma, *middle), transfer(*ends)
    x_half, x_whole = (begin, "x", half[0]), (begin, "x", whole[0])
    return [
        Stage(t, alpha, sigma, x=half[0], eps=half[1], last=False),
        Stage(t_middle, *middle, eps=half[1], past=(x_half,), last=False),
        Stage(t_middle, *middle, eps=whole[1], past=(x_whole,), last=False),
        Stage(
            t_next,
            alpha_s,
            sigma_s,
            eps=whole[1] / 6,
            past=(x_whole, (begin, "eps", whole[1] / 6), *((begin + k, "eps", whole[1] / 3) for k in (1, 2))),
        ),
    ]


def adams_stages(path: Path, order, coordinate, lower_order_final=False) -> list[Stage]:
    """One stage per step: the polynomial in coordinate(rho) through the last `order` eps-hats, integrated over rho."""
    if not 1 <= order <= 4:
        raise ValueError(f"order is {order}, expected 1 .. 4; 3 or 4 are usual")
    stages, rho, steps = [], path.ratio, len(path.t)
    for i, (t, ends) in enumerate(steps_of(path)):
        known = [j for j in range(i, max(i - order, -1), -1) if np.isfinite(rho[j])]
        most = min(order, steps - i) if lower_order_final else order
        if len(known) < 2 or most == 1 or (rho[i + 1] == 0 and coordinate is np.log):
            a, b, _ = ddim_step(*ends)
            stages.append(Stage(t, *ends[:2], x=a, x0=b))
            continue
        known = known[:most]
        w = ends[2] * adams_weights(rho[known], rho[i + 1], coordinate)
        past = tuple((j, "eps", w_j) for j, w_j in zip(known[1:], w[1:].tolist(), strict=True))
        stages.append(Stage(t, *ends[:2], x=ends[2] / ends[0], eps=float(w[0]), past=past))
    return stages


def adams_weights(rho, target, coordinate) -> np.ndarray:
    """Integrals from rho[0] to `target` of the Lagrange polynomials in coordinate(rho) through rho (k,): (k,).

    Computed by quadrature in the coordinate: exact for LMS, and to rounding for DEIS.
    """
    u, begin, end = coordinate(rho), coordinate(rho[0]), coordinate(target)
    places, weights = gauss_legendre()
    points = (begin + end) / 2 + (end - begin) / 2 * places
    measure = (end - begin) / 2 * weights * (np.exp(points) if coordinate is np.log else 1.0)
    return np.array([measure @ _lagrange(points, u, k) for k in range(len(u))])


def _lagrange(points, u, k):
    others = [j for j in range(len(u)) if j != k]
    return math.prod((points - u[j]) / (u[k] - u[j]) for j in others)

"""UniPC: a multistep predictor and a corrector that uses the same evaluation, Zhao et al. 2023 ("UniPC").

A step goes from t to s over h = lambda_s - lambda_t, lambda = log(alpha / sigma). m is x0-hat (or eps-hat), r_k the
distance to an earlier value of m in units of h, negative; and m_s is the value evaluated at the end of the step:

    predictor (eq. 9)    x_s  = A x + q_0 m + sum_k w_k (m_k - m)
    corrector (eq. 8)    x_s' = A x + q_0 m + sum_k w_k' (m_k - m) + w_s (m_s - m)

    here           UniPC (Zhao et al. 2023)
    A, q_0         first two terms of eq. 3 (data: sigma_s / sigma_t and -alpha_s (e^-h - 1))
    w_k            -alpha_s B(h) rho_k / r_k, rho from R rho = b (theorem 3.1)
    B(h)           "bh1": -h, "bh2": e^-h - 1      (both with the other sign of h for "noise")

m_s needs no extra evaluation: it is the next step's m. The next step starts from the corrected x.
"""

import math

import numpy as np

from pydiff.diffusion.path import Path
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers.ancestral import ddim_step, steps_of
from pydiff.diffusion.samplers.exponential import coefficients
from pydiff.diffusion.samplers.walk import Stage, walk


def unipc(
    model,
    x,
    process: Process,
    path: Path,
    order=2,
    kind="data",
    b="bh2",
    corrector=True,
    lower_order_final=True,
    **more,
):
    """UniPC-p: a predictor of order `order` and a corrector of one order more.

    order: 1 .. 4 (2 or 3 are usual). kind: "data" (x0-hat) or "noise" (eps-hat). b: "bh1" or "bh2", which differ at
    large steps. corrector: False uses only the predictor; a collection of numbers lists the steps (from 0) left
    uncorrected. lower_order_final: whether the last steps are of order .., 2, 1; a step to the clean end always has
    order 1. One evaluation per step, order `order` + 1 with the corrector, `order` without. Good for: 5 to 15 steps.
    Others: see `walk`.
    """
    if not 1 <= order <= 4 or kind not in ("data", "noise") or b not in ("bh1", "bh2"):
        raise ValueError(f"got order {order}, kind {kind!r}, b {b!r}; expected 1 .. 4, data or noise, bh1 or bh2")
    levels, steps = steps_of(path), len(path.t)
    stages, asked, corrected, previous = [], [], [], 0  # asked: stage of every step's evaluation; corrected: of its x
    for i, (t, ends) in enumerate(levels):
        correct = i > 0 and corrector is not False and (corrector is True or i - 1 not in corrector)
        now = len(stages)
        asked.append(now)
        if correct and (w := _weights(levels[i - 1][1], _ratios(path, i - 1, previous), kind, b, corrector=True)):
            a, w_before, w_now = w
            past = ((corrected[-1], "x", a), *_past(asked[i - 1 :: -1], kind, w_before))
            stages.append(Stage(t, *ends[:2], past=past, **{_name(kind): w_now}, last=False))
            corrected.append(len(stages))
        else:
            corrected.append(now)
        previous = min(order, i + 1, steps - i if lower_order_final else order)
        stages.append(_predictor(t, ends, asked, _ratios(path, i, previous), kind, b, again=len(stages) > now))
    return walk(model, x, process, stages, **more)


def _predictor(t, ends, asked, ratios, kind, b, again) -> Stage:
    """The stage that predicts. again: whether x was corrected first, so that the network's output is one stage back."""
    if ends[3] == 0 or ends[0] == 0:
        a, c, _ = ddim_step(*ends)
        weights, kind = [c], "data"
    else:
        w = _weights(ends, ratios, kind, b, corrector=False)
        a, weights, _ = w or (ends[2] / ends[0], [0.0], 0.0)
    if again:
        return Stage(t, *ends[:2], x=a, past=_past(asked[::-1], kind, weights), ask=False)
    return Stage(t, *ends[:2], x=a, past=_past(asked[-2::-1], kind, weights[1:]), **{_name(kind): weights[0]})


def _weights(ends, ratios, kind, b, corrector):
    """(A, [weights of m, m_1, ..], weight of m_s); None if the step has no length or one end is at alpha or sigma 0."""
    alpha_t, sigma_t, alpha_s, sigma_s = ends
    if 0 in ends or sigma_s * alpha_t == sigma_t * alpha_s:
        return None
    h = math.log(alpha_s / sigma_s) - math.log(alpha_t / sigma_t)
    a, (q0, _, _), _ = coefficients(kind, *ends, h)  # pyright: ignore[reportCallIssue]
    z, size = (-h, alpha_s) if kind == "data" else (h, sigma_s)
    scale = z if b == "bh1" else math.expm1(z)
    r = np.array([lam / h for lam in ratios] + [1.0])
    order = len(r)
    b_vector, phi, factorial = [], math.expm1(z) / z - 1.0, 1.0
    for k in range(1, order + 1):  # eq. 7: b_k = k! h phi_{k+1}(h) / B(h)
        b_vector.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / z - 1.0 / factorial
    matrix = np.vander(r, order, increasing=True).T
    if corrector:
        rho = np.array([0.5]) if order == 1 else np.linalg.solve(matrix, b_vector)
    else:  # without m_s; for two values 1/2 is as good (section 3.3)
        rho = np.array([0.5]) if order == 2 else np.linalg.solve(matrix[:-1, :-1], b_vector[:-1])
        rho = np.append(rho[: order - 1], 0.0)
    weights = (-size * scale * rho / r).tolist()
    return a, [q0 - sum(weights), *weights[:-1]], weights[-1]


def _ratios(path, i, order):
    """lambda of up to order - 1 steps before step i, relative to that of i; stops at the first that is infinite."""
    row = []
    for k in range(1, order):
        if i - k < 0 or path.alpha[i - k] == 0:
            break
        row.append(math.log(path.ratio[i]) - math.log(path.ratio[i - k]))
    return row


def _name(kind):
    return "x0" if kind == "data" else "eps"


def _past(newest_first, kind, weights):
    return tuple((j, _name(kind), w) for j, w in zip(newest_first, weights, strict=False) if w)

"""DPM-Solver and DPM-Solver++: exponential integrators in lambda = log(alpha / sigma), of orders 1 to 3.

Lu et al. 2022, "DPM-Solver" and "DPM-Solver++". A step goes from t to s over h = lambda_s - lambda_t. The linear part
of the probability-flow equation is solved exactly; the network's part m, x0-hat or eps-hat, is approximated by a
polynomial in lambda:

    x_s = A x + q_0 m + q_1 (h m') + q_2 (h^2 m'') + std z

    kind        m    A                        q_0                q_1                     q_2
    data        x0   sigma_s / sigma_t        -alpha_s E(-h)     alpha_s F(-h)           -alpha_s G(-h)
    noise       eps  alpha_s / alpha_t        -sigma_s E(h)      -sigma_s F'(h)          -sigma_s G(h)
    data sde    x0   sigma_s / sigma_t e^-h   -alpha_s E(-2h)    alpha_s F(-2h)          -alpha_s G(-2h)
    noise sde   eps  alpha_s / alpha_t        -2 sigma_s E(h)    -2 sigma_s F'(h)        -2 sigma_s G(h)

with E(z) = e^z - 1, F(z) = 1 - E(z) / z, F'(z) = E(z) / z - 1 and G(z) = (E(z) - z) / z^2 - 1/2, which are integrals of
1, lambda and lambda^2 / 2 against an exponential; std = sigma_s sqrt(-E(-2h)) and sigma_s sqrt(E(2h)) for the
stochastic two (DPM-Solver++, eq. 9 and 12, section 5, appendix B). m' and m'' come from earlier steps (multistep) or
from inside the step (singlestep).
"""

import math

from pydiff.diffusion.path import Path
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers.ancestral import ddim_step, steps_of
from pydiff.diffusion.samplers.walk import Stage, walk

KINDS = ("data", "noise", "data sde", "noise sde")
FORMS = ("taylor", "midpoint")


def dpm_solver(
    model,
    x,
    process: Process,
    path: Path,
    order=2,
    kind="data",
    form="midpoint",
    orders=None,
    adjust=None,
    **more,
):
    """DPM-Solver++ multistep, (2M) and (3M): m' and m'' from the last two and three steps.

    order: 1 .. 3. kind: "data" is DPM-Solver++, "noise" the older DPM-Solver, "data sde" and "noise sde" their
    stochastic forms (SDE-DPM-Solver++). form: "taylor", the table above; "midpoint" replaces q_1 of order 2 by q_0 / 2,
    as the paper's algorithm 2 and most implementations do. orders: one order per step, replacing the rule that the
    first steps have fewer earlier values and that the step to a clean end, where h is infinite, is of order 1. adjust:
    (q, h) -> q, changes the q of steps of order 3 to reproduce implementations with other coefficients, see `halved`.
    One evaluation per step, order `order` ("sde": of the mean). Good for: 15 to 25 steps; the usual choice. Other
    arguments: see `walk`.
    """
    _check(order, kind, form)
    orders = multistep_orders(path, order) if orders is None else orders
    stages = []
    for i, (t, ends) in enumerate(steps_of(path)):
        available = _finite_before(path, i)
        nodes = [(i - k, _lambda(path, i - k)) for k in range(min(orders[i], available))]
        stages.append(solver_stage(t, ends, ends[:2], i, nodes, kind, form, adjust))
    return walk(model, x, process, stages, **more)


def dpm_solver_singlestep(
    model,
    x,
    process: Process,
    path: Path,
    order=2,
    kind="data",
    form="midpoint",
    orders=None,
    adjust=None,
    **more,
):
    """DPM-Solver++ singlestep, (2S) and (3S): groups of `order` steps; the last of a group starts from its first x.

    Within a group, step k ends one of the path's steps further on and is of order k; so S steps are S evaluations, and
    S / order steps of order `order`. form as for `dpm_solver`: "taylor" takes both differences at order 3, "midpoint"
    the last alone (algorithm 1 of DPM-Solver++; DPM-Solver, algorithm 2). orders: e.g. [1, 2, 1, 2, 1] instead.
    Order `order`. Good for: guided sampling with large steps, where earlier values do harm. Other arguments: see
    `walk`.
    """
    _check(order, kind, form)
    orders = singlestep_orders(path, order) if orders is None else orders
    stages, levels = [], steps_of(path)
    for i, (t, ends) in enumerate(levels):
        k = min(orders[i], _finite_before(path, i))
        begin = i - k + 1
        nodes = [(j, _lambda(path, j)) for j in range(begin, i + 1)]
        stages.append(solver_stage(t, ends, levels[begin][1][:2], begin, nodes, kind, form, adjust, singlestep=True))
    return walk(model, x, process, stages, **more)


def multistep_orders(path: Path, order, lower_order_final=False) -> list[int]:
    """The order of every step: increasing at the start, 1 for a clean end; lower_order_final: also decreasing before
    it.
    """
    steps = len(path.t)
    orders = [min(order, i + 1, steps - i if lower_order_final else order) for i in range(steps)]
    return orders[:-1] + ([1] if path.sigma[-1] == 0 else orders[-1:])


def singlestep_orders(path: Path, order) -> list[int]:
    """1, 2, .. order repeated; the steps left over at the end, and the step to a clean end, are of order 1."""
    steps, orders = len(path.t), []
    full = steps - 1 if path.sigma[-1] == 0 else steps
    while len(orders) + order <= full:
        orders += range(1, order + 1)
    return orders + [1] * (steps - len(orders))


def solver_stage(t, ends, start, begin, nodes, kind, form, adjust=None, singlestep=False) -> Stage:
    """One step from level `start`, that of x at stage `begin`, to ends[2:].

    nodes: (stage, lambda) of the values of m, beginning with the one at the start of the step; the newest (now) is
    nodes[0] in a multistep and nodes[-1] in a singlestep method.
    """
    now = nodes[-1 if singlestep else 0][0]
    alpha_t, sigma_t, alpha_s, sigma_s = *start, *ends[2:]
    if sigma_s * alpha_t == sigma_t * alpha_s:  # the two levels are equal
        return Stage(t, *ends[:2], x=alpha_s / alpha_t)
    std, h = 0.0, math.inf
    if sigma_s == 0 or alpha_t == 0:
        a, b, std = ddim_step(*start, *ends[2:], eta=1.0 if kind.endswith("sde") else 0.0)
        if kind.startswith("noise") and sigma_s == 0:
            raise ValueError("kind 'noise' cannot step to the clean end; end the path above 0, or use kind 'data'")
        weights = {nodes[0][0]: b}
        kind = "data"
    else:
        h = math.log(alpha_s / sigma_s) - math.log(alpha_t / sigma_t)
        a, q, std = coefficients(kind, *start, *ends[2:], h)  # pyright: ignore[reportCallIssue]
        q = adjust(q, h) if adjust and len(nodes) == 3 else q
        weights = _on_values(q, nodes, h, form, singlestep)
    name, here = "x0" if kind.startswith("data") else "eps", weights.pop(now, 0.0)
    past = tuple((j, name, w) for j, w in weights.items())
    if begin == now:
        return Stage(t, *ends[:2], x=a, past=past, std=std, **{name: here})
    return Stage(t, *ends[:2], past=((begin, "x", a), *past), std=std, **{name: here})


def coefficients(kind, alpha_t, sigma_t, alpha_s, sigma_s, h) -> tuple[float, tuple, float]:
    """(A, (q_0, q_1, q_2), std) of the table at the top of this file."""
    if kind.startswith("data"):
        k = 2.0 if kind.endswith("sde") else 1.0
        e, a = math.expm1(-k * h), sigma_s / sigma_t * math.exp(-(k - 1.0) * h)
        q = (-alpha_s * e, alpha_s * (e / (k * h) + 1.0), -alpha_s * ((e + k * h) / (k * h) ** 2 - 0.5))
        return a, q, sigma_s * math.sqrt(-e) if k == 2.0 else 0.0
    k, e = 2.0 if kind.endswith("sde") else 1.0, math.expm1(h)
    q = tuple(-k * sigma_s * factor for factor in (e, e / h - 1.0, (e - h) / h**2 - 0.5))
    return alpha_s / alpha_t, q, sigma_s * math.sqrt(math.expm1(2.0 * h)) if k == 2.0 else 0.0


def halved(q, _h):
    """For `adjust`: half of h^2 m'', as in the DPM-Solver authors' multistep implementation and those derived from it.

    Their D_2 is a divided difference of second order, which is h^2 m'' / 2, where the coefficient is that of h^2 m''.
    The step then is of order 2 only (docs/samplers.md has the figures).
    """
    return q[0], q[1], q[2] / 2.0


def _on_values(q, nodes, h, form, singlestep) -> dict[int, float]:
    """q_0 m + q_1 (h m') + q_2 (h^2 m'') as weights of the values at the nodes, by divided differences."""
    (i, at), q0, q1, q2 = nodes[0], *q
    if len(nodes) == 1:
        return {i: q0}
    offsets = [(node - at) / h for _, node in nodes]
    if len(nodes) == 2 or (singlestep and form == "midpoint"):
        j, r = nodes[-1][0], offsets[-1]
        slope = (q0 / 2 if form != "taylor" and len(nodes) == 2 else q1) / r
        return {i: q0 - slope, j: slope}
    (j, _), (k, _), r, s = *nodes[1:], *offsets[1:]
    # h m' = (r^2 (m_k - m) - s^2 (m_j - m)) / (r s (r - s)),  h^2 m'' = 2 (r (m_k - m) - s (m_j - m)) / (r s (s - r))
    w_k = (q1 * r**2 - 2.0 * q2 * r) / (r * s * (r - s))
    w_j = (-q1 * s**2 + 2.0 * q2 * s) / (r * s * (r - s))
    return {i: q0 - w_j - w_k, j: w_j, k: w_k}


def _lambda(path, i):
    return math.log(path.alpha[i]) - math.log(path.sigma[i]) if path.alpha[i] > 0 else -math.inf


def _finite_before(path, i):
    """How many steps up to i, without a gap, start at a finite lambda; at least 1."""
    count = 0
    while count <= i and path.alpha[i - count] > 0:
        count += 1
    return max(count, 1)


def _check(order, kind, form):
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order}, expected 1, 2 or 3; 2 is usual")
    if kind not in KINDS:
        raise ValueError(f"there is no kind {kind!r}; choose one of {', '.join(KINDS)}")
    if form not in FORMS:
        raise ValueError(f"there is no form {form!r}; choose one of {', '.join(FORMS)}")

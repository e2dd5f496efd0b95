"""Every deterministic sampler against the exact probability-flow solution: the order it claims, measured.

For normal data the flow only rescales: (x - alpha mean) / sqrt(alpha^2 spread^2 + sigma^2) stays what it is. The path
ends at a little noise, because the step to the clean end does not become shorter with more steps.
"""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.diffusion import samplers
from pydiff.diffusion.path import path, path_of_levels, path_through
from pydiff.diffusion.prediction import PREDICTIONS
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers import ancestral, exponential, multistep, predictor_corrector, runge_kutta
from pydiff.diffusion.schedule import schedule
from tests.diffusion.exact_denoisers import MEAN, SPREAD, last, model_of, normal_denoiser, start

# sampler -> (call, order); a method that looks back starts with lower orders, which costs it a little of the slope
ORDERS = {
    "ddim": (samplers.ddim, 1),
    "euler": (samplers.euler, 1),
    "heun": (samplers.heun, 2),
    "dpm2": (samplers.dpm2, 2),
    "flow_euler": (samplers.flow_euler, 1),
    "flow_heun": (samplers.flow_heun, 2),
    "lms 2": (partial(samplers.lms, order=2), 2),
    "lms 3": (partial(samplers.lms, order=3), 3),
    "deis 2": (partial(samplers.deis, order=2, lower_order_final=False), 2),
    "deis 3": (partial(samplers.deis, order=3, lower_order_final=False), 3),
    "pndm": (samplers.pndm, 2),
    "pndm runge_kutta": (partial(samplers.pndm, warmup="runge_kutta"), 2),
    "unipc 1": (partial(samplers.unipc, order=1, lower_order_final=False), 2),
    "unipc 2": (partial(samplers.unipc, order=2, lower_order_final=False), 3),
    "unipc 2 bh1 noise": (partial(samplers.unipc, order=2, b="bh1", kind="noise", lower_order_final=False), 3),
    "unipc 2 predictor": (partial(samplers.unipc, order=2, corrector=False, lower_order_final=False), 2),
    **{
        f"dpm_solver {kind} {form} {order}": (partial(samplers.dpm_solver, kind=kind, form=form, order=order), order)
        for kind in ("data", "noise")
        for form, order in (("taylor", 1), ("taylor", 2), ("midpoint", 2), ("taylor", 3))
    },
    **{
        f"dpm_solver_singlestep {kind} {form} {order}": (
            partial(samplers.dpm_solver_singlestep, kind=kind, form=form, order=order),
            order,
        )
        for kind in ("data", "noise")
        for form, order in (("taylor", 2), ("midpoint", 2), ("taylor", 3), ("midpoint", 3))
    },
}
STEPS = (42, 252)  # far apart, so that a little wrong shows; divisible by 2 and 3


def levels(spacing, steps, low=0.05, high=20.0):
    """Noise-to-signal ratios from high to low."""
    if spacing == "karras":
        return np.linspace(high ** (1 / 7), low ** (1 / 7), steps + 1) ** 7
    return np.geomspace(high, low, steps + 1)


def errors(sampler, process, path_of, steps=STEPS):
    found = []
    for n in steps:
        p, x = path_of(n), start(2, 4)
        std = np.sqrt(p.alpha**2 * SPREAD**2 + p.sigma**2)
        exact = p.alpha[-1] * MEAN + std[-1] / std[0] * (x - p.alpha[0] * MEAN)
        got = last(sampler(model_of(normal_denoiser, process), x, process, p, clip=None))
        found.append(np.abs(got - exact).max())
    return np.array(found)


def measured(found, steps=STEPS):
    return np.log(found[0] / found[-1]) / np.log(steps[-1] / steps[0])


def assert_order(found, order):
    """At least the order claimed, less what the start costs; and not an order that no step size would show."""
    slope, allowed = measured(found), 0.4 if order == 3 else 0.2
    assert slope >= order - allowed, f"errors {found}, slope {slope:.2f}, expected {order}"
    assert found[-1] <= {1: 0.01, 2: 4e-4, 3: 2e-5}[order], f"errors {found}"


@pytest.mark.parametrize("spacing", ["karras", "exponential"])
@pytest.mark.parametrize("name", ORDERS)
def test_the_claimed_order(name, spacing):
    sampler, order = ORDERS[name]
    process = Process(schedule("linear"), "eps")
    found = errors(sampler, process, lambda n: path_of_levels(process.schedule, levels(spacing, n), clean=False))
    assert_order(found, order)
    if order == 1:
        assert measured(found) <= 1.2


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["linear", "cosine", "edm", "flow"])
@pytest.mark.parametrize("sampler", ["ddim", "heun", "flow_heun", "dpm_solver data midpoint 2", "unipc 2"])
def test_the_order_does_not_depend_on_schedule_or_prediction(sampler, name, prediction):
    call, order = ORDERS[sampler]
    process = Process(schedule(name), prediction)
    found = errors(call, process, lambda n: path_of_levels(process.schedule, levels("exponential", n), clean=False))
    assert_order(found, order)


@given(
    sampler=st.sampled_from(sorted(ORDERS)),
    name=st.sampled_from(["linear", "scaled_linear", "cosine", "sigmoid", "edm", "exponential", "flow"]),
    prediction=st.sampled_from(sorted(PREDICTIONS)),
    spacing=st.sampled_from(["karras", "exponential"]),
    steps=st.integers(6, 9).map(lambda k: 6 * k),
    high=st.floats(8.0, 14.0),  # the table of scaled_linear ends at 14.6
)
def test_any_sampler_with_any_schedule_spacing_and_prediction(sampler, name, prediction, spacing, steps, high):
    call, order = ORDERS[sampler]
    process = Process(schedule(name), prediction)

    def path_of(n):
        return path_of_levels(process.schedule, levels(spacing, n, high=high), clean=False)

    found = errors(call, process, path_of, (steps, 4 * steps))
    slope = measured(found, (steps, 4 * steps))
    # methods of order 3 that look back take their first step with order 1: an error of h^2, once, that shows where
    # the path starts at little noise; errors of either sign may then cancel
    starts_low = order == 3 and not sampler.startswith(("dpm_solver_singlestep", "unipc"))
    assert slope >= order - (1.0 if starts_low else 0.3) or found[-1] <= (5e-6 if starts_low else 1e-8), (found, slope)


@pytest.mark.parametrize("scale", ["own", "exploding"])
@pytest.mark.parametrize("name", ORDERS)
def test_the_scale_of_x_does_not_matter(name, scale):
    """Where alpha = 1 throughout, x is x / alpha of the schedule's own scale, to rounding."""
    process, x = Process(schedule("cosine"), "v"), start(2, 4)
    own = path_of_levels(process.schedule, levels("karras", 12), clean=False)
    p = own if scale == "own" else own._replace(alpha=np.ones_like(own.alpha), sigma=own.ratio)
    model = model_of(normal_denoiser, process)
    expected = list(ORDERS[name][0](model, x, process, own, clip=None))
    got = list(ORDERS[name][0](model, x * own.alpha[0] ** -1 * p.alpha[0], process, p, clip=None))
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        np.testing.assert_allclose(a.x / p.alpha[i + 1], b.x / own.alpha[i + 1], rtol=1e-6, atol=1e-7)


def test_orders_on_the_schedules_own_t():
    """Evenly spaced t of the linear schedule down to t = 20, as a user has them."""
    process = Process(schedule("linear"), "eps")
    for name, steps in (("ddim", (14, 28, 56)), ("heun", (14, 28, 56)), ("dpm_solver data midpoint 2", (28, 56, 112))):
        sampler, order = ORDERS[name]

        def even(n):
            p = path_through(process.schedule, np.rint(np.linspace(999, 20, n + 1)).astype(int))
            return p._replace(t=p.t[:-1], alpha=p.alpha[:-1], sigma=p.sigma[:-1])

        found = errors(sampler, process, even, steps)
        slope = measured(found, steps)
        assert slope >= order - 0.3, (name, found, slope)


def test_the_published_third_order_is_of_order_2():
    """The authors' program and diffusers take half of h^2 m'' in (3M); with all of it the order is 3."""
    process = Process(schedule("linear"), "eps")
    sampler = partial(samplers.dpm_solver, order=3, form="taylor")

    def path_of(n):
        return path_of_levels(process.schedule, levels("exponential", n), clean=False)

    steps = (48, 96, 192)
    halved = errors(partial(sampler, adjust=exponential.halved), process, path_of, steps)
    assert 1.9 <= measured(halved, steps) <= 2.3
    assert measured(errors(sampler, process, path_of, steps), steps) >= 2.8


# ---- a wrong coefficient is caught -----------------------------------------------------------------------------------


def _scaled(function, index, factor=1.02):
    """The function with one number of its answer off by 2 %."""

    def wrong(*arguments, **options):
        answer = list(function(*arguments, **options))
        answer[index] = answer[index] * factor
        return tuple(answer)

    return wrong


@pytest.mark.parametrize(
    ("module", "function", "index", "name"),
    [
        (ancestral, "ddim_step", 0, "ddim"),
        (ancestral, "ddim_step", 1, "ddim"),
        (runge_kutta, "ddim_step", 0, "euler"),
        (runge_kutta, "ddim_step", 1, "heun"),
        (multistep, "transfer", 1, "pndm"),
        (exponential, "coefficients", 0, "dpm_solver data midpoint 2"),
        (exponential, "coefficients", 0, "dpm_solver_singlestep noise taylor 3"),
        (predictor_corrector, "coefficients", 0, "unipc 2"),
    ],
)
def test_a_wrong_coefficient_is_caught(monkeypatch, module, function, index, name):
    monkeypatch.setattr(module, function, _scaled(getattr(module, function), index))
    sampler, order = ORDERS[name]
    process = Process(schedule("linear"), "eps")
    found = errors(sampler, process, lambda n: path_of_levels(process.schedule, levels("exponential", n), clean=False))
    with pytest.raises(AssertionError):
        assert_order(found, order)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_wrong_q_of_dpm_solver_is_caught(monkeypatch, order, which):
    if which >= order:
        pytest.skip("this order has no such coefficient")
    right = exponential.coefficients

    def wrong(*arguments):
        a, q, std = right(*arguments)
        return a, tuple(value * (1.3 if i == which else 1.0) for i, value in enumerate(q)), std

    monkeypatch.setattr(exponential, "coefficients", wrong)
    process = Process(schedule("linear"), "eps")
    sampler = partial(samplers.dpm_solver, order=order, form="taylor")
    found = errors(sampler, process, lambda n: path_of_levels(process.schedule, levels("exponential", n), clean=False))
    with pytest.raises(AssertionError):
        assert_order(found, order)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_wrong_weight_of_adams_and_bashforth_is_caught(monkeypatch, which):
    right = multistep.adams_weights

    def wrong(*arguments):
        w = right(*arguments)
        if which < len(w):
            w[which] *= 1.05
        return w

    monkeypatch.setattr(multistep, "adams_weights", wrong)
    process = Process(schedule("linear"), "eps")
    for name in ("lms 3", "deis 3"):
        sampler, order = ORDERS[name]
        path_of = lambda n: path_of_levels(process.schedule, levels("exponential", n), clean=False)  # noqa: E731
        with pytest.raises(AssertionError):
            assert_order(errors(sampler, process, path_of), order)


@pytest.mark.parametrize("kind", exponential.KINDS)
@pytest.mark.parametrize("h", [0.01, 0.4, 3.0])
def test_coefficients_are_the_integrals_of_the_papers(kind, h):
    """x_s = A x + integral of (m + u m' + u^2 / 2 m'') times an exponential + std z, by quadrature."""
    alpha_t, sigma_t = 0.6, 0.8
    ratio = alpha_t / sigma_t * np.exp(h)
    sigma_s = 1 / np.hypot(1, ratio)
    alpha_s = ratio * sigma_s
    a, q, std = exponential.coefficients(kind, alpha_t, sigma_t, alpha_s, sigma_s, h)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    u, du = (nodes + 1) * h / 2, weights * h / 2
    k = 2.0 if kind.endswith("sde") else 1.0
    if kind.startswith("data"):
        decay, expected_a = alpha_s * k * np.exp(-k * (h - u)), sigma_s / sigma_t * np.exp(-(k - 1) * h)
        variance = 1 - np.exp(-2 * h)
    else:
        decay, expected_a = -sigma_s * k * np.exp(h - u), alpha_s / alpha_t
        variance = np.exp(2 * h) - 1
    assert a == pytest.approx(expected_a, rel=1e-12)
    assert std == pytest.approx(sigma_s * np.sqrt(variance) if k == 2 else 0.0, rel=1e-12)
    for n, factorial in enumerate((1, 1, 2)):
        assert q[n] == pytest.approx(np.sum(decay * u**n * du) / factorial / h**n, rel=1e-9, abs=1e-11 / h**n)


@pytest.mark.parametrize(("warmup", "more"), [("heun", 1), ("runge_kutta", 9)])
def test_pndm_asks_as_often_as_its_warmup_says(warmup, more):
    process = Process(schedule("linear"), "eps")
    steps, asked = 8, []

    def model(x, t):
        asked.append(t[0])
        return 0.1 * x

    p = path(process.schedule, steps)
    list(samplers.pndm(model, np.ones((1, 2)), process, p, warmup=warmup))
    assert len(asked) == steps + more


def test_orders_of_the_steps():
    """Single steps come in rounds of 1, 2, .. order; multisteps grow to it. The step to a clean end is of order 1."""
    s = schedule("linear")
    for steps, clean, order, single, multi, lower in (
        (7, True, 3, [1, 2, 3, 1, 2, 3, 1], [1, 2, 3, 3, 3, 3, 1], [1, 2, 3, 3, 3, 2, 1]),
        (7, False, 3, [1, 2, 3, 1, 2, 3, 1], [1, 2, 3, 3, 3, 3, 3], [1, 2, 3, 3, 3, 2, 1]),
        (6, True, 3, [1, 2, 3, 1, 1, 1], [1, 2, 3, 3, 3, 1], [1, 2, 3, 3, 2, 1]),
        (6, False, 3, [1, 2, 3, 1, 2, 3], [1, 2, 3, 3, 3, 3], [1, 2, 3, 3, 2, 1]),
        (5, True, 2, [1, 2, 1, 2, 1], [1, 2, 2, 2, 1], [1, 2, 2, 2, 1]),
        (1, True, 2, [1], [1], [1]),
    ):
        p = path_of_levels(s, np.geomspace(20.0, 0.5, steps + 1 - clean), clean=clean)
        assert exponential.singlestep_orders(p, order) == single
        assert exponential.multistep_orders(p, order) == multi
        assert exponential.multistep_orders(p, order, lower_order_final=True) == lower

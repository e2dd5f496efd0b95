"""What holds for all samplers: moments of the stochastic ones, interchangeable predictions, batches, inversion."""

from functools import partial

import numpy as np
import pytest

from pydiff import ops
from pydiff.diffusion import samplers
from pydiff.diffusion.path import path, path_of_levels
from pydiff.diffusion.prediction import PREDICTIONS
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers import SAMPLERS, ancestral, exponential, initial_noise, runge_kutta, start_scale
from pydiff.diffusion.schedule import schedule
from tests.diffusion.exact_denoisers import MEAN, SPREAD, last, model_of, normal_denoiser, points_denoiser, start

STOCHASTIC = {
    "ddpm": samplers.ddpm,
    "ddpm large": partial(samplers.ddpm, variance="large"),
    "ddim noisy": partial(samplers.ddim, eta=0.7),
    "euler_ancestral": samplers.euler_ancestral,
    "euler churn": partial(samplers.euler, churn=5.0),
    "heun churn": partial(samplers.heun, churn=30.0, churn_range=(0.05, 50.0)),
    "dpm2 ancestral": partial(samplers.dpm2, eta=1.0),
    "dpm_solver data sde 1": partial(samplers.dpm_solver, kind="data sde", order=1),
    "dpm_solver data sde 2": partial(samplers.dpm_solver, kind="data sde", order=2),
    "dpm_solver data sde 2 taylor": partial(samplers.dpm_solver, kind="data sde", order=2, form="taylor"),
    "dpm_solver data sde 3": partial(samplers.dpm_solver, kind="data sde", order=3, form="taylor"),
    "dpm_solver noise sde 2": partial(samplers.dpm_solver, kind="noise sde", order=2),
    "flow_euler stochastic": partial(samplers.flow_euler, stochastic=True),
}
EVERY = {
    **SAMPLERS,
    **STOCHASTIC,
    "pndm rk": partial(samplers.pndm, warmup="runge_kutta"),
    "lms 2": partial(samplers.lms, order=2),
}
EVERY.pop("dpm_solver noise sde 2")  # cannot step to the clean end


# ---- moments --------------------------------------------------------------------------------------------------------


def moments(sampler, steps, prediction="eps"):
    """(mean, covariance) of a path through correlated normal data, down to a little noise; and the exact ones."""
    n, rng = 6000, np.array([[1.0, 0.6], [0.6, 0.5]])
    process = Process(schedule("linear"), prediction)
    ratio = np.linspace(30.0 ** (1 / 7), 0.1 ** (1 / 7), steps + 1) ** 7
    p = path_of_levels(process.schedule, ratio, clean=False)
    covariance, mean = rng * 0.4, np.array([0.3, -0.2])

    def denoiser(x, alpha, sigma):  # E[x0 | x] = mean + alpha C (alpha^2 C + sigma^2)^-1 (x - alpha mean)
        gain = alpha * covariance @ np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(2))
        return mean + (x - alpha * mean) @ gain.T

    exact_start = p.alpha[0] ** 2 * covariance + p.sigma[0] ** 2 * np.eye(2)
    x = p.alpha[0] * mean + start(n, 2) @ np.linalg.cholesky(exact_start).T
    got = last(sampler(model_of(denoiser, process), x, process, p, clip=None, seed=5))
    exact = p.alpha[-1] ** 2 * covariance + p.sigma[-1] ** 2 * np.eye(2)
    return got.mean(0), np.cov(got.T), p.alpha[-1] * mean, exact, n


def assert_moments(sampler, steps=80, tolerance=0.03):
    """Within five standard errors and the discretisation's own error."""
    mean, covariance, exact_mean, exact, n = moments(sampler, steps)
    scale = np.sqrt(np.diag(exact))
    assert (np.abs(mean - exact_mean) <= (5 / np.sqrt(n) + tolerance) * scale).all(), (mean, exact_mean)
    limit = (5 * np.sqrt(2 / n) + tolerance) * np.outer(scale, scale)
    assert (np.abs(covariance - exact) <= limit).all(), (covariance, exact)


@pytest.mark.parametrize("name", [n for n in STOCHASTIC if n not in ("flow_euler stochastic", "ddpm large")])
def test_mean_and_covariance_of_the_exact_marginal(name):
    assert_moments(STOCHASTIC[name])


def test_mean_and_covariance_of_those_that_need_more_steps():
    """DDPM's large variance is right in the limit alone (its error halves with the steps)."""
    small = np.abs(np.subtract(*moments(STOCHASTIC["ddpm large"], 400)[1:4:2])).max()
    large = np.abs(np.subtract(*moments(STOCHASTIC["ddpm large"], 100)[1:4:2])).max()
    assert small <= 0.03
    assert small <= 0.6 * large


@pytest.mark.parametrize(("name", "factor"), [("ddim noisy", 1.1), ("dpm_solver data sde 2", 1.1), ("heun churn", 1.2)])
def test_wrong_noise_is_caught(monkeypatch, name, factor):
    def louder(function, index):
        def wrong(*arguments, **options):
            answer = list(function(*arguments, **options))
            answer[index] *= factor
            return tuple(answer)

        return wrong

    monkeypatch.setattr(ancestral, "ddim_step", louder(ancestral.ddim_step, 2))
    monkeypatch.setattr(exponential, "coefficients", louder(exponential.coefficients, 2))
    raised = runge_kutta.raised

    def too_much(*arguments):
        stage, sigma = raised(*arguments)
        return stage._replace(churn=(factor * stage.churn[0], *stage.churn[1:]) if stage.churn else None), sigma

    monkeypatch.setattr(runge_kutta, "raised", too_much)
    with pytest.raises(AssertionError):
        assert_moments(STOCHASTIC[name])


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_noise_is_stirred_in_where_it_was_asked_for(name):
    """churn_range is of sigma / alpha, whatever the schedule's own scale."""
    process = Process(schedule(name), "eps")
    p = path(process.schedule, 12)
    for i in range(len(p.t)):
        rho = p.sigma[i] / p.alpha[i]
        for low, high, stirred in ((0.9, 1.1, True), (1.1, 2.0, False), (0.5, 0.9, False)):
            stage, sigma = runge_kutta.raised(process, p, i, runge_kutta.Churn(3.0, low * rho, high * rho))
            stirred = stirred and i > 0  # nothing is noisier than the beginning
            assert (stage.churn is not None and sigma > p.sigma[i]) == stirred


def test_third_order_sde_needs_the_right_sign():
    """Where diffusers has -1/2 the integral has +1/2; with the wrong sign the covariance is off (docs/samplers.md)."""

    def diffusers_sign(q, h):
        return q[0], q[1], (q[2] + q[0] / np.expm1(-2.0 * h)) / 2.0

    right = moments(partial(samplers.dpm_solver, kind="data sde", order=3, form="taylor"), 20)
    wrong = moments(partial(samplers.dpm_solver, kind="data sde", order=3, form="taylor", adjust=diffusers_sign), 20)
    assert np.abs(right[1] - right[3]).max() <= 0.5 * np.abs(wrong[1] - wrong[3]).max()


# ---- identities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", EVERY)
def test_predictions_are_interchangeable(sampler):
    s = schedule("linear")
    p, x = path(s, 7, "karras"), start(3, 4)
    trajectories = []
    for prediction in PREDICTIONS:
        process = Process(s, prediction)
        options = {} if sampler == "adaptive" else {"seed": 3}
        states = EVERY[sampler](model_of(normal_denoiser, process), x, process, p, clip=None, **options)
        trajectories.append([state.x for state in states])
    for other in trajectories[1:]:
        assert len(other) == len(trajectories[0])
        for a, b in zip(other, trajectories[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["linear", "flow", "edm"])
@pytest.mark.parametrize("sampler", EVERY)
def test_every_sampler_finds_the_points_of_a_small_data_set(sampler, name):
    """From noise to one of three images, with every family of schedules."""
    points = np.array([[1.0, -1.0], [-0.6, 0.2], [0.2, 0.8]])
    process = Process(schedule(name), "v" if name == "linear" else "edm" if name == "edm" else "flow")
    if name == "flow" and sampler.startswith("pndm"):
        pytest.skip("PNDM needs even steps and a start above alpha = 0")
    p = path(process.schedule, 40, "karras")
    x = start_scale(p) * start(24, 2)
    denoiser = points_denoiser(points, np.full(3, 1 / 3))
    if sampler == "adaptive":
        denoiser = _for_columns(points)
    x = last(EVERY[sampler](model_of(denoiser, process), x, process, p))
    distance = np.sqrt(((x[:, None] - points) ** 2).sum(2)).min(1)
    assert (distance <= 0.15).mean() >= 0.9, distance


def _for_columns(points):
    """points_denoiser with equal weights, for alpha and sigma that differ from image to image."""

    def denoiser(x, alpha, sigma):
        alpha, sigma = np.broadcast_to(alpha, (len(x), 1)), np.broadcast_to(sigma, (len(x), 1))
        logits = -((x[:, None] - alpha[:, None] * points) ** 2).sum(2) / (2 * sigma**2)
        p = np.exp(logits - logits.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True) @ points

    return denoiser


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sampler", EVERY)
def test_a_image_is_the_same_alone_and_in_a_batch(sampler, dtype):
    process = Process(schedule("cosine"), "v")
    p = path(process.schedule, 8, "karras")
    model = model_of(normal_denoiser, process)
    numbers = np.array([5, 0, 7])

    def draw(sample):
        x = initial_noise((3, 2), 9, sample, dtype)
        return list(EVERY[sampler](model, x, process, p, seed=9, sample=sample))

    together = draw(numbers)
    for i, number in enumerate(numbers):
        alone = draw(np.array([number]))[-1]
        assert alone.x.dtype == dtype
        assert together[-1].x[i].tobytes() == alone.x[0].tobytes()


@pytest.mark.parametrize("sampler", [s for s in EVERY if s != "adaptive"])
def test_states_count_the_steps_and_every_update_is_the_denoise_op(monkeypatch, sampler):
    calls = []
    right = ops.denoise
    monkeypatch.setattr(ops, "denoise", lambda *a, **k: calls.append(1) or right(*a, **k))
    asked = []
    process = Process(schedule("linear"), "eps")
    p, model = path(process.schedule, 6), model_of(normal_denoiser, process)
    states = list(EVERY[sampler](lambda x, t: asked.append(t[0]) or model(x, t), start(2, 3), process, p))
    assert [s.step for s in states] == [1, 2, 3, 4, 5, 6]
    assert states[0].t == 999 or "churn" in sampler
    assert len(calls) >= len(asked)
    assert all((abs(s.x0) <= 1).all() for s in states)


def test_recorded_noise_takes_the_place_of_the_seed():
    process = Process(schedule("linear"), "eps")
    p, x, model = path(process.schedule, 5), start(2, 3), model_of(normal_denoiser, process)
    seen = []
    for sampler in (samplers.ddpm, partial(samplers.heun, churn=2.0), partial(samplers.dpm2, eta=1.0)):
        silent = last(sampler(model, x, process, p, noise=lambda k: seen.append(k) or np.zeros((2, 3))))
        other = last(sampler(model, x, process, p, noise=lambda _k: np.ones((2, 3))))
        assert np.abs(silent - other).max() > 1e-3
        assert seen == sorted(seen)
        seen.clear()


def test_thresholding_keeps_a_share_and_rescales():
    process = Process(schedule("linear"), "x0")
    p, x = path(process.schedule, 1), start(2, 50)
    answer = np.linspace(-3, 3, 100).reshape(2, 50)
    got = last(samplers.ddim(lambda x, _t: answer + 0 * x, x, process, p, threshold=0.9))
    for row, expected in zip(got, answer, strict=True):
        s = max(1.0, np.quantile(np.abs(expected), 0.9))
        np.testing.assert_allclose(row, np.clip(expected, -s, s) / s, rtol=1e-12)
    limited = last(samplers.ddim(lambda x, _t: answer + 0 * x, x, process, p, threshold=0.9, threshold_max=1.0))
    np.testing.assert_allclose(limited, np.clip(answer, -1, 1), rtol=1e-12)


def test_learned_range_lies_between_the_small_and_the_large_variance():
    process = Process(schedule("linear"), "eps")
    p, x = path(process.schedule, 10), start(3, 2, 4)
    plain = model_of(normal_denoiser, process)
    for share, name in ((-1.0, "small"), (1.0, "large")):

        def both(x, t, share=share):
            return np.concatenate([plain(x, t), np.full_like(x, share)], axis=-1)

        learned = last(samplers.ddpm(both, x, process, p, variance="learned_range", clip=None))
        fixed = last(samplers.ddpm(plain, x, process, p, variance=name, clip=None))
        np.testing.assert_allclose(learned, fixed, rtol=1e-9)


# ---- inversion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_inversion_and_back(prediction):
    process = Process(schedule("linear"), prediction)
    model = model_of(normal_denoiser, process)
    image = MEAN + SPREAD * start(3, 4)
    p = path(process.schedule, 20)

    def returned(iterations, p=p):
        noise = last(samplers.ddim_inversion(model, image, process, p, iterations=iterations))
        return np.abs(last(samplers.ddim(model, noise, process, p, clip=None)) - image).max()

    assert returned(30) <= 1e-6
    assert returned(3) <= 0.2 * returned(0)
    assert returned(0, path(process.schedule, 200)) <= 0.25 * returned(0)


def test_inversion_ends_at_the_exact_noise():
    process = Process(schedule("linear"), "eps")
    image = MEAN + SPREAD * start(3, 4)
    model, p = model_of(normal_denoiser, process), path(process.schedule, 400)
    noise = last(samplers.ddim_inversion(model, image, process, p))
    np.testing.assert_allclose(noise, start(3, 4), atol=0.05)


# ---- adaptive steps -------------------------------------------------------------------------------------------------


def test_adaptive_steps_keep_the_tolerance_they_are_given():
    process = Process(schedule("linear"), "eps")
    x = start(4, 6)
    p = path(process.schedule, 1000)
    exact = MEAN + SPREAD * (x - p.alpha[0] * MEAN) / np.sqrt(p.alpha[0] ** 2 * SPREAD**2 + p.sigma[0] ** 2)
    found, rounds = [], []
    for rtol in (0.1, 0.01, 0.001):
        model = model_of(normal_denoiser, process)
        states = list(samplers.adaptive(model, x, process, p, rtol=rtol, atol=rtol / 5, clip=None))
        found.append(np.abs(states[-1].x - exact).max())
        rounds.append(len(states))
    assert rounds[0] < rounds[1] < rounds[2] < 400
    assert found[2] < 0.2 * found[0]
    assert found[2] <= 0.01
    assert states[-1].steps == states[-1].step == len(states)
    noisy_end = p._replace(t=p.t[:500], alpha=p.alpha[:501], sigma=p.sigma[:501])
    states = list(samplers.adaptive(model, x, process, noisy_end, clip=None))
    assert [state.steps for state in states] == [0] * (len(states) - 1) + [len(states)]  # known when it is over


def test_adaptive_steps_refuse_what_cannot_work():
    process = Process(schedule("flow"), "flow")
    with pytest.raises(ValueError, match="cannot start where alpha = 0"):
        next(samplers.adaptive(lambda x, _t: x, start(1, 2), process, path(process.schedule, 3)))
    process = Process(schedule("linear"), "eps")
    with pytest.raises(ValueError, match="no step is small enough"):
        list(samplers.adaptive(lambda x, _t: x * np.nan, start(1, 2), process, path(process.schedule, 3)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(samplers.dpm_solver, order=4), "order is 4, expected 1, 2 or 3"),
        (partial(samplers.dpm_solver, kind="x"), "no kind 'x'; choose one of data, noise"),
        (partial(samplers.dpm_solver, form="x"), "no form 'x'; choose one of taylor, midpoint"),
        (partial(samplers.dpm_solver, kind="noise"), "cannot step to the clean end"),
        (partial(samplers.unipc, order=9), "got order 9, kind 'data'"),
        (partial(samplers.pndm, warmup="x"), "no warmup 'x'; choose one of heun"),
        (partial(samplers.deis, order=0), r"order is 0, expected 1 \.\. 4"),
        (partial(samplers.lms, order=7), r"order is 7, expected 1 \.\. 4"),
        (partial(samplers.dpm2, eta=2.0), "eta is 2.0"),
        (partial(samplers.ddim_inversion, iterations=-1), "iterations is -1"),
    ],
)
def test_bad_options_are_refused(call, message):
    process = Process(schedule("linear"), "eps")
    with pytest.raises(ValueError, match=message):
        call(lambda x, _t: x, start(1, 2), process, path(process.schedule, 3))

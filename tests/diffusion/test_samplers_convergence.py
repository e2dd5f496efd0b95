"""Samplers against closed forms: the exact denoiser of a known distribution stands in for the network.

Everything is float64, so that what is left is the sampler's own error.
"""

import numpy as np
import pytest

from pydiff.diffusion.path import path
from pydiff.diffusion.prediction import PREDICTIONS
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers import ddim, ddpm, ddpm_step
from pydiff.diffusion.schedule import schedule
from tests.diffusion.exact_denoisers import (
    LINEAR,
    MEAN,
    SAMPLERS,
    SCHEDULES,
    SPREAD,
    last,
    model_of,
    normal_denoiser,
    points_denoiser,
    start,
)

# ---- DDIM solves the probability-flow equation ----------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_converges_to_the_exact_solution_with_order_1(prediction, name, spacing):
    """For normal data the flow only rescales: (x - alpha mean) / sqrt(alpha^2 spread^2 + sigma^2) is constant."""
    process, x = Process(SCHEDULES[name], prediction), start(3, 8)
    errors = []
    for steps in (20, 40, 80, 160):
        p = path(process.schedule, steps, spacing)
        scale = np.sqrt(p.alpha[0] ** 2 * SPREAD**2 + p.sigma[0] ** 2)
        exact = MEAN + SPREAD * (x - p.alpha[0] * MEAN) / scale
        got = last(ddim(model_of(normal_denoiser, process), x, process, p, clip=None))
        errors.append(np.abs(got - exact).max())
    order = np.log2(np.divide(errors[:-1], errors[1:]))
    assert (np.abs(order - 1) <= 0.1).all(), f"errors {errors}, orders {order}"
    assert errors[-1] <= 0.03


def test_ddim_maps_noise_to_the_right_one_of_two_points():
    """In one dimension the flow keeps the order, so x_T goes to the lower point exactly if its rank is below 1/4."""
    points, weights = np.array([[-1.0], [1.0]]), np.array([0.25, 0.75])
    process = Process(LINEAR)
    x = np.linspace(-3, 3, 121)[:, None]
    threshold = -0.6744897501960817  # 25 % of a standard normal
    got = last(ddim(model_of(points_denoiser(points, weights), process), x, process, path(LINEAR, 200)))
    clear = np.abs(x - threshold) > 0.05  # the sampler's error and the signal left in x_T move the border a little
    assert clear.sum() >= 118
    np.testing.assert_allclose(got[clear], np.where(x < threshold, -1.0, 1.0)[clear], atol=0.01)


# ---- DDPM draws from the exact distribution -------------------------------------------------------------------------


def assert_normal(x, mean, std):
    """Mean and variance of n draws, within five standard errors; and no shape other than the normal one."""
    n, z = x.size, (x.ravel() - mean) / std
    for power, expected, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((z**power).mean() - expected) <= 5 * np.sqrt(variance / n), power


@pytest.mark.parametrize("sampler", ["ddpm small", "ddim noisy", "ddim"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_single_image_is_sampled_exactly_at_every_step(name, sampler):
    """With one known x0, q(x_s | x_t, x0) is the reverse process itself: exact for any number of steps and any eta."""
    process = Process(SCHEDULES[name])
    p = path(process.schedule, 6)
    point = np.array([[0.4]])
    x = p.alpha[0] * point + p.sigma[0] * start(20_000, 1)
    states = list(SAMPLERS[sampler](model_of(points_denoiser(point, [1.0]), process), x, process, p, seed=0))
    for state, alpha, sigma in zip(states[:-1], p.alpha[1:-1], p.sigma[1:-1], strict=True):
        assert_normal(state.x, alpha * 0.4, sigma)
    np.testing.assert_allclose(states[-1].x, np.full((20_000, 1), 0.4), rtol=1e-9)


def test_large_variance_samples_white_noise_exactly_at_every_step():
    process = Process(LINEAR)
    p = path(LINEAR, 6)
    model = model_of(lambda x, alpha, sigma: normal_denoiser(x, alpha, sigma, 0.0, 1.0), process)
    states = list(ddpm(model, start(20_000, 1), process, p, variance="large", clip=None))
    for state in states[:-1]:
        assert_normal(state.x, 0.0, 1.0)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_reaches_the_marginals_of_normal_data(variance):
    """Over all 1000 steps, up to 1 % in the standard deviation: the next test says that this is the discretisation."""
    process, p = Process(LINEAR), path(LINEAR, 1000)
    states = list(ddpm(model_of(normal_denoiser, process), start(5000, 4), process, p, variance=variance, clip=None))
    n = states[0].x.size
    for i in (500, 800, 1000):
        x, std = states[i - 1].x, np.sqrt(p.alpha[i] ** 2 * SPREAD**2 + p.sigma[i] ** 2)
        assert abs(x.mean() - p.alpha[i] * MEAN) <= 5 * std / np.sqrt(n)
        assert abs(x.std() / std - 1) <= 5 * np.sqrt(0.5 / n) + 0.01


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_on_normal_data_converges_with_order_1(variance):
    """With a linear denoiser every x stays normal, so its mean and variance follow without drawing."""
    errors = []
    for T in (500, 1000, 2000):
        p = path(schedule("linear", T, beta_start=0.1 / T, beta_end=20 / T), T)
        mean, squared = 0.0, 1.0
        for i in range(T):
            a, b, std = ddpm_step(p.alpha[i], p.sigma[i], p.alpha[i + 1], p.sigma[i + 1], variance)
            offset, slope = normal_denoiser(0.0, p.alpha[i], p.sigma[i]), normal_denoiser(1.0, p.alpha[i], p.sigma[i])
            slope -= offset
            mean, squared = (a + b * slope) * mean + b * offset, (a + b * slope) ** 2 * squared + std**2
        assert mean == pytest.approx(MEAN, abs=1e-4)
        errors.append(abs(np.sqrt(squared) - SPREAD))
    order = np.log2(np.divide(errors[:-1], errors[1:]))
    assert (np.abs(order - 1) <= 0.1).all(), f"errors {errors}, orders {order}"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_finite_data_set_is_drawn_with_its_frequencies(sampler):
    points = np.array([[[1.0, -1.0], [0.5, 0.0]], [[-1.0, 0.2], [0.0, 1.0]], [[0.0, 0.0], [-1.0, -1.0]]])
    weights = np.array([0.5, 0.3, 0.2])
    process, n = Process(LINEAR, "v"), 3000
    p = path(LINEAR, 100)
    x = last(SAMPLERS[sampler](model_of(points_denoiser(points, weights), process), start(n, 2, 2), process, p))
    distance = np.sqrt(((x[:, None] - points) ** 2).sum((2, 3)))
    assert (distance.min(1) <= 0.1).mean() >= 0.99
    share = np.bincount(distance.argmin(1), minlength=3) / n
    assert (np.abs(share - weights) <= 5 * np.sqrt(weights * (1 - weights) / n)).all(), share

"""Continuous schedules: what the tables tend to, and paths that lie between their entries."""

import numpy as np
import pytest

from pydiff.diffusion.continuous import LEVELS, level_of
from pydiff.diffusion.path import path, path_of_level
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers import heun, start_scale
from pydiff.diffusion.schedule import Schedule, schedule
from tests.diffusion.exact_denoisers import MEAN, SPREAD, last, model_of, normal_denoiser, start


def table(name, T):
    """The table that goes with the function's defaults."""
    ends = {"linear": (0.1, 20.0), "scaled_linear": (0.85, 12.0)}
    if name in ends:
        return schedule(name, T, beta_start=ends[name][0] / T, beta_end=ends[name][1] / T)
    return schedule(name, T)


@pytest.mark.parametrize("name", LEVELS)
def test_tables_tend_to_the_function_with_error_1_over_T(name):
    off = []
    for T in (200, 400):
        s = table(name, T)
        u = np.arange(1, T + 1) / T if name not in ("edm", "exponential") else np.arange(T) / (T - 1)
        alpha, sigma = LEVELS[name]()(u)
        inner = slice(0, -1)  # the cosine table is cut at its last step
        off.append(max(np.abs(alpha - s.alpha)[inner].max(), (np.abs(sigma - s.sigma) / s.sigma[-1])[inner].max()))
    assert off[0] <= 0.06
    assert off[1] <= 0.62 * off[0] or off[1] <= 1e-12


@pytest.mark.parametrize("name", LEVELS)
def test_every_function_loses_the_signal(name):
    alpha, sigma = LEVELS[name]()(np.linspace(0, 1, 500))
    assert (alpha[:-1] * sigma[1:] > alpha[1:] * sigma[:-1]).all()
    assert alpha[0] == pytest.approx(1.0)


@pytest.mark.parametrize("name", LEVELS)
def test_sampling_along_a_path_of_level(name):
    s = table(name, 1000)
    process = Process(s, "v")
    p = path_of_level(s, LEVELS[name](), 60, first=0.98)
    x = start_scale(p) * start(3, 4)
    std = np.sqrt(p.alpha[0] ** 2 * SPREAD**2 + p.sigma[0] ** 2)
    exact = MEAN + SPREAD * (x - p.alpha[0] * MEAN) / std
    got = last(heun(model_of(normal_denoiser, process), x, process, p, clip=None))
    np.testing.assert_allclose(got, exact, atol=0.05)
    for first, end in ((1.1, 0.1), (0.5, 0.6), (0.5, 0.0)):
        with pytest.raises(ValueError, match="expected 1 >= first"):
            path_of_level(s, LEVELS[name](), 5, first, end)


@pytest.mark.parametrize("name", LEVELS)
def test_a_schedule_knows_its_own_function(name):
    """A step for each of the table's gives the table, up to 1 / T."""
    table = schedule(name, 400)
    way = path(table, 400, "continuous")
    expected = path(table, 400, "trailing")
    inside = slice(4, 399)  # the cosine's last betas are cut in the table
    np.testing.assert_allclose(np.log(way.ratio[inside]), np.log(expected.ratio[inside]), atol=0.1)
    np.testing.assert_allclose(way.t[inside], expected.t[inside], atol=1.5)
    assert path(table, 7, "continuous").ratio[:-1].min() > 0


def test_schedules_without_a_function_are_refused():
    for table, said in (
        (schedule("sigmoid", 50), "called 'sigmoid'"),
        (schedule("linear", 50, zero_snr=True), "rescaled to zero SNR"),
        (Schedule("linear", *(getattr(schedule("linear", 50), a) for a in ("alpha", "sigma"))), "called 'linear'"),
    ):
        with pytest.raises(ValueError, match=said):
            path(table, 5, "continuous")


@pytest.mark.parametrize(
    ("name", "beta"),
    [
        ("linear", lambda u: 0.1 + (20.0 - 0.1) * u),
        ("scaled_linear", lambda u: (np.sqrt(0.85) + (np.sqrt(12.0) - np.sqrt(0.85)) * u) ** 2),
    ],
)
def test_the_functions_solve_their_equation(name, beta):
    """d log alpha / du = -beta(u) / 2, from log alpha = 0 on (Song et al. 2021, eq. 29), and alpha^2 + sigma^2 = 1."""
    n = 20000
    middles = (np.arange(n) + 0.5) / n
    expected = np.exp(-0.5 * np.cumsum(beta(middles)) / n)
    alpha, sigma = LEVELS[name]()(np.arange(1, n + 1) / n)
    np.testing.assert_allclose(alpha, expected, rtol=1e-7)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)


def test_the_function_of_a_schedule_has_its_ends():
    s = schedule("linear", 400, beta_start=0.001, beta_end=0.03)
    own, expected = level_of(s)(np.array([0.25, 1.0])), LEVELS["linear"](0.4, 12.0)(np.array([0.25, 1.0]))
    np.testing.assert_allclose(own, expected, rtol=1e-12)

"""The benchmark of points: what it says of Heun's method follows from the method alone, by hand and with pydiff."""

import math

import numpy as np
import pytest

from benchmarks.papers.points import judged, of_a_normal_distribution
from pydiff.data.points import swiss_roll
from pydiff.diffusion import Process, schedule


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_heun_overshoots_by_the_mean_of_two_slopes(prediction):
    found = of_a_normal_distribution(Process(schedule("cosine", 500), prediction), "heun", 20, "trailing")
    rho, rho_s = found["first step"]
    first = rho - (rho - rho_s) * rho**2 / (1 + rho**2)  # Euler's step of y = x / alpha from y = rho
    slope = first * rho_s / (1 + rho_s**2)  # eps-hat of the exact network there
    made = rho - (rho - rho_s) * (rho**2 / (1 + rho**2) + slope) / 2
    one_step = made / math.hypot(1, rho_s)  # and what it should be
    assert 3.3 < one_step < 3.5
    assert found["too wide"] == pytest.approx(one_step, rel=0.02)


@pytest.mark.parametrize(
    ("sampler", "steps", "spacing"),
    [("heun", 20, "leading"), ("dpm_solver", 20, "trailing"), ("dpm2", 20, "trailing"), ("ddim", 400, "trailing")],
)
def test_the_others_do_not(sampler, steps, spacing):
    found = of_a_normal_distribution(Process(schedule("cosine", 500), "eps"), sampler, steps, spacing)
    assert found["too wide"] == pytest.approx(1, abs=0.03)


def test_real_points_are_judged_right_and_others_wrong():
    right = judged(swiss_roll(400, seed=3).images)
    wrong = judged(np.random.default_rng(0).standard_normal((400, 2)) * 2)
    assert right["share off the line"] < 0.03
    assert right["unevenness"] < 0.1
    assert wrong["share off the line"] > 0.3

"""Schedules against published figures and their defining equations; timesteps at every edge."""

import json
from math import isqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.diffusion.schedule import BUILDERS, SPACINGS, Schedule, path, path_through, schedule, timesteps

# ---- schedules -----------------------------------------------------------------------------------------------------


def test_linear_schedule_of_ddpm():
    s = schedule("linear")
    expected = {99: 0.897, 199: 0.659, 299: 0.396, 499: 0.0786, 999: 4.04e-5}
    for t, alpha_bar in expected.items():
        assert s.alpha_bar[t] == pytest.approx(alpha_bar, rel=2e-3), t
    assert s.T == 1000
    np.testing.assert_allclose(s.beta, np.linspace(1e-4, 0.02, 1000), rtol=1e-11)


def test_scaled_linear_schedule_is_linear_in_the_square_root():
    beta = schedule("scaled_linear", 100).beta
    assert beta[[0, -1]] == pytest.approx([0.00085, 0.012], rel=1e-9)
    assert np.ptp(np.diff(np.sqrt(beta))) <= 1e-9


def test_cosine_schedule_is_equation_17_where_beta_is_not_cut():
    T, s = 50, 0.008
    c = schedule("cosine", T, s=s)

    def f(t):
        return np.cos((t / T + s) / (1 + s) * np.pi / 2) ** 2

    t = np.arange(T)
    np.testing.assert_allclose(c.alpha_bar[:-1], f(t[:-1] + 1) / f(0), rtol=1e-12)
    assert c.beta[-1] == pytest.approx(0.999, rel=1e-12)  # eq. 17 would give 1, that is alpha = 0
    assert schedule("cosine", T, max_beta=0.5).beta.max() == pytest.approx(0.5, rel=1e-9)


@given(name=st.sampled_from(list(BUILDERS)), T=st.integers(2, 1500))
def test_built_schedules_keep_the_variance_and_lose_the_signal(name, T):
    s = schedule(name, T)
    assert s.alpha.shape == s.sigma.shape == (T,)
    assert s.alpha.dtype == s.sigma.dtype == np.float64
    assert s.variance_preserving
    assert (np.diff(s.snr) < 0).all()
    np.testing.assert_allclose(s.snr, np.exp(s.log_snr), rtol=1e-9)
    np.testing.assert_allclose(np.cumprod(1 - s.beta), s.alpha_bar, rtol=1e-9)


@given(name=st.sampled_from(list(BUILDERS)), T=st.integers(2, 300))
def test_configuration_survives_json(name, T):
    for original in (schedule(name, T), Schedule("own", schedule(name, T).alpha, schedule(name, T).sigma)):
        again = Schedule.from_config(json.loads(json.dumps(original.to_config())))
        assert again.name == original.name
        assert again.alpha.tobytes() == original.alpha.tobytes()
        assert again.sigma.tobytes() == original.sigma.tobytes()


def test_options_reach_the_builder():
    options = {"linear": "beta_end", "scaled_linear": "beta_start", "cosine": "s"}
    for name, option in options.items():
        changed = schedule(name, 20, **{option: 0.01})
        assert (changed.alpha != schedule(name, 20).alpha).any(), name
        assert changed.to_config()[option] == 0.01


def test_schedules_that_do_not_preserve_the_variance():
    exploding = Schedule("exploding", np.ones(4), [0.0, 0.5, 1.0, 5.0])
    flow = Schedule("flow", [0.9, 0.5, 0.0], [0.1, 0.5, 1.0])
    assert not exploding.variance_preserving
    assert exploding.snr.tolist() == [np.inf, 4.0, 1.0, 0.04]
    assert flow.log_snr[-1] == -np.inf
    for s in (exploding, flow):
        with pytest.raises(ValueError, match="has no beta"):
            _ = s.beta


def test_a_schedule_cannot_be_changed():
    s = schedule("linear", 10)
    with pytest.raises(ValueError, match="read-only"):
        s.alpha[0] = 0.5
    alpha = np.array([0.9, 0.5])
    own = Schedule("own", alpha, [0.1, 0.5])
    alpha[0] = 0.0
    assert own.alpha[0] == 0.9


@pytest.mark.parametrize(
    ("alpha", "sigma", "message"),
    [
        ([0.9], [0.1], r"alpha has shape \(1,\)"),
        ([0.9, 0.8], [[0.1, 0.2]], r"sigma has shape \(1, 2\)"),
        ([0.9, 0.8, 0.7], [0.1, 0.2], "alpha has 3 steps and sigma 2"),
        ([0.9, np.nan], [0.1, 0.2], "alpha of schedule 'own' is negative or not finite"),
        ([0.9, 0.8], [-0.1, 0.2], "sigma of schedule 'own' is negative or not finite"),
        ([0.8, 0.9], [0.2, 0.1], "has to fall with every t"),
        ([0.9, 0.0, 0.0], [0.1, 0.5, 1.0], "has to fall with every t"),
        ([0.9, 0.0], [0.1, 0.0], "has to fall with every t"),
    ],
)
def test_bad_schedules_are_refused(alpha, sigma, message):
    with pytest.raises(ValueError, match=message):
        Schedule("own", alpha, sigma)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no schedule 'sqrt'; choose one of linear, scaled_linear, cosine"):
        schedule("sqrt")
    with pytest.raises(ValueError, match="no spacing 'log'; choose one of leading, linspace, trailing"):
        timesteps(10, 5, "log")
    with pytest.raises(ValueError, match=r"beta runs from 0.0001 to 2.0"):
        schedule("linear", beta_end=2.0)


# ---- timesteps -----------------------------------------------------------------------------------------------------


@given(T=st.integers(1, 1200), data=st.data(), spacing=st.sampled_from(list(SPACINGS)))
def test_timesteps_fall_evenly_within_range(T, data, spacing):
    steps = data.draw(st.integers(1, T))
    t = timesteps(T, steps, spacing)
    assert t.dtype == np.int64
    assert t.shape == (steps,)
    assert t[0] <= T - 1
    assert t[-1] >= 0
    gaps = -np.diff(t)
    assert (gaps >= 1).all()
    if steps > 2:  # evenly: gaps differ by rounding alone
        assert np.ptp(gaps) <= 1
    if spacing in ("linspace", "trailing") or steps == 1:
        assert t[0] == T - 1
    if spacing in ("linspace", "leading") and steps > 1:
        assert t[-1] == 0


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("T", [1, 2, 7, 1000])
def test_all_steps_are_every_t_and_a_single_one_is_the_noisiest(T, spacing):
    assert timesteps(T, T, spacing).tolist() == list(range(T - 1, -1, -1))
    assert timesteps(T, 1, spacing).tolist() == [T - 1]


def test_timesteps_known_by_hand():
    assert timesteps(1000, 4, "leading").tolist() == [750, 500, 250, 0]
    assert timesteps(1000, 4, "trailing").tolist() == [999, 749, 499, 249]
    assert timesteps(100, 5, "linspace").tolist() == [99, 74, 50, 25, 0]
    # T not divisible by steps: still the whole range, not the lowest steps * (T // steps) of it
    assert timesteps(10, 6, "leading").tolist() == [8, 6, 5, 3, 1, 0]
    assert timesteps(10, 6, "trailing").tolist() == [9, 7, 6, 4, 2, 1]


@pytest.mark.parametrize("steps", [0, -1, 11])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match=f"got {steps} steps for a schedule of T = 10"):
        timesteps(10, steps)


# ---- path ----------------------------------------------------------------------------------------------------------


@given(T=st.integers(2, 400), data=st.data())
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", BUILDERS)
def test_path_follows_the_schedule_to_the_clean_end(name, spacing, T, data):
    s = schedule(name, T)
    p = path(s, data.draw(st.integers(1, T)), spacing)
    assert p.t.tolist() == timesteps(T, len(p.t), spacing).tolist()
    assert p.alpha.shape == p.sigma.shape == (len(p.t) + 1,)
    assert (p.alpha[-1], p.sigma[-1]) == (1.0, 0.0)
    assert (p.alpha[:-1] == s.alpha[p.t]).all()
    assert (p.sigma[:-1] == s.sigma[p.t]).all()
    assert (np.diff(p.alpha) > 0).all()


def test_path_through_chosen_timesteps():
    s = schedule("linear")
    squares = [n * n for n in range(isqrt(999), -1, -1)]
    assert path_through(s, squares).t.tolist() == squares
    for wrong in ([], [5, 5], [1, 2], [1000, 3], [3, -1], [[3, 1]]):
        with pytest.raises(ValueError, match=r"expected strictly falling ones from 999 .. 0"):
            path_through(s, wrong)
    clean_start = Schedule("flow", [1.0, 0.5], [0.0, 0.5])
    with pytest.raises(ValueError, match="no noise at t = 0"):
        path(clean_start, 2)

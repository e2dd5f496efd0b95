"""Schedules against published figures and their defining equations; timesteps at every edge."""

import json
from math import isqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.diffusion.path import path, path_of_levels, path_through, timesteps
from pydiff.diffusion.schedule import BUILDERS, Schedule, from_config, schedule

SPACINGS = ["leading", "linspace", "trailing"]  # even over the whole range

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
def test_built_schedules_lose_the_signal_and_are_of_their_family(name, T):
    s = schedule(name, T)
    assert s.alpha.shape == s.sigma.shape == (T,)
    assert s.alpha.dtype == s.sigma.dtype == np.float64
    assert (np.diff(s.snr) < 0).all()
    np.testing.assert_allclose(s.snr, np.exp(s.log_snr), rtol=1e-9)
    assert s.family == {"edm": "exploding", "exponential": "exploding", "flow": "flow"}.get(name, "preserving")
    assert s.variance_preserving == (s.family == "preserving")
    np.testing.assert_allclose(s.scale(s.alpha, s.sigma), 1.0, rtol=1e-12)
    if s.variance_preserving:
        np.testing.assert_allclose(np.cumprod(1 - s.beta), s.alpha_bar, rtol=1e-9)


def test_sigmoid_schedules():
    """Jabri et al. 2023, algorithm 1 with time at (t + 1) / T; and beta as a logistic curve between its ends."""
    T = 60
    v = [1 / (1 + np.exp(-x)) for x in (-3.0, 3.0, np.arange(1, T + 1) / T * 6 - 3)]
    expected = (v[1] - v[2]) / (v[1] - v[0])
    np.testing.assert_allclose(schedule("sigmoid", T).alpha_bar[:-1], expected[:-1], rtol=1e-9)
    beta = schedule("sigmoid_beta", 101, beta_start=0.001, beta_end=0.011).beta
    assert beta[50] == pytest.approx(0.006, rel=1e-9)
    assert (beta[0] - 0.001) / 0.01 == pytest.approx(1 / (1 + np.exp(6)), rel=1e-6)


def test_exploding_and_flow_schedules_are_their_formulas():
    edm = schedule("edm", 18, sigma_min=0.002, sigma_max=80.0, rho=7.0)
    i = np.arange(18)
    karras = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7  # eq. 5
    np.testing.assert_allclose(edm.sigma[::-1], karras, rtol=1e-12)
    exponential = schedule("exponential", 5, sigma_min=0.01, sigma_max=100.0)
    np.testing.assert_allclose(exponential.sigma, [0.01, 0.1, 1, 10, 100], rtol=1e-12)
    flow = schedule("flow", 4)
    assert flow.sigma.tolist() == [0.25, 0.5, 0.75, 1.0]
    np.testing.assert_allclose(schedule("flow", 4, shift=3.0).sigma, [0.5, 0.75, 0.9, 1.0], rtol=1e-12)


@given(name=st.sampled_from(["linear", "scaled_linear", "cosine", "sigmoid", "sigmoid_beta"]), T=st.integers(3, 300))
def test_zero_terminal_snr(name, T):
    s, before = schedule(name, T, zero_snr=True), schedule(name, T)
    assert s.alpha[-1] == 0
    assert s.alpha[0] == pytest.approx(before.alpha[0], rel=1e-12)
    ratio = (before.alpha - before.alpha[-1]) / (before.alpha[0] - before.alpha[-1])  # Lin et al. 2024, algorithm 1
    np.testing.assert_allclose(s.alpha / s.alpha[0], ratio, rtol=1e-9, atol=1e-15)
    assert s.variance_preserving
    assert from_config(json.loads(json.dumps(s.to_config()))).alpha.tobytes() == s.alpha.tobytes()
    with pytest.raises(ValueError, match="only those are rescaled"):
        schedule("flow", T, zero_snr=True)


@given(T=st.integers(2, 300), data=st.data())
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("name", BUILDERS)
def test_fractional_t_and_back(name, zero_snr, T, data):
    if zero_snr and schedule(name, T).family != "preserving":
        pytest.skip("zero SNR is for schedules that preserve the variance")
    s = schedule(name, T, zero_snr=zero_snr)
    whole = np.arange(T)
    for t in (whole, whole.astype(float)):
        alpha, sigma = s.at(t)
        assert (alpha == s.alpha).all()
        assert (sigma == s.sigma).all()
    np.testing.assert_allclose(s.t_at(s.alpha, s.sigma), whole, atol=1e-6)
    t = np.array(data.draw(st.lists(st.floats(0, T - 1), min_size=1, max_size=5)))
    alpha, sigma = s.at(t)
    np.testing.assert_allclose(s.t_at(3 * alpha, 3 * sigma), t, atol=1e-6)  # the scale of x_t does not count
    np.testing.assert_allclose(s.scale(alpha, sigma), 1.0, rtol=1e-9)
    below, above = np.floor(t).astype(int), np.ceil(t).astype(int)
    assert (alpha * s.sigma[below] <= sigma * s.alpha[below] + 1e-9 * sigma).all()
    assert (alpha * s.sigma[above] >= sigma * s.alpha[above] - 1e-9 * alpha * s.sigma[above]).all()
    with pytest.raises(ValueError, match=r"expected 0 \.\. "):
        s.at(np.array([T - 0.5]))


@given(name=st.sampled_from(list(BUILDERS)), T=st.integers(2, 300))
def test_configuration_survives_json(name, T):
    for original in (schedule(name, T), Schedule("own", schedule(name, T).alpha, schedule(name, T).sigma)):
        again = from_config(json.loads(json.dumps(original.to_config())))
        assert again.name == original.name
        assert again.alpha.tobytes() == original.alpha.tobytes()
        assert again.sigma.tobytes() == original.sigma.tobytes()


def test_options_reach_the_builder():
    options = {"linear": "beta_end", "scaled_linear": "beta_start", "cosine": "s", "sigmoid": "tau",
               "sigmoid_beta": "beta_end", "edm": "rho", "exponential": "sigma_min", "flow": "shift"}  # fmt: skip
    assert set(options) == set(BUILDERS)
    for name, option in options.items():
        value = 3.0 if option in ("rho", "shift", "tau") else 0.02 if name == "exponential" else 0.01
        changed = schedule(name, 20, **{option: value})
        assert (changed.sigma != schedule(name, 20).sigma).any(), name
        assert changed.to_config()[option] == value


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
    assert (np.diff(p.ratio) < 0).all()


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


@given(T=st.integers(10, 1000), steps=st.integers(1, 40), rho=st.booleans())
@pytest.mark.parametrize("name", ["linear", "cosine", "edm", "flow"])
def test_sigma_spacings_between_the_schedules_ends(name, T, steps, rho):
    s = schedule(name, T)
    p = path(s, steps, "karras" if rho else "exponential")
    ratio = p.ratio[:-1]
    finite = s.sigma[s.alpha > 0] / s.alpha[s.alpha > 0]
    assert ratio[0] == pytest.approx(finite[-1], rel=1e-9)
    if steps > 1:
        assert ratio[-1] == pytest.approx(finite[0], rel=1e-9)
    even = ratio ** (1 / 7) if rho else np.log(ratio)
    np.testing.assert_allclose(np.diff(even), np.diff(even).mean() if steps > 1 else 0, rtol=1e-6)
    np.testing.assert_allclose(s.scale(p.alpha, p.sigma), 1.0, rtol=1e-9)  # in the schedule's own scale
    np.testing.assert_allclose(p.t, s.t_at(p.alpha[:-1], p.sigma[:-1]), atol=1e-6)
    assert (p.alpha[-1], p.sigma[-1]) == (1.0, 0.0)


def test_strides_and_offset_of_diffusers():
    assert timesteps(1000, 7, "leading_stride").tolist() == [852, 710, 568, 426, 284, 142, 0]
    assert timesteps(1000, 4, "leading_stride", offset=1).tolist() == [751, 501, 251, 1]
    assert timesteps(1000, 1, "leading_stride").tolist() == [0]
    with pytest.raises(ValueError, match=r"offset 1 moves the first t, 999, out of 0 .. 999"):
        timesteps(1000, 1000, "leading_stride", offset=1)


def test_paths_that_end_elsewhere():
    s = schedule("linear")
    p = path_through(s, [500, 20], end="first")
    assert (p.alpha[-1], p.sigma[-1]) == (s.alpha[0], s.sigma[0])
    q = path_of_levels(s, [3.0, 1.0, 0.5], clean=False)
    np.testing.assert_allclose(q.ratio, [3.0, 1.0, 0.5], rtol=1e-12)
    assert len(q.t) == 2
    with pytest.raises(ValueError, match="no end 'dirty'; choose one of clean, first"):
        path_through(s, [5], end="dirty")
    with pytest.raises(ValueError, match="expected positive ones that fall strictly"):
        path_of_levels(s, [1.0, 2.0])


@pytest.mark.parametrize(
    ("ratio", "clean"),
    [([], True), ([3.0], False), ([3.0, 3.0], True), ([1.0, 3.0], True), ([3.0, 0.0], True), ([3.0, -1.0], False),
     ([3.0, np.nan], True), ([np.inf, 1.0], True), ([[3.0, 1.0]], True)],
)  # fmt: skip
def test_levels_fall_and_stay_above_zero(ratio, clean):
    with pytest.raises(ValueError, match="expected positive ones that fall strictly"):
        path_of_levels(schedule("linear"), ratio, clean)


def test_a_path_may_have_one_level():
    made = path_of_levels(schedule("linear"), [3.0])
    np.testing.assert_allclose(made.ratio, [3.0, 0.0])


@pytest.mark.parametrize("name", ["linear", "cosine", "edm", "flow"])
def test_levels_are_asked_for_within_the_table(name):
    s = schedule(name, 50)
    for t in (0, 49, 0.0, 49.0, 48.5, [0, 49]):
        assert np.isfinite(s.at(t)).all()
    for t in (-1, 50, -0.01, 49.01, np.nan, [3, 50], [-0.5, 3.0]):
        with pytest.raises(ValueError, match=r"expected 0 \.\. 49"):
            s.at(t)

"""Which t are drawn: against their densities, and half a batch as that half of the whole."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.diffusion.schedule import schedule
from pydiff.diffusion.timesteps import TIMESTEPS, LossAware, draw_timesteps

LINEAR = schedule("linear")


@given(n=st.integers(1, 64), step=st.integers(1, 1000), T=st.integers(2, 1000))
def test_stratified_timesteps_have_one_in_every_part(n, step, T):
    s = schedule("linear", T)
    t = draw_timesteps("stratified", s, 3, step, n)
    assert t.dtype == np.int64
    parts = (t + 0.5) * n / T  # the part's number, up to the rounding of t
    assert (np.abs(parts - (np.arange(n) + 0.5)) <= 0.5 + 0.5 * n / T + 1e-9).all()


def test_densities_of_timesteps():
    n = 20000
    for name, s in (("uniform", LINEAR), ("stratified", LINEAR)):
        t = draw_timesteps(name, s, 1, 1, n)
        assert t.mean() == pytest.approx(499.5, abs=5 * 289 / math.sqrt(n))
        assert t.std() == pytest.approx(288.7, rel=0.02)
    s = schedule("edm")
    log_sigma = np.log(s.sigma[draw_timesteps("lognormal", s, 1, 1, n)])
    assert log_sigma.mean() == pytest.approx(-1.2, abs=0.05)
    assert log_sigma.std() == pytest.approx(1.2, rel=0.03)
    s = schedule("flow")
    share = s.sigma[draw_timesteps("logit_normal", s, 1, 1, n)].clip(1e-4, 1 - 1e-4)
    logit = np.log(share / (1 - share))
    assert logit.mean() == pytest.approx(0.0, abs=0.05)
    assert logit.std() == pytest.approx(1.0, rel=0.03)
    with pytest.raises(ValueError, match="no timesteps 'x'; choose one of uniform, stratified"):
        draw_timesteps("x", s, 1, 1, 4)


@given(st.sampled_from(TIMESTEPS), st.sampled_from(["cosine", "linear", "flow", "edm"]), st.floats(0.05, 20))
def test_a_shift_multiplies_the_noise_of_what_is_drawn(name, kind, shift):
    s = schedule(kind)
    plain, moved = (draw_timesteps(name, s, 2, 5, 40, shift=by) for by in (1.0, shift))
    assert moved.dtype == np.int64
    with np.errstate(divide="ignore"):
        ratio = s.sigma / s.alpha
    wanted = shift * ratio[plain]
    beyond = moved - (wanted < ratio[moved]), moved + (wanted > ratio[moved])  # the neighbour on the other side
    low, high = ratio[np.maximum(beyond[0], 0)], ratio[np.minimum(beyond[1], s.T - 1)]
    inside = (wanted >= ratio[0]) & (wanted <= ratio[-1])
    assert ((low <= wanted * (1 + 1e-9)) & (wanted <= high * (1 + 1e-9)))[inside].all()
    assert (moved[wanted < ratio[0]] == 0).all()
    assert (moved[wanted > ratio[-1]] == s.T - 1).all()
    np.testing.assert_array_equal(moved[7:20], draw_timesteps(name, s, 2, 5, np.arange(7, 20), 40, shift))


def test_a_stratified_batch_makes_the_loss_less_noisy():
    loss = np.sqrt(LINEAR.sigma)  # any smooth function of t
    spread = {
        name: np.std([loss[draw_timesteps(name, LINEAR, 0, step, 16)].mean() for step in range(1, 200)])
        for name in ("uniform", "stratified")
    }
    assert spread["stratified"] < 0.3 * spread["uniform"]


def test_loss_aware_sampling_follows_the_loss_and_stays_unbiased():
    T = 20
    sampler, losses = LossAware(T, history=3), np.linspace(0.1, 2.0, T)
    np.testing.assert_allclose(sampler.probabilities(), 1 / T)
    for _ in range(3):
        sampler.update(np.arange(T), losses)
    p = sampler.probabilities()
    np.testing.assert_allclose(p, 0.999 * losses / losses.sum() + 0.001 / T, rtol=1e-12)
    t, weights = sampler.draw(0, 1, 40000)
    np.testing.assert_allclose(np.bincount(t, minlength=T) / len(t), p, atol=0.01)
    np.testing.assert_allclose(weights, 1 / (T * p[t]), rtol=1e-12)
    value = np.cos(np.arange(T))  # any function: its weighted mean is the plain mean over t
    assert (weights * value[t]).mean() == pytest.approx(value.mean(), abs=0.03)
    sampler.update([0, 0], [5.0, 5.0])
    assert sampler.probabilities()[0] > p[0]

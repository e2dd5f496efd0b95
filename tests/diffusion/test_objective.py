"""Loss weights, variational bound, which t are drawn, offset noise, self-conditioning: against their formulas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import ops, random
from pydiff.diffusion import loss as objective
from pydiff.diffusion.loss import loss_weight
from pydiff.diffusion.path import path
from pydiff.diffusion.prediction import PREDICTIONS
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers import ddim
from pydiff.diffusion.schedule import schedule
from pydiff.diffusion.self_conditioning import SelfConditioned, self_conditioned
from pydiff.diffusion.timesteps import LossAware, draw_timesteps
from pydiff.tensor import Tensor
from tests.diffusion.exact_denoisers import last, start

LINEAR = schedule("linear")


def noise_key(n):
    return random.key(9, random.NOISE, np.arange(n), 1)


# ---- weights --------------------------------------------------------------------------------------------------------


def test_min_snr_weights_are_as_published_for_every_prediction():
    t = np.arange(0, 1000, 37)
    snr, capped = LINEAR.snr[t], np.minimum(LINEAR.snr[t], 5.0)
    published = {"eps": capped / snr, "x0": capped, "v": capped / (snr + 1)}  # Hang et al. 2023, section 3.4
    for prediction, expected in published.items():
        np.testing.assert_allclose(loss_weight("min_snr", Process(LINEAR, prediction), t), expected, rtol=1e-9)


def test_edm_weights():
    s, t = schedule("edm"), np.array([0, 300, 700, 999])
    sigma, data = s.sigma[t], 0.5
    published = (sigma**2 + data**2) / (sigma * data) ** 2  # Karras et al. 2022, table 1, for x0-hat
    np.testing.assert_allclose(loss_weight("edm", Process(s, "x0"), t), published, rtol=1e-9)
    np.testing.assert_allclose(loss_weight("edm", Process(s, "edm"), t), 1.0, rtol=1e-9)  # lambda c_out^2 = 1
    with pytest.raises(ValueError, match="no loss weight 'snr'; choose one of simple, min_snr, edm"):
        loss_weight("snr", Process(s), t)


@pytest.mark.parametrize("weight", ["simple", "min_snr", "edm"])
def test_weighted_losses_of_all_predictions_are_one_loss_of_x0(weight):
    """The same x0-hat costs the same, whatever the network was asked for; "simple" alone depends on it."""
    x0, t = start(6, 4), np.array([3, 100, 300, 500, 800, 990])
    found = []
    for prediction in PREDICTIONS:
        process = Process(LINEAR, prediction)
        x_t, _ = process.q_sample(x0, t, noise_key(6))

        def model(_x, _t, process=process, x_t=x_t):  # answers so that x0-hat = x0 + 0.1
            eps = (x_t - LINEAR.alpha[t][:, None] * (x0 + 0.1)) / LINEAR.sigma[t][:, None]
            return Tensor(process.target(x0 + 0.1, eps, t))

        loss = process.loss(model, x0, t, noise_key(6), weights=loss_weight(weight, process, t)).item()
        expected = np.mean(loss_weight(weight, process, t) / process.x0_coefficients(*LINEAR.at(t))[1] ** 2) * 0.01
        assert loss == pytest.approx(expected, rel=1e-9)
        found.append(loss)
    assert np.ptp(found) <= 1e-9 * max(found) or weight == "simple"


# ---- variational bound ----------------------------------------------------------------------------------------------


def test_kl_of_normals_by_quadrature():
    x = np.linspace(-12, 12, 20001)
    for m1, v1, m2, v2 in [(0.3, 0.5, -0.2, 0.9), (0.0, 1.0, 0.0, 1.0), (1.0, 0.1, 0.8, 0.3)]:
        p = np.exp(-((x - m1) ** 2) / (2 * v1)) / np.sqrt(2 * np.pi * v1)
        log_ratio = (x - m2) ** 2 / (2 * v2) - (x - m1) ** 2 / (2 * v1) + 0.5 * np.log(v2 / v1)
        got = objective.normal_kl(np.array([m1]), np.log([v1]), np.array([m2]), Tensor(np.log([v2]))).data[0]
        assert got == pytest.approx(np.sum(p * log_ratio) * (x[1] - x[0]), abs=1e-6)


def test_decoder_probabilities_sum_to_one():
    levels = np.linspace(-1, 1, 256)
    for std, mean in ((0.02, 0.1), (0.3, -0.9)):
        nll = objective.discretized_nll(levels, np.full(256, mean), Tensor(np.full(256, 2 * math.log(std)))).data
        assert np.exp(-nll).sum() == pytest.approx(1.0, abs=1e-3)
        assert np.argmin(nll) == np.argmin(np.abs(levels - mean)) or std > 0.1


def test_the_bound_is_least_at_the_true_variance():
    """With x0-hat = x0 the best variance is that of the posterior, v = -1; the gradient points there."""
    process, x0, t = Process(LINEAR), start(4, 3) * 0.3, np.array([1, 50, 500, 999])
    x_t, _ = process.q_sample(x0, t, noise_key(4))
    bits = [
        objective.variational_bits(process, x0, x_t, t, x0, Tensor(np.full(x0.shape, v))).data for v in (-1.0, 0.0, 1.0)
    ]
    assert (np.abs(bits[0]) <= 1e-9).all()
    assert (bits[0] <= bits[1]).all()
    assert (bits[1] <= bits[2]).all()
    v = Tensor(np.full(x0.shape, 0.3), requires_grad=True)
    objective.variational_bits(process, x0, x_t, t, x0, v).sum().backward()
    assert (v.grad >= 0).all()
    assert v.grad[0].min() > 0


def test_hybrid_loss_teaches_the_variance_but_not_the_mean_by_the_bound():
    process, x0, t = Process(LINEAR, "v"), 0.3 * start(5, 4), np.array([0, 2, 100, 500, 900])
    weight = Tensor(np.array(0.7), requires_grad=True)
    share = Tensor(np.array(0.2), requires_grad=True)

    def model(x, _t):
        return ops.concatenate(x * weight, x * 0.0 + share, axis=-1)

    def gradients(vlb):
        weight.grad = share.grad = None
        loss = objective.hybrid_loss(process, model, x0, t, noise_key(5), vlb=vlb)
        loss.backward()
        return loss.item(), float(weight.grad), float(share.grad)

    simple = process.loss(lambda x, _t: x * weight, x0, t, noise_key(5)).item()
    (without, w0, s0), (some, w1, s1) = gradients(0.0), gradients(0.001)
    assert without == pytest.approx(simple, rel=1e-12)
    assert some > without
    assert w1 == pytest.approx(w0, rel=1e-12)
    assert s0 == 0
    assert s1 != 0
    h = 1e-5  # and the gradient is the slope
    values = []
    for step in (h, -h):
        share.data = np.array(0.2 + step)
        values.append(objective.hybrid_loss(process, model, x0, t, noise_key(5), vlb=0.001).item())
    assert s1 == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


# ---- which t --------------------------------------------------------------------------------------------------------


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


# ---- offset noise and self-conditioning ------------------------------------------------------------------------------


def test_offset_noise_is_shared_by_the_pixels_of_a_channel():
    process, n = Process(LINEAR), 3000
    x0, t = np.zeros((n, 3, 2, 2)), np.full(n, 500)
    seen = {}

    def model(x, _t):
        seen["x"] = x.data
        return x * 0.0

    loss = objective.example_losses(process, model, x0, t, noise_key(n), offset=0.5).mean().item()
    eps = seen["x"] / LINEAR.sigma[500]
    assert eps.var() == pytest.approx(1.25, rel=0.05)
    assert (eps[:, 0, 0] * eps[:, 2, 1]).mean() == pytest.approx(0.25, abs=0.06)  # what two pixels share
    assert (eps[..., 0] * eps[..., 1]).mean() == pytest.approx(0.0, abs=0.06)  # channels share nothing
    assert loss == pytest.approx((eps**2).mean(), rel=1e-9)  # the target has the offset too
    assert process.loss(model, x0, t, noise_key(n)).item() < loss


def test_self_conditioning_hands_on_the_last_x0():
    process = Process(LINEAR, "x0")
    seen = []

    def model(x, _t):
        seen.append(x)
        return 0.5 * x[..., :2] + 0.25 * x[..., 2:]

    conditioned = SelfConditioned(model, process)
    x = last(ddim(conditioned, start(2, 2), process, path(LINEAR, 4)))
    assert x.shape == (2, 2)
    assert (seen[0][..., 2:] == 0).all()
    previous = np.clip(0.5 * seen[1][..., :2] + 0.25 * seen[1][..., 2:], -1, 1)
    np.testing.assert_allclose(seen[2][..., 2:], previous)

    x_t, t = start(2000, 2), np.full(2000, 300)
    asked = self_conditioned(lambda x, _t: x[..., :2] * 0.5, process, x_t, t, noise_key(2000))
    given_hint = (asked[:, 2:] != 0).all(1)
    assert given_hint.mean() == pytest.approx(0.5, abs=0.06)
    np.testing.assert_allclose(asked[given_hint, 2:], 0.5 * x_t[given_hint])
    assert (asked[:, :2] == x_t).all()

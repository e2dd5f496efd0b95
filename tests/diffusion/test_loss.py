"""Loss weights, the variational bound, offset noise: against their formulas."""

import math

import numpy as np
import pytest

from pydiff import ops, random
from pydiff.diffusion.loss import (
    discretized_nll,
    example_losses,
    hybrid_loss,
    loss_weight,
    normal_kl,
    variational_bits,
)
from pydiff.diffusion.prediction import PREDICTIONS
from pydiff.diffusion.process import Process
from pydiff.diffusion.schedule import schedule
from pydiff.tensor import Tensor
from tests.diffusion.exact_denoisers import start

LINEAR = schedule("linear")


def noise_key(n):
    return random.key(9, random.NOISE, np.arange(n), 1)


# ---- weights ---------------------------------------------------------------------------------------------------------


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


# ---- variational bound -----------------------------------------------------------------------------------------------


def test_kl_of_normals_by_quadrature():
    x = np.linspace(-12, 12, 20001)
    for m1, v1, m2, v2 in [(0.3, 0.5, -0.2, 0.9), (0.0, 1.0, 0.0, 1.0), (1.0, 0.1, 0.8, 0.3)]:
        p = np.exp(-((x - m1) ** 2) / (2 * v1)) / np.sqrt(2 * np.pi * v1)
        log_ratio = (x - m2) ** 2 / (2 * v2) - (x - m1) ** 2 / (2 * v1) + 0.5 * np.log(v2 / v1)
        got = normal_kl(np.array([m1]), np.log([v1]), np.array([m2]), Tensor(np.log([v2]))).data[0]
        assert got == pytest.approx(np.sum(p * log_ratio) * (x[1] - x[0]), abs=1e-6)


def test_decoder_is_the_probability_of_a_level():
    """To within what the approximation of the normal distribution costs."""
    levels, mean, std = np.arange(256) / 127.5 - 1.0, 0.2, 0.15
    ends = [[-math.inf], *((level + 1 / 255 - mean) / std for level in levels[:-1, None]), [math.inf]]
    below = np.array([0.5 * (1 + math.erf(end[0] / math.sqrt(2))) for end in ends])
    nll = discretized_nll(levels, np.full(256, mean), Tensor(np.full(256, 2 * math.log(std)))).data
    np.testing.assert_allclose(np.exp(-nll), np.diff(below), atol=6e-4)
    assert np.abs(np.exp(-nll) - np.diff(below)).sum() < 5e-3


def test_decoder_probabilities_sum_to_one():
    levels = np.linspace(-1, 1, 256)
    for std, mean in ((0.02, 0.1), (0.3, -0.9)):
        nll = discretized_nll(levels, np.full(256, mean), Tensor(np.full(256, 2 * math.log(std)))).data
        assert np.exp(-nll).sum() == pytest.approx(1.0, abs=1e-3)
        assert np.argmin(nll) == np.argmin(np.abs(levels - mean)) or std > 0.1


def test_the_bound_is_least_at_the_true_variance():
    """With x0-hat = x0 the best variance is that of the posterior, v = -1; the gradient points there."""
    process, x0, t = Process(LINEAR), start(4, 3) * 0.3, np.array([1, 50, 500, 999])
    x_t, _ = process.q_sample(x0, t, noise_key(4))
    bits = [variational_bits(process, x0, x_t, t, x0, Tensor(np.full(x0.shape, v))).data for v in (-1.0, 0.0, 1.0)]
    assert (np.abs(bits[0]) <= 1e-9).all()
    assert (bits[0] <= bits[1]).all()
    assert (bits[1] <= bits[2]).all()
    v = Tensor(np.full(x0.shape, 0.3), requires_grad=True)
    variational_bits(process, x0, x_t, t, x0, v).sum().backward()
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
        loss = hybrid_loss(process, model, x0, t, noise_key(5), vlb=vlb)
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
        values.append(hybrid_loss(process, model, x0, t, noise_key(5), vlb=0.001).item())
    assert s1 == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


# ---- offset noise ----------------------------------------------------------------------------------------------------


def test_offset_noise_is_shared_by_the_pixels_of_a_channel():
    process, n = Process(LINEAR), 3000
    x0, t = np.zeros((n, 3, 2, 2)), np.full(n, 500)
    seen = {}

    def model(x, _t):
        seen["x"] = x.data
        return x * 0.0

    loss = example_losses(process, model, x0, t, noise_key(n), offset=0.5).mean().item()
    eps = seen["x"] / LINEAR.sigma[500]
    assert eps.var() == pytest.approx(1.25, rel=0.05)
    assert (eps[:, 0, 0] * eps[:, 2, 1]).mean() == pytest.approx(0.25, abs=0.06)  # what two pixels share
    assert (eps[..., 0] * eps[..., 1]).mean() == pytest.approx(0.0, abs=0.06)  # channels share nothing
    assert loss == pytest.approx((eps**2).mean(), rel=1e-9)  # the target has the offset too
    assert process.loss(model, x0, t, noise_key(n)).item() < loss

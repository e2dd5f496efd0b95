"""The diffusion process against its equations, Bayes' rule and moments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import random
from pydiff.diffusion.prediction import PREDICTIONS, SIGMA_DATA
from pydiff.diffusion.process import Process, posterior_coefficients
from pydiff.diffusion.schedule import Schedule, schedule
from pydiff.tensor import Tensor

T = 1000
DTYPES = [np.float32, np.float64]
SCHEDULES = {
    "linear": schedule("linear", T),
    "cosine": schedule("cosine", T),
    "flow": Schedule("flow", 1 - np.linspace(0.001, 0.999, T), np.linspace(0.001, 0.999, T)),
    "exploding": Schedule("exploding", np.ones(T), np.geomspace(0.01, 50.0, T)),
}


def draw(n, *shape, sample=0, dtype=np.float64):
    """Standard normal test data (n, *shape)."""
    return random.normal(random.key(123, random.INIT, np.arange(n) + sample), shape, dtype)


def noise_key(n, step=0):
    return random.key(9, random.NOISE, np.arange(n), step)


# ---- forward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_q_sample_is_equation_4(name, dtype):
    process, x0, t = Process(SCHEDULES[name]), draw(5, 4, 3, 2, dtype=dtype), np.array([0, 1, 300, 998, 999])
    x_t, eps = process.q_sample(x0, t, noise_key(5))
    assert type(x_t) is type(eps) is np.ndarray
    assert x_t.dtype == eps.dtype == dtype
    np.testing.assert_allclose(eps, random.normal(noise_key(5), (4, 3, 2), dtype), rtol=1e-5, atol=1e-6)
    tolerance = 8 * np.finfo(dtype).eps
    for n in range(5):
        alpha, sigma = SCHEDULES[name].alpha[t[n]], SCHEDULES[name].sigma[t[n]]
        scale = alpha * abs(x0[n]) + sigma * abs(eps[n])
        assert (abs(x_t[n] - (alpha * x0[n] + sigma * eps[n])) <= tolerance * scale).all()


def test_q_sample_of_a_tensor_is_differentiable():
    x0 = Tensor(draw(2, 3, dtype=np.float64), requires_grad=True)
    process, t, g = Process(SCHEDULES["linear"]), np.array([10, 700]), draw(2, 3, sample=50)
    x_t, _ = process.q_sample(x0, t, noise_key(2))
    x_t.backward(g)
    np.testing.assert_allclose(x0.grad, SCHEDULES["linear"].alpha[t][:, None] * g, rtol=1e-12)


@pytest.mark.parametrize("t", [0, 300, 999])
def test_q_sample_moments(t):
    n, process = 20_000, Process(SCHEDULES["linear"])
    x0 = np.tile([[0.7, -1.0]], (n, 1))
    x_t, _ = process.q_sample(x0, np.full(n, t), noise_key(n))
    alpha, sigma = process.schedule.alpha[t], process.schedule.sigma[t]
    assert (abs(x_t.mean(0) - alpha * x0[0]) <= 5 * sigma / np.sqrt(n)).all()
    assert (abs(x_t.var(0) / sigma**2 - 1) <= 5 * np.sqrt(2 / n)).all()


# ---- predictions ---------------------------------------------------------------------------------------------------


def test_targets_are_as_published():
    process, x0, eps, t = SCHEDULES["linear"], draw(3, 4), draw(3, 4, sample=9), np.array([5, 500, 900])
    alpha, sigma = process.alpha[t][:, None], process.sigma[t][:, None]
    data = SIGMA_DATA
    ratio = sigma / alpha
    c_skip, c_out = data**2 / (ratio**2 + data**2), ratio * data / np.sqrt(ratio**2 + data**2)
    edm = (x0 - c_skip * (x0 + ratio * eps)) / c_out
    expected = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0, "edm": edm, "edm_v": -edm}
    assert set(expected) == set(PREDICTIONS)
    for prediction, target in expected.items():
        np.testing.assert_allclose(Process(process, prediction).target(x0, eps, t), target, rtol=1e-12)


@given(t=st.integers(0, T - 1))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_right_answer_gives_back_x0_and_eps(name, prediction, dtype, t):
    process, x0, eps = Process(SCHEDULES[name], prediction), draw(2, 3), draw(2, 3, sample=9)
    t = np.array([t, T - 1 - t])
    alpha, sigma = (values[t][:, None] for values in (process.schedule.alpha, process.schedule.sigma))
    x_t, f = (a.astype(dtype) for a in (alpha * x0 + sigma * eps, process.target(x0, eps, t)))
    unit = 8 * np.finfo(dtype).eps
    # x0-hat from eps loses a factor sigma / alpha by cancellation, eps-hat from x0 the inverse
    assert (abs(process.to_x0(x_t, f, t) - x0) <= unit * (abs(x0) + abs(eps) + 1) * (1 + sigma / alpha)).all()
    assert (abs(process.to_eps(x_t, f, t) - eps) <= unit * (abs(x0) + abs(eps) + 1) * (1 + alpha / sigma)).all()
    assert process.to_x0(x_t, f, t).dtype == process.to_eps(x_t, f, t).dtype == dtype


def test_predictions_that_say_nothing_are_refused():
    zero_snr = Schedule("zero", [0.9, 0.0], [0.1, 1.0])
    clean = Schedule("clean", [1.0, 0.5], [0.0, 1.0])
    x, t = draw(2, 3), np.array([0, 1])
    with pytest.raises(ValueError, match=r"prediction 'eps' does not determine x0 and eps where alpha is 0.0"):
        Process(zero_snr, "eps").to_x0(x, x, t)
    with pytest.raises(ValueError, match="prediction 'x0' does not determine"):
        Process(clean, "x0").to_eps(x, x, t)
    assert np.isfinite(Process(zero_snr, "v").to_x0(x, x, t)).all()
    with pytest.raises(ValueError, match="no prediction 'score'; choose one of eps, x0, v"):
        Process(zero_snr, "score")


@pytest.mark.parametrize("t", [[-1, 0], [0, T], [0.0, T - 0.5], [[0], [1]], 5])
def test_bad_t_is_refused(t):
    process, x = Process(SCHEDULES["linear"]), draw(2, 3)
    for call in (process.to_x0, process.to_eps, process.target, process.posterior):
        with pytest.raises(ValueError, match=r"use 0 .. 999"):
            call(x, x, t)
    with pytest.raises(ValueError, match=r"use 0 .. 999"):
        process.q_sample(x, t, noise_key(2))


# ---- loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_is_the_mean_squared_error_of_the_prediction(prediction):
    process, x0, t = Process(SCHEDULES["linear"], prediction), draw(4, 3, 2), np.array([0, 250, 500, 999])
    labels = np.arange(4)
    weight = Tensor(np.array(0.3), requires_grad=True)
    seen = {}

    def model(x_t, t, **condition):
        seen.update(x_t=x_t.data, t=t, condition=condition)
        return x_t * weight

    loss = process.loss(model, x0, t, noise_key(4), class_labels=labels)
    x_t, eps = process.q_sample(x0, t, noise_key(4))
    x_in, t_in = process.network_input(x_t, t)
    assert (x_in is x_t) == (t_in is t) == (not prediction.startswith("edm"))
    error = 0.3 * x_in - process.target(x0, eps, t)
    assert (seen["x_t"] == x_in).all()
    assert (seen["t"] == t_in).all()
    assert seen["condition"] == {"class_labels": labels}
    assert loss.item() == pytest.approx(np.mean(error**2), rel=1e-12)

    loss.backward()
    assert weight.grad == pytest.approx(np.mean(2 * error * x_in), rel=1e-12)
    process.loss(model, x0, t, noise_key(4))
    assert seen["condition"] == {}


# ---- posterior -----------------------------------------------------------------------------------------------------


@given(t=st.integers(1, T - 1))
@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_is_bayes_rule(name, t):
    """q(x_s | x_t, x0) is proportional to q(x_t | x_s) q(x_s | x0): precisions add, and means weighted by them."""
    process = Process(SCHEDULES[name])
    alpha, sigma = process.schedule.alpha, process.schedule.sigma
    x0, x_t = draw(1, 4), draw(1, 4, sample=3)
    ratio = alpha[t] / alpha[t - 1]
    transition = sigma[t] ** 2 - ratio**2 * sigma[t - 1] ** 2  # x_t = ratio x_s + noise of this variance
    precision = ratio**2 / transition + 1 / sigma[t - 1] ** 2
    mean = (ratio * x_t / transition + alpha[t - 1] * x0 / sigma[t - 1] ** 2) / precision

    got_mean, variance, log_variance = process.posterior(x0, x_t, np.array([t]))
    np.testing.assert_allclose(got_mean, mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(variance, [[1 / precision]], rtol=1e-9)
    np.testing.assert_allclose(log_variance, [[-np.log(precision)]], rtol=1e-9, atol=1e-9)


def test_posterior_is_equation_7_of_ddpm():
    s = SCHEDULES["linear"]
    t = np.arange(1, T)
    a, b, variance = posterior_coefficients(s.alpha[t], s.sigma[t], s.alpha[t - 1], s.sigma[t - 1])
    beta, alpha_bar, before = s.beta[t], s.alpha_bar[t], s.alpha_bar[t - 1]
    np.testing.assert_allclose(a, np.sqrt(1 - beta) * (1 - before) / (1 - alpha_bar), rtol=1e-9)
    np.testing.assert_allclose(b, np.sqrt(before) * beta / (1 - alpha_bar), rtol=1e-9)
    np.testing.assert_allclose(variance, (1 - before) / (1 - alpha_bar) * beta, rtol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_posterior_at_the_clean_end(dtype):
    process, x0, x_t = Process(SCHEDULES["linear"]), draw(2, 3, 2, dtype=dtype), draw(2, 3, 2, sample=7, dtype=dtype)
    mean, variance, log_variance = process.posterior(x0, x_t, np.array([0, 1]))
    assert mean.dtype == variance.dtype == log_variance.dtype == dtype
    assert variance.shape == log_variance.shape == (2, 1, 1)
    assert (mean[0] == x0[0]).all()
    assert variance[0] == 0
    assert log_variance[0] == log_variance[1] == pytest.approx(np.log(variance[1]), rel=1e-5)
    with pytest.raises(ValueError, match="has sigma = 0 at t = 0"):
        Process(Schedule("clean", [1.0, 0.5], [0.0, 1.0])).posterior(x0, x_t, np.array([0, 1]))


def test_the_variance_of_a_step_is_beta():
    """DDPM's beta_t, from whose running product the schedule is made."""
    beta = np.linspace(0.001, 0.2, 30)
    process = Process(schedule("linear", 30, beta_start=0.001, beta_end=0.2))
    np.testing.assert_allclose(process.transition_variance(np.arange(30)), beta, rtol=1e-12)
    np.testing.assert_allclose(process.transition_variance(np.array([7, 0])), beta[[7, 0]], rtol=1e-12)


def test_levels_between_the_steps():
    """A t that is no whole number lies between two levels; what draws by steps does not take it."""
    process, half = Process(schedule("linear", 30)), np.array([3.5])
    alpha, sigma = process.schedule.at(half)
    assert process.schedule.alpha[4] < alpha[0] < process.schedule.alpha[3]
    x0, eps = np.full((1, 2), 0.5), np.full((1, 2), -0.25)
    np.testing.assert_allclose(process.target(x0, eps, half), eps)
    x_t = alpha * x0 + sigma * eps
    np.testing.assert_allclose(process.to_x0(x_t, eps, half), x0, rtol=1e-12)
    with pytest.raises(ValueError, match="integers"):
        process.transition_variance(half)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["linear", "flow", "edm"])
def test_both_estimates_add_up_to_x_in_any_scale(name, prediction):
    """alpha x0-hat + sigma eps-hat = x, whatever the network answers."""
    process = Process(schedule(name, 50), prediction)
    for alpha, sigma in ((0.9, 0.3), (0.2, 0.98), (1.0, 7.0), (0.05, 3.0), (2.0, 0.01)):
        (u, v), (u_eps, v_eps) = process.x0_coefficients(alpha, sigma), process.eps_coefficients(alpha, sigma)
        np.testing.assert_allclose(alpha * u + sigma * u_eps, 1.0, rtol=1e-9)
        np.testing.assert_allclose(alpha * v + sigma * v_eps, 0.0, atol=1e-9 * abs(alpha * v))

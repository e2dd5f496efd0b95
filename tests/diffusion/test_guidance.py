"""Guidance against closed forms: what the guided network answers, where it asks, and where the images go."""

import numpy as np
import pytest

from pydiff import ops
from pydiff.condition import Condition
from pydiff.diffusion import guidance, samplers
from pydiff.diffusion.denoiser import denoiser, together
from pydiff.diffusion.path import path
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers.walk import _Answer, _guided
from pydiff.diffusion.schedule import schedule
from tests.diffusion.exact_denoisers import last, model_of, normal_denoiser, start

LINEAR = schedule("linear")


def right(x, alpha, sigma):
    return normal_denoiser(x, alpha, sigma, mean=0.6, spread=0.3)


def counted(model):
    def asked(x, t):
        asked.t.append(float(t[0]))
        return model(x, t)

    asked.t = []
    return asked


@pytest.mark.parametrize("prediction", ["eps", "v", "edm"])
def test_scale_and_interval(prediction):
    process = Process(LINEAR, prediction)
    conditional, unconditional = counted(model_of(right, process)), counted(model_of(normal_denoiser, process))
    p, x = path(LINEAR, 12), start(2, 4)
    plain = last(samplers.ddim(conditional, x, process, p, clip=None))
    for scale in (0.0, 1.0, 2.5):
        model = guidance.classifier_free(conditional, unconditional, process, scale)
        got = last(samplers.ddim(model, x, process, p, clip=None))
        both = lambda x, t: (conditional(x, t), unconditional(x, t))  # noqa: E731
        np.testing.assert_allclose(got, last(samplers.ddim(both, x, process, p, clip=None, guidance=scale)), rtol=1e-9)
    unconditional.t.clear()
    model = guidance.classifier_free(conditional, unconditional, process, 3.0, interval=(0.5, 5.0))
    within = last(samplers.ddim(model, x, process, p, clip=None))
    levels = [guidance.level_of(process, t) for t in unconditional.t]
    assert len(levels) == ((p.ratio > 0.5) & (p.ratio <= 5.0)).sum() > 0
    assert all(0.5 < level <= 5.0 for level in levels)
    assert np.abs(within - plain).max() > 0.01
    nowhere = guidance.classifier_free(conditional, unconditional, process, 3.0, interval=(1e6, 1e7))
    np.testing.assert_array_equal(last(samplers.ddim(nowhere, x, process, p, clip=None)), plain)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "edm"])
def test_rescale_gives_x0_the_conditional_spread(prediction):
    process = Process(LINEAR, prediction)
    conditional, unconditional = model_of(right, process), model_of(normal_denoiser, process)
    x, t = start(3, 50), np.full(3, 600)
    x_seen, t_seen = process.network_input(x, t)
    f = conditional(x_seen, t_seen)

    def x0_std(f):
        return process.to_x0(x, f, t).std(1)

    full = guidance.classifier_free(conditional, unconditional, process, 4.0, rescale=1.0)(x_seen, t_seen)
    none = guidance.classifier_free(conditional, unconditional, process, 4.0)(x_seen, t_seen)
    half = guidance.classifier_free(conditional, unconditional, process, 4.0, rescale=0.5)(x_seen, t_seen)
    np.testing.assert_allclose(x0_std(full), x0_std(f), rtol=1e-6)
    np.testing.assert_allclose(x0_std(half), (x0_std(full) + x0_std(none)) / 2, rtol=1e-6)
    assert (np.abs(x0_std(none) / x0_std(f) - 1) > 0.01).all()
    with pytest.raises(ValueError, match="got rescale 2"):
        guidance.classifier_free(conditional, unconditional, process, rescale=2.0)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_exact_classifier_turns_the_unconditional_network_into_the_conditional_one(prediction, dtype):
    """Bayes: data are N(m, s^2) and y = x0 + noise of variance w^2, so that log p(y | x_t) is a known parabola.

    Then E[x0 | x_t, y] is normal again, and the guided network must answer with exactly that.
    """
    process, y, w = Process(LINEAR, prediction), 0.8, 0.4
    m, s = 0.3, 0.5
    unconditional = model_of(normal_denoiser, process)

    def posterior_of_x0(x, alpha, sigma):
        return normal_denoiser(x, alpha, sigma), 1.0 / (1.0 / s**2 + alpha**2 / sigma**2)

    def log_probability(x, t):
        alpha, sigma = LINEAR.at(t)
        shrink = alpha * s**2 / (alpha**2 * s**2 + sigma**2)
        variance = 1.0 / (1.0 / s**2 + alpha**2 / sigma**2) + w**2
        to = (slice(None), None)
        mean = (x - (alpha * m)[to].astype(x.dtype)) * shrink[to].astype(x.dtype) + m
        return ((mean - y) ** 2 * (-0.5 / variance)[to].astype(x.dtype)).sum(axis=1)

    def conditional(x, alpha, sigma):
        mean, variance = posterior_of_x0(x, alpha, sigma)
        return (mean / variance + y / w**2) / (1.0 / variance + 1.0 / w**2)

    guided = guidance.classifier_guided(unconditional, log_probability, process)
    x, t = start(3, 4, dtype=dtype), np.array([200, 200, 200])
    got, expected = guided(x, t), model_of(conditional, process)(x, t)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, expected, rtol=1e-9 if dtype == np.float64 else 1e-3, atol=1e-5)


def test_norm_based_scale_is_in_units_of_eps():
    process = Process(LINEAR, "eps")
    model = model_of(normal_denoiser, process)
    guided = guidance.classifier_guided(model, lambda x, _t: (x * 7.0).sum(axis=1), process, scale=0.3, norm_based=True)
    x, t = start(3, 4), np.full(3, 500)
    f = model(x, t)
    push = f - guided(x, t)
    np.testing.assert_allclose(np.linalg.norm(push, axis=1), 0.3 * np.linalg.norm(f, axis=1), rtol=1e-9)
    assert (push > 0).all()  # along the gradient of the log-probability, so that eps falls
    with pytest.raises(ValueError, match="needs a network that is told t"):
        guidance.classifier_guided(model, lambda x, _t: x.sum(axis=1), Process(LINEAR, "edm"))


def test_autoguidance_moves_away_from_the_bad_network():
    process = Process(LINEAR, "v")
    good, bad = model_of(right, process), model_of(normal_denoiser, process)
    model = guidance.autoguidance(good, bad, process, scale=2.0)
    x, t = start(2, 3), np.full(2, 400)
    np.testing.assert_allclose(model(x, t), 2.0 * good(x, t) - bad(x, t), rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_guided_answer_is_that_of_classifier_free_guidance(dtype):
    """f(nothing) + w (f(asked) - f(nothing)), Ho and Salimans 2022; the answer alone where there is one."""
    asked, nothing = np.array([[1.0, 2.0]], dtype), np.array([[0.5, -1.0]], dtype)
    guided = _guided(_Answer(asked, nothing, 1.0, 1.0, 3.0, (0.0, 0.0)))
    np.testing.assert_array_equal(guided, np.array([[2.0, 8.0]], dtype))
    assert guided.dtype == dtype
    assert _guided(_Answer(asked, None, 1.0, 1.0, 3.0, (0.0, 0.0))) is asked


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (3, 4, 2, 2), (3, 5, 1, 2)], ids=["1 wide", "square", "line"])
def test_what_more_a_network_returns_is_left_out_unless_it_is_asked_for(shape, learned):
    """Also where an image is as wide as it has channels."""
    channels = shape[-1]

    def network(x, t):
        del t
        return ops.concatenate(x * 2.0, x * 3.0)

    model, _ = denoiser(network, Process(LINEAR), channels, Condition(rows=3), learned=learned)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = np.concatenate([x * 2, x * 3], -1) if learned else x * 2
    np.testing.assert_array_equal(model(x, np.zeros(3, np.int64)), expected)


class Several:
    several = ("context",)


def test_conditions_are_asked_together_where_the_network_can():
    """What the network takes several of is joined; everything else has to be the same."""
    a, b, sizes = np.arange(12.0).reshape(2, 3, 2), np.ones((2, 3, 2)), np.array([[8, 8], [4, 4]])
    both = together(Several(), {"context": a, "sizes": sizes}, {"context": b, "sizes": sizes.copy()})
    np.testing.assert_array_equal(both["context"], np.concatenate([a, b]))
    np.testing.assert_array_equal(both["sizes"], sizes)
    assert together(Several(), {"context": a}, {"context": a}, {"context": b})["context"].shape == (6, 3, 2)
    for other in ({"context": b, "sizes": sizes + 1}, {"context": b, "sizes": sizes[:1]}, {"context": b[:, :2]}):
        assert together(Several(), {"context": a, "sizes": sizes}, {"sizes": sizes, **other}) is None
    assert together(object(), {"context": a}, {"context": a}) is None

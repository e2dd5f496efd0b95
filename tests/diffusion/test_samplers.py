"""What holds for every sampler: identities, what the states say, and images that do not depend on their batch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import random
from pydiff.diffusion.path import path, path_through
from pydiff.diffusion.prediction import PREDICTIONS
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers import ddim, ddim_step, ddpm, ddpm_step, initial_noise
from pydiff.diffusion.schedule import Schedule, schedule
from tests.diffusion.exact_denoisers import LINEAR, SAMPLERS, last, model_of, normal_denoiser, points_denoiser, start

# ---- identities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_predictions_give_the_same_trajectory(sampler, clip):
    p, x = path(LINEAR, 7), 2 * start(4, 3)
    trajectories = []
    for prediction in PREDICTIONS:
        process = Process(LINEAR, prediction)
        trajectories.append(list(SAMPLERS[sampler](model_of(normal_denoiser, process), x, process, p, clip=clip)))
    for states in zip(*trajectories, strict=True):
        for name in ("x", "x0", "eps"):
            first, *others = (getattr(state, name) for state in states)
            for other in others:
                np.testing.assert_allclose(other, first, rtol=1e-9, atol=1e-11)


@given(T=st.integers(2, 60), data=st.data())
def test_ddim_with_eta_1_is_ddpm(T, data):
    s = schedule("cosine", T)
    t = np.array(sorted(data.draw(st.sets(st.integers(0, T - 1), min_size=1, max_size=5)), reverse=True))
    process, p, x = Process(s), path_through(s, t), start(2, 3)
    model = model_of(normal_denoiser, process)
    for a, b in zip(ddim(model, x, process, p, eta=1.0), ddpm(model, x, process, p), strict=True):
        np.testing.assert_allclose(a.x, b.x, rtol=1e-9, atol=1e-11)


@given(i=st.integers(0, 998))
def test_coefficients_are_the_published_ones(i):
    ends = LINEAR.alpha[i + 1], LINEAR.sigma[i + 1], LINEAR.alpha[i], LINEAR.sigma[i]
    beta, alpha_bar, before = LINEAR.beta[i + 1], LINEAR.alpha_bar[i + 1], LINEAR.alpha_bar[i]
    small, large = beta * (1 - before) / (1 - alpha_bar), beta
    mean = (np.sqrt(1 - beta) * (1 - before) / (1 - alpha_bar), np.sqrt(before) * beta / (1 - alpha_bar))  # DDPM eq. 7
    np.testing.assert_allclose(ddpm_step(*ends, "small"), (*mean, np.sqrt(small)), rtol=1e-8)
    np.testing.assert_allclose(ddpm_step(*ends, "large"), (*mean, np.sqrt(large)), rtol=1e-8)
    eta = 0.4
    std = eta * np.sqrt((1 - before) / (1 - alpha_bar)) * np.sqrt(1 - alpha_bar / before)  # DDIM eq. 16
    x_t, x0, eps = 0.7, -0.2, (0.7 + np.sqrt(alpha_bar) * 0.2) / np.sqrt(1 - alpha_bar)
    a, b, got = ddim_step(*ends, eta)
    assert got == pytest.approx(std, rel=1e-8)
    assert a * x_t + b * x0 == pytest.approx(np.sqrt(before) * x0 + np.sqrt(1 - before - std**2) * eps, rel=1e-8)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_states_tell_what_happened(sampler):
    process, p, x = Process(LINEAR), path(LINEAR, 5, "leading"), start(2, 3, 2)
    before = x.copy()
    states = list(SAMPLERS[sampler](model_of(normal_denoiser, process), x, process, p, clip=(-0.5, 0.4)))
    assert [state.step for state in states] == [1, 2, 3, 4, 5]
    assert [state.steps for state in states] == [5] * 5
    assert [state.t for state in states] == p.t.tolist()
    assert (x == before).all()  # the start is the caller's
    for state, alpha, sigma in zip(states, p.alpha, p.sigma, strict=False):
        np.testing.assert_allclose(alpha * state.x0 + sigma * state.eps, x, atol=1e-12)
        assert state.x0.min() >= -0.5
        assert state.x0.max() <= 0.4
        x = state.x
    assert (states[-1].x == states[-1].x0).all()  # the clean end is the last prediction, without noise


def test_clipping_and_noise_matter():
    process, p, x = Process(LINEAR), path(LINEAR, 5), 3 * start(2, 3)
    model = model_of(normal_denoiser, process)
    base = last(ddpm(model, x, process, p))
    for option in ({"clip": (-0.2, 0.2)}, {"variance": "large"}, {"seed": 1}, {"sample": [1, 0]}):
        assert (last(ddpm(model, x, process, p, **option)) != base).any(), option
    assert (last(ddim(model, x, process, p, seed=1)) == last(ddim(model, x, process, p, seed=2))).all()


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_guidance_is_the_straight_line_through_both_answers(guidance):
    process, p, x = Process(LINEAR), path(LINEAR, 4), start(2, 3)
    with_label = model_of(lambda x, *_: 0.0 * x + 0.2, process)
    without = model_of(normal_denoiser, process)

    def combined(x, t):
        return without(x, t) + guidance * (with_label(x, t) - without(x, t))

    def pair(x, t):
        return with_label(x, t), without(x, t)

    expected = last(ddim(combined, x, process, p))
    np.testing.assert_allclose(last(ddim(pair, x, process, p, guidance=guidance)), expected, rtol=1e-9, atol=1e-12)


def test_other_schedules_need_no_other_sampler():
    """A flow schedule, alpha + sigma = 1, whose start is pure noise: DDIM and DDPM hit a single image exactly."""
    sigma = np.linspace(0.1, 1.0, 10)
    flow = Schedule("flow", 1 - sigma, sigma)
    process, point = Process(flow, "v"), np.array([[0.25, -0.5]])
    model = model_of(points_denoiser(point, [1.0]), process)
    for sampler in SAMPLERS.values():
        np.testing.assert_allclose(last(sampler(model, start(3, 2), process, path(flow, 10))), np.tile(point, (3, 1)))


# ---- exactness ------------------------------------------------------------------------------------------------------


@given(samples=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5), data=st.data())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_image_is_bitwise_the_same_alone_and_in_any_batch(sampler, dtype, samples, data):
    process, p = Process(LINEAR), path(LINEAR, 4)
    model = model_of(normal_denoiser, process)
    i = data.draw(st.integers(0, len(samples) - 1))

    def draw(numbers):
        x = initial_noise((5, 3), 7, numbers, dtype)
        return list(SAMPLERS[sampler](model, x, process, p, seed=7, sample=numbers))

    for together, alone in zip(draw(samples), draw([samples[i]]), strict=True):
        for name in ("x", "x0", "eps"):
            assert getattr(together, name).dtype == dtype
            assert getattr(together, name)[i].tobytes() == getattr(alone, name)[0].tobytes()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_float32_stays_near_float64(sampler):
    process, p = Process(LINEAR), path(LINEAR, 20)
    model = model_of(normal_denoiser, process)
    x = start(4, 6)
    exact = last(SAMPLERS[sampler](model, x, process, p))
    np.testing.assert_allclose(last(SAMPLERS[sampler](model, x.astype(np.float32), process, p)), exact, atol=1e-4)


def test_start_and_steps_draw_different_noise():
    """x_T is the noise of step 0, and the first sampler step that of step 1."""
    assert (start(2, 3) == random.normal(random.key(0, random.SAMPLE, [0, 1], 0), (3,), np.float64)).all()
    process, p, x = Process(LINEAR), path(LINEAR, 2), start(2, 3)
    model = model_of(lambda x, *_: 0.0 * x, process)
    first = next(iter(ddpm(model, x, process, p)))
    a, _, std = ddpm_step(p.alpha[0], p.sigma[0], p.alpha[1], p.sigma[1])
    z = random.normal(random.key(0, random.SAMPLE, [0, 1], 1), (3,), np.float64)
    np.testing.assert_allclose((first.x - a * x) / std, z, rtol=1e-9)


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        (ddpm, {"variance": "learned"}, "no variance 'learned'; choose one of small, large"),
        (ddim, {"eta": -0.1}, "eta is -0.1, expected 0"),
        (ddim, {"eta": 1.5}, "eta is 1.5, expected 0"),
        (ddim, {"eta": float("nan")}, "eta is nan"),
    ],
)
def test_bad_options_are_refused_before_the_first_step(sampler, options, message):
    process = Process(LINEAR)
    with pytest.raises(ValueError, match=message):
        sampler(model_of(normal_denoiser, process), start(1, 2), process, path(LINEAR, 2), **options)

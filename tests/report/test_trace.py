"""What is kept of a reverse process, and of a forward one."""

import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.codec import to_uint8
from pydiff.diffusion.samplers import SamplerState
from pydiff.diffusion.schedule import linear
from pydiff.report.forward import add_noise
from pydiff.report.pixels import shrink
from pydiff.report.trace import MOMENTS, record, steps_to_record
from tests import fake_cupy
from tests.report.example import CODEC, SHAPE, random_images, states


@given(total=st.integers(1, 3000), keep=st.integers(1, 120))
def test_steps_to_record_are_few_and_hold_both_ends_and_the_moments(total, keep):
    steps = steps_to_record(total, keep)
    assert steps == sorted(set(steps))
    assert len(steps) <= max(2, keep) + len(MOMENTS)
    assert {0, total, *(round(total * moment / 1000) for moment in MOMENTS)} <= set(steps)


def test_a_thousand_steps_give_the_lectures_own_moments():
    trace, _ = record(states(n=2, steps=1000), CODEC)
    assert {moment: trace.steps[k] for moment, k in trace.marks().items()} == {m: m for m in (700, 800, 900, 1000)}
    assert 100 <= len(trace.steps) <= 104


def test_fewer_steps_put_the_moments_at_the_same_fractions():
    trace, _ = record(states(n=2, steps=50), CODEC)
    assert {moment: trace.steps[k] for moment, k in trace.marks().items()} == {700: 35, 800: 40, 900: 45, 1000: 50}
    one, _ = record(states(n=2, steps=1), CODEC)
    assert one.marks() == {1000: 0}  # a mark that would repeat a later one is left out


def test_records_are_the_samplers_arrays_as_pixels():
    kept = {state.step: state for state in states(n=3, steps=40)}
    trace, last = record(states(n=3, steps=40), CODEC, keep=9)
    assert trace.total == 40
    np.testing.assert_array_equal(last, kept[40].x)
    for k, step in enumerate(trace.steps):
        np.testing.assert_array_equal(trace.x[k], to_uint8(kept[step].x))
        np.testing.assert_array_equal(trace.x0[k], to_uint8(kept[step].x0))
        np.testing.assert_array_equal(trace.eps[k], CODEC.show_noise(kept[step].eps))
        assert trace.t[k] == kept[step].t


def test_a_schedule_adds_the_noise_the_sampler_started_from():
    schedule = linear(1000)
    start = np.random.default_rng(0).standard_normal((2, *SHAPE))
    x0 = np.random.default_rng(1).uniform(-1, 1, start.shape)
    eps = (start - schedule.alpha[999] * x0) / schedule.sigma[999]
    trace, _ = record(iter([SamplerState(1, 1, 999, x0, x0, eps)]), CODEC, schedule=schedule)
    assert trace.steps.tolist() == [0, 1]
    np.testing.assert_allclose(trace.x[0].astype(int), to_uint8(start).astype(int), atol=1)
    np.testing.assert_array_equal(trace.x[1], to_uint8(x0))


def test_fewer_images_and_smaller_ones():
    trace, last = record(states(n=5, steps=10), CODEC, samples=2, factor=2)
    first = next(states(n=5, steps=10))
    assert trace.x.shape[1:] == (2, 3, 4, 3)
    assert last.shape == (5, *SHAPE)
    np.testing.assert_array_equal(trace.x[0], shrink(to_uint8(first.x[:2]), 2))


def test_arrays_on_another_device_are_fetched():
    cupy = fake_cupy.module()

    def moved():
        for state in states(n=2, steps=3):
            yield state._replace(**{name: cupy.asarray(getattr(state, name)) for name in ("x", "x0", "eps")})

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", cupy)
        elsewhere = record(moved(), CODEC)[0]
    np.testing.assert_array_equal(elsewhere.x, record(states(n=2, steps=3), CODEC)[0].x)


def test_unfinished_samplers_and_nan_are_refused():
    with pytest.raises(ValueError, match="yielded no state"):
        record(iter([]), CODEC)
    with pytest.raises(ValueError, match="stopped after step 6 of 10"):
        record((state for state in states(steps=10) if state.step <= 6), CODEC)
    with pytest.raises(ValueError, match="NaN or infinite"):
        record((state._replace(x=state.x * np.nan) for state in states(steps=1)), CODEC)


def test_eps_pixels():
    eps = np.array([-3.0, 0.0, 3.0, 5.0, -9.0, 1.5], np.float32)
    assert CODEC.show_noise(eps).tolist() == [0, 128, 255, 255, 0, 191]


@given(height=st.integers(1, 9), width=st.integers(1, 9), factor=st.integers(1, 3))
def test_shrink_is_the_mean_of_blocks(height, width, factor):
    images = np.random.default_rng(0).normal(size=(2, height, width, 3))
    got = shrink(images, factor)
    assert got.shape == (2, height // factor, width // factor, 3)
    for y in range(got.shape[1]):
        for x in range(got.shape[2]):
            block = images[:, y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
            np.testing.assert_allclose(got[:, y, x], block.mean(axis=(1, 2)), rtol=1e-12)


def test_forward_process_is_equation_four():
    schedule, images = linear(100), random_images(3, seed=0)
    eps = np.random.default_rng(1).standard_normal(images.shape)
    process = add_noise(CODEC, images, eps, schedule.alpha, schedule.sigma, keep=5)
    assert process.t.tolist() == [0, 25, 50, 74, 99]
    for k, t in enumerate(process.t):
        expected = schedule.alpha[t] * (images / 127.5 - 1) + schedule.sigma[t] * eps
        np.testing.assert_allclose(process.x[k].astype(int), to_uint8(expected).astype(int), atol=1)  # float32
    np.testing.assert_array_equal(process.x0, images)
    np.testing.assert_array_equal(process.eps, CODEC.show_noise(eps))
    with pytest.raises(ValueError, match=r"one shape, got \(3, 6, 8, 3\) and \(2, 6, 8, 3\)"):
        add_noise(CODEC, images, eps[:2], schedule.alpha, schedule.sigma)


def test_start_needs_nothing_but_alpha_and_sigma():
    schedule = types.SimpleNamespace(alpha=np.ones(5), sigma=np.zeros(5))
    trace, _ = record(states(n=2, steps=5), CODEC, schedule=schedule)
    np.testing.assert_array_equal(trace.x[0], trace.x0[0])

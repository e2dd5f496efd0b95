"""The loss curve's numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.report.loss import POINTS, axis, chart, curve, log_ticks, place, sparkline, step_ticks


def log(losses):
    return [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]


def test_short_logs_are_kept_as_they_are():
    c = curve(log([4.0, 2.0, 1.0]))
    assert c.step.tolist() == [1, 2, 3]
    assert c.loss.tolist() == [4.0, 2.0, 1.0]
    assert c.smooth.tolist() == [4.0, 2.0, 1.0]
    assert c.skipped == 0


def test_entries_without_a_positive_finite_loss_are_counted():
    c = curve([*log([1.0, float("nan"), None, 0.0, float("inf"), 0.5]), {"step": 7}])
    assert c.step.tolist() == [1, 6]
    assert c.skipped == 5


def test_smoothing_is_a_centred_mean():
    losses = np.random.default_rng(0).uniform(0.1, 1, 300)
    c = curve(log(losses))
    np.testing.assert_allclose(c.smooth[100], losses[95:106].mean(), rtol=1e-12)  # 300 // 60 = 5 on each side
    np.testing.assert_allclose(c.smooth[2], losses[:5].mean(), rtol=1e-12)
    assert c.smooth[0] == pytest.approx(losses[0], rel=1e-12)
    assert c.smooth[-1] == pytest.approx(losses[-1], rel=1e-12)


@given(n=st.integers(POINTS + 1, 5 * POINTS))
def test_long_logs_are_binned_without_losing_any_entry(n):
    losses = np.random.default_rng(n).uniform(0.1, 1, n)
    c = curve(log(losses))
    counts = np.diff([0, *c.step])
    assert len(c.step) == POINTS
    assert c.step[-1] == n
    np.testing.assert_allclose((c.loss * counts).sum(), losses.sum(), rtol=1e-9)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.05, 1, [0.05, 0.1, 0.2, 0.5, 1]), (0.03, 0.6, [0.05, 0.1, 0.2, 0.5]), (1e-4, 2, [1e-4, 1e-3, 1e-2, 0.1, 1])],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert log_ticks(low, high) == pytest.approx(expected, rel=1e-12)


@given(first=st.integers(1, 10**6), length=st.integers(2, 10**6))
def test_step_ticks_are_few_and_inside(first, length):
    ticks = list(step_ticks(first, first + length))
    assert 1 <= len(ticks) <= 9
    assert all(first <= tick <= first + length for tick in ticks)
    assert len(ticks) >= 3 or length < 10


def test_step_ticks_are_round():
    assert list(step_ticks(2, 1200)) == [200, 400, 600, 800, 1000, 1200]
    assert list(step_ticks(1, 7)) == [1, 2, 3, 4, 5, 6, 7]


def test_points_lie_where_the_logarithmic_axis_says():
    c = curve(log([1.0, 0.1, 0.01]))
    x, y, _ = place(c, 0.001, 10, width=200, height=400)
    np.testing.assert_allclose(x, [0, 100, 200])
    np.testing.assert_allclose(y, [100, 200, 300])


def test_axis_has_room_even_for_a_constant_loss():
    low, high = axis(np.array([0.5, 0.5]))
    assert low < 0.5 < high
    assert "NaN" not in chart(curve(log([0.5, 0.5])))


def test_without_a_curve_there_is_a_sentence():
    assert "no curve yet" in chart(curve([]))
    assert "no curve yet" in chart(curve(log([1.0])))
    assert "no curve yet" in chart(curve(log([1.0])[:1] * 3))
    assert sparkline(curve(log([1.0]))) == ""
    assert "from 1 to 0.5" in sparkline(curve(log([1.0, 0.5])))

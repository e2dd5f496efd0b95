"""The nearest training image against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.report import nearest as module
from pydiff.report.nearest import nearest, spread
from tests.report.example import random_images


def brute_force(samples, training, exclude=None):
    a, b = (images.reshape(len(images), -1).astype(np.int64) for images in (samples, training))
    squared = ((a[:, None] - b[None]) ** 2).sum(-1)  # (N, M), exact
    if exclude is not None:
        squared[np.arange(len(a)), exclude] = np.iinfo(np.int64).max
    index = squared.argmin(1)
    return index, np.sqrt(squared[np.arange(len(a)), index]) / 127.5


@given(
    n=st.integers(1, 5), m=st.integers(2, 12), rows=st.integers(1, 13), excluding=st.booleans(), seed=st.integers(0, 9)
)
def test_equals_brute_force_for_every_block_size(n, m, rows, excluding, seed):
    samples, training = random_images(n, seed), random_images(m, seed + 100)
    exclude = np.random.default_rng(seed).integers(0, m, n) if excluding else None
    with pytest.MonkeyPatch.context() as context:
        context.setattr(module, "BLOCK_BYTES", rows * 8 * samples[0].size)
        index, distance = nearest(samples, training, exclude)
    expected_index, expected_distance = brute_force(samples, training, exclude)
    np.testing.assert_array_equal(index, expected_index)
    np.testing.assert_array_equal(distance, expected_distance)


@pytest.mark.parametrize("rows", [1, 3, 6])
def test_a_copy_is_found_at_distance_zero_and_the_first_of_equals_wins(monkeypatch, rows):
    monkeypatch.setattr(module, "BLOCK_BYTES", rows * 8 * 16 * 16 * 3)
    training = random_images(6, seed=0, shape=(16, 16, 3))
    training[4] = training[2]
    index, distance = nearest(training[[5, 4]], training)
    assert index.tolist() == [5, 2]
    assert distance.tolist() == [0.0, 0.0]


def test_distance_is_that_of_pixels_in_minus_one_to_one():
    black, white = np.zeros((1, 2, 2, 1), np.uint8), np.full((1, 2, 2, 1), 255, np.uint8)
    assert nearest(black, white)[1].tolist() == [4.0]  # sqrt(4 pixels x 2^2)


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"must be uint8 of one size, got \(1, 2, 2, 1\) uint8 and \(1, 2, 2, 3\)"):
        nearest(random_images(1, 0, (2, 2, 1)), random_images(1, 0, (2, 2, 3)))
    with pytest.raises(ValueError, match=r"must be uint8 of one size, got \(1, 2, 2, 1\) float64"):
        nearest(np.zeros((1, 2, 2, 1)), random_images(1, 0, (2, 2, 1)))
    with pytest.raises(ValueError, match="a training image to compare with, got 1"):
        nearest(random_images(1, 0), random_images(1, 0), exclude=np.array([0]))


@given(total=st.integers(1, 300), count=st.integers(2, 50))
def test_spread_has_both_ends_and_no_repeats(total, count):
    chosen = spread(total, count)
    assert len(chosen) == min(total, count)
    assert chosen[0] == 0
    assert chosen[-1] == total - 1
    assert (np.diff(chosen) > 0).all()

"""The order of the data: complete epochs, random access, no dependence on the batch size; and the mirroring."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.data import batch_indices, flip

SEEDS = st.integers(0, 2**64 - 1)


def stream(n, batch_size, steps, seed):
    return np.concatenate([batch_indices(n, batch_size, step, seed) for step in range(steps)])


@given(st.integers(1, 50), st.integers(1, 70), SEEDS)
def test_every_image_appears_exactly_once_in_every_epoch(n, batch_size, seed):
    epochs = 4
    places = stream(n, batch_size, -(-epochs * n // batch_size), seed)[: epochs * n]
    assert places.dtype == np.int64
    for epoch in places.reshape(epochs, n):
        assert Counter(epoch.tolist()) == dict.fromkeys(range(n), 1)


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 60), SEEDS)
def test_the_stream_does_not_depend_on_the_batch_size(n, one, other, seed):
    length = 120
    a, b = (stream(n, size, -(-length // size), seed)[:length] for size in (one, other))
    np.testing.assert_array_equal(a, b)


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 10**6), SEEDS)
def test_a_step_is_the_same_whenever_it_is_asked_for(n, batch_size, step, seed):
    first = batch_indices(n, batch_size, step, seed)
    batch_indices(n + 1, batch_size, step, seed)  # fills the cache with something else
    for other in range(6):
        batch_indices(n, batch_size, step + other, seed + other & 2**64 - 1)
    np.testing.assert_array_equal(batch_indices(n, batch_size, step, seed), first)
    assert first.shape == (batch_size,)


def test_epochs_and_seeds_differ():
    orders = {tuple(batch_indices(30, 30, step, seed)) for step in range(5) for seed in range(5)}
    assert len(orders) == 25


def test_the_order_is_fixed_for_ever():
    # Recorded once: a change here would change what every seed and every resumed run trains on.
    assert batch_indices(8, 8, 0, 0).tolist() == [4, 5, 0, 3, 6, 7, 2, 1]


def test_the_callers_copy_is_its_own():
    batch = batch_indices(10, 10, 0)
    batch[:] = 0
    assert sorted(batch_indices(10, 10, 0)) == list(range(10))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 1, 0), ValueError, "n is 0"),
        ((-3, 1, 0), ValueError, "n is -3"),
        ((5, 0, 0), ValueError, "batch_size is 0"),
        ((5, 1, -1), ValueError, "step is -1"),
        ((5, 1, 0, -1), ValueError, "seed is -1"),
        ((5, 1, 2**40), ValueError, "step runs from"),  # beyond 2^32 epochs
        ((5.0, 1, 0), TypeError, "n is 5.0"),
        ((5, "1", 0), TypeError, "batch_size is '1'"),
        ((5, 1, None), TypeError, "step is None"),
        ((True, 1, 0), TypeError, "n is True"),
        ((5, 1, 0, "x"), TypeError, "seed"),
    ],
)
def test_impossible_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        batch_indices(*arguments)


def images(n=64):
    return np.random.default_rng(0).standard_normal((n, 3, 5, 2)).astype(np.float32)


def mirrored(before, after):
    """(N,) bool; fails unless every image is either itself or its mirror image."""
    same = (after == before).all(axis=(1, 2, 3))
    swapped = (after == before[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ swapped).all()
    return swapped


def test_flip_mirrors_about_half_left_to_right():
    before = images(1000)
    chosen = mirrored(before, flip(before, step=3, seed=1))
    assert 400 <= chosen.sum() <= 600  # more than six standard deviations either way


def test_flip_is_a_function_of_seed_step_and_place():
    before = images()
    chosen = mirrored(before, flip(before, 5, 7))
    np.testing.assert_array_equal(mirrored(before, flip(before, 5, 7)), chosen)
    np.testing.assert_array_equal(mirrored(before[:10], flip(before[:10], 5, 7)), chosen[:10])
    assert (mirrored(before, flip(before, 6, 7)) != chosen).any()
    assert (mirrored(before, flip(before, 5, 8)) != chosen).any()


def test_flip_leaves_its_input_alone():
    before = images()
    copy = before.copy()
    assert flip(before, 0).dtype == np.float32
    np.testing.assert_array_equal(before, copy)


def test_flip_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"samples have shape \(3, 5\)"):
        flip(np.zeros((3, 5)), 0)
    with pytest.raises(ValueError, match="step"):
        flip(images(), -1)

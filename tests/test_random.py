"""Counter-based random numbers: published vectors, moments, and independence of everything that must not matter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import random
from pydiff.reference import noise as reference

PURPOSES = (random.INIT, random.DATA, random.TIMESTEP, random.NOISE)
PURPOSES += (random.SAMPLE, random.DROPOUT, random.AUGMENT, random.CONDITION)
PURPOSES += (random.OFFSET, random.SELF_CONDITION, random.CAPTION)
seeds = st.integers(0, 2**64 - 1)
words32 = st.integers(0, 2**32 - 1)


# The known-answer vectors of the Random123 distribution for philox4x32, 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    counter, key, expected = ([int(word, 16) for word in text.split()] for text in (counter, key, expected))
    assert [int(word) for word in random.philox4x32(counter, key[0] | key[1] << 32)] == expected
    assert list(reference.philox4x32(tuple(counter), tuple(key))) == expected


@given(seed=seeds, purpose=words32, sample=words32, step=words32, size=st.integers(0, 9))
def test_addresses_and_normals_equal_the_scalar_reference(seed, purpose, sample, step, size):
    z = random.normal(random.key(seed, purpose, sample, step), (size,), np.float64)
    expected = [reference.normal(seed, purpose, sample, step, element) for element in range(size)]
    np.testing.assert_allclose(z, [expected], rtol=1e-14, atol=1e-15)


def test_words_are_the_blocks_in_order():
    w = random.words(random.key(7 | 9 << 32, purpose=3, sample=[5, 6], step=8), 6)
    for row, sample in zip(w, (5, 6), strict=True):
        blocks = [*reference.philox4x32((0, 8, sample, 3), (7, 9)), *reference.philox4x32((1, 8, sample, 3), (7, 9))]
        assert row.tolist() == blocks[:6]


# ---- what must not matter ------------------------------------------------------------------------------------------


@given(seed=seeds, samples=st.lists(words32, min_size=1, max_size=6), size=st.integers(1, 40), data=st.data())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sample_is_bitwise_the_same_alone_and_in_any_batch(dtype, seed, samples, size, data):
    i = data.draw(st.integers(0, len(samples) - 1))
    batch = random.normal(random.key(seed, random.NOISE, samples, 3), (size,), dtype)
    alone = random.normal(random.key(seed, random.NOISE, samples[i], 3), (size,), dtype)
    assert batch.dtype == dtype
    assert batch[i].tobytes() == alone[0].tobytes()


@given(shape=st.lists(st.integers(0, 7), max_size=3), more=st.integers(0, 70), dtype=st.sampled_from(["f4", "f8"]))
def test_a_longer_shape_begins_with_the_shorter_one(shape, more, dtype):
    key = random.key(1, random.SAMPLE, [2, 40], [0, 5])
    for draw in (random.normal, random.uniform):
        short = draw(key, shape, dtype)
        size = short[0].size
        long = draw(key, (size + more,), dtype)
        assert short.shape == (2, *shape)
        assert short.dtype == long.dtype == np.dtype(dtype)
        assert short.flags.c_contiguous
        assert long.flags.c_contiguous
        assert short.reshape(2, size).tobytes() == np.ascontiguousarray(long[:, :size]).tobytes()
    assert (random.words(key, size + more)[:, :size] == random.words(key, size)).all()


def test_every_part_of_the_address_matters():
    assert len(set(PURPOSES)) == len(PURPOSES)
    seeds_samples_steps = [(1, 0, 0), (2**32, 0, 0), (0, 1, 0), (0, 0, 1)]
    addresses = [(seed, random.NOISE, sample, step) for seed, sample, step in seeds_samples_steps]
    addresses += [(0, purpose, 0, 0) for purpose in PURPOSES]
    n = 4096
    z = np.concatenate([random.normal(random.key(*address), (n,), np.float64) for address in addresses])
    correlation = z @ z.T / n
    off_diagonal = correlation[~np.eye(len(z), dtype=bool)]
    assert np.abs(off_diagonal).max() <= 5 / np.sqrt(n)


def test_samples_and_steps_broadcast():
    key = random.key(0, random.NOISE, np.arange(3), 2)
    assert key.sample.tolist() == [0, 1, 2]
    assert key.step.tolist() == [2, 2, 2]
    assert random.key(0, random.NOISE, 1, [4, 5]).sample.tolist() == [1, 1]
    assert random.normal(random.key(0, random.NOISE, np.empty(0, int), 0), (4,)).shape == (0, 4)


# ---- distributions -------------------------------------------------------------------------------------------------


def kolmogorov_smirnov(values, cdf):
    """Largest distance between the empirical distribution function and `cdf`, times sqrt(n)."""
    p = cdf(np.sort(values.ravel()))
    n = p.size
    steps = np.arange(n + 1) / n
    return np.sqrt(n) * max(np.abs(steps[1:] - p).max(), np.abs(p - steps[:-1]).max())


# P(sqrt(n) D > 2.23) is 1e-4 for large n (Kolmogorov's distribution: 2 exp(-2 x^2)).
KS_BOUND = 2.23


def normal_cdf(x):
    """Standard normal distribution function, by the trapezoidal rule on a fine grid."""
    grid = np.linspace(-8.0, 8.0, 160_001)
    density = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    return np.interp(x, grid, np.append(0.0, np.cumsum((density[1:] + density[:-1]) / 2 * 1e-4)))


def test_normal_moments_and_distribution():
    z = random.normal(random.key(11, random.NOISE, np.arange(64), 0), (32, 32, 3), np.float64)
    n = z.size
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:  # E z^p and Var z^p of a normal
        assert abs((z**power).mean() - mean) <= 5 * np.sqrt(variance / n), power
    assert kolmogorov_smirnov(z, normal_cdf) <= KS_BOUND
    neighbours = [(z[..., 0] * z[..., 1]).mean(), (z[:, :, 0] * z[:, :, 1]).mean(), (z[0] * z[1]).mean()]
    assert np.abs(neighbours).max() <= 5 / np.sqrt(z[0].size)


def test_uniform_distribution_and_bounds():
    u = random.uniform(random.key(12, random.AUGMENT, np.arange(16), 0), (4096,))
    assert u.dtype == np.float32
    assert u.min() >= 0
    assert u.max() < 1
    assert kolmogorov_smirnov(u.astype(np.float64), lambda x: x) <= KS_BOUND


def test_normals_are_finite_and_bounded():
    # the extreme words: u1 = 2^-24 gives the largest radius, u1 = 1 gives 0
    z = random.normal(random.key(3, random.NOISE, np.arange(256), 0), (4096,))
    assert np.abs(z).max() <= np.sqrt(48 * np.log(2))


@given(high=st.integers(1, 5000))
def test_integers_stay_in_range(high):
    t = random.integers(random.key(0, random.TIMESTEP, np.arange(500), 0), high)
    assert t.dtype == np.int64
    assert t.min() >= 0
    assert t.max() < high


def test_integers_are_uniform():
    n, high = 100_000, 10
    counts = np.bincount(random.integers(random.key(5, random.TIMESTEP, np.arange(n), 1), high), minlength=high)
    chi_square = ((counts - n / high) ** 2 / (n / high)).sum()
    assert chi_square <= 33.7  # 1e-4 quantile of chi-square with 9 degrees of freedom


# ---- permutation ---------------------------------------------------------------------------------------------------


@given(seed=seeds, epoch=words32, n=st.integers(0, 200))
def test_permutation_is_one_and_is_pure(seed, epoch, n):
    order = random.permutation(seed, random.DATA, epoch, n)
    assert sorted(order.tolist()) == list(range(n))
    assert (order == random.permutation(seed, random.DATA, epoch, n)).all()


def test_permutations_differ_and_are_uniform():
    orders = np.array([random.permutation(0, random.DATA, epoch, 3) for epoch in range(3000)])
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert np.abs(counts - 500).max() <= 5 * np.sqrt(500)
    assert (random.permutation(0, random.DATA, 0, 50) != random.permutation(1, random.DATA, 0, 50)).any()


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1, 0, 0, 0), ValueError, "seed is -1"),
        ((2**64, 0, 0, 0), ValueError, "seed is 18446744073709551616"),
        ((0.5, 0, 0, 0), TypeError, "seed must be a whole number, got 0.5"),
        ((0, 2**32, 0, 0), ValueError, "purpose is 4294967296"),
        ((0, 0, [0, -1], 0), ValueError, "sample runs from -1 to 0"),
        ((0, 0, 0, 2**32), ValueError, "step runs from 4294967296"),
        ((0, 0, [0.0, 1.0], 0), TypeError, "sample has dtype float64"),
        ((0, 0, 0, [[1]]), ValueError, r"step has shape \(1, 1\)"),
        ((0, 0, [1, 2, 3], [1, 2]), ValueError, "got 3 samples and 2 steps"),
    ],
)
def test_bad_keys_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        random.key(*arguments)


def test_bad_sizes_are_refused():
    key = random.key(0, random.NOISE, 0)
    with pytest.raises(ValueError, match="high is 0"):
        random.integers(key, 0)
    with pytest.raises(ValueError, match="got 17179869185 elements"):
        random.words(key, 2**34 + 1)

"""Random numbers as a pure function of (seed, purpose, sample, step, element): no state, nothing to restore on resume.

Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a 64-bit key
and a 128-bit counter into four 32-bit words. Here the key is the seed, and the counter says what the number is for:

    key      (seed low word, seed high word)
    counter  (block, step, sample, purpose)          element i of a sample is word i % 4 of block i // 4

So a sample gets the same numbers alone or in any batch, with any number of threads, and before or after a resume. This
file is the reference for the native kernels: their words agree bit for bit, their normals to rounding.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

# What a number is for. Streams with different purposes never share a counter.
INIT = 0  # initial weights
DATA = 1  # order of the training data
TIMESTEP = 2  # t of a training example
NOISE = 3  # eps of a training example
SAMPLE = 4  # x_T and the noise of the samplers
DROPOUT = 5
AUGMENT = 6
CONDITION = 7  # which conditions are dropped for classifier-free guidance
OFFSET = 8  # one number per image and channel, for offset noise
SELF_CONDITION = 9  # which training examples get the network's own x0-hat
CAPTION = 10  # which of an image's captions a training example gets

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # Salmon et al., table 2
WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1, in units of 2^-32
ROUNDS = 10
MASK = 0xFFFFFFFF


class Key(NamedTuple):
    """Where to draw from: a stream of elements for each of N pairs (sample, step). Made by `key`, which checks it and
    makes its arrays read-only.
    """

    seed: int
    purpose: int
    sample: np.ndarray  # (N,) uint32
    step: np.ndarray  # (N,) uint32


def key(seed: int, purpose: int, sample, step=0) -> Key:
    """A checked `Key`. `sample` and `step` are integers or (N,) integer arrays and broadcast against each other.

    Raises ValueError unless 0 <= seed < 2^64 and purpose, sample and step are in 0 .. 2^32 - 1; TypeError if not
    integers.
    """
    for name, value in (("seed", seed), ("purpose", purpose)):
        if not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name} must be a whole number, got {value!r:.50}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}, expected 0 <= seed < 2**64; take it modulo 2**64")
    if not 0 <= purpose <= MASK:
        raise ValueError(f"purpose is {purpose}, expected 0 <= purpose < 2**32; use the constants of pydiff.random")
    sample, step = _counter_word("sample", sample), _counter_word("step", step)
    if sample.size != step.size and 1 not in (sample.size, step.size):
        raise ValueError(f"got {sample.size} samples and {step.size} steps; give one of each, or equally many")
    sample, step = (np.array(values, order="C") for values in np.broadcast_arrays(sample, step))
    for values in (sample, step):
        values.flags.writeable = False  # so that one copy on a GPU suffices
    return Key(int(seed), int(purpose), sample, step)


def numbers_of(n, count: int | None = None) -> np.ndarray:
    """The numbers (N,) of samples: 0 .. n-1 for a whole number, n itself for an array, 0 .. count-1 for None."""
    n = (count or 0) if n is None else n
    return np.arange(n) if np.ndim(n) == 0 else np.asarray(n)


def _counter_word(name: str, values) -> np.ndarray:
    values = np.atleast_1d(np.asarray(values))
    if values.ndim != 1:
        raise ValueError(f"{name} has shape {values.shape}, expected an integer or shape (N,); flatten it")
    if values.size and values.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {values.dtype}, expected integers; convert it with .astype(np.int64)")
    if values.size and not (values.min() >= 0 and values.max() <= MASK):
        raise ValueError(f"{name} runs from {values.min()} to {values.max()}, expected 0 .. 2**32 - 1; renumber it")
    return values.astype(np.uint32)


def philox4x32(counter: Sequence, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Philox4x32-10: maps four uint32 arrays, which broadcast against each other, to four of the common shape."""
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint32) for word in counter)
    k0, k1 = seed & MASK, seed >> 32
    for _ in range(ROUNDS):
        product0 = c0.astype(np.uint64) * MULTIPLIERS[0]
        product1 = c2.astype(np.uint64) * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            _high(product1) ^ c1 ^ np.uint32(k0),
            product1.astype(np.uint32),  # the cast keeps the low word
            _high(product0) ^ c3 ^ np.uint32(k1),
            product0.astype(np.uint32),
        )
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def _high(product: np.ndarray) -> np.ndarray:
    return (product >> np.uint64(32)).astype(np.uint32)


def words(key: Key, size: int) -> np.ndarray:
    """The first `size` random words of every sample: (N, size) uint32."""
    return np.ascontiguousarray(_blocks(key, size)[:, :size])


def _blocks(key: Key, size: int) -> np.ndarray:
    """Whole blocks that hold at least `size` words: (N, 4 ceil(size / 4)) uint32."""
    blocks = -(-size // 4)
    if not 0 <= size <= 4 * 2**32:
        raise ValueError(f"got {size} elements a sample, expected 0 .. 2**34; split the sample")
    block = np.arange(blocks, dtype=np.uint32)[None, :]
    counter = (block, key.step[:, None], key.sample[:, None], np.uint32(key.purpose))
    return np.stack(philox4x32(counter, key.seed), axis=-1).reshape(len(key.sample), 4 * blocks)


def uniform(key: Key, shape: Sequence[int] = (), dtype: DTypeLike = np.float32) -> np.ndarray:
    """Uniform numbers in [0, 1) with 24 random bits, exact in float32 and float64: (N, *shape)."""
    w = words(key, prod(shape))
    return ((w >> 8).astype(np.float64) * 2.0**-24).astype(dtype).reshape(len(w), *shape)


def integers(key: Key, high: int) -> np.ndarray:
    """One integer in 0 .. high - 1 for every sample: (N,) int64, by multiply and shift; bias below high / 2^32."""
    if not 1 <= high <= 2**32:
        raise ValueError(f"high is {high}, expected 1 .. 2**32; there is nothing to draw from otherwise")
    return (words(key, 1)[:, 0].astype(np.uint64) * np.uint64(high) >> np.uint64(32)).astype(np.int64)


def normal(key: Key, shape: Sequence[int] = (), dtype: DTypeLike = np.float32) -> np.ndarray:
    """Standard normal numbers by Box and Muller (1958), computed in float64 and then cast: (N, *shape).

    With u1 = ((w_even >> 8) + 1) 2^-24 in (0, 1] and u2 = (w_odd >> 8) 2^-24 in [0, 1):
    z_even = sqrt(-2 ln u1) cos(2 pi u2),  z_odd = sqrt(-2 ln u1) sin(2 pi u2);  so |z| <= sqrt(48 ln 2) = 5.77.
    """
    size = prod(shape)
    w = (_blocks(key, size) >> 8).astype(np.float64)  # whole blocks, so that a pair is never cut
    radius = np.sqrt(-2.0 * np.log((w[:, 0::2] + 1.0) * 2.0**-24))
    theta = w[:, 1::2] * (2.0 * np.pi * 2.0**-24)
    z = np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=-1).reshape(w.shape)
    return z[:, :size].astype(dtype, order="C").reshape(len(w), *shape)


def permutation(seed: int, purpose: int, epoch: int, n: int) -> np.ndarray:
    """The numbers 0 .. n - 1 in random order: (n,) int64, a pure function of its arguments.

    Sorts n 64-bit random numbers; two are equal with probability below n^2 2^-65, and then keep their order.
    """
    w = words(key(seed, purpose, sample=0, step=epoch), 2 * n)[0].astype(np.uint64)
    return np.argsort(w[0::2] << np.uint64(32) | w[1::2], kind="stable")

"""What CUDA and the PTX ISA define, against NumPy: collectives, atomics, bfloat16, and products on tensor cores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.emulated import simt

LANE = np.arange(32)


def shuffled(x, source, width=32, up=False):
    """x of the source lane; lanes whose source is outside their segment of `width` keep their own."""
    start = LANE // width * width
    inside = source >= start if up else source < start + width
    return x[np.where(inside, source, LANE)]


@given(seed=st.integers(0, 1000), x=st.lists(st.integers(0, 100), min_size=32, max_size=32))
def test_collectives(seed, x):
    x = np.array(x, np.int32)
    simt.set_seed(seed)
    odd = np.packbits(x % 2 == 1, bitorder="little").view(np.int32)[0]
    start = LANE // 8 * 8
    np.testing.assert_array_equal(
        simt.collectives(x),
        [
            x[(7 * LANE + 3) % 32],
            x[start + 5],
            shuffled(x, LANE - 3, up=True),
            shuffled(x, LANE - 3, 8, up=True),
            shuffled(x, LANE + 5),
            shuffled(x, LANE + 5, 16),
            shuffled(x, LANE ^ 5),
            shuffled(x, LANE ^ 9, 8),
            np.full(32, odd),
            np.full(32, np.any(x > 90)),
            np.full(32, np.all(x >= 0)),
            x[LANE ^ 1],
            x[::-1],
            np.where(LANE < 10, odd & 0x3FF, 0),
            np.where(LANE < 20, 0xFFFFF, -1),  # 12 lanes have ended, and left the poison that memory begins as
        ],
    )


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=200))
def test_atomics(x):
    before = simt.threads()
    simt.set_threads(1)
    simt.counters()
    totals, halves = simt.atomics(np.array(x, np.int32))
    simt.set_threads(before)
    sign = -1 if sum(v < 0 for v in x) % 2 else 1
    assert totals.tolist() == [sum(x), max(x), sum(x), sign]
    assert halves == len(x) / 2
    assert simt.counters()["atomics"] == 5 * len(x)  # the CAS loop meets nobody: nothing runs in between


def bfloat16(x):
    """x rounded to bfloat16, in float64: to a multiple of the unit of its 8 bits; np.round takes ties to even."""
    x = np.asarray(x, np.float64)
    unit = np.exp2(np.maximum(np.frexp(x)[1], -125) - 8)
    return np.round(x / unit) * unit


@given(st.lists(st.floats(width=32, allow_nan=False, max_value=2.0**100, min_value=-(2.0**100)), min_size=1))
def test_bfloat16_rounds_to_nearest_even(x):
    bits = simt.to_bfloat16(np.array(x, np.float32)).astype(np.uint32) << 16
    np.testing.assert_array_equal(bits.view(np.float32).astype(np.float64), bfloat16(x))


@given(st.lists(st.floats(width=32, min_value=0.0), min_size=1))
def test_fast_square_root(x):
    """What sqrt.approx.ftz promises: a relative error of 2^-23, subnormal numbers taken for 0."""
    x = np.array([*x, 0.0, -0.0, np.inf, 2.0**-127], np.float32)
    root = simt.sqrt_approx(x)
    exact = np.sqrt(np.where(x < 2.0**-126, 0.0, x).astype(np.float64))
    np.testing.assert_allclose(root, exact, rtol=2.0**-23)
    assert np.signbit(root[-3:]).tolist() == [True, False, False]
    assert np.isnan(simt.sqrt_approx(np.float32([-1.0, np.nan]))).all()


@pytest.mark.parametrize(
    ("x", "bits"),
    [
        (0x3F808000, 0x3F80),  # a tie, to even: down
        (0x3F818000, 0x3F82),  # a tie, to even: up
        (0x3F808001, 0x3F81),
        (0x7F7FFFFF, 0x7F80),  # the largest float32 becomes infinity
        (0xFF800000, 0xFF80),
        (0x7F800001, 0x7FFF),  # NaN whose upper half alone would be infinity
        (0x80000000, 0x8000),
    ],
)
def test_bfloat16_edges(x, bits):
    assert simt.to_bfloat16(np.array([x], np.uint32).view(np.float32))[0] == bits


def test_exp2_has_no_subnormal_results():
    x = np.array([-np.inf, -1e30, -127, -126.5, -126, -3.25, 0, 0.5, 127, 128, np.inf, np.nan], np.float32)
    expected = [0, 0, 0, 0, 2.0**-126, 2.0**-3.25, 1, 2.0**0.5, 2.0**127, np.inf, np.inf, np.nan]
    np.testing.assert_allclose(simt.exp2_fast(x), expected, rtol=2.0**-22)


def tf32(x):
    """float32 with the 10 upper bits of its mantissa, to nearest, ties away from zero."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x1000) & ~np.uint32(0x1FFF)).view(np.float32).astype(np.float64)


@given(m=st.integers(1, 40), n=st.integers(1, 20), k=st.integers(1, 40), seed=st.integers(0, 9))
def test_products_on_tensor_cores(m, n, k, seed):
    """The fragments of A, B and C are where the tables say, and sums are float32: one rounding an instruction."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal((k, n)).astype(np.float32)
    simt.set_seed(seed)
    for kernel, rounded in ((simt.matmul_bf16, bfloat16), (simt.matmul_tf32, tf32)):
        size = np.abs(rounded(a)) @ np.abs(rounded(b))
        assert np.all(np.abs(kernel(a, b) - rounded(a) @ rounded(b)) <= 1e-6 * size + 1e-30)


def test_every_form_of_ldmatrix():
    """Lane i gets row i / 4, columns 2 (i % 4) and the next, the first in the lower half; or those of the transpose."""
    x = np.random.default_rng(0).integers(0, 2**16, (4, 8, 8)).astype(np.uint16)
    plain = [matrix.reshape(32, 2).copy().view(np.uint32).ravel() for matrix in x]
    transposed = [matrix.T.reshape(32, 2).copy().view(np.uint32).ravel() for matrix in x]
    expected = [*plain[:1], *plain[:2], *plain, *transposed[:1], *transposed[:2], *transposed]
    np.testing.assert_array_equal(simt.fragments(x), expected)


def test_counters_count_and_begin_again():
    simt.counters()
    simt.block_sum(np.ones(128, np.float32))
    counted = simt.counters()
    assert counted["barriers"] == 2 * 7  # two blocks; one barrier, then one in each of six steps
    assert counted["switches"] == 128 * 8  # each thread at each barrier, and at its end
    assert simt.counters() == dict.fromkeys(counted, 0)

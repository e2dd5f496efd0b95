"""Group normalisation: array path against the equation, gradient against its slope, kernels against the array path."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import backend, ops
from pydiff.reference.group_norm import group_norm as reference
from tests.compare import assert_close, check_gradient, check_kernel, gradients
from tests.strategies import seeds, simd, small, strided  # noqa: F401


@st.composite
def cases(draw):
    """x with 0 to 3 position axes, in any memory order, and everything that goes with it."""
    rng = np.random.default_rng(draw(seeds))
    groups, width = draw(small), draw(small)
    positions = draw(st.lists(small, max_size=3))
    if width * int(np.prod(positions)) == 1:
        positions = [*positions, 2]  # one element per group has no variance, so y is beta and every slope is noise
    c = groups * width
    x = draw(strided(rng, (draw(st.integers(1, 3)), *positions, c)))
    # A large mean beside a small spread is what naive variance formulas (E[x²] - E[x]²) get wrong.
    x = x + draw(st.sampled_from([0.0, 3.0, 30.0]))
    options = {
        "groups": groups,
        "eps": draw(st.sampled_from([1e-5, 1e-3])),
        "activation": draw(st.sampled_from([None, "silu"])),
    }
    return rng, [x, 1 + 0.5 * rng.standard_normal(c), rng.standard_normal(c)], options


@given(cases())
def test_array_path_matches_the_equation(case):
    _, arrays, options = case
    assert_close(ops.group_norm(*map(ops.Tensor, arrays), **options).data, reference(*arrays, **options), rtol=1e-12)


@given(cases())
def test_gradient_matches_the_slope_of_the_reference(case):
    rng, arrays, options = case
    # eps = 1e-5 with a tiny variance makes the function so curved that central differences lose digits
    options = {**options, "eps": 1e-3}
    check_gradient(
        lambda *a: ops.group_norm(*a, **options), lambda *a: reference(*a, **options), arrays, rng, rtol=2e-6
    )


@pytest.mark.usefixtures("simd")
@given(case=cases())
def test_kernel_is_as_exact_as_plain_float32(case):
    rng, arrays, options = case
    check_kernel(lambda *a: ops.group_norm(*a, **options), arrays, rng)


@pytest.mark.usefixtures("simd")
def test_same_bits_for_any_batch_and_any_thread_count():
    rng = np.random.default_rng(0)
    x, gamma, beta, dy = (
        rng.standard_normal(s).astype(np.float32) for s in ((5, 7, 9, 24), (24,), (24,), (5, 7, 9, 24))
    )

    def run(part):
        return gradients(lambda x: ops.group_norm(x, gamma, beta, 3, activation="silu"), [x[part]], dy[part])

    together, before = run(slice(None)), backend.threads()
    for i in range(5):
        for a, b in zip(run(slice(i, i + 1)), together, strict=True):
            assert np.array_equal(a[0], b[i])
    try:
        for threads in (1, 2, 3, 8):
            backend.cpu.set_threads(threads)
            got = gradients(lambda *a: ops.group_norm(*a, 3, activation="silu"), [x, gamma, beta], dy)
            if threads == 1:
                expected = got
            assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    finally:
        backend.cpu.set_threads(before)


def test_constant_input_gives_beta():
    """Zero variance: x_hat is 0, whatever the rounding of the mean."""
    x = np.full((2, 4, 4, 6), 0.1, np.float32)
    y = ops.group_norm(ops.Tensor(x), np.ones(6, np.float32), np.arange(6, dtype=np.float32), 2).data
    assert_close(y, np.broadcast_to(np.arange(6.0), x.shape), rtol=0, atol=1e-4)


def test_empty_batch():
    y = ops.group_norm(ops.Tensor(np.zeros((0, 3, 4), np.float32)), np.ones(4, np.float32), np.zeros(4, np.float32), 2)
    assert y.shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("x_shape", "gamma_shape", "options", "message"),
    [
        ((4,), (4,), {"groups": 2}, "needs x of shape"),
        ((2, 0, 4), (4,), {"groups": 2}, "something to normalise"),
        ((2, 3, 4), (4,), {"groups": 3}, "cannot cut 4 channels into 3"),
        ((2, 3, 4), (4,), {"groups": 0}, "cannot cut"),
        ((2, 3, 4), (3,), {"groups": 2}, r"must have shape \(4,\)"),
        ((2, 3, 4), (4,), {"groups": 2, "activation": "relu"}, "activation must be"),
    ],
)
def test_bad_arguments(x_shape, gamma_shape, options, message):
    with pytest.raises(ValueError, match=message):
        ops.group_norm(ops.Tensor(np.zeros(x_shape)), np.ones(gamma_shape), np.zeros(gamma_shape), **options)

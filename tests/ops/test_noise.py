"""The forward process: array path against the scalar reference, gradient, kernels, and what the noise may depend on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import ops, random
from pydiff.reference.noise import noise as reference
from pydiff.tensor import Tensor
from tests.bits import assert_same_bits, check_any_batch, check_any_thread_count
from tests.compare import assert_close, check_gradient, check_kernel, gradients
from tests.strategies import seeds, simd, sizes, small, strided  # noqa: F401

words = st.integers(0, 2**32 - 1)


@st.composite
def cases(draw, extent=small):
    """x0 in any memory order, alpha and sigma, and a key with samples and steps up to the ends of their range."""
    rng = np.random.default_rng(draw(seeds))
    n = draw(st.integers(1, 4))
    x0 = draw(strided(rng, (n, *draw(st.lists(extent, min_size=1, max_size=2)))))
    alpha, sigma = rng.uniform(0, 1, (2, n)) * draw(st.sampled_from([0.0, 1.0, 50.0]))
    purpose = draw(st.sampled_from([random.NOISE, random.SAMPLE, 2**32 - 1]))
    sample, step = ([draw(words) for _ in range(n)] for _ in range(2))
    return rng, x0, alpha, sigma, random.key(draw(st.integers(0, 2**64 - 1)), purpose, sample, step)


@given(cases(st.integers(1, 4)))
def test_array_path_matches_the_equation(case):
    _, x0, alpha, sigma, key = case
    got = ops.noise(Tensor(x0), alpha, sigma, key)
    for a, expected in zip(got, reference(x0, alpha, sigma, *key), strict=True):
        assert_close(a.data, expected, rtol=1e-12)


@given(cases())
def test_gradient_matches_the_slope(case):
    rng, x0, alpha, sigma, key = case
    eps = random.normal(key, x0.shape[1:], np.float64)
    column = (-1,) + (1,) * (x0.ndim - 1)
    check_gradient(
        lambda x: ops.noise(x, alpha, sigma, key)[0],
        lambda x: alpha.reshape(column) * x + sigma.reshape(column) * eps,
        [x0],
        rng,
    )


def test_the_noise_does_not_depend_on_the_picture():
    """So a loss on eps alone sends nothing back."""
    x0 = Tensor(np.ones((2, 3)), requires_grad=True)
    _, eps = ops.noise(x0, np.ones(2), np.ones(2), random.key(0, random.NOISE, [0, 1], 0))
    eps.sum().backward()
    assert x0.grad is None


@pytest.mark.usefixtures("simd")
@given(case=cases(sizes))
def test_kernel_is_as_exact_as_plain_float32(case):
    rng, x0, alpha, sigma, key = case
    check_kernel(lambda x: ops.noise(x, alpha, sigma, key)[0], [x0], rng, floor=5e-6 * max(sigma.max(), 1))


@pytest.mark.usefixtures("simd")
def test_kernel_normals_agree_to_rounding():
    """A million normals of odd length: every one within a few roundings of the float64 value of the same bits."""
    key = random.key(2**64 - 1, random.SAMPLE, np.arange(7), 2**32 - 1)
    shape = (131, 1093)
    x0, zero, one = np.zeros((7, *shape), np.float32), np.zeros(7), np.ones(7)
    got = ops.noise(x0, zero, one, key)[1].data
    exact = random.normal(key, shape, np.float64)
    error = np.abs(got - exact)
    # cos and sin are near zero where their angle's rounding counts, hence the absolute part
    ok = error <= 1e-6 + 4 * np.spacing(np.abs(exact).astype(np.float32))
    assert ok.all(), f"off by up to {error[~ok].max():.3g} in {np.sum(~ok)} places"
    assert got.dtype == np.float32


@pytest.mark.usefixtures("simd")
@given(size=st.integers(0, 70), more=st.integers(0, 70))
def test_kernel_elements_do_not_depend_on_how_many_there_are(size, more):
    """The last, half-filled vector of a short sample holds what the middle of a longer one holds."""
    key = random.key(3, random.NOISE, [0, 9], [4, 5])

    def eps(k):
        return ops.noise(np.zeros((2, k), np.float32), np.ones(2), np.ones(2), key)[1].data

    assert_same_bits([eps(size)], [np.ascontiguousarray(eps(size + more)[:, :size])])


@pytest.mark.usefixtures("simd")
def test_kernel_crosses_its_tiles_without_a_seam():
    key = random.key(3, random.NOISE, [1], 1)
    got = ops.noise(np.zeros((1, 20_001), np.float32), np.zeros(1), np.ones(1), key)[0].data
    assert_close(got, random.normal(key, (20_001,), np.float64), rtol=0, atol=5e-6)


@pytest.mark.usefixtures("simd")
def test_same_bits_for_any_batch_and_any_thread_count():
    rng = np.random.default_rng(0)
    x0, alpha, sigma = rng.standard_normal((5, 33, 41, 3)).astype(np.float32), rng.uniform(size=5), rng.uniform(size=5)
    sample, step = np.array([4, 0, 2**32 - 1, 7, 7]), np.arange(5)

    def run(part):
        key = random.key(1, random.NOISE, sample[part], step[part])
        tensor = Tensor(x0[part], requires_grad=True)
        x_t, eps = ops.noise(tensor, alpha[part], sigma[part], key)
        x_t.backward(x0[part])
        return [x_t.data, eps.data, tensor.grad]

    check_any_batch(run, 5)
    check_any_thread_count(lambda: run(slice(None)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_incoming_gradient_may_lie_in_any_order(dtype):
    x0 = np.random.default_rng(0).standard_normal((3, 5, 4)).astype(dtype)
    key, alpha = random.key(0, random.NOISE, np.arange(3), 0), np.array([0.5, 1.0, 2.0])
    got, expected = (
        gradients(lambda x: ops.noise(x, alpha, alpha, key)[0], [x0], d) for d in (np.asfortranarray(x0), x0)
    )
    np.testing.assert_array_equal(got[1], expected[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 5, 0, 3)])
def test_empty_arrays(shape, dtype):
    n = shape[0]
    key = random.key(0, random.NOISE, np.arange(n), 0)
    x0 = np.zeros(shape, dtype)
    x_t, gradient = gradients(lambda x: ops.noise(x, np.ones(n), np.ones(n), key)[0], [x0], x0)
    assert x_t.shape == gradient.shape == shape


@pytest.mark.parametrize(
    ("alpha", "sigma", "samples", "message"),
    [
        (np.ones(2), np.ones(3), 3, r"alpha must have shape \(3,\) for x0 of shape \(3, 4\), got \(2,\)"),
        (np.ones(3), np.ones((3, 1)), 3, r"sigma must have shape \(3,\).*got \(3, 1\)"),
        (1.0, np.ones(3), 3, r"alpha must have shape \(3,\).*got 1\.0"),
        (np.ones(3), [1, 1, 1], 3, r"sigma must have shape \(3,\).*got \[1, 1, 1\]"),
        (np.ones(3), np.ones(3), 1, r"the key's sample must have shape \(3,\).*got \(1,\)"),
    ],
)
def test_bad_arguments(alpha, sigma, samples, message):
    key = random.key(0, random.NOISE, np.arange(samples), 0)
    with pytest.raises(ValueError, match=message):
        ops.noise(Tensor(np.zeros((3, 4))), alpha, sigma, key)


def test_a_key_with_too_few_steps_is_refused():
    key = random.key(0, random.NOISE, np.arange(3), 0)._replace(step=np.zeros(2, np.uint32))
    with pytest.raises(ValueError, match=r"the key's step must have shape \(3,\)"):
        ops.noise(Tensor(np.zeros((3, 4))), np.ones(3), np.ones(3), key)

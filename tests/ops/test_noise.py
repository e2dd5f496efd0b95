"""The forward process and the squared error against its noise: array path against the scalar reference, gradients,
kernels, and what the noise may depend on.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import backend, ops, random
from pydiff.reference.noise import noise as reference
from pydiff.reference.noise import noise_loss as loss_reference
from pydiff.tensor import Tensor
from tests.bits import assert_same_bits, check_any_batch, check_any_thread_count
from tests.compare import (
    array_path,
    assert_close,
    assert_no_worse,
    check_gradient,
    check_kernel,
    gradients,
    naive_kernels,
)
from tests.strategies import bfloat16, kernels, keys, seeds, simd, simt, sizes, small, strided  # noqa: F401


@st.composite
def cases(draw, extent=small):
    """x0 in any memory order, alpha and sigma, and a key with samples and steps up to the ends of their range."""
    rng = np.random.default_rng(draw(seeds))
    n = draw(st.integers(1, 4))
    x0 = draw(strided(rng, (n, *draw(st.lists(extent, min_size=1, max_size=2)))))
    alpha, sigma = rng.uniform(0, 1, (2, n)) * draw(st.sampled_from([0.0, 1.0, 50.0]))
    return rng, x0, alpha, sigma, draw(keys(n, [random.NOISE, random.SAMPLE, 2**32 - 1]))


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


def test_the_noise_does_not_depend_on_the_image():
    """So a loss on eps alone sends nothing back."""
    x0 = Tensor(np.ones((2, 3)), requires_grad=True)
    _, eps = ops.noise(x0, np.ones(2), np.ones(2), random.key(0, random.NOISE, [0, 1], 0))
    eps.sum().backward()
    assert x0.grad is None


@pytest.mark.usefixtures("kernels")
@given(case=cases(sizes))
def test_kernel_is_as_exact_as_plain_float32(case):
    rng, x0, alpha, sigma, key = case
    check_kernel(lambda x: ops.noise(x, alpha, sigma, key)[0], [x0], rng, floor=5e-6 * max(sigma.max(), 1))


@pytest.mark.usefixtures("bfloat16")
@given(case=cases(sizes))
def test_kernel_in_bfloat16(case):
    rng, x0, alpha, sigma, key = case
    check_kernel(lambda x: ops.noise(x, alpha, sigma, key)[0], [x0], rng, floor=5e-6 * max(sigma.max(), 1), half=[0])


@pytest.mark.usefixtures("bfloat16")
@given(case=cases(sizes))
def test_naive_kernel_agrees_with_the_fast_one(case):
    _, x0, alpha, sigma, key = case

    def run(dtype):
        x_t = Tensor(x0.astype(dtype), requires_grad=True)
        outputs = ops.noise(x_t, alpha, sigma, key)
        outputs[0].backward(x0.astype(dtype))
        return [*(o.data for o in outputs), x_t.grad]

    # Two float32 sums of alpha x0 and sigma eps are apart by their terms' roundings, two bfloat16 results by one unit.
    terms = (alpha.max() * abs(x0).max() + 6 * sigma.max()) * 2**-22
    for dtype, unit in (("float32", 2**-22), ("bfloat16", 2**-7)):
        with naive_kernels():
            naive = run(dtype)
        for got, expected in zip(run(dtype), naive, strict=True):
            assert_close(got.astype(np.float64), expected.astype(np.float64), rtol=unit, atol=terms)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [(131, 1093), (128, 1096)])
def test_kernel_normals_agree_to_rounding(shape):
    """A million normals: every one within a few roundings of the float64 value of the same bits."""
    key = random.key(2**64 - 1, random.SAMPLE, np.arange(7) + 2**32 - 7, 2**32 - 1)
    x0, zero, one = np.zeros((7, *shape), np.float32), np.zeros(7), np.ones(7)
    got = ops.noise(x0, zero, one, key)[1].data
    exact = random.normal(key, shape, np.float64)
    error = np.abs(got - exact)
    ok = error <= 4 * np.spacing(np.abs(exact).astype(np.float32)) + 1e-15  # float64's cosine of pi / 2 is not 0
    assert ok.all(), f"off by up to {error[~ok].max():.3g} in {np.sum(~ok)} places"
    assert got.dtype == np.float32


@pytest.mark.usefixtures("bfloat16")
def test_bfloat16_normals_are_those_of_float32_rounded():
    """Also alone, from the function `normal`; the last bits of the words are in the float32 ones, tested above."""
    key = random.key(5, random.NOISE, [3, 2**32 - 1], 7)
    for size in (1, 8, 2049):
        x0, one = np.zeros((2, size)), np.ones(2)
        eps = ops.noise(x0.astype(np.float32), one, one, key)[1].data
        half = ops.noise(x0.astype("bfloat16"), one, one, key)[1].data
        assert_same_bits([half], [eps.astype("bfloat16")])
        for like in (eps, half):
            alone = np.empty_like(like)
            backend.emulator.normal(*key, alone)
            assert_same_bits([alone], [like])


@pytest.mark.usefixtures("kernels")
@given(size=st.integers(0, 70), more=st.integers(0, 70))
def test_kernel_elements_do_not_depend_on_how_many_there_are(size, more):
    """The last, half-filled vector of a short sample holds what the middle of a longer one holds."""
    key = random.key(3, random.NOISE, [0, 9], [4, 5])

    def eps(k):
        return ops.noise(np.zeros((2, k), np.float32), np.ones(2), np.ones(2), key)[1].data

    assert_same_bits([eps(size)], [np.ascontiguousarray(eps(size + more)[:, :size])])


@pytest.mark.usefixtures("kernels")
def test_kernel_crosses_its_tiles_without_a_seam():
    key = random.key(3, random.NOISE, [1], 1)
    got = ops.noise(np.zeros((1, 20_001), np.float32), np.zeros(1), np.ones(1), key)[0].data
    assert_close(got, random.normal(key, (20_001,), np.float64), rtol=0, atol=5e-6)


@pytest.mark.usefixtures("simt")
def test_more_samples_than_a_grid_has_rows():
    n = 65_537
    key = random.key(3, random.NOISE, np.arange(n), 1)
    got = ops.noise(np.zeros((n, 1), np.float32), np.zeros(n), np.ones(n), key, keep=False)[0].data
    assert_close(got, random.normal(key, (1,), np.float64), rtol=0, atol=5e-6)


def noise_of_part(size):
    """run(slice of five samples) -> x_t, eps, and the gradient of x0."""
    rng = np.random.default_rng(0)
    x0, alpha, sigma = rng.standard_normal((5, size)).astype(np.float32), rng.uniform(size=5), rng.uniform(size=5)
    sample, step = np.array([4, 0, 2**32 - 1, 7, 7]), np.arange(5)

    def run(part):
        key = random.key(1, random.NOISE, sample[part], step[part])
        tensor = Tensor(x0[part], requires_grad=True)
        x_t, eps = ops.noise(tensor, alpha[part], sigma[part], key)
        x_t.backward(x0[part])
        return [x_t.data, eps.data, tensor.grad]

    return run


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", [33 * 41 * 3, 4096])
def test_same_bits_for_any_batch(size):
    check_any_batch(noise_of_part(size), 5)


@pytest.mark.usefixtures("simd")
def test_same_bits_for_any_thread_count():
    check_any_thread_count(lambda: noise_of_part(33 * 41 * 3)(slice(None)))


def check_without_eps():
    x0 = np.random.default_rng(0).standard_normal((3, 37)).astype(np.float32)
    key, alpha = random.key(0, random.NOISE, np.arange(3), 0), np.array([0.5, 1.0, 2.0])
    tensors = [Tensor(x0, requires_grad=True) for _ in range(2)]
    x_t, eps = ops.noise(tensors[0], alpha, alpha, key)
    alone, nothing = ops.noise(tensors[1], alpha, alpha, key, keep=False)
    assert eps.shape == (3, 37)
    assert nothing is None
    for made in (x_t, alone):
        made.backward(x0)
    assert_same_bits([alone.data, tensors[1].grad], [x_t.data, tensors[0].grad])


@pytest.mark.usefixtures("kernels")
def test_eps_need_not_be_kept():
    check_without_eps()


def test_eps_need_not_be_kept_on_the_array_path():
    with array_path():
        check_without_eps()


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


# ---- the squared error ---------------------------------------------------------------------------------------------


@st.composite
def losses(draw, extent=small):
    """f and x0 in any memory order, p, q, weight, some of them 0, and a key."""
    rng, f, p, q, key = draw(cases(extent))
    x0 = draw(strided(rng, f.shape))
    p, q = (np.where(rng.random(len(f)) < 0.2, 0.0, a * rng.choice([-1, 1], len(f))) for a in (p, q))
    return rng, f, x0, p, q, rng.uniform(0, 2, len(f)), key


@given(losses(st.integers(1, 4)))
def test_loss_on_the_array_path_matches_the_equation(case):
    _, f, *rest, key = case
    assert_close(ops.noise_loss(Tensor(f), *rest, key).data, loss_reference(f, *rest, *key), rtol=1e-12)


@given(losses(st.integers(1, 4)))
def test_gradient_of_the_loss_matches_the_slope_of_the_reference(case):
    rng, f, *rest, key = case
    check_gradient(lambda f: ops.noise_loss(f, *rest, key), lambda f: loss_reference(f, *rest, *key), [f], rng)


def test_loss_of_what_noise_mixes():
    """With f = x_t the loss is 0 for p = alpha and q = sigma: both draw the same noise."""
    x0, alpha, sigma = np.ones((2, 5)), np.array([0.3, 0.9]), np.array([0.7, 0.2])
    key = random.key(0, random.NOISE, [0, 1], 3)
    x_t, eps = ops.noise(x0, alpha, sigma, key)
    assert (ops.noise_loss(x_t, x0, alpha, sigma, np.ones(2), key).data <= 1e-30).all()
    zero, one = np.zeros(2), np.ones(2)
    for p, q, target in ((zero, one, eps.data), (one, zero, x0)):
        assert (ops.noise_loss(Tensor(target), x0, p, q, one, key).data == 0).all()


def test_only_f_gets_a_gradient():
    f, x0 = (Tensor(np.ones((2, 3)), requires_grad=True) for _ in range(2))
    ops.noise_loss(f, x0, *np.ones((3, 2)), random.key(0, random.NOISE, [0, 1], 0)).sum().backward()
    assert f.grad is not None
    assert x0.grad is None


@pytest.mark.usefixtures("kernels")
@given(case=losses(sizes))
def test_loss_kernel_is_as_exact_as_plain_float32(case):
    rng, f, x0, p, q, weight, key = case
    size = max(np.abs(p).max(), np.abs(q).max(), 1.0)
    check_kernel(lambda f: ops.noise_loss(f, x0, p, q, weight, key), [f], rng, floor=5e-6 * size**2)


@pytest.mark.usefixtures("bfloat16")
@given(case=losses(sizes))
def test_loss_kernel_in_bfloat16(case):
    """The loss is float32, made of f and x0 as they are in bfloat16; the gradient is rounded once."""
    rng, f, x0, p, q, weight, key = case
    f, x0 = f.astype("bfloat16"), x0.astype("bfloat16")
    size = max(np.abs(p).max(), np.abs(q).max(), 1.0)
    check_kernel(
        lambda f: ops.noise_loss(f, x0, p, q, weight, key), [f], rng, floor=5e-6 * size**2, half=[0], out=np.float32
    )


@pytest.mark.usefixtures("bfloat16")
@given(case=losses(sizes))
def test_naive_loss_kernel_agrees_with_the_fast_one(case):
    _, f, x0, p, q, weight, key = case

    def run(dtype):
        return gradients(lambda f: ops.noise_loss(f, x0, p, q, weight, key), [f.astype(dtype)], weight)

    for dtype, unit in (("float32", 2e-6), ("bfloat16", 2**-7)):
        with naive_kernels():
            naive = run(dtype)
        for got, expected in zip(run(dtype), naive, strict=True):
            assert_close(got.astype(np.float64), expected.astype(np.float64), rtol=unit)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", [2047, 2048, 2049, 4097, 70_000])
def test_loss_kernel_crosses_its_tiles_without_a_seam(size):
    """Against float64 on the array path, two samples with coefficients of their own, more than 32 tiles the last."""
    rng = np.random.default_rng(size)
    f, x0 = rng.standard_normal((2, 2, size)).astype(np.float32)
    p, q, weight = np.array([[-0.5, 0.0], [0.8, 1.0], [1.0, 3.0]])
    key = random.key(1, random.NOISE, [5, 6], 2)

    def run(dtype):
        return gradients(
            lambda f: ops.noise_loss(f, x0.astype(dtype), p, q, weight, key), [f.astype(dtype)], np.ones(2)
        )

    got = run(np.float32)
    with array_path():
        plain, exact = run(np.float32), run(np.float64)
    assert_no_worse(got[0], plain[0], exact[0], floor=1e-6, what="loss")
    assert_no_worse(got[1] * size, plain[1] * size, exact[1] * size, floor=2e-6, what="df")


def loss_of_part(size, dtype=np.float32):
    """run(slice of five samples) -> losses and the gradient of f."""
    rng = np.random.default_rng(0)
    f, x0 = rng.standard_normal((2, 5, size)).astype(dtype)
    p, q, weight = rng.uniform(size=(3, 5))
    sample, step = np.array([4, 0, 2**32 - 1, 7, 7]), np.arange(5)

    def run(part):
        key = random.key(1, random.NOISE, sample[part], step[part])
        return gradients(
            lambda f: ops.noise_loss(f, x0[part], p[part], q[part], weight[part], key), [f[part]], weight[part]
        )

    return run


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", [33 * 41 * 3, 4096])
def test_loss_has_the_same_bits_for_any_batch(size):
    check_any_batch(loss_of_part(size), 5)


def test_loss_has_the_same_bits_for_any_batch_on_the_array_path():
    with array_path():
        check_any_batch(loss_of_part(333), 5)


@pytest.mark.usefixtures("simd")
def test_loss_has_the_same_bits_for_any_thread_count():
    check_any_thread_count(lambda: loss_of_part(20_001)(slice(None)))


@pytest.mark.usefixtures("bfloat16")
def test_loss_has_the_same_bits_for_any_order_of_threads():
    for dtype in ("float32", "bfloat16"):
        run, results = loss_of_part(4099, dtype), []
        for seed in range(3):
            backend.emulator.set_seed(seed)
            results.append(run(slice(None)))
        assert_same_bits(results[1], results[0])
        assert_same_bits(results[2], results[0])


def check_nan():
    """What is not a number stays in its sample; where p is 0, nobody looks at x0."""
    f, x0 = np.zeros((2, 3, 37), np.float32)
    f[1, 36] = x0[2] = np.nan
    key = random.key(0, random.NOISE, np.arange(3), 0)
    for p, bad in ((np.zeros(3), [1]), (np.ones(3), [1, 2])):
        loss, df = gradients(lambda f, p=p: ops.noise_loss(f, x0, p, np.ones(3), np.ones(3), key), [f], np.ones(3))
        assert np.flatnonzero(np.isnan(loss)).tolist() == bad
        assert np.argwhere(np.isnan(df[:2])).tolist() == [[1, 36]]
        assert np.isnan(df[2]).all() == (2 in bad)


@pytest.mark.usefixtures("kernels")
def test_loss_with_nan():
    check_nan()


@pytest.mark.usefixtures("simt")
def test_loss_with_nan_in_naive_kernels_and_on_the_array_path():
    with naive_kernels():
        check_nan()
    with array_path():
        check_nan()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 5, 0, 3)])
def test_loss_of_empty_arrays(shape, dtype):
    """The mean of nothing is not a number, and no example has no loss."""
    n, f = shape[0], np.zeros(shape, dtype)
    key = random.key(0, random.NOISE, np.arange(n), 0)
    loss, df = gradients(lambda f: ops.noise_loss(f, f.data, *np.ones((3, n)), key), [f], np.ones(n))
    assert loss.dtype == df.dtype == dtype
    assert loss.shape == (n,)
    assert np.isnan(loss).all()
    assert df.shape == shape


def test_the_loss_is_in_the_precision_of_f():
    f, x0, key = np.ones((2, 3)), np.full((2, 3), 1 / 3), random.key(0, random.NOISE, [0, 1], 0)
    one, zero = np.ones(2), np.zeros(2)
    for dtype in (np.float32, np.float64):
        loss = ops.noise_loss(f.astype(dtype), x0.astype(np.float32), one, zero, one, key)
        assert loss.dtype == dtype
        assert_close(loss.data, np.full(2, (1 - float(np.float32(1 / 3))) ** 2), rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x0": np.zeros((3, 5))}, r"x0 must have f's shape \(3, 4\), got \(3, 5\)"),
        ({"p": np.ones(2)}, r"p must have shape \(3,\) for f of shape \(3, 4\), got \(2,\)"),
        ({"q": 1.0}, r"q must have shape \(3,\).*got 1\.0"),
        ({"weight": np.ones((3, 1))}, r"weight must have shape \(3,\).*got \(3, 1\)"),
        ({"key": random.key(0, random.NOISE, [1], 0)}, r"the key's sample must have shape \(3,\).*got \(1,\)"),
    ],
)
def test_bad_arguments_of_the_loss(changes, message):
    good = {"x0": np.zeros((3, 4)), "p": np.ones(3), "q": np.ones(3), "weight": np.ones(3)}
    good["key"] = random.key(0, random.NOISE, np.arange(3), 0)
    with pytest.raises(ValueError, match=message):
        ops.noise_loss(Tensor(np.zeros((3, 4))), **(good | changes))

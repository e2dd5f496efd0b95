"""One reverse step: array path against the equation, gradients of both outputs, kernels, and what must stay exact."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pydiff import backend, ops, random
from pydiff.ops import DenoiseStep
from pydiff.reference.denoise import denoise as reference
from pydiff.tensor import Tensor
from tests.bits import assert_same_bits, check_any_batch, check_any_thread_count
from tests.compare import array_path, assert_close, check_gradient, check_kernel, gradients, naive_kernels
from tests.strategies import bfloat16, kernels, seeds, simd, simt, sizes, small, strided  # noqa: F401

coefficient = st.sampled_from([0.0, 1.0, -0.7, 0.31, 2.5])


@st.composite
def cases(draw, extent=small):
    """x, f and everything else a step can have, with or without history, noise, guidance and clipping."""
    rng = np.random.default_rng(draw(seeds))
    n = draw(st.integers(1, 3))
    shape = (n, *draw(st.lists(extent, min_size=1, max_size=2)))
    past = draw(st.integers(0, 3))
    x, f, f_uncond, *history = (draw(strided(rng, shape)) for _ in range(3 + past))
    guided, noisy = draw(st.booleans()), draw(st.booleans())
    low, high = draw(st.sampled_from([(-math.inf, math.inf), (-1.0, 1.0), (0.1, 0.1), (-math.inf, 0.0)]))
    step = DenoiseStep(
        *(draw(coefficient) for _ in range(5)),
        s=draw(st.sampled_from([1.0, -0.3])) if noisy else 0.0,
        c=tuple(draw(coefficient) for _ in range(past)),
        low=low,
        high=high,
        guidance=draw(st.sampled_from([1.0, 0.0, 4.0])) if guided else 1.0,
    )
    assume(margin(x, f, step, f_uncond if guided else None).min() > 1e-3)
    key = random.key(draw(seeds), random.SAMPLE, rng.integers(2**32, size=n), rng.integers(2**32, size=n))
    return rng, x, f, step, history, key if noisy else None, f_uncond if guided else None


def margin(x, f, step, f_uncond, dtype=np.float64):
    """How far x0_hat is from the next bound before it is clipped, for an f of that dtype. The derivative jumps at a
    bound: there a slope means nothing, and rounding decides.
    """
    f, f_uncond = (None if a is None else a.astype(dtype).astype(np.float64) for a in (f, f_uncond))
    unclipped = step.u * x + step.v * (f if f_uncond is None else f_uncond + step.guidance * (f - f_uncond))
    return np.minimum(np.abs(unclipped - step.low), np.abs(unclipped - step.high))


def op(step, history, noise, f_uncond):
    """ops.denoise as a function of x and f alone, with the constants in their precision."""

    def run(x, f):
        past = [h.astype(x.dtype) for h in history]
        return ops.denoise(x, f, step, past, noise, None if f_uncond is None else f_uncond.astype(f.dtype))

    return run


def expected(x, f, step, history, noise, f_uncond):
    coefficients = {name: getattr(step, name) for name in ("u", "v", "low", "high", "a", "b", "d", "s", "c")}
    z = None if noise is None else random.normal(noise, x.shape[1:], np.float64)
    return reference(x, f, **coefficients, history=history, z=z, f_uncond=f_uncond, guidance=step.guidance)


@given(cases())
def test_array_path_matches_the_equation(case):
    _, x, f, *constants = case
    for got, e in zip(op(*constants)(Tensor(x), Tensor(f)), expected(x, f, *constants), strict=True):
        assert_close(got.data, e, rtol=1e-12, atol=1e-12)


@given(cases())
def test_gradient_matches_the_slope_of_the_reference(case):
    """Of x_next, of x0_hat, and of both together."""
    rng, x, f, *constants = case
    for weights in ((1, 0), (0, 1), (1, -2)):
        check_gradient(
            lambda x, f, w=weights: sum(w[i] * o for i, o in enumerate(op(*constants)(x, f)) if w[i]),
            lambda x, f, w=weights: sum(w[i] * o for i, o in enumerate(expected(x, f, *constants))),
            [x, f],
            rng,
        )


@pytest.mark.usefixtures("kernels")
@given(case=cases(sizes), output=st.integers(0, 1))
def test_kernel_is_as_exact_as_plain_float32(case, output):
    rng, x, f, *constants = case
    check_kernel(lambda x, f: op(*constants)(x, f)[output], [x, f], rng, floor=1e-5)


@pytest.mark.usefixtures("bfloat16")
@given(case=cases(sizes), output=st.integers(0, 1))
def test_kernel_with_answers_in_bfloat16(case, output):
    """x and what follows from it stay float32."""
    rng, x, f, step, history, key, f_uncond = case
    assume(margin(x, f, step, f_uncond, "bfloat16").min() > 1e-3)
    run = op(step, history, key, None if f_uncond is None else f_uncond.astype("bfloat16").astype(np.float64))
    check_kernel(lambda x, f: run(x, f)[output], [x, f], rng, floor=1e-5, half=[1], out=np.float32)


@pytest.mark.usefixtures("bfloat16")
@given(case=cases(sizes))
def test_naive_kernels_agree_with_the_fast_ones(case):
    _, x, f, *constants = case

    def run(dtype):
        tensors = [Tensor(a.astype(t), requires_grad=True) for a, t in ((x, "float32"), (f, dtype))]
        x_next, x0_hat = op(*constants)(*tensors)
        (x_next * x.astype("float32") + x0_hat).sum().backward()
        return [a.astype(np.float64) for a in (x_next.data, x0_hat.data, *(t.grad for t in tensors))]

    for dtype, unit in (("float32", 2e-6), ("bfloat16", 2**-7)):
        with naive_kernels():
            naive = run(dtype)
        for i, (got, expected) in enumerate(zip(run(dtype), naive, strict=True)):
            where = margin(x, f, constants[0], constants[3], dtype) > 1e-4 if i > 1 else np.ones(x.shape, bool)
            assert_close(got[where], expected[where], rtol=unit if i == 3 else 2e-6, atol=2e-6)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", [9001, 8192])
def test_kernel_crosses_its_tiles_without_a_seam(size):
    rng = np.random.default_rng(0)
    x, f, history = rng.standard_normal((3, 2, size))
    step = DenoiseStep(u=1.1, v=-0.5, a=0.9, b=0.2, d=0.1, s=0.4, c=(0.3,))
    key = random.key(5, random.SAMPLE, [3, 4], 7)
    check_kernel(lambda x, f: op(step, [history], key, None)(x, f)[0], [x, f], rng, floor=1e-5)


@pytest.mark.usefixtures("kernels")
def test_as_many_history_arrays_as_the_kernels_take():
    """Every one counts with its own coefficient; one more is an error, not a wrong sum."""
    rng = np.random.default_rng(0)
    x, f, *history = rng.standard_normal((18, 3, 37)).astype(np.float32)
    step = DenoiseStep(u=0.5, v=0.5, a=0.0, b=0.0, c=tuple(rng.standard_normal(16)))
    got = ops.denoise(x, f, step, history)[0].data
    assert_close(got, np.tensordot(step.c, np.float64(history), 1), rtol=1e-6)
    with pytest.raises(ValueError, match="at most 16 history arrays, got 17"):
        ops.denoise(x, f, step._replace(c=(*step.c, 1.0)), [*history, x])


def step_of_part(size, noisy):
    """run(slice of five samples) -> x_next, x0_hat and both gradients of a step with everything."""
    rng = np.random.default_rng(0)
    x, f, f_uncond, h = rng.standard_normal((4, 5, size)).astype(np.float32)
    step = DenoiseStep(u=1.1, v=-0.5, a=0.9, b=0.2, d=0.1, c=(0.3,), low=-1.0, high=1.0, guidance=3.0)

    def run(part):
        tensors = [Tensor(a[part], requires_grad=True) for a in (x, f)]
        key = random.key(5, random.SAMPLE, np.array([9, 1, 2**31, 4, 4])[part], 7) if noisy else None
        x_next, x0_hat = ops.denoise(*tensors, step._replace(s=0.4) if noisy else step, [h[part]], key, f_uncond[part])
        (x_next + x0_hat).backward(f[part])
        return [x_next.data, x0_hat.data, *(t.grad for t in tensors)]

    return run


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("size", [31 * 37 * 3, 2048])
def test_same_bits_for_any_batch(size, noisy):
    check_any_batch(step_of_part(size, noisy), 5)


@pytest.mark.usefixtures("simd")
def test_same_bits_for_any_thread_count():
    check_any_thread_count(lambda: step_of_part(31 * 37 * 3, True)(slice(None)))


# ---- the row of the table ------------------------------------------------------------------------------------------


def run_row(module, table, row, noisy):
    """[x_next, x0_hat, dx, df] by the compiled functions themselves."""
    rng = np.random.default_rng(0)
    x, f, past, dx_next, dx0_hat, *outputs = rng.standard_normal((9, 3, 37)).astype(np.float32)
    row = None if row is None else np.array([row], np.int32)
    noise = tuple(random.key(1, random.SAMPLE, np.arange(3), 2)) if noisy else None
    module.denoise_forward(x, f, None, table, row, [past], noise, *outputs[:2])
    module.denoise_backward(dx_next, dx0_hat, x, f, None, table, row, *outputs[2:])
    return outputs


@pytest.mark.usefixtures("kernels")
def test_a_step_takes_its_row_of_the_table():
    """On the device: a recorded sequence of steps is played again with nothing but another row."""
    module = backend.emulator or backend.cpu
    table = np.random.default_rng(1).standard_normal((4, 10)).astype(np.float32)
    table[:, 2:4] = -1.0, 1.0
    for noisy in (False, True):
        alone = [run_row(module, table[i : i + 1], None, noisy) for i in range(4)]
        for i in range(4):
            assert_same_bits(run_row(module, table, i, noisy), alone[i])
        assert_same_bits(run_row(module, table, None, noisy), alone[0])
        assert (alone[0][0] != alone[1][0]).any()


@pytest.mark.usefixtures("simt")
@pytest.mark.parametrize("row", [-1, 4, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("naive", [False, True])
def test_a_row_outside_the_table_gives_nothing_that_looks_right(row, naive):
    table = np.zeros((4, 10), np.float32)
    with naive_kernels() if naive else contextlib.nullcontext():
        for noisy in (False, True):
            for output in run_row(backend.emulator, table, row, noisy):
                assert np.isnan(output).all()


# ---- what must stay exact ------------------------------------------------------------------------------------------


def check_nan(index):
    """Clipping does not hide it, and it stays where it is."""
    x, f = np.zeros((1, 37), np.float32), np.zeros((1, 37), np.float32)
    f[0, index] = np.nan
    step = DenoiseStep(u=1.0, v=1.0, a=0.5, b=0.5, low=-1.0, high=1.0)
    for out in ops.denoise(x, f, step):
        assert np.flatnonzero(np.isnan(out.data)).tolist() == [index]


def check_bounds():
    """A value exactly at a bound passes its gradient."""
    x = np.array([[-1.0, 1.0, -1.5, 1.5, 0.0]], np.float32)
    step = DenoiseStep(u=1.0, v=0.0, a=0.0, b=1.0, low=-1.0, high=1.0)
    out, dx, _ = gradients(lambda x, f: ops.denoise(x, f, step)[1], [x, x], np.ones(x.shape))
    assert out.tolist() == [[-1, 1, -1, 1, 0]]
    assert dx.tolist() == [[1, 1, 0, 0, 1]]


def test_array_path_with_nan_and_at_bounds():
    with array_path():
        check_nan(3)
        check_bounds()


@pytest.mark.usefixtures("kernels")
def test_kernel_with_nan_and_at_bounds():
    for index in (0, 3, 16, 36):  # in the first and the last, half-filled vector
        check_nan(index)
    check_bounds()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_incoming_gradient_may_lie_in_any_order(dtype):
    x, f = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(dtype)
    step = DenoiseStep(u=1.1, v=-0.5, a=0.9, b=0.2)
    got, expected = (gradients(lambda x, f: ops.denoise(x, f, step)[0], [x, f], d) for d in (np.asfortranarray(f), f))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_empty_arrays(shape, dtype):
    x = np.zeros(shape, dtype)
    key = random.key(0, random.SAMPLE, np.arange(shape[0]), 1)
    step = DenoiseStep(1.0, 1.0, 1.0, 1.0, s=1.0)
    out, dx, df = gradients(lambda x, f: ops.denoise(x, f, step, noise=key)[0], [x, x], x)
    assert out.shape == dx.shape == df.shape == shape


KEY = random.key(0, random.SAMPLE, np.arange(3), 1)
PLAIN = DenoiseStep(u=1.0, v=1.0, a=1.0, b=1.0)


@pytest.mark.parametrize(
    ("step", "options", "message"),
    [
        (PLAIN, {"f": np.zeros((3, 5))}, r"f must match x, float64 \(3, 4\), got float64 \(3, 5\)"),
        (PLAIN, {"f": np.zeros((3, 4), np.float32)}, r"f must match x.*got float32 \(3, 4\)"),
        (PLAIN, {"f": np.zeros((3, 4), np.float16)}, r"f must match x.*got float16 \(3, 4\)"),
        (PLAIN, {"f_uncond": np.zeros((1, 4))}, "f_uncond must match x"),
        (PLAIN._replace(c=(1.0,)), {"history": [np.zeros(4)]}, "history must match x"),
        (PLAIN._replace(c=(1.0,)), {}, "1 history coefficients, but 0 history arrays"),
        (PLAIN, {"history": [np.zeros((3, 4))]}, "0 history coefficients, but 1 history arrays"),
        (PLAIN._replace(s=0.5), {}, r"a step with s = 0\.5 needs a? ?noise key"),
        (PLAIN, {"noise": KEY}, r"a step with s = 0\.0 takes no noise key"),
        (PLAIN._replace(s=0.5), {"noise": random.key(0, 4, [1, 2], 0)}, r"must be for 3 samples, got \(2,\)"),
        (PLAIN._replace(s=0.5), {"noise": KEY._replace(step=KEY.step[:1])}, "must be for 3 samples"),
        (PLAIN._replace(guidance=2.0), {}, r"guidance 2\.0 needs the network's unconditional output"),
        (PLAIN._replace(low=1.0, high=0.0), {}, r"clip range is empty: low 1\.0, high 0\.0"),
        (PLAIN._replace(low=math.nan), {}, "clip range is empty"),
    ],
)
def test_bad_arguments(step, options, message):
    arguments = {"f": np.zeros((3, 4)), **options}
    with pytest.raises(ValueError, match=message):
        ops.denoise(Tensor(np.zeros((3, 4))), step=step, **arguments)


@pytest.mark.usefixtures("bfloat16")
def test_what_may_be_bfloat16():
    """The network's answers beside a float32 x, and nothing else; and only where CUDA kernels run."""
    single, half = np.zeros((3, 4), np.float32), np.zeros((3, 4), "bfloat16")
    guided, past = PLAIN._replace(guidance=2.0), PLAIN._replace(c=(1.0,))
    for x_next in (ops.denoise(single, half, PLAIN)[0], ops.denoise(single, half, guided, f_uncond=half)[0]):
        assert x_next.dtype == np.float32
    with pytest.raises(ValueError, match="f_uncond must match x, bfloat16"):
        ops.denoise(single, half, guided, f_uncond=single)
    with pytest.raises(ValueError, match="history must match x, float32"):
        ops.denoise(single, half, past, [half])
    with pytest.raises(ValueError, match="f must match x, float64"):
        ops.denoise(single.astype(np.float64), half, PLAIN)
    with pytest.raises(ValueError, match="x must be float32 or float64, got bfloat16"):
        ops.denoise(half, half, PLAIN)
    with array_path(), pytest.raises(ValueError, match="f in bfloat16 beside x in float32 needs the CUDA kernels"):
        ops.denoise(single, half, PLAIN)

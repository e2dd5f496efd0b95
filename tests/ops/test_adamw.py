"""The optimiser step: array path against the equations, kernels against the array path, and the global norm."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import ops
from pydiff.reference.adamw import adamw as reference
from tests.bits import check_any_thread_count
from tests.compare import array_path, assert_close, assert_no_worse
from tests.strategies import seeds, simd, sizes  # noqa: F401

lengths = st.one_of(sizes, st.sampled_from([0, 63, 1000, 16383, 16385]))


@st.composite
def hypers(draw):
    return {
        "lr": draw(st.sampled_from([1e-3, 0.1, 0.0])),
        "beta1": draw(st.sampled_from([0.9, 0.0])),
        "beta2": draw(st.sampled_from([0.999, 0.5])),
        "eps": draw(st.sampled_from([1e-8, 0.1])),
        "weight_decay": draw(st.sampled_from([0.0, 0.1])),
        "grad_scale": draw(st.sampled_from([1.0, 0.3])),
        "ema_decay": draw(st.sampled_from([0.0, 0.99, 1.0])),
    }


def several_steps(update, dtype, seed, size, hyper, steps=4):
    """p, m, v, ema after some steps with gradients drawn from the seed; update works in place or returns new arrays."""
    rng = np.random.default_rng(seed)
    state = [rng.standard_normal(size).astype(dtype), np.zeros(size, dtype), np.zeros(size, dtype)]
    state.append(state[0].copy())
    for step in range(1, steps + 1):
        p, m, v, ema = state
        state = update(p, rng.standard_normal(size).astype(dtype), m, v, ema, step=step, **hyper) or state
    return state


@given(seed=seeds, size=lengths, hyper=hypers())
def test_array_path_matches_the_equations(seed, size, hyper):
    expected = several_steps(reference, np.float64, seed, size, hyper)
    for got, e in zip(several_steps(ops.adamw, np.float64, seed, size, hyper), expected, strict=True):
        assert_close(got, e, rtol=1e-12)


@pytest.mark.usefixtures("simd")
@given(seed=seeds, size=lengths, hyper=hypers())
def test_kernel_is_as_exact_as_plain_float32(seed, size, hyper):
    exact = several_steps(reference, np.float64, seed, size, hyper)
    with array_path():
        naive = several_steps(ops.adamw, np.float32, seed, size, hyper)
    got = several_steps(ops.adamw, np.float32, seed, size, hyper)
    for name, g, n, e in zip(("p", "m", "v", "ema"), got, naive, exact, strict=True):
        assert g.dtype == np.float32
        assert_no_worse(g, n, e, what=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_an_average(dtype):
    hyper = {"lr": 0.1, "step": 1}
    p, g = np.ones((2, 7), dtype)
    m, v, ema = np.zeros((3, 7), dtype)
    with_average = p.copy()
    ops.adamw(with_average, g, m.copy(), v.copy(), ema, ema_decay=0.5, **hyper)
    ops.adamw(p, g, m, v, None, ema_decay=0.5, **hyper)
    assert p.tobytes() == with_average.tobytes()
    assert_close(p, np.full(7, 0.9), rtol=1e-6)  # the first step of Adam has length lr
    assert_close(ema, np.full(7, 0.45), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_gradient_is_only_read(dtype):
    p, g, m, v = np.ones((4, 9), dtype)
    g.flags.writeable = False
    ops.adamw(p, g, m, v, None, step=3, lr=0.1, grad_scale=0.5)
    assert (g == 1).all()


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize("index", [0, 5, 16, 36])
def test_nan_and_infinity_in_the_gradient_reach_their_own_parameter_only(index):
    for bad in (math.nan, math.inf):
        p, g, m, v, ema = np.ones((5, 37), np.float32)
        g[index] = bad
        with np.errstate(invalid="ignore"):
            ops.adamw(p, g, m, v, ema, step=1, lr=0.1, ema_decay=0.5)
        for a in (p, ema):
            assert np.flatnonzero(~np.isfinite(a)).tolist() == [index]


@pytest.mark.usefixtures("simd")
def test_same_bits_for_any_thread_count():
    hyper = {"lr": 1e-3, "weight_decay": 0.1, "grad_scale": 0.7, "ema_decay": 0.99}

    def run():
        state = several_steps(ops.adamw, np.float32, 0, 100_003, hyper)
        return [*state, np.array(ops.global_norm(state[0]))]

    check_any_thread_count(run)


# ---- global norm ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("simd")
@given(seed=seeds, size=lengths, scale=st.sampled_from([1e-30, 1.0, 1e30]))
def test_kernel_norm_is_that_of_float64(seed, size, scale):
    """Squares of 1e30 and 1e-30 leave the range of float32, and the norm does not."""
    g = (scale * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)
    assert_close(ops.global_norm(g), np.linalg.norm(g.astype(np.float64)), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_norm(dtype):
    assert ops.global_norm(np.array([3, 4], dtype)) == 5.0
    assert ops.global_norm(np.zeros(0, dtype)) == 0.0


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize("index", [0, 7, 8, 36])
def test_kernel_norm_of_nan_and_infinity(index):
    g = np.ones(37, np.float32)
    g[index] = math.inf
    assert ops.global_norm(g) == math.inf
    g[index] = math.nan
    assert math.isnan(ops.global_norm(g))


def test_norm_of_nan_and_infinity_on_the_array_path():
    assert ops.global_norm(np.array([1, math.inf])) == math.inf
    assert math.isnan(ops.global_norm(np.array([1, math.nan])))


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["g", "m", "v", "ema"])
def test_arrays_that_do_not_match_are_refused_before_anything_changes(name, dtype):
    for wrong in (np.zeros(4, dtype), np.zeros((5, 1), dtype), np.zeros(5, np.float16)):
        arrays = {n: np.ones(5, dtype) for n in ("p", "g", "m", "v", "ema")}
        arrays[name] = wrong
        with pytest.raises(ValueError, match=rf"{name} must be flat and match p, float\d+ \(5,\), got {wrong.dtype}"):
            ops.adamw(**arrays, step=1, lr=0.1)
        assert all((a == 1).all() for n, a in arrays.items() if n != name)


@pytest.mark.parametrize("step", [0, -1])
def test_steps_count_from_one(step):
    p, g, m, v = np.ones((4, 5))
    with pytest.raises(ValueError, match=f"the first optimiser step is 1, got {step}"):
        ops.adamw(p, g, m, v, None, step=step, lr=0.1)

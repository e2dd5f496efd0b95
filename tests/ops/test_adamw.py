"""The optimiser step: array path against the equations, kernels against the array path, and the global norm."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydiff import backend, ops
from pydiff.reference.adamw import adamw as reference
from tests import compare
from tests.bits import assert_same_bits, check_any_thread_count
from tests.compare import array_path, assert_close, assert_no_worse
from tests.strategies import bfloat16, kernels, seeds, simt, sizes  # noqa: F401

NAMES = ("p", "m", "v", "ema")
# 8192 and its neighbours: a block of the CUDA kernels; 16384: one of the CPU's
lengths = st.one_of(sizes, st.sampled_from([0, 63, 1000, 8191, 8192, 16383, 16385]))


@st.composite
def hypers(draw):
    return {
        "lr": draw(st.sampled_from([1e-3, 0.1, 0.0])),
        "beta1": draw(st.sampled_from([0.9, 0.0])),
        "beta2": draw(st.sampled_from([0.999, 0.5])),
        "eps": draw(st.sampled_from([1e-8, 0.1])),
        "weight_decay": draw(st.sampled_from([0.0, 0.1])),
        "clip": draw(st.sampled_from([0.0, 0.3, 1e9])),
        "ema_decay": draw(st.sampled_from([0.0, 0.99, 1.0])),
    }


def schedule(lr, step, ema_decay=0.999, clip=0.0):
    return np.array([lr, step, ema_decay, clip], np.float64)


def one_step(p, g, m, v, ema, *, step, lr, ema_decay, clip=0.0, **hyper):
    """ops.adamw as the optimiser calls it."""
    ops.adamw(p, g, m, v, ema, schedule(lr, step, ema_decay, clip), ops.squared_norm(g), **hyper)


def exact_step(p, g, m, v, ema, *, clip=0.0, **hyper):
    """The reference; clipping as torch.nn.utils.clip_grad_norm_ has it."""
    scale = min(1.0, clip / (np.linalg.norm(g.astype(np.float64)) + 1e-6)) if clip else 1.0
    return reference(p, g, m, v, ema, grad_scale=scale, **hyper)


def state_of(size, seed, dtype=np.float32):
    """p, g, m, v, ema as they might be after some steps."""
    p, g, m, v, ema = np.random.default_rng(seed).standard_normal((5, size)).astype(dtype)
    return p, g, m, v**2, ema


def several_steps(update, dtype, seed, size, hyper, steps=4):
    """p, m, v, ema after some steps with gradients drawn from the seed; update works in place or returns new arrays."""
    rng = np.random.default_rng(seed)
    if backend.emulator is not None:
        backend.emulator.set_seed(seed)
    state = [rng.standard_normal(size).astype(dtype), np.zeros(size, dtype), np.zeros(size, dtype)]
    state.append(state[0].copy())
    for step in range(1, steps + 1):
        p, m, v, ema = state
        g = rng.standard_normal(size).astype(np.float32).astype(dtype)
        state = update(p, g, m, v, ema, step=step, **hyper) or state
    return state


@given(seed=seeds, size=lengths, hyper=hypers())
def test_array_path_matches_the_equations(seed, size, hyper):
    expected = several_steps(exact_step, np.float64, seed, size, hyper)
    for got, e in zip(several_steps(one_step, np.float64, seed, size, hyper), expected, strict=True):
        assert_close(got, e, rtol=1e-12)


@pytest.mark.usefixtures("kernels")
@given(seed=seeds, size=lengths, hyper=hypers())
def test_kernel_is_as_exact_as_plain_float32(seed, size, hyper):
    exact = several_steps(exact_step, np.float64, seed, size, hyper)
    with array_path():
        naive = several_steps(one_step, np.float32, seed, size, hyper)
    got = several_steps(one_step, np.float32, seed, size, hyper)
    for name, g, n, e in zip(NAMES, got, naive, exact, strict=True):
        assert g.dtype == np.float32
        assert_no_worse(g, n, e, what=name)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("step", [1, 2, 1000, 10**6, 10**15])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.999, 1 - 1e-7])
def test_bias_corrections_at_the_first_and_at_late_steps(step, beta):
    p, g, m, v, ema = state_of(9, step)
    hyper = {"step": step, "lr": 0.1, "beta1": beta, "beta2": beta, "eps": 1e-8, "weight_decay": 0.0, "ema_decay": 0.5}
    expected = exact_step(p, g, m, v, ema, **hyper)
    one_step(p, g, m, v, ema, **hyper)
    for name, got, e in zip(NAMES, (p, m, v, ema), expected, strict=True):
        assert_close(got, e, rtol=1e-6, what=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_an_average(dtype):
    p, g = np.ones((2, 7), dtype)
    m, v, ema = np.zeros((3, 7), dtype)
    with_average = p.copy()
    ops.adamw(with_average, g, m.copy(), v.copy(), ema, schedule(0.1, 1, ema_decay=0.5))
    ops.adamw(p, g, m, v, None, schedule(0.1, 1, ema_decay=0.5))
    assert p.tobytes() == with_average.tobytes()
    assert_close(p, np.full(7, 0.9), rtol=1e-6)  # the first step of Adam has length lr
    assert_close(ema, np.full(7, 0.45), rtol=1e-6)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", [1, 7, 37, 1030])
def test_kernel_without_an_average_moves_the_rest_alike(size):
    with_average, without = state_of(size, 0), state_of(size, 0)
    ops.adamw(*with_average, schedule(0.1, 3))
    ops.adamw(*without[:4], None, schedule(0.1, 3))
    assert_same_bits(without[:4], with_average[:4])
    assert (with_average[4] != without[4]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_gradient_is_only_read(dtype):
    p, g, m, v = np.ones((4, 9), dtype)
    g.flags.writeable = False
    ops.adamw(p, g, m, v, None, schedule(0.1, 3, clip=0.5), ops.squared_norm(g))
    assert (g == 1).all()


# ---- the norm, and what is not finite ------------------------------------------------------------------------------


def check_clipping(dtype):
    """Seen in the first moment, which is the gradient used when beta1 = 0 (Pascanu et al. 2013, algorithm 1)."""

    def used(clip, norm2):
        p, m, v = np.zeros((3, 2), dtype)
        ops.adamw(p, np.array([3, 4], dtype), m, v, None, schedule(0.1, 1, clip=clip), norm2, beta1=0.0)
        return m

    norm2 = np.array([25.0])
    assert_close(used(1.0, norm2), np.array([0.6, 0.8]), rtol=1e-6)
    assert_close(used(1.0, np.array([100.0])), np.array([0.3, 0.4]), rtol=1e-6)  # the norm given is the norm used
    for clip, given_norm2 in ((5.1, norm2), (0.0, norm2), (1.0, None)):
        assert used(clip, given_norm2).tolist() == [3, 4]
    assert used(1e-3, np.array([0.0])).tolist() == [3, 4]  # clip / (0 + 1e-6) is more than 1


@pytest.mark.usefixtures("kernels")
def test_kernel_clips_by_the_global_norm():
    check_clipping(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_array_path_clips_by_the_global_norm(dtype):
    with array_path():
        check_clipping(dtype)


def check_nothing_changes(dtype):
    for norm2 in (math.nan, math.inf):
        for clip in (0.0, 1.0):
            state = state_of(1030, 0, dtype)
            before = [a.copy() for a in state]
            ops.adamw(*state, schedule(0.1, 1, clip=clip), np.array([norm2]), weight_decay=0.1)
            assert_same_bits(state, before)


@pytest.mark.usefixtures("kernels")
def test_kernel_changes_nothing_when_the_norm_is_not_finite():
    check_nothing_changes(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_array_path_changes_nothing_when_the_norm_is_not_finite(dtype):
    with array_path():
        check_nothing_changes(dtype)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("index", [0, 5, 16, 36])
def test_without_a_norm_nan_and_infinity_reach_their_own_parameter_only(index):
    for bad in (math.nan, math.inf):
        p, g, m, v, ema = np.ones((5, 37), np.float32)
        g[index] = bad
        with np.errstate(invalid="ignore"):
            ops.adamw(p, g, m, v, ema, schedule(0.1, 1, ema_decay=0.5))
        for a in (p, ema):
            assert np.flatnonzero(~np.isfinite(a)).tolist() == [index]


@pytest.mark.usefixtures("kernels")
def test_a_schedule_is_read_when_the_step_is_made():
    """The same arrays with other numbers in them, as when a recorded step is played again."""
    numbers, norm2 = schedule(0.1, 1, 0.5, 1.0), np.array([4.0])
    for lr, step, ema_decay, clip, square in (
        (0.1, 1, 0.5, 1.0, 4.0),
        (1e-3, 7, 0.9, 0.1, 9.0),
        (0, 1, 0, 0, math.inf),
    ):
        numbers[:], norm2[0] = (lr, step, ema_decay, clip), square
        again, fresh = state_of(50, step), state_of(50, step)
        ops.adamw(*again, numbers, norm2)
        ops.adamw(*fresh, schedule(lr, step, ema_decay, clip), np.array([square]))
        assert_same_bits(again, fresh)
        assert (again[0] == state_of(50, step)[0]).all() == (square == math.inf)


# ---- the same bits -------------------------------------------------------------------------------------------------

HYPER = {"lr": 1e-3, "weight_decay": 0.1, "clip": 0.7, "ema_decay": 0.99}


def state_and_norm(size):
    state = several_steps(one_step, np.float32, 0, size, HYPER)
    return [*state, ops.squared_norm(state[0])]


@pytest.mark.usefixtures("kernels")
def test_same_bits_for_any_thread_count():
    check_any_thread_count(lambda: state_and_norm(100_003))


@pytest.mark.usefixtures("kernels")
@settings(max_examples=10)
@given(seed=seeds, size=lengths, starts=st.tuples(*[st.integers(0, 4)] * 5))
def test_same_bits_wherever_the_arrays_start(seed, size, starts):
    expected = state_of(size, seed)
    got = [np.concatenate([np.zeros(start, np.float32), a])[start:] for start, a in zip(starts, expected, strict=True)]
    norms = [ops.squared_norm(state[1]) for state in (expected, got)]
    assert_same_bits(norms[:1], norms[1:])
    for state in (expected, got):
        ops.adamw(*state, schedule(0.1, 3, clip=0.5), norms[0], weight_decay=0.1)
    assert_same_bits(got, expected)


# ---- the CUDA kernels, emulated ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("simt")
def test_same_bits_for_any_order_of_the_threads():
    runs = []
    for seed in range(4):
        backend.emulator.set_seed(seed)
        state = state_of(16387, 0)
        runs.append([ops.squared_norm(state[1]), *state])
        one_step(*state, step=3, lr=0.1, ema_decay=0.5, clip=0.1)
    for run in runs[1:]:
        assert_same_bits(run, runs[0])


@pytest.mark.usefixtures("bfloat16")
@settings(max_examples=15)
@given(seed=seeds, size=lengths, with_average=st.booleans())
def test_low_is_a_copy_of_the_parameters(seed, size, with_average):
    state, half = state_of(size, seed), compare.bfloat16()
    low = np.zeros(size + 1, half)[seed % 2 :][:size]
    norm2 = ops.squared_norm(state[1])
    ops.adamw(*state[:4], state[4] if with_average else None, schedule(0.1, 3, clip=0.5), norm2, low=low)
    assert low.tobytes() == state[0].astype(half).tobytes()
    before = low.copy()
    ops.adamw(*state[:4], None, schedule(0.1, 4), np.array([math.nan]), low=low)
    assert low.tobytes() == before.tobytes()


@pytest.mark.usefixtures("bfloat16")
@settings(max_examples=15)
@given(seed=seeds, size=lengths, hyper=hypers(), step=st.sampled_from([1, 3, 10**6]))
def test_naive_kernel_is_exact(seed, size, hyper, step):
    """All in float64 but for the results: what the fast kernel is compared with on a GPU. Fast and naive agree."""
    half = compare.bfloat16()
    exact = exact_step(*state_of(size, seed), step=step, **hyper)
    naive, fast, low = state_of(size, seed), state_of(size, seed), np.zeros(size, half)
    numbers, norm2 = schedule(hyper["lr"], step, hyper["ema_decay"], hyper["clip"]), ops.squared_norm(naive[1])
    rest = {name: hyper[name] for name in ("beta1", "beta2", "eps", "weight_decay")}
    backend.emulator.set_naive(True)
    try:
        assert_close(ops.squared_norm(naive[1]), norm2, rtol=1e-12)
        ops.adamw(*naive, numbers, norm2, **rest, low=low)
        unchanged = [a.copy() for a in naive]
        ops.adamw(*naive, numbers, np.array([math.inf]), **rest, low=low)
        assert_same_bits(naive, unchanged)
    finally:
        backend.emulator.set_naive(False)
    ops.adamw(*fast, numbers, norm2, **rest)
    assert low.tobytes() == naive[0].astype(half).tobytes()
    for name, i, e in zip(NAMES, (0, 2, 3, 4), exact, strict=True):
        assert_close(naive[i], e, rtol=1e-7, what=f"naive {name}")
        assert_close(fast[i], naive[i], rtol=1e-6, what=f"fast {name}")


@pytest.mark.usefixtures("simt")
def test_the_kernels_use_no_atomics():
    backend.emulator.counters()
    one_step(*state_of(16387, 0), step=1, lr=0.1, ema_decay=0.5)
    assert backend.emulator.counters()["atomics"] == 0


# ---- global norm ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("kernels")
@given(seed=seeds, size=lengths, scale=st.sampled_from([1e-30, 1.0, 1e30]))
def test_kernel_norm_is_that_of_float64(seed, size, scale):
    """Squares of 1e30 and 1e-30 leave the range of float32, and the norm does not."""
    g = (scale * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)
    norm2 = ops.squared_norm(g)
    assert norm2.shape == (1,)
    assert norm2.dtype == np.float64
    assert_close(ops.global_norm(g), np.linalg.norm(g.astype(np.float64)), rtol=1e-12)


@pytest.mark.usefixtures("simt")
def test_kernel_norm_of_more_chunks_than_a_block_has_threads():
    g = np.random.default_rng(0).standard_normal(257 * 8192 + 5).astype(np.float32)
    backend.emulator.set_seed(1)
    exact = math.fsum(np.square(g, dtype=np.float64))  # a BLAS rounds more than the kernel, each in its own way
    assert_close(ops.squared_norm(g), [exact], rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_norm(dtype):
    assert ops.squared_norm(np.array([3, 4], dtype)).tolist() == [25.0]
    assert ops.global_norm(np.array([3, 4], dtype)) == 5.0
    assert ops.global_norm(np.zeros(0, dtype)) == 0.0


@pytest.mark.usefixtures("kernels")
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
            ops.adamw(**arrays, schedule=schedule(0.1, 1))
        assert all((a == 1).all() for n, a in arrays.items() if n != name)


@pytest.mark.usefixtures("bfloat16")
def test_a_low_copy_needs_cuda_kernels():
    half = compare.bfloat16()
    state = [np.ones(5, np.float32) for _ in range(5)]
    with pytest.raises(ValueError, match=r"low must be flat and match p, float32 \(5,\), got bfloat16 \(4,\)"):
        ops.adamw(*state, schedule(0.1, 1), low=np.zeros(4, half))
    with pytest.raises(TypeError, match="low must have dtype bfloat16 in native byte order, got float32"):
        ops.adamw(*state, schedule(0.1, 1), low=np.zeros(5, np.float32))
    low = np.zeros(5, half)
    with array_path(), pytest.raises(ValueError, match="low, a bfloat16 copy, needs the compiled kernels"):
        ops.adamw(*state, schedule(0.1, 1), low=low)
    with backend.use_device("cpu"):
        if backend.cpu is not None:
            with pytest.raises(TypeError, match="low, a bfloat16 copy, is kept on GPUs only"):
                ops.adamw(*state, schedule(0.1, 1), low=low)
    assert all((a == 1).all() for a in state)

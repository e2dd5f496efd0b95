"""Group normalisation: array path against the equation, gradient against its slope, kernels against the array path."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydiff import backend, ops
from pydiff.ops.group_norm import normalised, statistics
from pydiff.reference.group_norm import group_norm as reference
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
from tests.compare import bfloat16 as bfloat16_dtype
from tests.strategies import bfloat16, kernels, seeds, simd, simt, small, strided  # noqa: F401


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


# ---- kernels -------------------------------------------------------------------------------------------------------


def op(options):
    return lambda *a: ops.group_norm(*a, **options)


@pytest.mark.usefixtures("kernels")
@given(case=cases())
def test_kernel_is_as_exact_as_plain_float32(case):
    rng, arrays, options = case
    check_kernel(op(options), arrays, rng)


@pytest.mark.usefixtures("bfloat16")
@given(case=cases())
def test_kernel_in_bfloat16_is_as_exact_as_its_rounding(case):
    rng, arrays, options = case
    check_kernel(op(options), arrays, rng, half=(0,))


@pytest.mark.usefixtures("simt")
@pytest.mark.parametrize("half", [(), (0,)], ids=["float32", "bfloat16"])
@settings(max_examples=15)
@given(case=cases())
def test_naive_kernel_is_as_exact_as_plain_float32(half, case):
    rng, arrays, options = case
    with naive_kernels():
        check_kernel(op(options), arrays, rng, half=half)


# Shapes for both ways through the CUDA kernels: whether the slab of a sample stays in shared memory, forward (x) and
# backward (x and dy). Slabs are whole groups; 224 KB is the most. (shape, groups), type, forward, backward.
WAYS = [
    (((2, 16, 16, 64), 8), np.float32, "one read", "one read"),
    (((3, 480, 64), 1), np.float32, "one read", "two passes"),
    (((3, 30, 30, 64), 1), np.float32, "two passes", "two passes"),
    (((2, 2, 16, 16, 96), 12), "bfloat16", "one read", "one read"),
    (((3, 30, 30, 64), 1), "bfloat16", "one read", "two passes"),
    (((2, 1900, 64), 1), "bfloat16", "two passes", "two passes"),
    (((2, 5, 1500), 1), np.float32, "one read", "one read"),  # more channels in a slab than packs in a block
    (((1, 3, 2664), 8), np.float32, "one read", "one read"),  # 333 channels a group: groups end in the middle of packs
    (((1, 90, 2664), 8), np.float32, "two passes", "two passes"),
]
shapes = pytest.mark.parametrize(("shape", "dtype"), [way[:2] for way in WAYS])


def draw(shape, dtype, mean=30.0):
    """x of this shape and type far from zero, gamma, beta, dy, and the options; from a (shape, groups)."""
    (*shape, c), groups = shape
    rng = np.random.default_rng(0)
    dtype = bfloat16_dtype() if dtype == "bfloat16" else dtype
    x, dy = (rng.standard_normal((*shape, c)) + mean).astype(dtype), rng.standard_normal((*shape, c)).astype(dtype)
    gamma, beta = (1 + 0.5 * rng.standard_normal(c)).astype(np.float32), rng.standard_normal(c).astype(np.float32)
    return [x, gamma, beta], dy, {"groups": groups, "activation": "silu"}


@pytest.mark.usefixtures("simt")
@pytest.mark.parametrize(("shape", "dtype", "forward", "backward"), WAYS)
def test_cuda_kernels_read_as_often_as_they_say(shape, dtype, forward, backward):
    """The copies to shared memory are counted: one for every 16 bytes, or none where it is read twice."""
    (x, gamma, beta), dy, options = draw(shape, dtype)
    backend.emulator.counters()
    tensor = ops.Tensor(x, requires_grad=True)
    y = ops.group_norm(tensor, gamma, beta, **options)
    assert backend.emulator.counters()["copies"] == (x.nbytes // 16 if forward == "one read" else 0)
    y.backward(dy)
    counted = backend.emulator.counters()
    assert counted["copies"] == (2 * x.nbytes // 16 if backward == "one read" else 0)
    assert counted["atomics"] == 0


@pytest.mark.usefixtures("simt")
@shapes
def test_cuda_kernels_are_exact_either_way(shape, dtype):
    arrays, _, options = draw(shape, dtype)
    check_kernel(op(options), arrays, np.random.default_rng(1), half=(0,) if dtype == "bfloat16" else ())


@pytest.mark.usefixtures("simt")
@shapes
def test_same_bits_in_any_batch_and_any_order_of_threads(shape, dtype):
    (x, gamma, beta), dy, options = draw(shape, dtype)
    seeds = iter(range(100))

    def run(part):
        backend.emulator.set_seed(next(seeds))
        return gradients(lambda x: ops.group_norm(x, gamma, beta, **options), [x[part]], dy[part])

    check_any_batch(run, len(x))


@pytest.mark.usefixtures("simt")
@shapes
def test_gradients_of_gamma_and_beta_have_the_same_bits_in_any_order_of_threads(shape, dtype):
    arrays, dy, options = draw(shape, dtype)
    runs = []
    for seed in range(3):
        backend.emulator.set_seed(seed)
        runs.append(gradients(op(options), arrays, dy))
    for run in runs[1:]:
        assert_same_bits(run, runs[0])
    assert runs[0][2].dtype == runs[0][3].dtype == np.float32


def unaligned(a):
    """The same array, one element behind an aligned address."""
    view = np.empty(a.size + 1, a.dtype)[1:].reshape(a.shape)
    view[...] = a
    assert view.ctypes.data % 16
    return view


@pytest.mark.usefixtures("simt")
@shapes
def test_same_bits_from_an_unaligned_start(shape, dtype):
    (x, gamma, beta), dy, options = draw(shape, dtype)
    expected = gradients(op(options), [x, gamma, beta], dy)
    backend.emulator.counters()
    assert_same_bits(gradients(op(options), [unaligned(x), gamma, beta], unaligned(dy)), expected)
    assert backend.emulator.counters()["copies"] == 0  # which need 16 bytes


@pytest.mark.usefixtures("simt")
@pytest.mark.parametrize("moved", range(4))
def test_same_bits_when_one_array_is_unaligned(moved):
    """x, dy, y and dx, each on its own: enough for single elements instead of 16 bytes at a time."""
    (x, gamma, beta), dy, _ = draw(((2, 6, 16), 2), np.float32)
    forward, backward = backend.native(x, "group_norm_forward"), backend.native(x, "group_norm_backward")
    mean, rstd = np.empty((2, 2, 2), np.float32)

    def run(x, dy, y, dx):
        out = [y, dx, np.empty_like(gamma), np.empty_like(gamma)]
        forward(x, gamma, beta, 2, 1e-5, True, y, mean, rstd)
        backward(dy, x, gamma, beta, mean, rstd, 2, True, *out[1:], None)
        return out

    arrays = [x, dy, np.empty_like(x), np.empty_like(x)]
    expected = run(*arrays)
    arrays = [x, dy, np.empty_like(x), np.empty_like(x)]
    arrays[moved] = unaligned(arrays[moved])
    assert_same_bits(run(*arrays), expected)


@pytest.mark.usefixtures("simt")
def test_more_samples_than_a_grid_has_rows():
    (x, gamma, beta), dy, options = draw(((65_540, 1, 2), 1), np.float32, mean=0.0)
    got = gradients(op(options), [x, gamma, beta], dy)
    last = gradients(op(options), [x[-7:], gamma, beta], dy[-7:])
    assert_same_bits([got[0][-7:], got[1][-7:]], last[:2])
    with array_path():
        naive = gradients(op(options), [x, gamma, beta], dy)
    assert_no_worse(got[3], naive[3], exact_gradients([x, gamma, beta], dy, options)[3])


def exact_gradients(arrays, dy, options):
    with array_path():
        return gradients(op(options), [a.astype(np.float64) for a in arrays], dy.astype(np.float64))


@pytest.mark.usefixtures("kernels")
def test_same_bits_for_any_batch_and_any_thread_count():
    arrays, dy, options = draw(((5, 7, 9, 24), 3), np.float32, mean=0.0)

    def run(part):
        return gradients(lambda x: ops.group_norm(x, *arrays[1:], **options), [arrays[0][part]], dy[part])

    check_any_batch(run, 5)
    check_any_thread_count(lambda: gradients(op(options), arrays, dy))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [((2, 70, 40), 5), ((1, 900, 64), 1)])
def test_statistics_of_data_far_from_zero_with_an_outlier(shape):
    """What the sum of squares less the square of the sum, or deviations from an arbitrary pixel, would get wrong."""
    (x, gamma, beta), _, options = draw(shape, np.float32, mean=1000.0)
    x[:, 0] = 1e5
    groups = options["groups"]
    y, mean, rstd = np.empty_like(x), *np.empty((2, len(x), groups), np.float32)
    backend.native(x, "group_norm_forward")(x, gamma, beta, groups, 1e-5, True, y, mean, rstd)
    grouped = x.astype(np.float64).reshape(len(x), -1, groups, x.shape[-1] // groups)
    assert (np.abs(mean - grouped.mean(axis=(1, 3))) <= 1e-6 * grouped.std(axis=(1, 3))).all()
    np.testing.assert_allclose(rstd, (grouped.var(axis=(1, 3)) + 1e-5) ** -0.5, rtol=1e-6)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [((3, 5, 4, 24), 3), ((3, 900, 64), 1)])
def test_nan_stays_in_its_group(shape):
    arrays, dy, options = draw(shape, np.float32)
    clean = gradients(op(options), arrays, dy)
    arrays[0][1, -1, ..., -1] = np.nan
    dirty = gradients(op(options), arrays, dy)
    hit = np.zeros(dy.shape, bool)
    hit[1, ..., -dy.shape[-1] // options["groups"] :] = True
    for a, b in zip(dirty[:2], clean[:2], strict=True):
        assert np.isnan(a[hit]).all()
        assert np.array_equal(a[~hit], b[~hit])
    hit = hit.any(axis=tuple(range(dy.ndim - 1)))
    for a, b in zip(dirty[2:], clean[2:], strict=True):
        assert np.isnan(a[hit]).all()
        assert np.array_equal(a[~hit], b[~hit])


# ---- some positions at a time --------------------------------------------------------------------------------------


def in_pieces(arrays, options, cuts):
    """What `statistics` of all positions and `normalised` of some at a time give."""
    x, gamma, beta = arrays
    mean, rstd = statistics(x, options["groups"], options["eps"])
    edges = [0, *sorted(cut % (x.shape[1] + 1) for cut in cuts), x.shape[1]]
    silu = options["activation"] == "silu"
    parts = [normalised(x[:, a:b], gamma, beta, mean, rstd, silu) for a, b in itertools.pairwise(edges)]
    return np.concatenate(parts, axis=1)


@pytest.mark.usefixtures("simd")
@given(case=cases(), dtype=st.sampled_from([np.float32, np.float64]), cuts=st.lists(st.integers(0, 8), max_size=3))
def test_some_positions_at_a_time_have_the_same_bits(case, dtype, cuts):
    _, arrays, options = case
    arrays = [a.astype(dtype) for a in arrays]
    arrays[0] = arrays[0] if arrays[0].ndim > 2 else arrays[0][:, None]
    assert_same_bits([in_pieces(arrays, options, cuts)], [op(options)(*map(ops.Tensor, arrays)).data])


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize("shape", [((3, 333, 40), 5), ((1, 900, 64), 1), ((2, 700, 130), 13), ((9, 3, 8), 2)])
def test_many_positions_too_on_any_number_of_threads(shape):
    arrays, _, options = draw(shape, np.float32)
    options |= {"eps": 1e-5}

    def run():
        pieces = in_pieces(arrays, options, [1, 127, 128, 300])
        assert_same_bits([pieces], [op(options)(*map(ops.Tensor, arrays)).data])
        return [pieces]

    check_any_thread_count(run)


@pytest.mark.usefixtures("simd")
def test_the_halves_of_the_kernel_refuse_what_does_not_fit():
    x, c, few = np.ones((2, 5, 4), np.float32), np.ones(4, np.float32), np.ones((2, 2), np.float32)
    y, first, second = np.empty_like(x), backend.cpu.group_norm_statistics, backend.cpu.group_norm_apply
    good = [x, 2, 1e-5, few.copy(), few.copy()], [x, c, c, few, few, 2, True, y]
    wrong = [x.astype(np.float64), x[:, ::2], x[0], None, [1.0], few[:1].copy(), few.T.copy()[:, :1], 3, 0, "x", c[:3]]
    for function, arguments in zip((first, second), good, strict=True):
        function(*arguments)
        for place in range(len(arguments)):
            for value in (*wrong, *([] if isinstance(arguments[place], np.ndarray) else [x])):
                if isinstance(value, int | type(None)) and isinstance(arguments[place], bool | float):
                    continue  # 3 is a number, too
                with pytest.raises((TypeError, ValueError)):
                    function(*arguments[:place], value, *arguments[place + 1 :])
        with pytest.raises(TypeError):
            function(*arguments[:-1])


# ---- the gradient of a bias in front -------------------------------------------------------------------------------


def backward_with_sum(arrays, dy, options, dx_sum):
    """[dx, dgamma, dbeta] of the kernel for (N, S, C) arrays; dx_sum (C,) is written unless it is None."""
    x, gamma, beta = arrays
    groups, silu = options["groups"], options["activation"] == "silu"
    mean, rstd = np.empty((2, len(x), groups), np.float32)
    backend.native(x, "group_norm_forward")(x, gamma, beta, groups, 1e-5, silu, np.empty_like(x), mean, rstd)
    out = [np.empty_like(x), np.empty_like(gamma), np.empty_like(gamma)]
    backend.native(x, "group_norm_backward")(dy, x, gamma, beta, mean, rstd, groups, silu, *out, dx_sum)
    return out


def check_dx_sum(arrays, dy, options):
    dx_sum = np.full(dy.shape[-1], np.nan, np.float32)
    got = backward_with_sum(arrays, dy, options, dx_sum)
    exact = exact_gradients(arrays, dy, options)[1]
    with array_path():
        plain = gradients(op(options), [a.astype(np.float32) for a in arrays], dy.astype(np.float32))[1]
    assert_no_worse(dx_sum, plain.sum(axis=(0, 1)), exact.sum(axis=(0, 1)), floor=2e-6 * np.sqrt(dy[..., 0].size))
    assert_same_bits(backward_with_sum(arrays, dy, options, None), got)  # who does not ask for it gets the same
    return [*got, dx_sum]


@st.composite
def flat_cases(draw_from):
    rng, (x, *rest), options = draw_from(cases())
    x = np.ascontiguousarray(x.reshape(len(x), -1, x.shape[-1]), np.float32)
    options = {"groups": options["groups"], "activation": options["activation"]}
    return [x, *(a.astype(np.float32) for a in rest)], rng.standard_normal(x.shape).astype(np.float32), options


@pytest.mark.usefixtures("kernels")
@given(case=flat_cases())
def test_dx_sum_is_the_sum_of_dx(case):
    check_dx_sum(*case)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [((3, 333, 40), 5), ((2, 900, 64), 1), ((2, 700, 130), 13), ((0, 5, 6), 2)])
def test_dx_sum_of_many_pixels_has_the_same_bits_on_any_number_of_threads(shape):
    check_any_thread_count(lambda: check_dx_sum(*draw(shape, np.float32)))


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("shape", [((3, 100, 40), 5), ((2, 1900, 64), 1), ((0, 5, 6), 2)])
def test_dx_sum_in_bfloat16_is_not_rounded_to_it(shape):
    fast = check_dx_sum(*draw(shape, "bfloat16"))[-1]
    with naive_kernels():
        assert_close(check_dx_sum(*draw(shape, "bfloat16"))[-1], fast, rtol=1e-5, atol=1e-4)


# ---- edges ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("kernels")
def test_constant_input_gives_beta():
    """Zero variance: x_hat is 0, whatever the rounding of the mean."""
    x = np.full((2, 4, 4, 6), 0.1, np.float32)
    y = ops.group_norm(ops.Tensor(x), np.ones(6, np.float32), np.arange(6, dtype=np.float32), 2).data
    assert_close(y, np.broadcast_to(np.arange(6.0), x.shape), rtol=0, atol=1e-4)


@pytest.mark.usefixtures("kernels")
def test_empty_batch():
    x = np.zeros((0, 3, 4), np.float32)
    y, dx, dgamma, dbeta = gradients(op({"groups": 2}), [x, np.ones(4, np.float32), np.zeros(4, np.float32)], x)
    assert y.shape == dx.shape == (0, 3, 4)
    assert_same_bits([dgamma, dbeta], [np.zeros(4, np.float32)] * 2)


@pytest.mark.usefixtures("kernels")
def test_more_channels_than_kernels_count_are_refused():
    x, statistics, channels = np.empty((0, 1, 2**31), np.float32), np.empty((0, 1), np.float32), np.empty(1, np.float32)
    with pytest.raises(ValueError, match=r"at most 2\^31 - 1 channels, got 2147483648"):
        backend.native(x, "group_norm_forward")(x, channels, channels, 1, 1e-5, True, x, statistics, statistics)


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


@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_statistics_of_many_positions_without_kernels(offset):
    """Sums in float32, one element after the other, would be wrong by 1e-5 here."""
    from pydiff.ops.group_norm import forward_arrays

    x = (np.random.default_rng(0).standard_normal((1, 256 * 256, 8)) + offset).astype(np.float32)
    y, mean, rstd = forward_arrays(x, np.ones(8, np.float32), np.zeros(8, np.float32), 2, 1e-5, False)
    groups = x.astype(np.float64).reshape(1, -1, 2, 4)
    exact = groups - groups.mean((1, 3), keepdims=True)
    exact /= np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
    assert y.dtype == mean.dtype == rstd.dtype == np.float32
    assert np.abs(y - exact.reshape(x.shape)).max() <= 2e-6

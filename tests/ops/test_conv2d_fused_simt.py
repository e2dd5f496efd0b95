"""What a convolution does besides, by the CUDA kernels under the emulator: the fast ones and the naive ones, in float32
and in bfloat16, against the array path in float64."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import backend, ops
from tests import compare
from tests.bits import assert_same_bits, check_any_batch
from tests.compare import array_path, check_kernel, gradients
from tests.strategies import bfloat16, seeds, simt, sizes  # noqa: F401

half_or_single = pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])


@contextlib.contextmanager
def naive_kernels(naive):
    """Inside, the emulated CUDA kernels are the naive ones: the equations, one thread an element."""
    backend.emulator.set_naive(naive)
    try:
        yield
    finally:
        backend.emulator.set_naive(False)


def fused(options):
    """A function of x, w, a bias and what is added."""
    return lambda x, w, bias, add: ops.conv2d(x, w, bias, add=add, **options)


def arrays_of(rng, x_shape, w_shape, options, each=True):
    """x, w, a bias (for each sample), something to add, dy; in float64."""
    with array_path():
        out = ops.conv2d(np.zeros(x_shape), np.zeros(w_shape), **options).shape
    bias = (x_shape[0], w_shape[3]) if each else w_shape[3:]
    return [rng.standard_normal(s) for s in (x_shape, w_shape, bias, out, out)]


def types(half):
    """Of x, w, bias, add, dy."""
    flowing = compare.bfloat16() if half else np.dtype(np.float32)
    return [flowing, flowing, np.dtype(np.float32), flowing, flowing]


# Tiles are 128 pixels x 64 channels, 32 (bfloat16) or 16 (float32) deep; the gradient of a sample's bias is summed by
# 32 rows of threads. Where images are enlarged, an odd stride makes two classes of rows of y and an even one a single
# class; the gradient of x has as many as the stride, or half of it.
SHAPES = [
    ((2, 8, 9, 16), (3, 3, 16, 64), {"padding": 1, "upsample": 2}),
    ((3, 5, 7, 8), (3, 2, 8, 65), {"padding": ((1, 0), (0, 1)), "upsample": 2}),
    ((2, 7, 6, 24), (3, 3, 24, 8), {"stride": 2, "padding": ((0, 1), (0, 1)), "upsample": 2}),
    ((2, 5, 6, 8), (4, 5, 8, 16), {"stride": (3, 4), "padding": ((3, 0), (2, 5)), "upsample": 2}),
    ((1, 1, 1, 3), (3, 3, 3, 5), {"padding": 1, "upsample": 2}),
    ((5, 1, 1, 17), (1, 1, 17, 11), {"upsample": 2}),
    ((2, 4, 3, 8), (2, 1, 8, 8), {"stride": (5, 6), "upsample": 2}),
    ((2, 11, 13, 8), (3, 3, 8, 72), {"padding": 1}),
    ((131, 1, 1, 16), (1, 1, 16, 24), {}),
    ((3, 9, 5, 7), (2, 2, 7, 3), {"stride": 2, "padding": ((0, 1), (1, 0))}),
]


@pytest.mark.usefixtures("bfloat16")
@half_or_single
@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize(("x_shape", "w_shape", "options"), SHAPES)
def test_tiles_end_anywhere(x_shape, w_shape, options, each, naive, half):
    rng = np.random.default_rng(0)
    arrays = arrays_of(rng, x_shape, w_shape, options, each)[:4]
    with naive_kernels(naive):
        check_kernel(fused(options), arrays, rng, half=(0, 1, 3) if half else ())


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(seeds))
    up, stride = draw(st.integers(1, 2)), tuple(draw(st.integers(1, 4)) for _ in range(2))
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    padding = tuple(tuple(draw(st.integers(0, 3)) for _ in range(2)) for _ in range(2))
    h, w = (max(-(-(k - sum(p)) // up), 1) + draw(st.integers(0, 6)) for k, p in zip(kernel, padding, strict=True))
    cin, cout = draw(sizes), draw(sizes)
    options = {"stride": stride, "padding": padding, "upsample": up}
    shapes = (draw(st.integers(1, 3)), h, w, cin), (*kernel, cin, cout)
    return rng, arrays_of(rng, *shapes, options, draw(st.booleans())), options


@pytest.mark.usefixtures("bfloat16")
@given(case=cases(), naive=st.booleans())
def test_bfloat16_is_rounded_once(case, naive):
    """Products are exact; their sums, the bias, what is added, the sum over repeated pixels and the gradients of
    parameters are float32: the other results are rounded once, to half a step of their 8 digits."""
    rng, arrays, options = case
    *given_, dy = (a.astype(t) for a, t in zip(arrays, types(True), strict=True))
    with array_path():
        exact = gradients(fused(options), [a.astype(np.float64) for a in given_], dy.astype(np.float64))
    backend.emulator.set_seed(int(rng.integers(2**32)))
    with naive_kernels(naive):
        got = gradients(fused(options), given_, dy)
    half, *_ = types(True)
    rounded = (half, half, np.float32, np.float32, half)  # out, dx, dw, dbias, dadd
    for g, e, dtype in zip(got, exact, rounded, strict=True):
        assert g.dtype == dtype
        step = np.exp2(np.frexp(e)[1] - 8.0) * (dtype != np.float32)
        error = np.abs(g.astype(np.float64) - e)
        assert (error <= step / 2 + 2e-6 * max(np.abs(e).max(), 10)).all(), f"off by up to {error.max():.3g}"


@pytest.mark.usefixtures("bfloat16")
@half_or_single
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("up", [1, 2])
def test_same_bits_in_any_batch_and_any_order_of_threads(up, stride, half):
    """Also where rows of one tile belong to different images, and the sum over pixels comes in parts."""
    options = {"stride": stride, "padding": ((0, 1), (1, 2)), "upsample": up}
    arrays = arrays_of(np.random.default_rng(0), (3, 13, 11, 8), (3, 3, 8, 9), options)
    x, w, bias, add, dy = (a.astype(t) for a, t in zip(arrays, types(half), strict=True))
    conv = fused(options)

    def parts(part):
        y, dx, dbias, _ = gradients(lambda x, b, add: conv(x, w, b, add), [x[part], bias[part], add[part]], dy[part])
        return y, dx, dbias

    check_any_batch(parts, len(x))
    results = []
    for seed in (0, 1, 2, 3):
        backend.emulator.set_seed(seed)
        results.append(gradients(conv, [x, w, bias, add], dy))
        assert_same_bits(results[-1], results[0])


@pytest.mark.usefixtures("bfloat16")
@half_or_single
def test_arrays_may_start_anywhere(half):
    """Views that do not start on 16 bytes: vectors are then not used for them, and the bits are the same."""

    def shifted(a):
        memory = np.zeros(a.size + 1, a.dtype)
        memory[1:] = a.ravel()
        return memory[1:].reshape(a.shape)

    options = {"padding": 1, "upsample": 2}
    arrays = arrays_of(np.random.default_rng(0), (2, 3, 4, 16), (3, 3, 16, 24), options)
    arrays = [a.astype(t) for a, t in zip(arrays, types(half), strict=True)]
    expected = gradients(fused(options), arrays[:4], arrays[4])
    for moved in range(5):
        *given_, dy = (shifted(a) if i == moved else a for i, a in enumerate(arrays))
        assert_same_bits(gradients(fused(options), given_, dy), expected)


@pytest.mark.usefixtures("bfloat16")
@half_or_single
@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize("up", [1, 2])
def test_nan_stays_in_its_own_image_and_channel(up, naive, half):
    options = {"padding": 1, "upsample": up}
    for spoilt in range(5):
        arrays = arrays_of(np.random.default_rng(0), (3, 4, 5, 5), (3, 3, 5, 6), options)
        x, w, bias, add, dy = arrays = [a.astype(t) for a, t in zip(arrays, types(half), strict=True)]
        arrays[spoilt][(1, ..., 2)] = np.nan
        with naive_kernels(naive):
            y, dx, dw, dbias, _ = gradients(fused(options), [x, w, bias, add], dy)
        bad = lambda a: np.isnan(a.astype(np.float32))  # noqa: E731
        own = (np.arange(3) == 1)[:, None]
        channel = np.arange(6) == 2
        in_y = {0: own & (channel >= 0), 1: own | channel, 2: own & channel, 3: own & channel, 4: own & ~own}[spoilt]
        if spoilt == 1:  # one row of taps of the filters of one channel, which every image sees
            in_y = (own | ~own) & channel
        assert np.array_equal(bad(y).any((1, 2)), np.broadcast_to(in_y, (3, 6)))
        assert np.array_equal(bad(dx).any((1, 2, 3)), [spoilt == 1, spoilt in (1, 4), spoilt == 1])
        assert np.array_equal(bad(dbias), np.broadcast_to((spoilt == 4) & own & channel, (3, 6)))
        in_dw = np.zeros((5, 6), bool)
        if spoilt in (0, 4):
            in_dw[(2, slice(None)) if spoilt == 0 else (slice(None), 2)] = True
        assert np.array_equal(bad(dw).any((0, 1)), in_dw)


@pytest.mark.usefixtures("simt")
@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize(("n", "h", "cin", "cout"), [(0, 5, 3, 4), (2, 0, 3, 4), (2, 5, 0, 4), (2, 5, 3, 0)])
def test_empty_arrays(n, h, cin, cout, naive):
    """No images, no rows but padding, no input channels (leaves what is added), no output channels."""
    rng = np.random.default_rng(0)
    options = {"padding": ((2, 1), (1, 1)), "upsample": 2}
    *arrays, _ = arrays_of(rng, (n, h, 5, cin), (3, 3, cin, cout), options)
    with naive_kernels(naive):
        check_kernel(fused(options), arrays, rng)


@pytest.mark.usefixtures("simt")
def test_more_samples_than_a_grid_has_rows():
    """The blocks that sum a sample's bias then take several samples."""
    n = 65535 + 3
    dy = np.random.default_rng(0).standard_normal((n, 1, 1, 1)).astype(np.float32)
    x, dw, dbias = np.ones((n, 1, 1, 1), np.float32), np.empty((1, 1, 1, 1), np.float32), np.empty((n, 1), np.float32)
    backend.emulator.conv2d_backward_weight(dy, x, (1, 1), (0, 0), 1, dw, dbias)
    assert np.array_equal(dbias, dy.reshape(n, 1))


@pytest.mark.usefixtures("simt")
def test_the_kernels_use_no_atomics():
    options = {"padding": 1, "upsample": 2}
    arrays = arrays_of(np.random.default_rng(0), (2, 8, 9, 8), (3, 3, 8, 8), options)
    *given_, dy = (a.astype(np.float32) for a in arrays)
    backend.emulator.counters()  # counts since the last call
    gradients(fused(options), given_, dy)
    counters = backend.emulator.counters()
    assert counters["copies"] > 0
    assert counters["atomics"] == 0


@pytest.mark.usefixtures("simt")
@pytest.mark.parametrize("shape", [(3, 4), (2, 3), (4, 2), (8,), (1, 4), (2, 1, 4), ()])
def test_biases_of_other_shapes_are_refused(shape):
    x, w, y = (np.ones(s, np.float32) for s in ((2, 3, 3, 3), (1, 1, 3, 4), (2, 3, 3, 4)))
    bias = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=r"^bias must have shape \((4,|2, 4)\), got"):
        backend.emulator.conv2d_forward(x, w, bias, None, (1, 1), (0, 0), 1, y)
    with pytest.raises(ValueError, match=r"^dbias must have shape \((4,|2, 4)\), got"):
        backend.emulator.conv2d_backward_weight(y, x, (1, 1), (0, 0), 1, w, bias)

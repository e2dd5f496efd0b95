"""Convolution and linear layers: array path against the equation, gradient against its slope, kernels, torch."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import backend, ops
from pydiff.reference.conv2d import conv2d as reference
from pydiff.tensor import Tensor
from tests import compare
from tests.bits import assert_same_bits, check_any_batch, check_any_thread_count
from tests.compare import array_path, assert_close, check_gradient, check_kernel, gradients
from tests.peers import import_torch
from tests.strategies import bfloat16, kernels, seeds, simt, sizes, small, strided  # noqa: F401

NO_PADDING = ((0, 0), (0, 0))


@contextlib.contextmanager
def naive_kernels(naive=True):
    """Inside, the emulated CUDA kernels are the naive ones: the equations, one thread an element."""
    backend.emulator.set_naive(naive)
    try:
        yield
    finally:
        backend.emulator.set_naive(False)


@st.composite
def cases(draw, channels=small):
    """[x, w, bias] in any memory order; strides beyond the kernel, padding on one side only or more than needed."""
    rng = np.random.default_rng(draw(seeds))
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    padding = tuple(tuple(draw(st.integers(0, 4)) for _ in range(2)) for _ in range(2))
    # the smallest image that the filter fits into, and up to nine pixels more
    h, w = (max(k - sum(p), 0) + draw(st.integers(0, 9)) for k, p in zip(kernel, padding, strict=True))
    h, w = (max(s, k - sum(p), 1) for s, k, p in zip((h, w), kernel, padding, strict=True))
    cin, cout = draw(channels), draw(channels)
    arrays = [draw(strided(rng, s)) for s in ((draw(st.integers(1, 3)), h, w, cin), (*kernel, cin, cout), (cout,))]
    stride = tuple(draw(st.integers(1, 5)) for _ in range(2))
    return rng, arrays, {"stride": stride, "padding": padding}


@given(cases())
def test_array_path_matches_the_equation(case):
    _, arrays, options = case
    assert_close(ops.conv2d(*map(Tensor, arrays), **options).data, reference(*arrays, **options), rtol=1e-12)
    assert_close(ops.conv2d(*map(Tensor, arrays[:2]), **options).data, reference(*arrays[:2], **options), rtol=1e-12)


@given(cases(), st.booleans())
def test_gradient_matches_the_slope_of_the_reference(case, bias):
    rng, arrays, options = case
    check_gradient(
        lambda *a: ops.conv2d(*a, **options),
        lambda *a: reference(*a, **options),
        arrays if bias else arrays[:2],
        rng,
    )


@pytest.mark.usefixtures("kernels")
@given(case=cases(sizes), bias=st.booleans())
def test_kernel_is_as_exact_as_plain_float32(case, bias):
    rng, arrays, options = case
    check_kernel(lambda *a: ops.conv2d(*a, **options), arrays if bias else arrays[:2], rng)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [
        ((2, 17, 15, 35), (3, 3, 35, 66), {"padding": 1}),
        ((3, 17, 21, 20), (3, 3, 20, 65), {"stride": 2, "padding": ((0, 1), (0, 1))}),
        ((1, 5, 130, 3), (5, 3, 3, 129), {"stride": (1, 3), "padding": ((4, 0), (0, 2))}),
        ((5, 13, 11, 130), (1, 1, 130, 33), {}),
        ((2, 5, 5, 300), (2, 2, 300, 3), {"padding": 1}),
    ],
)
def test_kernel_where_tiles_and_panels_end(x_shape, w_shape, options):
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(s) for s in (x_shape, w_shape, w_shape[3:])]
    check_kernel(lambda *a: ops.conv2d(*a, **options), arrays, rng)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "padding"),
    [
        ((0, 5, 5, 3), (3, 3, 3, 4), NO_PADDING),
        ((2, 0, 5, 3), (3, 3, 3, 4), ((2, 1), (0, 0))),
        ((2, 5, 5, 0), (3, 3, 0, 4), NO_PADDING),
        ((2, 5, 5, 3), (3, 3, 3, 0), NO_PADDING),
    ],
)
def test_empty_arrays(x_shape, w_shape, padding, dtype):
    """No images, no rows but padding, no input channels (leaves the bias), no output channels."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype(dtype) for s in (x_shape, w_shape, w_shape[3:])]
    expected = reference(*arrays, padding=padding)
    y, *grads = gradients(lambda *a: ops.conv2d(*a, padding=padding), arrays, np.ones(expected.shape))
    assert_close(y, expected, rtol=1e-6)
    for gradient, argument in zip(grads[:2], arrays[:2], strict=True):
        assert_close(gradient, np.zeros(argument.shape), rtol=0)  # nothing depends on what is not there
    assert_close(grads[2], np.full(w_shape[3], np.prod(expected.shape[:3]), float), rtol=1e-6)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_stride_far_beyond_the_image_sees_its_corner(dtype):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 3, 4, 2)).astype(dtype), rng.standard_normal((2, 2, 2, 3)).astype(dtype)
    y, dx, _ = gradients(lambda x, w: ops.conv2d(x, w, stride=100_000), [x, w], np.ones((1, 1, 1, 3)))
    assert_close(y, reference(x, w, stride=(100_000, 100_000)), rtol=1e-6)
    expected = np.zeros(x.shape)
    expected[:, :2, :2] = w.astype(np.float64).sum(axis=3)
    assert_close(dx, expected, rtol=1e-6)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": ((0, 1), (0, 1))}])
def test_same_bits_for_any_batch_and_any_thread_count(options):
    rng = np.random.default_rng(0)
    x, w, bias = (rng.standard_normal(s).astype(np.float32) for s in ((5, 18, 22, 19), (3, 3, 19, 37), (37,)))
    dy = rng.standard_normal(ops.conv2d(x, w, **options).shape)
    check_any_batch(lambda part: gradients(lambda x: ops.conv2d(x, w, bias, **options), [x[part]], dy[part]), 5)
    check_any_thread_count(lambda: gradients(lambda *a: ops.conv2d(*a, **options), [x, w, bias], dy))


@pytest.mark.usefixtures("kernels")
def test_small_linear_layers_have_the_same_bits_in_any_batch():
    """The embedding of the step number: a matrix with as few rows as there are images."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in ((67, 96), (96, 130)))
    check_any_batch(lambda part: gradients(lambda x: ops.linear(x, w), [x[part]], np.ones((67, 130))[part]), 67)


@pytest.mark.usefixtures("kernels")
def test_nan_stays_in_its_own_image():
    """What the kernel reads of other images or beyond the array may not even be multiplied by zero."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in ((3, 7, 9, 5), (3, 3, 5, 6)))
    x[[0, 2]] = np.nan
    dy = np.ones((3, 7, 9, 6))
    dy[[0, 2]] = np.nan
    y, dx, _ = gradients(lambda *a: ops.conv2d(*a, padding=1), [x, w], dy)
    for a in (y, dx):
        assert np.isfinite(a[1]).all()
        assert np.isnan(a[[0, 2]]).all()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_incoming_gradient_may_lie_in_any_order(dtype):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 5, 6, 3)).astype(dtype), rng.standard_normal((3, 3, 3, 4)).astype(dtype)
    dy = rng.standard_normal((2, 3, 4, 4))
    assert_same_bits(gradients(ops.conv2d, [x, w], np.asfortranarray(dy)), gradients(ops.conv2d, [x, w], dy))


def test_the_gradient_of_a_constant_is_not_computed():
    w = Tensor(np.ones((1, 1, 2, 2)), requires_grad=True)
    x = Tensor(np.ones((1, 2, 2, 2)))
    ops.conv2d(x, w).sum().backward()
    assert x.grad is None
    assert_close(w.grad, np.full((1, 1, 2, 2), 4.0), rtol=0)


def test_short_forms_of_stride_and_padding():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 9, 8, 2)), rng.standard_normal((3, 3, 2, 2))
    for short, full in [
        ({"stride": 2, "padding": 1}, {"stride": (2, 2), "padding": ((1, 1), (1, 1))}),
        ({"stride": [1, 2], "padding": (1, 2)}, {"stride": (1, 2), "padding": ((1, 1), (2, 2))}),
    ]:
        assert_close(ops.conv2d(x, w, **short).data, reference(x, w, **full), rtol=1e-12)


# ---- linear --------------------------------------------------------------------------------------------------------


@given(seed=seeds, leading=st.lists(st.integers(0, 4), max_size=3), cin=st.integers(0, 9), cout=st.integers(0, 9))
def test_linear_is_a_matrix_product(seed, leading, cin, cout):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(s) for s in ((*leading, cin), (cin, cout), (cout,))]
    assert_close(ops.linear(*map(Tensor, arrays)).data, arrays[0] @ arrays[1] + arrays[2], rtol=1e-12)
    check_gradient(ops.linear, lambda x, w, b: x @ w + b, arrays, rng)


@pytest.mark.usefixtures("kernels")
@given(seed=seeds, leading=st.lists(sizes, max_size=2), cin=sizes, cout=sizes, data=st.data())
def test_linear_kernel_is_as_exact_as_plain_float32(seed, leading, cin, cout, data):
    rng = np.random.default_rng(seed)
    arrays = [data.draw(strided(rng, s)) for s in ((*leading, cin), (cin, cout), (cout,))]
    check_kernel(ops.linear, arrays, rng)


# one less and more than a tile, a vector, a block of rows, a panel's depth, a strip of columns, few rows
ROWS = [1, 5, 6, 7, 63, 95, 96, 97, 255, 256, 257, 481, 600]
CHANNELS = [1, 5, 15, 16, 17, 63, 65, 128, 130, 255, 256, 257, 330, 520]


@pytest.mark.usefixtures("kernels")
@given(
    seeds, st.sampled_from(ROWS), st.sampled_from(CHANNELS), st.sampled_from(CHANNELS), st.integers(1, 3), st.booleans()
)
def test_large_linear_kernel_is_as_exact_as_plain_float32(seed, rows, cin, cout, threads, bias):
    if backend.emulator is not None:
        rows, cin, cout = min(rows, 40), min(cin, 33), min(cout, 33)  # one thread at a time takes long
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(s) for s in ((rows, cin), (cin, cout), (cout,))]
    native = backend.emulator or backend
    before = native.threads()
    native.set_threads(threads)
    try:
        check_kernel(ops.linear, arrays if bias else arrays[:2], rng)
    finally:
        native.set_threads(before)


@pytest.mark.usefixtures("kernels")
def test_large_linear_layers_have_the_same_bits_for_any_rows_and_any_thread_count():
    """From 257 rows on the gradient of x is another product, and with few channels that of w is cut otherwise."""
    rng = np.random.default_rng(0)
    emulated = backend.emulator is not None
    for cin, cout in [(33, 40)] if emulated else [(300, 130), (520, 330), (40, 70)]:
        rows = 70 if emulated else 600
        x, w, bias = (rng.standard_normal(s).astype(np.float32) for s in ((rows, cin), (cin, cout), (cout,)))
        dy = rng.standard_normal((rows, cout))
        y, dx = gradients(lambda x, w=w, bias=bias: ops.linear(x, w, bias), [x], dy)
        for part in (slice(0, 1), slice(3, 259), slice(2, 300), slice(1, None)):
            some = gradients(lambda x, w=w, bias=bias: ops.linear(x, w, bias), [x[part]], dy[part])
            assert_same_bits(some, [y[part], dx[part]])
        check_any_thread_count(lambda a=(x, w, bias), dy=dy: gradients(ops.linear, a, dy))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("rows", "cin", "cout"), [(7, 20, 33), (97, 300, 65), (300, 520, 130)])
def test_a_linear_layer_has_the_bits_of_a_convolution(rows, cin, cout):
    """With a bias for each sample or with padding, conv2d goes another way, and sums in the same order."""
    if backend.emulator is not None:
        pytest.skip("CUDA kernels have one way for all of them")
    rng = np.random.default_rng(0)
    x, w, bias = (rng.standard_normal(s).astype(np.float32) for s in ((rows, cin), (cin, cout), (cout,)))
    dy = rng.standard_normal((rows, cout)).astype(np.float32)
    y, dx = gradients(lambda x: ops.linear(x, w, bias), [x], dy)
    image, filters = x[None, :, None], w[None, None]
    assert_same_bits([ops.conv2d(image, filters, bias[None]).data[0, :, 0]], [y])
    below = np.concatenate([dy, np.zeros((1, cout), np.float32)])[None, :, None]
    _, gradient = gradients(lambda x: ops.conv2d(x, filters, padding=((0, 1), (0, 0))), [image], below)
    assert_same_bits([gradient[0, :, 0]], [dx])


# ---- dilation, groups, enlargement along one axis: the array path in any dtype -------------------------------------


@st.composite
def full_cases(draw):
    """[x, w, bias, add] in any memory order with every option drawn."""
    rng = np.random.default_rng(draw(seeds))
    groups = draw(st.integers(1, 3))
    kernel, padding = (
        [draw(st.integers(1, 3)) for _ in range(2)],
        tuple(tuple(draw(st.integers(0, 2)) for _ in range(2)) for _ in range(2)),
    )
    dilation, up, stride = (tuple(draw(st.integers(1, 3)) for _ in range(2)) for _ in range(3))
    size = []
    for k, p, d, u in zip(kernel, padding, dilation, up, strict=True):
        size.append(max(-(-(d * (k - 1) + 1 - sum(p)) // u), 1) + draw(st.integers(0, 4)))
    cin, cout = draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    n = draw(st.integers(1, 3))
    options = {"stride": stride, "padding": padding, "upsample": up, "dilation": dilation, "groups": groups}
    x, w = draw(strided(rng, (n, *size, groups * cin))), draw(strided(rng, (*kernel, cin, cout)))
    bias = draw(strided(rng, draw(st.sampled_from([(cout,), (n, cout)]))))
    add = draw(strided(rng, reference(x, w, **options).shape))
    return rng, [x, w, bias, add], options


@given(full_cases())
def test_every_option_matches_the_equation(case):
    rng, arrays, options = case
    op = lambda x, w, bias, add: ops.conv2d(x, w, bias, add=add, **options)  # noqa: E731
    expected = lambda x, w, bias, add: reference(x, w, bias, add=add, **options)  # noqa: E731
    assert_close(op(*map(Tensor, arrays)).data, expected(*arrays), rtol=1e-12)
    single = op(*(Tensor(a.astype(np.float32)) for a in arrays)).data
    assert single.dtype == np.float32
    assert_close(single, expected(*arrays), rtol=1e-5)
    check_gradient(op, expected, arrays, rng)


@pytest.mark.parametrize(
    "options",
    [
        {"dilation": 2, "padding": 3},
        {"groups": 3, "stride": (1, 2)},
        {"groups": 6, "dilation": (1, 3), "stride": 2, "padding": (0, 2)},
    ],
)
def test_dilation_and_groups_equal_torch(options):
    torch = import_torch()
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s) for s in ((2, 8, 9, 6), (3, 2, 6 // options.get("groups", 1), 12), (12,))]
    x, w, b = (torch.from_numpy(a.copy()).requires_grad_() for a in arrays)
    theirs = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), b, **options).permute(0, 2, 3, 1)
    dy = rng.standard_normal(tuple(theirs.shape))
    theirs.backward(torch.from_numpy(dy))
    y, *grads = gradients(lambda *a: ops.conv2d(*a, **options), arrays, dy)
    assert_close(y, theirs.detach().numpy(), rtol=1e-12)
    for got, tensor in zip(grads, (x, w, b), strict=True):
        assert_close(got, tensor.grad.numpy(), rtol=1e-12)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("options", [{"dilation": 2}, {"groups": 2}, {"upsample": (1, 2)}])
def test_bfloat16_where_no_kernel_serves(options):
    """Computed in float32, rounded once."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s) for s in ((2, 6, 7, 4), (3, 2, 4 // options.get("groups", 1), 6))]
    check_kernel(lambda *a: ops.conv2d(*a, **options), arrays, rng, half=(0, 1), floor=2.0**-8)


# ---- the CUDA kernels, emulated -------------------------------------------------------------------------------------

# Tiles of the CUDA kernels are 128 pixels x 64 channels, 32 (bfloat16) or 16 (float32) deep. These shapes end on such
# a border, or just beyond it; have vectors in one operand only; sum over the pixels in parts (of 256 at least).
TILES = [
    ((2, 8, 8, 16), (3, 3, 16, 64), {"padding": 1}),
    ((3, 16, 17, 8), (3, 2, 8, 65), {"padding": ((1, 0), (0, 1))}),
    ((1, 11, 13, 3), (3, 3, 3, 72), {"stride": (1, 3), "padding": 1}),
    ((2, 9, 9, 40), (2, 2, 40, 3), {"stride": 2, "padding": ((0, 1), (1, 0))}),
    ((130, 1, 1, 128), (1, 1, 128, 24), {}),
    ((1, 40, 41, 15), (1, 1, 15, 17), {}),
    ((2, 3, 4, 8), (4, 5, 8, 8), {"stride": (3, 2), "padding": ((6, 7), (5, 9))}),
]


@pytest.mark.usefixtures("simt")
@pytest.mark.parametrize("half", [(), (0, 1)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize(("x_shape", "w_shape", "options"), TILES)
def test_tiles_end_anywhere(x_shape, w_shape, options, naive, half):
    """The fast kernels and the naive ones, which are what the fast ones are compared with on a GPU."""
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal(s) for s in (x_shape, w_shape, w_shape[3:])]
    with naive_kernels(naive):
        check_kernel(lambda *a: ops.conv2d(*a, **options), arrays, rng, half=half)


@pytest.mark.usefixtures("bfloat16")
@given(case=cases(sizes), naive=st.booleans())
def test_bfloat16_is_rounded_once(case, naive):
    """Products are exact, sums, bias and the gradients of parameters float32: the other results are rounded once, to
    half a step of their 8 digits.
    """
    rng, (x, w, bias), options = case
    half = compare.bfloat16()
    x, w, bias = x.astype(half), w.astype(half), bias.astype(np.float32)
    with array_path():
        exact_arrays = [a.astype(np.float64) for a in (x, w, bias)]
        dy = rng.standard_normal(ops.conv2d(*exact_arrays, **options).shape).astype(half)
        exact = gradients(lambda *a: ops.conv2d(*a, **options), exact_arrays, dy)
    backend.emulator.set_seed(int(rng.integers(2**32)))
    with naive_kernels(naive):
        got = gradients(lambda *a: ops.conv2d(*a, **options), [x, w, bias], dy)
    for g, e, dtype in zip(got, exact, (half, half, np.float32, np.float32), strict=True):  # out, dx, dw, dbias
        assert g.dtype == dtype
        step = np.exp2(np.frexp(e)[1] - 8.0) * (dtype == half)
        error = np.abs(g.astype(np.float64) - e)
        assert (error <= step / 2 + 2e-6 * max(np.abs(e).max(), 10)).all(), f"off by up to {error.max():.3g}"


def normals(rng, dtype, *shapes):
    return [rng.standard_normal(s).astype(dtype) for s in shapes]


@pytest.mark.usefixtures("bfloat16")
def test_gradients_of_weights_stay_float32():
    """The kernel's dw has the digits of a float32 sum, far below bfloat16's; the tensor then takes its own dtype."""
    rng = np.random.default_rng(0)
    x, w, dy = normals(rng, compare.bfloat16(), (2, 9, 8, 5), (3, 3, 5, 6), (2, 7, 6, 6))
    bias = np.zeros(6, np.float32)
    exact = gradients(ops.conv2d, [a.astype(np.float64) for a in (x, w, bias)], dy.astype(np.float64))
    function = ops.conv2d(Tensor(x), Tensor(w, requires_grad=True), Tensor(bias, requires_grad=True)).maker
    for got, expected in zip(function.backward(dy)[1:3], exact[2:], strict=True):
        assert got.dtype == np.float32
        assert_close(got, expected, rtol=1e-6)


@pytest.mark.usefixtures("bfloat16")
def test_a_bias_may_be_bfloat16():
    half = compare.bfloat16()
    x, w, bias, dy = normals(np.random.default_rng(0), half, (2, 5, 5, 3), (3, 3, 3, 4), (4,), (2, 3, 3, 4))
    got = gradients(ops.conv2d, [x, w, bias], dy)
    assert_same_bits(got, gradients(ops.conv2d, [x, w, bias.astype(np.float32)], dy))


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("half", [False, True])
def test_same_bits_in_any_batch_and_any_order_of_threads(half):
    """Also where rows of one tile belong to different images, and the sum over pixels comes in parts."""
    rng = np.random.default_rng(0)
    dtype, options = compare.bfloat16() if half else np.float32, {"stride": (2, 1), "padding": ((0, 1), (1, 2))}
    x, w, dy = normals(rng, dtype, (3, 19, 17, 8), (3, 3, 8, 9), (3, 9, 18, 9))
    bias = rng.standard_normal(9).astype(np.float32)
    check_any_batch(lambda part: gradients(lambda x: ops.conv2d(x, w, bias, **options), [x[part]], dy[part]), 3)
    results = []
    for seed in (0, 1, 2, 3):
        backend.emulator.set_seed(seed)
        results.append(gradients(lambda *a: ops.conv2d(*a, **options), [x, w, bias], dy))
        assert_same_bits(results[-1], results[0])


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("half", [False, True])
def test_arrays_may_start_anywhere(half):
    """Views that do not start on 16 bytes: the vector copies are then not used, and the bits are the same."""
    dtype = compare.bfloat16() if half else np.float32

    def shifted(a, by):
        memory = np.zeros(a.size + by, dtype)
        memory[by:] = a.ravel()
        return memory[by:].reshape(a.shape)

    arrays = normals(np.random.default_rng(0), dtype, (2, 5, 6, 16), (3, 3, 16, 24), (2, 3, 4, 24))
    expected = gradients(ops.conv2d, arrays[:2], arrays[2])
    for moved in range(3):
        x, w, dy = (shifted(a, 1 if i == moved else 0) for i, a in enumerate(arrays))
        assert_same_bits(gradients(ops.conv2d, [x, w], dy), expected)


@pytest.mark.usefixtures("bfloat16")
def test_nan_stays_in_its_own_image_and_channel():
    x, w, dy = normals(np.random.default_rng(0), compare.bfloat16(), (3, 7, 9, 5), (3, 3, 5, 6), (3, 7, 9, 6))
    x[[0, 2], :, :, 2] = np.nan
    dy[[0, 2], :, :, 3] = np.nan
    y, dx, dw, dbias = gradients(lambda *a: ops.conv2d(*a, padding=1), [x, w, np.zeros(6, np.float32)], dy)
    for a in (y, dx):
        assert np.isfinite(a[1].astype(np.float32)).all()
        assert np.isnan(a[[0, 2]].astype(np.float32)).all()
    bad = np.zeros((3, 3, 5, 6), bool)
    bad[:, :, 2], bad[..., 3] = True, True
    assert np.array_equal(np.isnan(dw.astype(np.float32)), bad)
    assert np.array_equal(np.isnan(dbias), np.arange(6) == 3)


@pytest.mark.usefixtures("simt")
def test_the_kernels_use_no_atomics():
    x, w = normals(np.random.default_rng(0), np.float32, (5, 18, 9, 8), (3, 3, 8, 8))
    backend.emulator.counters()  # counts since the last call
    gradients(ops.conv2d, [x, w], np.ones((5, 16, 7, 8)))
    counters = backend.emulator.counters()
    assert counters["copies"] > 0
    assert counters["atomics"] == 0


# ---- torch ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (3, 4)])
@pytest.mark.parametrize("padding", [NO_PADDING, ((1, 1), (2, 2)), ((0, 3), (2, 0))])
def test_output_and_gradients_equal_torch(stride, padding):
    torch = import_torch()
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s) for s in ((2, 8, 9, 3), (3, 2, 3, 5), (5,))]
    x, w, b = (torch.from_numpy(a).requires_grad_() for a in arrays)
    padded = torch.nn.functional.pad(x.permute(0, 3, 1, 2), (*padding[1], *padding[0]))
    theirs = torch.nn.functional.conv2d(padded, w.permute(3, 2, 0, 1), b, stride).permute(0, 2, 3, 1)
    dy = rng.standard_normal(tuple(theirs.shape))
    theirs.backward(torch.from_numpy(dy))
    y, *grads = gradients(lambda *a: ops.conv2d(*a, stride, padding), arrays, dy)
    assert_close(y, theirs.detach().numpy(), rtol=1e-9)
    for got, expected in zip(grads, (x, w, b), strict=True):
        assert_close(got, expected.grad.numpy(), rtol=1e-7)


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "bias_shape", "options", "message"),
    [
        ((5, 5, 3), (3, 3, 3, 4), None, {}, r"needs x \(N, H, W, Cin\).*got \(5, 5, 3\)"),
        ((1, 5, 5, 3), (3, 3, 4), None, {}, r"and w \(kH, kW, Cin, Cout\).*\(3, 3, 4\)"),
        ((1, 5, 5, 3), (3, 3, 4, 4), None, {}, "x has 3 channels, but the filters .* take 4"),
        ((1, 5, 5, 3), (3, 3, 3, 4), (3,), {}, r"bias must have shape \(4,\) or \(1, 4\), got \(3,\)"),
        ((1, 2, 5, 3), (3, 3, 3, 4), None, {}, r"\(3, 3\) filter does not fit into a \(2, 5\) image"),
        ((1, 5, 2, 3), (3, 3, 3, 4), None, {"padding": ((9, 9), (0, 0))}, "does not fit"),
        ((1, 5, 5, 3), (0, 3, 3, 4), None, {}, "does not fit"),
        ((1, 5, 5, 3), (3, 0, 3, 4), None, {}, "does not fit"),
        ((1, 5, 5, 3), (3, 3, 3, 4), None, {"stride": 0}, "stride must be a whole number >= 1.*got 0"),
        ((1, 5, 5, 3), (3, 3, 3, 4), None, {"stride": -1}, "stride must be"),
        ((1, 5, 5, 3), (3, 3, 3, 4), None, {"stride": 1.5}, "stride must be"),
        ((1, 5, 5, 3), (3, 3, 3, 4), None, {"stride": (1, 2, 3)}, "stride must be"),
        ((1, 5, 5, 3), (3, 3, 3, 4), None, {"padding": -1}, "padding must be a whole number >= 0.*got -1"),
        ((1, 5, 5, 3), (3, 3, 3, 4), None, {"padding": ((1, -1), (0, 0))}, r"padding must be.*got \(1, -1\)"),
        ((1, 5, 5, 3), (3, 3, 3, 4), None, {"padding": "same"}, "padding must be.*got 'same'"),
        ((1, 5, 5, 3), (3, 3, 3, 4), None, {"padding": ((1, 1), 1)}, "padding must be"),
        ((1, 5, 5, 3), (3, 3, 3, 4), None, {"dilation": 0}, "dilation must be a whole number >= 1"),
        ((1, 5, 5, 3), (3, 3, 3, 4), None, {"dilation": 3}, r"a \(3, 3\) filter does not fit into a \(5, 5\) image"),
        ((1, 5, 5, 4), (3, 3, 2, 3), None, {"groups": 2}, "cannot cut 4 and 3 channels into 2 equal groups"),
        ((1, 5, 5, 4), (3, 3, 4, 4), None, {"groups": 0}, "cannot cut 4 and 4 channels into 0 equal groups"),
        ((1, 5, 5, 4), (3, 3, 4, 4), None, {"groups": 2}, "x has 4 channels.*take 4 per group of 2"),
    ],
)
def test_bad_arguments(x_shape, w_shape, bias_shape, options, message):
    bias = None if bias_shape is None else np.zeros(bias_shape)
    with pytest.raises(ValueError, match=message):
        ops.conv2d(Tensor(np.zeros(x_shape)), np.zeros(w_shape), bias, **options)


@pytest.mark.parametrize(("x_shape", "w_shape"), [((), (1, 2)), ((3,), (2, 2)), ((2, 3), (3,)), ((2, 3), (2, 3, 3))])
def test_bad_arguments_of_linear(x_shape, w_shape):
    with pytest.raises(ValueError, match=r"linear needs x \(\.\.\., Cin\) and w \(Cin, Cout\), got"):
        ops.linear(Tensor(np.zeros(x_shape)), np.zeros(w_shape))


@pytest.mark.parametrize("shape", [(3,), (2, 4), (1, 4), ()])
def test_bad_bias_of_linear(shape):
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\), got"):
        ops.linear(Tensor(np.zeros((2, 3))), np.zeros((3, 4)), np.zeros(shape))

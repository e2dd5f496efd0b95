"""What a convolution does besides: a bias for each sample, something added to the result, an image enlarged on the
fly. Each against the equation, against the separate operations, and by every algorithm."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import backend, nn, ops
from pydiff.ops.conv2d import Window, convolve
from pydiff.reference.conv2d import conv2d as reference
from pydiff.tensor import Tensor
from tests.bits import assert_same_bits, check_any_batch, check_any_thread_count
from tests.compare import array_path, assert_close, check_gradient, check_kernel, gradients
from tests.strategies import kernels, seeds, simd, sizes, small, strided  # noqa: F401


class Fused:
    """conv2d or its reference with arguments in the order x, w and then what there is of bias and add."""

    def __init__(self, function, with_bias, with_add, options):
        self.function, self.with_bias, self.with_add, self.options = function, with_bias, with_add, options

    def __call__(self, x, w, *rest):
        bias = rest[0] if self.with_bias else None
        return self.function(x, w, bias, add=rest[-1] if self.with_add else None, **self.options)


@st.composite
def cases(draw, channels=small):
    """rng, arrays, and two functions of them: the op and its reference."""
    rng = np.random.default_rng(draw(seeds))
    up, stride = draw(st.integers(1, 2)), tuple(draw(st.integers(1, 3)) for _ in range(2))
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    padding = tuple(tuple(draw(st.integers(0, 3)) for _ in range(2)) for _ in range(2))
    h, w = (max(-(-(k - sum(p)) // up), 1) + draw(st.integers(0, 6)) for k, p in zip(kernel, padding, strict=True))
    n, cin, cout = draw(st.integers(1, 3)), draw(channels), draw(channels)
    shapes = [(n, h, w, cin), (*kernel, cin, cout)]
    with_bias, with_add = draw(st.booleans()), draw(st.booleans())
    if with_bias:
        shapes.append((n, cout) if draw(st.booleans()) else (cout,))
    if with_add:
        oh, ow = ((up * s + sum(p) - k) // t + 1 for s, p, k, t in zip((h, w), padding, kernel, stride, strict=True))
        shapes.append((n, oh, ow, cout))
    options = {"stride": stride, "padding": padding, "upsample": up}
    functions = [Fused(f, with_bias, with_add, options) for f in (ops.conv2d, reference)]
    return rng, [draw(strided(rng, s)) for s in shapes], *functions


@given(cases())
def test_array_path_matches_the_equation(case):
    _, arrays, op, equation = case
    assert_close(op(*map(Tensor, arrays)).data, equation(*arrays), rtol=1e-12)


@given(cases())
def test_gradient_matches_the_slope_of_the_reference(case):
    rng, arrays, op, equation = case
    check_gradient(op, equation, arrays, rng)


@pytest.mark.usefixtures("kernels")
@given(cases(sizes))
def test_kernel_is_as_exact_as_plain_float32(case):
    rng, arrays, op, _ = case
    check_kernel(op, arrays, rng)


# x (N, H, W, Cin), kernel size, Cout, stride: Winograd's algorithm with whole and with cut tiles, and where its blocks
# of channels do not come out even; the direct one, few output channels, few input channels, a linear layer
SHAPES = [
    ((4, 16, 16, 16), 3, 64, 1),
    ((3, 4, 6, 32), 3, 48, 1),
    ((5, 5, 7, 19), 3, 37, 1),
    ((3, 5, 5, 24), 3, 20, 2),
    ((3, 5, 6, 33), 3, 3, 1),
    ((3, 5, 6, 3), 3, 32, 1),
    ((3, 7, 5, 40), 1, 24, 1),
]


def arrays_of(shape, kernel, cout, stride, up):
    """x, w, a bias for each sample, something to add, dy; and the options."""
    rng = np.random.default_rng(0)
    n, h, w, cin = shape
    out = (n, *((up * s + 2 * (kernel // 2) - kernel) // stride + 1 for s in (h, w)), cout)
    arrays = [rng.standard_normal(s) for s in (shape, (kernel, kernel, cin, cout), (n, cout), out, out)]
    return rng, arrays, {"stride": stride, "padding": kernel // 2, "upsample": up}


@pytest.fixture(params=["any algorithm", "no Winograd"])
def algorithms(request):
    """Runs a test with Winograd's algorithm, where it suits, and without; how many times a plain sum's error is due.

    Winograd's is three to eight times as large (docs/winograd.md).
    """
    backend.use_winograd(request.param == "any algorithm")
    yield 10.0 if request.param == "any algorithm" else 3.0
    backend.use_winograd(True)


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize(("shape", "kernel", "cout", "stride"), SHAPES)
def test_every_algorithm_is_as_exact_as_plain_float32(shape, kernel, cout, stride, up, algorithms):
    rng, arrays, options = arrays_of(shape, kernel, cout, stride, up)
    check_kernel(Fused(ops.conv2d, True, True, options), arrays[:4], rng, factor=algorithms)


@pytest.mark.usefixtures("simd", "algorithms")
@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize(("shape", "kernel", "cout", "stride"), SHAPES)
def test_same_bits_for_any_batch_and_any_thread_count(shape, kernel, cout, stride, up):
    _, arrays, options = arrays_of(shape, kernel, cout, stride, up)
    x, w, bias, add, dy = (a.astype(np.float32) for a in arrays)
    op = Fused(ops.conv2d, True, True, options)
    parts = lambda part: gradients(  # noqa: E731
        lambda x, bias, add: op(x, w, bias, add), [x[part], bias[part], add[part]], dy[part]
    )
    check_any_batch(parts, len(x))
    check_any_thread_count(lambda: gradients(op, [x, w, bias, add], dy))


@pytest.mark.parametrize("path", ["kernels", "arrays"])
@pytest.mark.parametrize(("cin", "cout"), [(5, 7), (24, 3), (24, 40)])
@pytest.mark.parametrize("below", [1, 0, -1])
def test_rows_of_an_enlarged_image_may_be_left_out(path, cin, cout, below, simd):  # noqa: ARG001, F811
    """To the bits, where no tile of Winograd's stands half in the row that is left out below."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in ((2, 18, 21, cin), (3, 3, cin, cout)))
    bias, sides = rng.standard_normal(cout).astype(np.float32), (1, 1)
    window = Window(padding=((-1, below), sides), upsample=(2, 2))
    large = x.repeat(2, 1).repeat(2, 2)[:, 1 : 36 + min(below, 0)]
    with contextlib.nullcontext() if path == "kernels" else array_path():
        expected = ops.conv2d(large, w, bias, padding=((0, max(below, 0)), sides)).data
        y = np.full_like(expected, np.nan)
        assert convolve(x, w, bias, None, window, y) is y
    assert_same_bits([y], [expected])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize(("shape", "kernel", "cout", "stride"), SHAPES[:4])
def test_nan_stays_in_its_own_image(shape, kernel, cout, stride, up):
    for spoilt in (0, 2, 3):  # x, bias, add
        _, arrays, options = arrays_of(shape, kernel, cout, stride, up)
        x, w, bias, add, dy = (a.astype(np.float32) for a in arrays)
        (x, w, bias, add)[spoilt][1], dy[1] = np.nan, np.nan
        op = Fused(ops.conv2d, True, True, options)
        y, dx, _, dbias, dadd = gradients(op, [x, w, bias, add], dy)
        for a in (y, dx, dbias, dadd):
            assert np.isfinite(np.delete(a, 1, axis=0)).all()
        for a in (y, dbias, dadd):
            assert np.isnan(a[1]).all()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "h", "cin", "cout"), [(0, 5, 3, 4), (2, 0, 3, 4), (2, 5, 0, 4), (2, 5, 3, 0)])
def test_empty_arrays(n, h, cin, cout, dtype):
    """No images, no rows but padding, no input channels (leaves what is added), no output channels."""
    rng = np.random.default_rng(0)
    out = (n, 2 * h + 1, 10, cout)
    arrays = [rng.standard_normal(s).astype(dtype) for s in ((n, h, 5, cin), (3, 3, cin, cout), (n, cout), out)]
    options = {"padding": ((2, 1), (1, 1)), "upsample": 2}
    expected = Fused(reference, True, True, options)(*arrays)
    y, dx, dw, dbias, dadd = gradients(Fused(ops.conv2d, True, True, options), arrays, np.ones(out))
    assert_close(y, expected, rtol=1e-6)
    if 0 in (n, cin, cout) or h == 0:
        assert_close(dx, np.zeros(dx.shape), rtol=0)
        assert_close(dw, np.zeros(dw.shape), rtol=0)
    assert_close(dbias, np.full((n, cout), out[1] * out[2], float), rtol=1e-6)
    assert_close(dadd, np.ones(out), rtol=0)


def test_layers_hand_their_arguments_on():
    """A convolution as in a residual block equals the separate operations, and so do all its gradients."""
    rng = np.random.default_rng(0)
    layer = nn.Conv2d(3, 5, 3, padding=1).initialize().astype(np.float64)
    x, shift, add = (rng.standard_normal(s) for s in ((2, 4, 3, 3), (2, 5), (2, 8, 6, 5)))
    dy = rng.standard_normal(add.shape)

    def fused(x, shift, add):
        return layer(x, shift=shift, add=add, upsample=2)

    def separate(x, shift, add):
        return layer(ops.upsample_nearest(x)) + shift.reshape((2, 1, 1, 5)) + add

    results = []
    for function in (fused, separate):
        values = gradients(function, [x, shift, add], dy)
        results.append([*values, *(p.grad for p in layer.parameters())])
        for p in layer.parameters():
            p.grad = None
    for got, expected in zip(*results, strict=True):
        assert_close(got, expected, rtol=1e-12)


@given(seed=seeds, leading=st.lists(st.integers(0, 4), max_size=3), cin=st.integers(0, 9), cout=st.integers(0, 9))
def test_linear_adds(seed, leading, cin, cout):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(s) for s in ((*leading, cin), (cin, cout), (cout,), (*leading, cout))]
    check_gradient(ops.linear, lambda x, w, b, add: x @ w + b + add, arrays, rng)


@pytest.mark.usefixtures("kernels")
@given(seed=seeds, rows=sizes, cin=sizes, cout=sizes)
def test_linear_kernel_adds(seed, rows, cin, cout):
    rng = np.random.default_rng(seed)
    check_kernel(ops.linear, [rng.standard_normal(s) for s in ((rows, cin), (cin, cout), (cout,), (rows, cout))], rng)


@pytest.mark.parametrize(
    ("bias_shape", "options", "message"),
    [
        ((3, 4), {}, r"bias must have shape \(4,\) or \(2, 4\), got \(3, 4\)"),
        ((2, 1, 1, 4), {}, r"bias must have shape .*, got \(2, 1, 1, 4\)"),
        ((4,), {"upsample": 1.5}, r"upsample must be a whole number >= 1.*got 1\.5"),
        ((4,), {"upsample": 0}, "upsample must be a whole number >= 1 or a pair of them, got 0"),
        ((4,), {"add": np.zeros((2, 5, 5, 4))}, r"of the result's shape \(2, 3, 3, 4\), got float64 \(2, 5"),
        ((4,), {"add": np.zeros((2, 3, 3, 4), np.float32)}, "add must be float64 .*, got float32"),
        ((4,), {"add": np.zeros((2, 3, 3, 4)), "upsample": 2}, r"result's shape \(2, 8, 8, 4\)"),
    ],
)
def test_bad_arguments(bias_shape, options, message):
    with pytest.raises(ValueError, match=message):
        ops.conv2d(Tensor(np.zeros((2, 5, 5, 3))), np.zeros((3, 3, 3, 4)), np.zeros(bias_shape), **options)


def test_bad_addend_of_linear():
    with pytest.raises(ValueError, match=r"add must be float64 of the result's shape \(2, 4\), got float64 \(4,\)"):
        ops.linear(Tensor(np.zeros((2, 3))), np.zeros((3, 4)), add=np.zeros(4))

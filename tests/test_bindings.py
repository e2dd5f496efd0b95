"""The compiled functions called directly: whatever is wrong with an argument is a Python exception, never a crash.

native_functions.py describes every function once; every mistake of its list is made in every argument, one at a time,
for the CPU's modules and for the CUDA kernels' under the emulator.
"""

import inspect
import math
import re
from pathlib import Path

import numpy as np
import pytest

from pydiff import backend
from tests.native_functions import F32, F64, FUNCTIONS, I32, In, of_any_size, read_only
from tests.strategies import kernels  # noqa: F401

ROOT = Path(__file__).parents[1]
each_function = pytest.mark.parametrize("name", FUNCTIONS)
pytestmark = pytest.mark.usefixtures("kernels")


def good_arguments(name):
    rng, cuda = np.random.default_rng(0), backend.emulator is not None
    return {key: argument.good(rng, cuda) for key, argument in FUNCTIONS[name].items()}


def function(name):
    return getattr(backend.emulator or backend.cpu, name)


def call(name, arguments):
    return function(name)(*arguments.values())


def arrays(arguments, name):
    """(key, its description, the array) of the arguments that are arrays."""
    for key, argument in FUNCTIONS[name].items():
        if isinstance(argument, In) and arguments[key] is not None:
            yield key, argument, arguments[key]


@each_function
def test_the_good_arguments_are_good(name):
    arguments = good_arguments(name)
    call(name, arguments)
    for key, argument, array in arrays(arguments, name):
        if argument.optional:
            call(name, {**arguments, key: None})
        if argument.output:
            assert np.isfinite(array.astype(F64)).all(), f"{key} was not written"


@each_function
def test_every_mistake_is_an_exception(name):
    refused, cuda = 0, backend.emulator is not None
    for key, argument in FUNCTIONS[name].items():
        for what, value in argument.mistakes(cuda):
            try:
                call(name, {**good_arguments(name), key: value})
            except (TypeError, ValueError, OverflowError):
                refused += 1
            else:
                pytest.fail(f"{name} took {what} as {key}")
    assert refused >= 20


@each_function
def test_too_few_too_many_and_unknown_arguments(name):
    values = list(good_arguments(name).values())
    for count in range(len(values)):
        with pytest.raises(TypeError):
            function(name)(*values[:count])
    with pytest.raises(TypeError):
        function(name)(*values, None)
    with pytest.raises(TypeError):
        function(name)(*values, unknown=1)


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("squared_norm", "g", [1.0], "^g must be a NumPy array, got list$"),
        ("squared_norm", "g", np.zeros(3), "^g must have dtype float32( in native byte order)?, got float64$"),
        ("squared_norm", "g", np.zeros(3, ">f4"), "^g (must have dtype float32 in native .*, got|has dtype) >f4"),
        ("squared_norm", "g", np.zeros(6, F32)[::2], "^g must be C-contiguous$"),
        ("adamw", "g", np.zeros(8, F32), r"^g must have shape \(9,\), got \(8,\)$"),
        ("adamw", "p", read_only(np.zeros(9, F32)), "^p is read-only$"),
        ("conv2d_forward", "stride", (0, 1), "^stride must be at least 1, got 0$"),
        ("conv2d_forward", "pad", (-1, 0), "^padding must not be negative$"),
        ("group_norm_forward", "groups", 3, "^4 channels do not divide into 3 groups$"),
        ("attention_forward", "heads", 3, "^4 channels do not divide into 3 heads$"),
        ("denoise_forward", "table", np.zeros((0, 9), F32), r"rows of 9 coefficients .*, got \(0, 9\) for 0 arrays$"),
        ("denoise_backward", "table", np.zeros((1, 8), F32), r"rows of 9 coefficients .*, got \(1, 8\) for 0 arrays$"),
        ("denoise_backward", "table", np.zeros((1, 26), F32), "^denoise takes at most 16 history arrays, got 17$"),
    ],
)
def test_messages_say_what_was_got(name, key, value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(name, {**good_arguments(name), key: value})


@pytest.mark.parametrize(("row", "name", "output"), [(3, "denoise_forward", "x_next"), (-1, "denoise_backward", "dx")])
def test_a_row_beyond_the_table(row, name, output, kernels):  # noqa: F811
    """A GPU's memory is not looked at before a launch: there the result is NaN."""
    values = {**good_arguments(name), "row": np.array([row], I32)}
    if kernels == "simt":
        call(name, values)
        assert np.isnan(values[output]).all()
    else:
        with pytest.raises(ValueError, match=f"^row must be from 0 to 2, got {row}$"):
            call(name, values)


# ---- memory --------------------------------------------------------------------------------------------------------


def fenced(a, fill):
    """(a contiguous copy of `a`, the longer array around it, which has 64 elements of `fill` on either side)."""
    wide = np.full(a.size + 128, fill, a.dtype)
    wide[64 : 64 + a.size] = a.ravel()
    return wide[64 : 64 + a.size].reshape(a.shape), wide


@each_function
def test_nothing_is_read_or_written_beyond_the_arrays(name):
    """Inputs lie between NaNs, which would show in the result; outputs lie between marks, which must still be there."""
    expected = good_arguments(name)
    call(name, expected)
    got, fences = good_arguments(name), {}
    for key, argument, array in list(arrays(got, name)):
        fill = 123 if argument.output or array.dtype.kind in "iu" else np.nan
        got[key], fences[key] = fenced(array, fill)
    call(name, got)
    for key, wide in fences.items():
        assert got[key].tobytes() == expected[key].tobytes(), key
        if FUNCTIONS[name][key].output:
            assert (wide[:64] == 123).all(), key
            assert (wide[-64:] == 123).all(), key


def between_fences(values):
    """The same arguments, each contiguous array in the middle of a longer one; and [(its number, the longer one)]."""
    fences = []
    for i, value in enumerate(values):
        if isinstance(value, np.ndarray) and value.flags.c_contiguous:
            values[i], wide = fenced(value, 123)
            fences.append((i, wide))
    return values, fences


@each_function
def test_any_sizes_are_computed_within_their_memory(name, kernels):  # noqa: F811
    """Empty arrays, no channels, no queries, filters larger than the image: nothing beyond the arrays changes."""
    rng = np.random.default_rng(5)
    for _ in range(20 if kernels == "simt" else 150):
        values, fences = between_fences(of_any_size(name, rng))
        function(name)(*values)
        for i, wide in fences:
            outside = np.concatenate([wide[:64], wide[-64:]])
            assert (outside == wide.dtype.type(123)).all(), (name, i, [np.shape(v) for v in values])


def test_attention_of_no_channels(kernels):  # noqa: F811
    """Every score is zero: the log-sum-exp is that of the number of keys, on the CPU to base 2."""
    lse = np.full((2, 3, 5), np.nan, F32)
    q, k = np.zeros((2, 5, 0), F32), np.zeros((2, 7, 0), F32)
    function("attention_forward")(q, k, k, 3, 1.0, False, None, q.copy(), lse)
    np.testing.assert_allclose(lse, math.log(7) if kernels == "simt" else math.log2(7), rtol=1e-6)
    function("attention_backward")(q, q, k, k, q, lse, 3, 1.0, False, None, q.copy(), k.copy(), k.copy())


@pytest.mark.parametrize("cout", [1, 4, 5, 33])
def test_a_convolution_of_no_columns(cout):
    x, w, y = np.ones((2, 9, 9, 17), F32), np.ones((1, 1, 17, cout), F32), np.ones((2, 3, 0, cout), F32)
    function("conv2d_forward")(x, w, None, None, (3, 2), (0, 0), 1, y)
    function("conv2d_backward_input")(y, w, (3, 2), (0, 0), 1, x)
    assert (x == 0).all()


def test_a_convolution_of_no_channels(kernels):  # noqa: F811
    """Of many taps, in weights that take no memory: nobody goes through them."""
    taps, y, bias = 1 << 16 if kernels == "simt" else 2**31 - 1, np.ones((2, 3, 4, 5), F32), np.arange(5, dtype=F32)
    x, weights = np.ones((2, 3, 4, 0), F32), np.ones((taps, 1, 0, 5), F32)
    function("conv2d_forward")(x, weights, bias, None, (1, 1), (0, 0), 1, y)
    assert (y == bias).all()
    dx, dbias = np.ones((2, 3, 4, 5), F32), np.ones(5, F32)
    nothing, weights = np.ones((2, 3, 4, 0), F32), np.ones((taps, 1, 5, 0), F32)
    function("conv2d_backward_input")(nothing, weights, (1, 1), (0, 0), 1, dx)
    assert (dx == 0).all()
    dw = np.ones((taps, 1, 0, 5), F32)
    function("conv2d_backward_weight")(y, nothing, (1, 1), (0, 0), 1, dw, dbias)
    np.testing.assert_array_equal(dbias, 24 * bias)


@pytest.mark.parametrize("where", ["x", "w", "y"])
def test_sizes_that_are_too_large_to_count(where):
    """Of no images or channels, for which there is memory."""
    x, w, y = np.ones((0, 5, 5, 0), F32), np.ones((1, 1, 0, 4), F32), np.ones((0, 5, 5, 4), F32)
    function("conv2d_forward")(x, w, None, None, (1, 1), (0, 0), 1, y)
    if where == "x":
        x = np.ones((0, 5, 2**31, 0), F32)
    elif where == "w":
        w = np.ones((2**31, 1, 0, 4), F32)
    else:
        y = np.ones((0, 2**40, 5, 4), F32)
    message = r"^the sizes of images and kernel, stride and padding must be below 2\^31$"
    for name, arguments in (
        ("conv2d_forward", (x, w, None, None, (1, 1), (0, 0), 1, y)),
        ("conv2d_backward_input", (y, w, (1, 1), (0, 0), 1, x)),
        ("conv2d_backward_weight", (y, x, (1, 1), (0, 0), 1, w, None)),
    ):
        with pytest.raises(ValueError, match=message):
            function(name)(*arguments)


def test_a_history_without_end_takes_no_memory():
    with pytest.raises(ValueError, match=r"^denoise takes at most 16 history arrays, got 1099511627776$"):
        call("denoise_forward", {**good_arguments("denoise_forward"), "history": np.zeros((2**40, 0), F32)})


# ---- overlap -------------------------------------------------------------------------------------------------------


@each_function
def test_outputs_share_no_memory(name):
    """With any other argument, not by one element; inputs may be one array. What adamw updates is no exception."""
    described = FUNCTIONS[name]
    for output in (key for key, argument in described.items() if isinstance(argument, In) and argument.output):
        for other in described:
            arguments = good_arguments(name)
            a, b = arguments[output], arguments[other]
            if other == output or not isinstance(b, np.ndarray) or a is None or b.nbytes < 8:
                continue
            memory = np.zeros(a.nbytes + b.nbytes, np.uint8)
            before = memory[: a.nbytes].view(a.dtype).reshape(a.shape)
            end = (a.nbytes - 1) // b.dtype.itemsize * b.dtype.itemsize  # b begins in the last element of a
            inside = memory[end : end + b.nbytes]
            if inside.nbytes < b.nbytes or inside.ctypes.data % b.dtype.itemsize:
                continue
            inside = inside.view(b.dtype).reshape(b.shape)
            before[...], inside[...] = a, b
            with pytest.raises(ValueError, match=r"^(\w+) shares memory with (\w+), and a kernel's outputs must have"):
                call(name, {**arguments, output: before, other: inside})


def test_inputs_may_be_one_array_and_neighbours_are_no_overlap():
    x = np.ones((2, 9), F32)
    call("noise_loss_forward", {**good_arguments("noise_loss_forward"), "f": x, "x0": x})
    memory = np.ones((3, 2, 9), F32)
    call("noise_backward", {"dx_t": memory[0], "alpha": np.ones(2, F32), "dx0": memory[1]})
    assert (memory == 1).all()


@each_function
def test_inputs_are_not_changed(name):
    before, after = good_arguments(name), good_arguments(name)
    call(name, after)
    for key, argument, array in arrays(after, name):
        if not argument.output:
            assert array.tobytes() == before[key].tobytes(), key


# What the modules have besides kernels; the emulator's is tested in tests/simt.
OTHERS = {"supported_levels", "threads", "set_threads", "use_winograd", "release_scratch"}
OTHERS |= {"Arena", "arena_counters", "arena_trim", "arena_check"}  # tests/test_arena.py
OTHERS |= {"add_rows", "join_rows", "split_rows", "turn_weights"}  # tests/test_backend.py
OTHERS |= {"group_norm_statistics", "group_norm_apply"}  # tests/ops/test_group_norm.py
OTHERS |= {"Fault", "set_naive", "set_seed", "counters", "to_bfloat16", "block_sum", "scale", "stage", "matmul_bf16"}
OTHERS |= {"matmul_tf32", "collectives", "fragments", "atomics", "sqrt_approx", "exp2_fast"}


def test_no_function_is_left_out_here():
    module = backend.emulator or backend.cpu
    declared = {name for name, _ in inspect.getmembers(module, callable) if not name.startswith("_")}
    assert declared - OTHERS == FUNCTIONS.keys()


def test_functions_and_arguments_are_those_of_the_bindings():
    """Arguments are positional only, so the names in this file are for the reader: they must not lie."""
    text = (ROOT / "csrc/bindings/kernels.cpp").read_text()
    for name, arguments in FUNCTIONS.items():
        signature = re.search(rf"\bbind_{name}\((.*?)\) \{{", text, re.DOTALL).group(1)
        assert re.findall(r"(\w+)(?:,|$)", re.sub(r"<[^>]*>+", "", signature)) == list(arguments), name

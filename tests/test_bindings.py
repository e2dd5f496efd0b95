"""The compiled functions called directly: whatever is wrong with an argument is a Python exception, never a crash.

native_functions.py describes every function once; every mistake of its list is made in every argument, one at a time.
"""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

from pydiff import backend
from tests.native_functions import F32, FUNCTIONS, I32, In, mistakes, read_only
from tests.strategies import simd  # noqa: F401

pytestmark = pytest.mark.skipif(backend.cpu is None, reason="no compiled CPU kernels in this install")


def good_arguments(name):
    rng = np.random.default_rng(0)
    return {key: argument.make(rng) for key, argument in FUNCTIONS[name].items()}


def call(name, arguments):
    return getattr(backend.cpu, name)(*arguments.values())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_good_arguments_are_good(name):
    arguments = good_arguments(name)
    call(name, arguments)
    for key, argument in FUNCTIONS[name].items():
        if isinstance(argument, In) and argument.optional:
            call(name, {**arguments, key: None})
        if isinstance(argument, In) and argument.output:
            assert np.isfinite(arguments[key]).all(), f"{key} was not written"


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_mistake_is_an_exception(name):
    refused = 0
    for key, argument in FUNCTIONS[name].items():
        good = good_arguments(name)
        wrong = mistakes(argument, good[key]) if isinstance(argument, In) else ((repr(b), b) for b in argument.bad)
        for what, value in wrong:
            try:
                call(name, {**good_arguments(name), key: value})
            except (TypeError, ValueError, OverflowError):
                refused += 1
            else:
                pytest.fail(f"{name} took {what} as {key}")
    assert refused >= 20


@pytest.mark.parametrize("name", FUNCTIONS)
def test_too_few_too_many_and_unknown_arguments(name):
    values = list(good_arguments(name).values())
    function = getattr(backend.cpu, name)
    for count in range(len(values)):
        with pytest.raises(TypeError):
            function(*values[:count])
    with pytest.raises(TypeError):
        function(*values, None)
    with pytest.raises(TypeError):
        function(*values, unknown=1)


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("squared_norm", "g", [1.0], "^g must be a NumPy array, got list$"),
        ("squared_norm", "g", np.zeros(3), "^g must have dtype float32 in native byte order, got float64$"),
        ("squared_norm", "g", np.zeros(3, ">f4"), "^g must have dtype float32 in native byte order, got >f4$"),
        ("squared_norm", "g", np.zeros(6, F32)[::2], "^g must be C-contiguous$"),
        ("adamw", "g", np.zeros(8, F32), r"^g must have shape \(9,\), got \(8,\)$"),
        ("adamw", "p", read_only(np.zeros(9, F32)), "^p is read-only$"),
        ("conv2d_forward", "stride", (0, 1), "^stride must be at least 1, got 0$"),
        ("conv2d_forward", "pad", (-1, 0), "^padding must not be negative$"),
        ("group_norm_forward", "groups", 3, "^4 channels do not divide into 3 groups$"),
        ("attention_forward", "heads", 3, "^4 channels do not divide into 3 heads$"),
        ("denoise_forward", "row", np.array([3], I32), "^row must be from 0 to 2, got 3$"),
        ("denoise_backward", "row", np.array([-1], I32), "^row must be from 0 to 2, got -1$"),
        ("denoise_forward", "table", np.zeros((0, 9), F32), r"rows of 9 coefficients .*, got \(0, 9\) for 0 arrays$"),
        ("denoise_backward", "table", np.zeros((1, 8), F32), r"rows of 9 coefficients .*, got \(1, 8\) for 0 arrays$"),
        ("denoise_backward", "table", np.zeros((1, 26), F32), "^denoise takes at most 16 history arrays, got 17$"),
    ],
)
def test_messages_say_what_was_got(name, key, value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(name, {**good_arguments(name), key: value})


# ---- memory --------------------------------------------------------------------------------------------------------


def fenced(a, fill):
    """(a contiguous copy of `a`, the longer array around it, which has 64 elements of `fill` on either side)."""
    wide = np.full(a.size + 128, fill, a.dtype)
    wide[64 : 64 + a.size] = a.ravel()
    return wide[64 : 64 + a.size].reshape(a.shape), wide


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_is_read_or_written_beyond_the_arrays(name):
    """Inputs lie between NaNs, which would show in the result; outputs lie between marks, which must still be there."""
    expected = good_arguments(name)
    result = call(name, expected)
    got, fences = dict(good_arguments(name)), {}
    for key, argument in FUNCTIONS[name].items():
        if isinstance(argument, In):
            fill = np.nan if np.dtype(argument.dtype).kind == "f" and not argument.output else 123
            got[key], fences[key] = fenced(got[key], fill)
    assert call(name, got) == result
    for key, wide in fences.items():
        assert got[key].tobytes() == expected[key].tobytes(), key
        if FUNCTIONS[name][key].output:
            assert (wide[:64] == 123).all(), key
            assert (wide[-64:] == 123).all(), key


@pytest.mark.parametrize("name", FUNCTIONS)
def test_inputs_are_not_changed(name):
    before, after = good_arguments(name), good_arguments(name)
    call(name, after)
    for key, argument in FUNCTIONS[name].items():
        if isinstance(argument, In) and not argument.output:
            assert after[key].tobytes() == before[key].tobytes(), key


def test_no_function_is_left_out_here():
    declared = {n for n, f in inspect.getmembers(backend.cpu, callable) if not n.startswith("_")}
    assert declared - {"supported_levels", "threads", "set_threads", "keep_freed_memory"} == FUNCTIONS.keys()


def test_the_argument_names_are_those_of_the_bindings():
    """Positional only, so the names in this file are for the reader: they must not lie."""
    source = (Path(__file__).parents[1] / "csrc/cpu/bindings.cpp").read_text()
    for name, arguments in FUNCTIONS.items():
        signature = re.search(rf"\bbind_{name}\((.*?)\) \{{", source, re.DOTALL).group(1)
        assert re.findall(r"(\w+)(?:,|$)", re.sub(r"<[^>]*>+", "", signature)) == list(arguments), name

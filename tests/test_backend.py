"""The one switch: environment variables in fresh processes, threads, and what an import brings with it."""

import importlib.util
import os
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest

import pydiff
from pydiff import arrays, backend, compiled
from tests.bits import assert_same_bits, check_any_thread_count
from tests.strategies import simd  # noqa: F401

built = backend.cpu is not None or importlib.util.find_spec("pydiff._cpu") is not None
needs_kernels = pytest.mark.skipif(not built, reason="no compiled CPU kernels in this install")


def run(code, **environment):
    """A fresh Python with these PYDIFF_ variables and no others: (exit status, output, last line of the error)."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYDIFF_")}
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return process.returncode, process.stdout.strip(), (process.stderr.strip().splitlines() or [""])[-1]


SHOW = "import pydiff.backend as b; print(b.cpu and b.cpu.__name__, '|', b.cpu_reason, '|', b.threads())"
# Stands in for an install without a compiler, or with other modules.
WITHOUT = "import sys; sys.modules['pydiff._cpu'] = None; "
ONLY_BASELINE = (
    "import sys, types; m = sys.modules['pydiff._cpu'] = types.ModuleType('pydiff._cpu');"
    "m.supported_levels = lambda: ['baseline']; m.threads = lambda: 7; "
)


# ---- PYDIFF_NATIVE -------------------------------------------------------------------------------------------------


def test_native_off():
    status, output, _ = run(SHOW, PYDIFF_NATIVE="off")
    assert (status, output) == (0, "None | switched off by PYDIFF_NATIVE=off | 1")


def test_native_auto_without_kernels():
    reason = compiled.why_not("cpu")
    for environment in ({}, {"PYDIFF_NATIVE": "auto"}, {"PYDIFF_NATIVE": ""}):
        status, output, _ = run(WITHOUT + SHOW, **environment)
        assert (status, output) == (0, f"None | not built: {reason} | 1")


def test_native_require_without_kernels():
    status, _, error = run(WITHOUT + SHOW, PYDIFF_NATIVE="require")
    assert status == 1
    assert error.startswith("ImportError: the compiled CPU kernels could not be loaded: ")


@needs_kernels
@pytest.mark.parametrize("native", ["auto", "require"])
def test_native_with_kernels(native):
    status, output, _ = run(SHOW, PYDIFF_NATIVE=native, PYDIFF_THREADS="3")
    assert status == 0
    name, reason, threads = output.split(" | ")
    assert name.startswith("pydiff._cpu")
    assert reason.startswith("instruction set ")
    assert threads == "3"


@pytest.mark.parametrize("value", ["on", "1", "REQUIRE", " auto"])
def test_native_wrong(value):
    status, _, error = run(SHOW, PYDIFF_NATIVE=value)
    assert status == 1
    assert error == f"ValueError: PYDIFF_NATIVE must be one of auto, require, off; got {value!r}"


# ---- PYDIFF_SIMD ---------------------------------------------------------------------------------------------------


@needs_kernels
def test_simd_chooses_the_module():
    _, levels, _ = run("import pydiff._cpu; print(*pydiff._cpu.supported_levels())")
    levels = [level for level in levels.split() if level in compiled.built()]
    assert levels[-1] == "baseline"
    for level in levels:
        status, output, _ = run(SHOW, PYDIFF_SIMD=level)
        assert status == 0
        assert output.startswith(f"{compiled.LEVELS[level]} | instruction set {level} |")
    _, output, _ = run(SHOW)
    assert output.startswith(compiled.LEVELS[levels[0]] + " |")


def test_simd_that_the_processor_lacks():
    status, output, _ = run(ONLY_BASELINE + SHOW)
    assert (status, output) == (0, "pydiff._cpu | instruction set baseline | 7")
    status, _, error = run(ONLY_BASELINE + SHOW, PYDIFF_SIMD="avx2")
    assert status == 1
    assert "PYDIFF_SIMD=avx2 was asked for, but this processor supports baseline" in error


def test_an_installation_from_another_processor():
    """Built where avx512 was the best, and now where avx2 is: the baseline runs everywhere."""
    moved = ONLY_BASELINE.replace("['baseline']", "['avx2', 'baseline']") + (
        "sys.modules['pydiff._cpu_avx2'] = None; sys.modules['pydiff._cpu_avx512'] = types.ModuleType('not for us'); "
    )
    status, output, _ = run(moved + SHOW)
    assert (status, output) == (0, "pydiff._cpu | instruction set baseline | 7")
    _, output, _ = run(moved + "from pydiff.info import describe; print(describe())")
    assert (
        "used: instruction set baseline (built: avx512, baseline; this processor runs: avx2, baseline); "
        "to have avx2 as well, install pydiff again on this machine\n"
    ) in output
    status, _, error = run(moved + SHOW, PYDIFF_SIMD="avx2")
    assert status == 1
    assert "PYDIFF_SIMD=avx2 was asked for, but this installation was built for avx512, baseline alone" in error


def test_simd_without_kernels_is_an_error():
    """Whoever names an instruction set does not want the array path."""
    status, _, error = run(WITHOUT + SHOW, PYDIFF_SIMD="baseline")
    assert status == 1
    assert error.startswith("ImportError: the compiled CPU kernels could not be loaded")


@pytest.mark.parametrize("value", ["sse2", "AVX2", "avx512 "])
def test_simd_wrong(value):
    status, _, error = run(SHOW, PYDIFF_SIMD=value)
    assert status == 1
    assert error == f"ValueError: PYDIFF_SIMD must be one of avx512, avx2, baseline; got {value!r}"


# ---- threads -------------------------------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("value", ["1", "2", "64"])
def test_threads(value):
    _, output, _ = run("import pydiff; print(pydiff.threads())", PYDIFF_THREADS=value)
    assert output == value


@needs_kernels
def test_threads_of_nothing_are_those_of_the_machine():
    _, output, _ = run("import pydiff; print(pydiff.threads())", PYDIFF_THREADS="")
    assert int(output) == backend.threads() >= 1 or "PYDIFF_THREADS" in os.environ


@pytest.mark.parametrize("native", ["auto", "off"])
@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "1025", "99999999999999999999", " ", "2 ", "\u0662"])
def test_threads_wrong(value, native):
    """Told when pydiff is imported, not by the first kernel in the middle of something."""
    status, _, error = run("import pydiff", PYDIFF_THREADS=value, PYDIFF_NATIVE=native)
    assert status == 1
    assert error == f"ValueError: PYDIFF_THREADS must be a whole number from 1 to 1024, got '{value}'"


@pytest.mark.parametrize(
    ("name", "meant"),
    [("PYDIFF_NUM_THREADS", "PYDIFF_THREADS"), ("PYDIFF_THREAD", "PYDIFF_THREADS"), ("PYDIFF_SMID", "PYDIFF_SIMD"),
     ("PYDIFF_WINOGARD", "PYDIFF_WINOGRAD"), ("PYDIFF_MPI_TIMEOUTS", "PYDIFF_MPI_TIMEOUT")],
)  # fmt: skip
def test_a_misspelt_variable_is_warned_of(name, meant):
    _, _, error = run("import warnings; warnings.simplefilter('error'); import pydiff", **{name: "2"})
    assert error == f"RuntimeWarning: nothing reads the environment variable {name}; did you mean {meant}?"
    assert run("import pydiff", **{name: "2"})[0] == 0


def test_other_variables_are_left_alone():
    """Settings, those of the build and of the tests, and those of other programs."""
    names = [*compiled.SETTINGS, "PYDIFF_CUDA", "PYDIFF_CPU_LEVELS", "PYDIFF_REQUIRE_NATIVE", "PYDIFF_SIMT_RACE"]
    names += ["PYDIFF_HYPOTHESIS", "PYDIFF_PTX", "PYDIFF_GPU", "PYDIFF_SIMT_UCONTEXT", "PYDIFF_DATA", "OMP_NUM_THREADS"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled.warn_of_misspelt(names)


def test_the_default_is_the_processors_this_process_may_use():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system does not bind processes to processors")
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import pydiff; print(pydiff.threads())"
    assert run(code) == (0, "1", "")


def test_set_threads():
    before = pydiff.threads()
    try:
        for n in (1, 3, np.int64(2)):
            pydiff.set_threads(n)
            assert pydiff.threads() == (n if backend.cpu else 1)
    finally:
        pydiff.set_threads(before)


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "2", None, np.float64(2), [1]])
def test_set_threads_wrong(value):
    with pytest.raises(ValueError, match="threads must be a whole number of at least 1, got"):
        pydiff.set_threads(value)


@pytest.mark.skipif(backend.cpu is None, reason="no compiled CPU kernels in this install")
def test_set_threads_has_an_end():
    before = pydiff.threads()
    for n in (1025, 10**6):
        with pytest.raises(ValueError, match="threads must be from 1 to 1024"):
            pydiff.set_threads(n)
    assert pydiff.threads() == before


FORK = """
import os, numpy as np
from pydiff import ops, set_threads
set_threads(4)
x, w = np.ones((4, 32, 32, 8), np.float32), np.ones((3, 3, 8, 8), np.float32)
expected = ops.conv2d(x, w).data
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(ops.conv2d(x, w).data, expected) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes_too():
    """It has none of its parent's threads, and may find their locks taken."""
    assert run(FORK)[:2] == (0, "0")


# ---- the functions -------------------------------------------------------------------------------------------------


def test_native_serves_float32_numpy_arrays_only():
    x = np.zeros(3, np.float32)
    for other in (x.astype(np.float64), x.astype(np.float16), x.astype(int), x.view(np.matrix), [1.0], None):
        assert backend.native(other, "adamw") is None
    assert (backend.native(x, "adamw") is not None) == (backend.cpu is not None)


@pytest.mark.skipif(backend.cpu is None, reason="no compiled CPU kernels in this install")
def test_a_kernel_that_does_not_exist_is_an_error():
    with pytest.raises(AttributeError, match="no attribute 'adam'"):
        backend.native(np.zeros(3, np.float32), "adam")


def test_array_module(monkeypatch):
    assert arrays.array_module(np.zeros(1), 3.0, [1]) is np
    assert arrays.array_module() is np
    # a stand-in, since CuPy needs a GPU: only the type of the arrays decides
    cupy = types.ModuleType("cupy")
    cupy.ndarray = type("ndarray", (), {})
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert arrays.array_module(np.zeros(1), cupy.ndarray()) is cupy
    assert arrays.array_module(np.zeros(1)) is np


def test_empty_and_contiguous():
    x = np.zeros((3, 4), np.float32)
    y = arrays.empty(x.T, (5, 2))
    assert (y.shape, y.dtype, y.flags.c_contiguous) == ((5, 2), np.float32, True)
    assert arrays.contiguous(x) is x
    assert arrays.contiguous(x.T).flags.c_contiguous
    assert arrays.contiguous(x[::-1, ::2]).tolist() == x[::-1, ::2].tolist()
    number = np.array(1.0)
    assert arrays.contiguous(number) is number
    assert arrays.contiguous(np.broadcast_to(np.float32(1), ())).shape == ()


# ---- import --------------------------------------------------------------------------------------------------------

HEAVY = [
    "PIL",
    "tqdm",
    "tyro",
    "safetensors",
    "torch",
    "cupy",
    "skimage",
    "sklearn",
    "scipy",
    "diffusers",
    "matplotlib",
]


def test_importing_pydiff_imports_nothing_heavy():
    code = f"import sys, pydiff; print([name for name in {HEAVY} if name in sys.modules])"
    assert run(code) == (0, "[]", "")


def test_importing_pydiff_starts_no_thread_and_opens_no_file():
    code = """
import sys, threading
opened = []
sys.addaudithook(lambda event, args: opened.append(args) if event == "open" and "w" in str(args[1]) else None)
import pydiff
print(threading.active_count(), opened)
"""
    assert run(code, PYTHONDONTWRITEBYTECODE="1") == (0, "1 []", "")


# ---- sums and copies on all threads ----------------------------------------------------------------------------------

LARGE_SHAPES = [(3, 128, 128), (1, 70_001), (5, 7, 31, 37), (arrays.LARGE,), (2, 1, 1, 40_000)]


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize("shape", LARGE_SHAPES)
def test_sums_have_the_bits_of_numpy_on_any_number_of_threads(shape):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    a.flat[::1001], b.flat[::777] = np.nan, np.inf
    row = rng.standard_normal((shape[0], *[1] * (len(shape) - 2), shape[-1])[-len(shape) :]).astype(np.float32)
    check_any_thread_count(lambda: [arrays.add(a, b), arrays.add(a, row)])
    assert_same_bits([arrays.add(a, b), arrays.add(a, row)], [a + b, a + row])


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize("shape", LARGE_SHAPES)
def test_joins_are_those_of_numpy(shape):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((*shape[:-1], shape[-1] + more)).astype(np.float32) for more in (0, 5))
    check_any_thread_count(lambda: [arrays.join(a, b), arrays.join(b, a)])
    assert_same_bits([arrays.join(a, b), arrays.join(b, a)], [np.concatenate(p, axis=-1) for p in ((a, b), (b, a))])


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize("shape", LARGE_SHAPES)
def test_splits_are_joins_the_other_way_round(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for size in {0, 1, shape[-1] // 2, shape[-1] - 1, shape[-1]}:
        check_any_thread_count(lambda size=size: list(arrays.split(x, size)))
        assert_same_bits(list(arrays.split(x, size)), [x[..., :size], x[..., size:]])
        assert_same_bits([arrays.join(*arrays.split(x, size))], [x])
        if backend.cpu is not None:
            assert all(part.flags.c_contiguous for part in arrays.split(x, size))


def test_what_is_split_by_numpy():
    x = np.arange(400 * 300.0).reshape(400, 300)
    for array in (x, x.T.astype(np.float32), x.astype(np.float32)[:, ::2], x[:2].astype(np.float32)):
        assert_same_bits(list(arrays.split(array, 7)), [array[..., :7], array[..., 7:]])


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.ones((400, 300), np.float32), np.ones((400, 300))),
        (np.ones((400, 300)), np.ones((400, 300))),
        (np.ones((400, 300), np.float32).T, np.ones((300, 400), np.float32)),
        (np.ones((400, 300), np.float32), np.ones((400, 600), np.float32)[:, ::2]),
        (np.ones((400, 300), np.float32), np.ones((300,), np.float32)),
        (np.ones((400, 300), np.float32), np.ones((1, 300), np.float32)),
        (np.ones((400, 300), np.float32), np.ones((400, 1), np.float32)),
        (np.ones((4, 300, 100), np.float32), np.ones((4, 300, 1), np.float32)),
        (np.ones((4, 1, 100), np.float32), np.ones((4, 300, 100), np.float32)),
        (np.ones((400, 300), np.float32), 2.0),
        (2.0, np.ones((400, 300), np.float32)),
        (np.ones((400, 300), np.float32), np.float32(2)),
    ],
)
def test_everything_else_is_left_to_numpy(a, b):
    got = arrays.add(a, b)
    assert got.dtype == (a + b).dtype
    assert_same_bits([got], [a + b])


@pytest.mark.usefixtures("simd")
def test_the_helpers_refuse_what_does_not_fit():
    one = np.ones((6, 4), np.float32)
    for name, arguments in [
        ("add_rows", (one, one[:4], one)),
        ("add_rows", (one, one[:0], one)),
        ("add_rows", (one, one[:, :3].copy(), one)),
        ("add_rows", (one, one, one[:5])),
        ("add_rows", (one, one.astype(np.float64), one)),
        ("add_rows", (one, one[:, ::2], one)),
        ("join_rows", (one, one, one)),
        ("join_rows", (one, one[:5], np.ones((6, 8), np.float32))),
        ("join_rows", (one, [1.0], np.ones((6, 8), np.float32))),
        ("split_rows", (one, one.copy(), one.copy())),
        ("split_rows", (one, np.ones((6, 5), np.float32), np.ones((6, 4), np.float32))),
        ("split_rows", (one, one[:, :2].copy(), one[:5, :2].copy())),
        ("split_rows", (one, one[:, :2], one[:, :2].copy())),
        ("split_rows", (one, one[:, :2].copy(), [1.0])),
    ]:
        with pytest.raises((TypeError, ValueError)):
            getattr(backend.cpu, name)(*arguments)

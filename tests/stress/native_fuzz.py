"""Fuzz every compiled function under AddressSanitizer and UBSan: it computes, or it is a Python exception.

    python -m tests.stress.native_fuzz --count 1000000 --json tests/stress/native_fuzz.json
    python -m tests.stress.native_fuzz --device simt --count 50000 --more --json tests/stress/native_fuzz.json
    python -m tests.stress.native_fuzz --again avx2:3:12345                 one case once more

The modules are compiled into `--build` with the sanitizers, and loaded by processes of their own. Arguments fit
together in sizes that nobody would ask for (native_functions.of_any_size), have NaNs and infinities among their
numbers, and in most cases are changed: another dtype, size, order of axes or bytes, memory that is shared, not aligned,
read-only or 2**60 columns wide with no rows, numbers at the ends of what 64 bits hold, arguments exchanged, left out,
or of another kind. Allowed are a result, TypeError, ValueError and OverflowError; a MemoryError is told in the figures.
A report of a sanitizer, a crash or another exception is a case that went wrong, and is told as LEVEL:SEED:NUMBER, with
which it can be had again.
"""

import contextlib
import json
import mmap
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from ml_dtypes import bfloat16

from tests.native_functions import F32, F64, FUNCTIONS, I32, U32, of_any_size
from tests.stress import fuzz

ROOT = Path(__file__).resolve().parents[2]
LEVELS = {"baseline": "_cpu", "avx2": "_cpu_avx2", "avx512": "_cpu_avx512"}
REFUSED = (TypeError, ValueError, OverflowError, NotImplementedError)  # the last says a memoryview that is indexed
BATCH = {"cpu": 20_000, "simt": 2_000}  # cases of one process
HUNG = 600  # seconds, after which a batch that has not got on is ended
SANITIZERS = {
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:abort_on_error=0:exitcode=99",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1:exitcode=99",
}
WHOLE = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 5, 8, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**64 - 1, 2**64, True)
REAL = (0.0, -0.0, -1.0, 1e-45, 1e38, 1e300, np.inf, -np.inf, np.nan, 0.5, 1)
STRANGE = (None, "x", b"y", [1.0], (), (1, 2), (2**62, 1), (-1, 0), {}, 1j, object(), np.float32(1), np.int64(2))
VAST = (2**31, 2**40, 2**59, 2**60)


# ---- arguments -------------------------------------------------------------------------------------------------------


def helpers(name, rng):
    """Arguments of the functions that only the CPU's modules have."""

    def size(*choice):
        return int(rng.choice(choice or (0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 33)))

    def array(*shape, dtype=F32):
        return rng.random(shape).astype(dtype)

    rows, a, b = size(), size(), size()
    if name == "add_rows":
        return [array(rows * size(0, 1, 2, 3), a), array(rows, a), array(rows, a)]
    if name in ("join_rows", "split_rows"):
        first, second, joined = array(rows, a), array(rows, b), array(rows, a + b)
        return [first, second, joined] if name == "join_rows" else [joined, first, second]
    if name == "turn_weights":
        room, first = size(), size(0, 1, 2)
        weights = array(rows, a, b, dtype=[F32, np.float16][size(0, 1)])
        return [weights, first, array(b, a, rows + first + room)]
    groups = size(1, 2, 3, 8)
    n, c = size(0, 1, 2, 3), groups * size(0, 1, 2, 3, 5)
    moments = [array(n, groups), array(n, groups)]
    if name == "group_norm_statistics":
        return [array(n, rows, c), groups, 1e-5, *moments]
    return [array(n, rows, c), array(c), array(c), *moments, groups, bool(size(0, 1)), array(n, rows, c)]


HELPERS = ("add_rows", "join_rows", "split_rows", "turn_weights", "group_norm_statistics", "group_norm_apply")


def right(name, rng):
    """Arguments that fit together, some with numbers that are none."""
    values = helpers(name, rng) if name in HELPERS else of_any_size(name, rng)
    if rng.random() < 0.3:
        for value in values:
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size:
                few = rng.integers(value.size, size=3)
                with np.errstate(over="ignore"):
                    value.flat[few] = rng.choice(REAL, 3)
    return values


def other_array(a, values, rng):
    """An array that differs in one thing."""
    kind, axis = rng.integers(15), int(rng.integers(max(a.ndim, 1)))
    if max(a.shape, default=0) in VAST:
        return a  # NumPy would go through its columns
    if kind == 0:
        dtypes = (F32, F64, np.float16, bfloat16, np.int8, I32, U32, np.int64, bool, np.complex64, ">f4", object, "S3")
        return np.resize(np.zeros(1, dtypes[rng.integers(len(dtypes))]), a.shape)
    if kind == 1 and a.ndim:
        return np.ascontiguousarray(a.take(range(max(a.shape[axis] - 1, 0)), axis))
    if kind == 2 and a.ndim and a.shape[axis]:
        return np.concatenate([a, a.take([0], axis)], axis)
    if kind == 3 and a.ndim:
        return np.ascontiguousarray(a.take([], axis))
    if kind == 4:
        return a[None] if rng.random() < 0.5 else a.reshape(-1)
    if kind == 5 and a.ndim > 1:
        return a.swapaxes(axis, int(rng.integers(a.ndim)))
    if kind == 6 and a.ndim:
        return np.flip(a, axis)
    if kind == 7 and a.ndim:
        wide = np.repeat(a, 2, axis)
        return wide[(*[slice(None)] * axis, slice(None, None, 2))]
    if kind == 8:
        return np.broadcast_to(a[:1], (max(len(a), 2), *a.shape[1:])) if a.ndim and len(a) else a
    if kind == 9:
        buffer = np.zeros(a.nbytes + 8, np.uint8)
        begin = int(rng.integers(1, 8))
        return buffer[begin : begin + a.nbytes].view(a.dtype).reshape(a.shape) if a.size else a
    if kind == 10:
        a = a.copy()
        a.flags.writeable = False
        return a
    if kind == 11 and a.ndim:  # no rows of very many columns, which is no memory at all
        shape = list(a.shape)
        shape[axis], shape[axis - 1] = VAST[rng.integers(len(VAST))], 0
        return np.broadcast_to(np.zeros((), a.dtype), shape) if rng.random() < 0.3 else np.empty(shape, a.dtype)
    if kind == 12:  # the memory of another argument, or a part of it
        others = [v for v in values if isinstance(v, np.ndarray) and v.dtype == a.dtype and v.size >= a.size]
        if others and (other := others[rng.integers(len(others))]).flags.c_contiguous:
            begin = int(rng.integers(other.size - a.size + 1))
            return other.reshape(-1)[begin : begin + a.size].reshape(a.shape)
    if kind == 13:
        return a.tolist()
    if kind == 14:
        return memoryview(np.ascontiguousarray(a)) if a.dtype != bfloat16 else a.tobytes()
    return None


def other(value, values, rng):
    """One argument, changed."""
    if isinstance(value, np.ndarray) and rng.random() < 0.9:
        return other_array(value, values, rng)
    if isinstance(value, (list, tuple)) and len(value) and rng.random() < 0.8:
        parts = list(value)
        at = int(rng.integers(len(parts)))
        if rng.random() < 0.2:
            del parts[at]
        else:
            parts[at] = other(parts[at], values, rng)
        return type(value)(parts)
    if isinstance(value, (int, float)) and rng.random() < 0.8:
        numbers = REAL if isinstance(value, float) else WHOLE
        return numbers[rng.integers(len(numbers))]
    return STRANGE[rng.integers(len(STRANGE))]


def arguments(name, rng):
    """Of one case: right ones in a quarter of the cases, else with one to three changes."""
    values = right(name, rng)
    if rng.random() < 0.25:
        return values
    for _ in range(rng.choice([1, 1, 2, 3])):
        at, kind = int(rng.integers(len(values))), rng.random()
        if kind < 0.9:
            with contextlib.suppress(ValueError, TypeError):  # NumPy makes no such array
                values[at] = other(values[at], values, rng)
        elif kind < 0.95:
            second = int(rng.integers(len(values)))
            values[at], values[second] = values[second], values[at]
        elif kind < 0.98:
            del values[at]
        else:
            values.insert(at, STRANGE[rng.integers(len(STRANGE))])
        if not values:
            break
    return values


# ---- a process of cases ----------------------------------------------------------------------------------------------


def sanitized_emulator():
    """pydiff.emulator, which compiles with the sanitizers from here on."""
    from pydiff import emulator

    flags = ["-fsanitize=address,alignment", "-fno-sanitize-recover=alignment", "-fno-omit-frame-pointer", "-g"]
    emulator.FLAGS = [*emulator.FLAGS, *flags]
    emulator.LINK = [*emulator.LINK, "-fsanitize=address,undefined"]
    return emulator


def module(level, build):
    """The compiled module of an instruction set, or of the emulator ("simt"), with the sanitizers in it."""
    if level == "simt":
        return sanitized_emulator().load()
    from importlib.util import module_from_spec, spec_from_file_location

    name = LEVELS[level]
    spec = spec_from_file_location(f"pydiff.{name}", next(build.glob(f"{name}.*so")))
    assert spec is not None
    assert spec.loader is not None
    made = module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def cases(level, seed, numbers, build, told):
    """Tries these cases. What came of them is printed; the number of the case at hand stands in the file `told`."""
    compiled = module(level, build)
    if level != "simt":
        compiled.set_threads(2)
    names = [*FUNCTIONS, *([] if level == "simt" else HELPERS)]
    kinds, wrong, slowest = {}, [], (0.0, "")
    with open(told, "r+b") as file, mmap.mmap(file.fileno(), 8) as at:
        for number in numbers:
            at[:] = struct.pack("<q", number)
            rng = np.random.default_rng([seed, number])
            name = names[rng.integers(len(names))]
            values = arguments(name, rng)
            began = time.perf_counter()
            try:
                getattr(compiled, name)(*values)
                what = "computed"
            except REFUSED:
                what = "refused"
            except MemoryError:
                what = "MemoryError"
            except Exception as error:  # what this script looks for
                what = "another exception"
                wrong.append(f"{level}:{seed}:{number} {name}: {type(error).__name__}: {error}")
            slowest = max(slowest, (time.perf_counter() - began, f"{level}:{seed}:{number} {name}"))
            kinds.setdefault(name, Counter())[what] += 1
    print(json.dumps({"by_function": kinds, "wrong": wrong, "slowest_seconds": slowest[0], "slowest": slowest[1]}))


# ---- all of them -----------------------------------------------------------------------------------------------------


def compile_modules(build):
    """With the sanitizers, for every instruction set."""
    import pybind11

    options = ["-DPYDIFF_SANITIZE=ON", "-DPYDIFF_CPU_LEVELS=all", "-DPYDIFF_CUDA=OFF", "-DPYDIFF_REQUIRE_NATIVE=ON"]
    options += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    options += ["-GNinja"] if shutil.which("ninja") else []
    for command in (["cmake", "-S", ROOT, "-B", build, *options], ["cmake", "--build", build, "-j", "2"]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def environment():
    """In which a process loads a library that was compiled with the sanitizers."""
    found = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")  # the second: ASan looks for its exceptions when it starts
    ]
    return {**os.environ, **SANITIZERS, "LD_PRELOAD": " ".join(found), "PYDIFF_NATIVE": "off"}


def batch(level, seed, begin, end, build):
    """One process of cases: (its figures, how many it tried, what went wrong)."""
    command = [sys.executable, "-m", "tests.stress.native_fuzz", "--cases", level, str(seed), str(begin), str(end)]
    with tempfile.NamedTemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as told:
        told.write(struct.pack("<q", begin))
        told.flush()
        try:
            process = subprocess.run(
                [*command, str(build), told.name],
                cwd=ROOT, env=environment(), capture_output=True, text=True, errors="replace", timeout=HUNG,
            )  # fmt: skip
            code, said, output = process.returncode, process.stderr, process.stdout
        except subprocess.TimeoutExpired:
            code, said, output = None, f"not over after {HUNG} seconds", ""
        last = struct.unpack("<q", Path(told.name).read_bytes())[0]
    if code == 0:
        found = json.loads(output.splitlines()[-1])
        return found, end - begin, found.pop("wrong")
    lines = [line.strip() for line in said.splitlines()]
    report = [line for line in lines if "ERROR" in line or "runtime error" in line] or lines[-1:]
    return {"by_function": {}}, last + 1 - begin, [f"{level}:{seed}:{last} status {code}: {report[0][:500]}"]


def main() -> int:
    parser = fuzz.options(__doc__, 100_000)
    parser.add_argument("--device", choices=list(BATCH), default="cpu")
    parser.add_argument("--build", type=Path, help="a folder for the compiled modules (a temporary one)")
    parser.add_argument("--again", metavar="LEVEL:SEED:NUMBER", help="one case, with all that the sanitizer says")
    options = parser.parse_args()
    fuzz.check(options)
    with tempfile.TemporaryDirectory() as folder:
        build = (options.build or Path(folder)).resolve()
        simt = options.device == "simt" or (options.again or "").startswith("simt")
        if simt:
            sanitized_emulator().build()  # here, where the compiler runs without the sanitizers' library
        else:
            compile_modules(build)
        if options.again:
            level, seed, number = options.again.split(":")
            command = [sys.executable, "-m", "tests.stress.native_fuzz", "--cases", level, seed, number]
            told = Path(folder) / "told"
            told.write_bytes(bytes(8))
            command += [str(int(number) + 1), str(build), str(told)]
            return subprocess.run(command, cwd=ROOT, env=environment()).returncode
        from pydiff import backend

        levels = ["simt"] if simt else backend.cpu.supported_levels()
        result, wrong, count, began = {}, [], 0, time.monotonic()
        end, turn = began + 60 * options.minutes, 0
        while count < options.count and time.monotonic() < end and len(wrong) < fuzz.KEPT:
            level, size = levels[turn % len(levels)], min(BATCH[options.device], options.count - count)
            found, tried, bad = batch(level, options.seed, count, count + size, build)
            result = fuzz.added(result, {"count": tried, "by_level": {level: tried}, **found, "wrong": bad})
            wrong, count, turn = wrong + bad, count + tried, turn + 1
    result |= {"seeds": [options.seed], "seconds": round(time.monotonic() - began)}
    fuzz.finish(options, result)
    return bool(wrong)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cases"]:
        cases(sys.argv[2], int(sys.argv[3]), range(int(sys.argv[4]), int(sys.argv[5])), Path(sys.argv[6]), sys.argv[7])
        sys.exit()
    sys.exit(main())

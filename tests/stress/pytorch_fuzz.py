"""Fuzz the reader of PyTorch's files with ones that are almost right: tensors come out, or one CheckpointError.

    python -m tests.stress.pytorch_fuzz --count 1000000 --json benchmarks/results/pytorch-fuzz.json

Right files of both kinds (a zip archive, and the row of pickles from before PyTorch 1.6) are made of right and of
lying tensors, and then changed: instructions taken out, doubled, exchanged or added (calls of any name among them),
numbers in them changed, bytes flipped, the end cut off, zip's own headers changed. An audit hook watches that nothing
is imported, called or opened. Every array that comes out is read, and must lie inside of the file's bytes.
"""

import pickletools
import resource
import struct
import sys
import time
import tracemalloc
from collections import Counter

import numpy as np

from pydiff.formats import pytorch
from pydiff.formats.safetensors import CheckpointError, damaged
from tests.formats.test_pytorch import Called, Name, Rebuilt, Storage, archive_bytes, old_bytes, pickled
from tests.stress import fuzz

WATCHED = ("exec", "compile", "os.system", "subprocess.Popen", "socket.connect", "import", "os.posix_spawn", "open",
           "os.remove", "os.rename", "pickle.find_class", "shutil.rmtree", "ctypes.dlopen")  # fmt: skip
NAMES = [("os", "system"), ("builtins", "eval"), ("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict"),
         ("torch", "FloatStorage"), ("torch", "load"), ("numpy", "array"),
         ("torch._utils", "_rebuild_parameter")]  # fmt: skip
SIZES = [0, 1, 2, 3, 12, 13, -1, 1 << 31, 1 << 40, 1 << 61, 1 << 62, 1 << 63]
ADDED = [b"(", b"}", b"]", b")", b"t", b"u", b"s", b"e", b"a", b"R", b"Q", b"b", b"0", b"1", b"\x85", b"\x86", b"\x87",
         b".", b"\x94", b"q\0", b"h\0", b"h\xff", b"N", b"\x88", b"\x81", b"\x93", b"o", b"2", b"X\1\0\0\0a",
         b"U\x03abc", b"\x95\0\0\0\0\0\0\0\0", b"\x80\x04", b"\x8a\x09" + b"\xff" * 9, b"L99L\n", b"P1\n",
         *(f"c{module}\n{name}\n".encode() for module, name in NAMES)]  # fmt: skip


class Bytes:
    """A file in memory, as RegularFile is one on a disk."""

    def __init__(self, data: bytes):
        self.data, self.size, self.path = np.frombuffer(data, np.uint8), len(data), "file"

    def read(self, begin, count):
        if begin < 0 or count < 0 or begin + count > self.size:
            raise damaged("file", f"it has {self.size} bytes, and byte {begin + count} was asked for")
        return self.data[begin : begin + count].copy()


def tensor(rng, kinds):
    """Right ones, and now and then one that lies. kinds: {key: of the storage}."""
    key = list(kinds)[rng.integers(len(kinds))]
    kind = kinds[key]
    if rng.integers(10):
        shape = tuple(rng.integers(0, 4, size=rng.integers(4)).tolist())
        strides = tuple(np.cumprod([1, *shape[:0:-1]])[::-1].tolist()) if shape else ()
        if rng.integers(6) == 0:
            return Called(Name("torch._utils", "_rebuild_tensor"), Storage(key, kind, 64), 0, shape, strides)
        return Rebuilt(key, kind, 64, shape, strides, offset=int(rng.integers(0, 4)))
    sizes = [SIZES[rng.integers(len(SIZES))] for _ in range(rng.integers(4))]
    strides = [SIZES[rng.integers(len(SIZES))] for _ in sizes]
    return Rebuilt(key, kind, SIZES[rng.integers(len(SIZES))], tuple(sizes), tuple(strides), SIZES[rng.integers(6)])


class Base:
    """A file before it is changed: the instructions of its pickle, or of its five, and what makes a file of them."""

    def __init__(self, rng):
        kinds = {
            k: list(pytorch.STORAGES)[rng.integers(len(pytorch.STORAGES))]
            for k in ("0", "7", "12")[: rng.integers(1, 4)]
        }
        state = {f"a{i}.weight": tensor(rng, kinds) for i in range(rng.integers(1, 5))}
        used = {t.storage[0] if isinstance(t, Rebuilt) else t.arguments[0].found[0] for t in state.values()}
        if rng.integers(5) == 0:
            state = {"state_dict": state, "epoch": 3}
        if rng.integers(2):
            program = pickled(state, int(rng.integers(2, 6)))
            blocks = {key: bytes(rng.integers(0, 2, size=512, dtype=np.uint8)) for key in kinds}
            orders = [{}, {}, {}, *({"archive/byteorder": order} for order in (b"little", b"big", b"middle"))]
            more = orders[rng.integers(len(orders))]
            self.wrapped = lambda program: archive_bytes(program, blocks, more=more)
        else:
            sizes = {key: 64 * np.dtype(pytorch.STORAGES[kinds[key]]).itemsize for key in sorted(used)}
            program = old_bytes(state, dict.fromkeys(sizes, (64, b"")))
            program, tail = (
                program[: -8 * len(sizes)],
                b"".join((64).to_bytes(8, "little") + bytes(n) for n in sizes.values()),
            )
            self.wrapped = lambda program: program + tail
        self.parts, begin = [], 0
        while begin < len(program):  # up to five pickles one after the other
            starts = [begin + position for _, _, position in pickletools.genops(program[begin:])]
            ends = [*starts[1:], starts[-1] + 1]
            self.parts += [program[a:b] for a, b in zip(starts, ends, strict=True)]
            begin = ends[-1]


def case(bases: list[Base], rng: np.random.Generator) -> bytes:
    """One file."""
    base = bases[rng.integers(len(bases))]
    data = base.wrapped(changed(base.parts, rng))
    return spoiled(data, rng) if rng.integers(4) == 0 else data


def changed(parts: list[bytes], rng) -> bytes:
    """Instructions taken out, doubled, moved, replaced or added; now and then none."""
    parts = list(parts)
    for _ in range(int(rng.choice([0, 1, 1, 2, 4]))):
        i, j = (int(n) for n in rng.integers(len(parts), size=2))
        match rng.integers(6):
            case 0 if len(parts) > 1:
                del parts[i]
            case 1:
                parts.insert(i, parts[j])
            case 2:
                parts[i], parts[j] = parts[j], parts[i]
            case 3:
                parts.insert(i, ADDED[rng.integers(len(ADDED))])
            case 4:
                parts[i] = ADDED[rng.integers(len(ADDED))]
            case _:
                number = SIZES[rng.integers(len(SIZES))]
                parts[i] = b"J" + struct.pack("<i", number) if -(2**31) <= number < 2**31 else number_long(number)
    return b"".join(parts)


def number_long(number: int) -> bytes:
    data = number.to_bytes(10, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def spoiled(data: bytes, rng) -> bytes:
    """Bytes flipped, cut off or put in, anywhere."""
    at = int(rng.integers(len(data)))
    match rng.integers(4):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes(rng.integers(0, 256, size=4, dtype=np.uint8)) + data[at:]
        case 2:
            return data[:at] + data[at + int(rng.integers(1, 9)) :]
        case _:
            flipped = bytearray(data)
            for place in rng.integers(len(data), size=rng.integers(1, 5)):
                flipped[place] ^= 1 << int(rng.integers(8))
            return bytes(flipped)


def run(count: int, seed: int, minutes: float = float("inf")) -> dict:
    """Reads `count` files, or as many as it can in so many minutes, and says what happened."""
    rng, kinds, others, seen, armed = np.random.default_rng(seed), Counter(), [], [], False
    bases = [Base(rng) for _ in range(2000)]
    slowest = arrays = 0

    def hook(event, arguments):
        if armed and event in WATCHED:
            seen.append(f"{event} {arguments!r}"[:200])

    pytorch.contents(Bytes(archive_bytes(pickled({}), {})), "file")  # whatever is imported once is imported now
    for encoding in ("raw-unicode-escape", "unicode-escape", "latin-1", "ascii", "cp437"):  # genops' and zipfile's
        b"x".decode(encoding)
    sys.addaudithook(hook)
    until = fuzz.Until(count, minutes)
    for _ in until:
        data = case(bases, rng)
        file, start, armed = Bytes(data), time.perf_counter(), True
        try:
            for weight in pytorch.contents(file, "file").values():
                array = weight.read()
                arrays += 1
                if array.nbytes > 4 * len(data) or array.shape != weight.shape:
                    others.append(f"an array {array.shape} {array.dtype} of {len(data)} bytes")
            kinds["accepted"] += 1
        except CheckpointError as error:
            kinds["refused" if str(error).isprintable() else "bad sentence"] += 1
        except Exception as error:  # what this script looks for
            others.append(f"{type(error).__name__}: {error} for {data!r}"[:1500])
        armed = False
        slowest = max(slowest, time.perf_counter() - start)
    return {
        "count": until.count, "seeds": [seed], **kinds, "arrays_read": arrays, "other_exceptions": others[:20],
        "watched_events": seen[:20], "slowest_seconds": slowest,
    }  # fmt: skip


def memory_of_the_first(count: int, seed: int) -> int:
    """The largest number of bytes taken at once while reading so many of the same files."""
    rng, most = np.random.default_rng(seed), 0
    bases = [Base(rng) for _ in range(200)]
    tracemalloc.start()
    for _ in range(count):
        file = Bytes(case(bases, rng))
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            for weight in pytorch.contents(file, "file").values():
                weight.read()
        except CheckpointError:
            pass
        most = max(most, tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    return most


def main() -> None:
    options = fuzz.options(__doc__, 1_000_000).parse_args()
    fuzz.check(options)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    result = run(options.count, options.seed, options.minutes)
    result["seconds"] = round(time.perf_counter() - start)
    result["peak_memory_growth_kb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    result["most_bytes_at_once"] = memory_of_the_first(min(options.count, 20_000), options.seed)
    fuzz.finish(options, result)
    sys.exit(bool(result["other_exceptions"] or result["watched_events"] or result.get("bad sentence")))


if __name__ == "__main__":
    main()

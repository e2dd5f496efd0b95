"""Fuzz the safetensors reader with files that are almost right: it may read them or raise CheckpointError, no more.

    python -m tests.stress.checkpoint_fuzz --count 200000 --json tests/stress/checkpoint_fuzz.json

Each file starts as a right one and gets up to three mutations of its header's meaning (dtypes, sizes, offsets, keys),
of its text or of its bytes. What we accept is compared with the safetensors package, where that accepts it too.
"""

import json
import resource
import sys
import time

import numpy as np
import safetensors
import safetensors.numpy

from pydiff.formats import safetensors as tensorfile
from tests.stress import fuzz

DTYPES = [*tensorfile.EXACT, *tensorfile.HALF]
NUMBERS = [0, 1, -1, 2, 3, 7, 8, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30]
ODD = [
    None,
    True,
    False,
    1.0,
    0.5,
    1e300,
    "",
    "F32",
    "1",
    [],
    {},
    [[]],
    [1],
    {"a": 1},
    [None],
    "\ud800",
    "\0",
    "é" * 40,
]
TEXT = [
    b'"a":1,',
    b"NaN",
    b"-Infinity",
    b"[" * 3000,
    b"9" * 5000,
    b"\xff",
    b"\\ud800",
    b"\xef\xbb\xbf",
    b"{",
    b"}",
    b",",
    b"\0",
]


def right(rng: np.random.Generator) -> tuple[dict, bytes]:
    """The header and the data of a right file of 0 to 4 arrays."""
    header, position = {}, 0
    for i in range(rng.integers(5)):
        dtype = DTYPES[rng.integers(len(DTYPES))]
        shape = rng.integers(0, 4, size=rng.integers(4)).tolist()
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype((tensorfile.EXACT | tensorfile.HALF)[dtype]).itemsize
        header[f"a{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    if rng.integers(3) == 0:
        header["__metadata__"] = {"format": "pt"}
    return header, rng.integers(2, size=position, dtype=np.uint8).tobytes()  # bytes 0 and 1 are right for booleans too


def number(rng: np.random.Generator) -> object:
    if rng.integers(4) == 0:
        return ODD[rng.integers(len(ODD))]
    return NUMBERS[rng.integers(len(NUMBERS))] + int(rng.integers(-1, 2))


def _is_right(entry: dict) -> bool:
    lists = [entry.get("shape"), entry.get("data_offsets")]
    return len(entry) == 3 and all(isinstance(value, list) for value in lists) and len(lists[1]) == 2


def mutate_meaning(header: dict, rng: np.random.Generator) -> dict:
    """Change one thing in the header's structure."""
    name = [*header, "new"][rng.integers(len(header) + 1)]
    entry = header.get(name)
    if not isinstance(entry, dict) or not _is_right(entry) or rng.integers(8) == 0:
        return {**header, name: ODD[rng.integers(len(ODD))]}
    entry = json.loads(json.dumps(entry))
    match rng.integers(9):
        case 0:
            entry["dtype"] = [*DTYPES, "F8_E4M3", "C64", "f32", *ODD][rng.integers(len(DTYPES) + 3 + len(ODD))]
        case 1 | 2 if entry["shape"]:
            entry["shape"][rng.integers(len(entry["shape"]))] = number(rng)
        case 3 | 4:
            entry["data_offsets"][rng.integers(2)] = number(rng)
        case 5:
            entry["shape"] = [*entry["shape"], number(rng)] * int(rng.integers(1, 40))
        case 6:
            entry["data_offsets"].reverse()
        case 7:
            del entry[list(entry)[rng.integers(3)]]
        case _:
            key = [*entry, "more"][rng.integers(4)]
            entry[key] = ODD[rng.integers(len(ODD))]
    others = {key: value for key, value in header.items() if key != name}
    new = [name, name, "", "__metadata__", "\ud800"][rng.integers(5)]
    return {new: entry, **others} if rng.integers(2) else {**others, new: entry}


def case(rng: np.random.Generator) -> bytes:
    """One file, wrong in one to three ways; now and then in none."""
    header, data = right(rng)
    kinds = rng.integers(7, size=rng.integers(4))
    for _ in range(int((kinds < 3).sum())):
        header = mutate_meaning(header, rng)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * int(rng.integers(3) * rng.integers(8))
    if 3 in kinds:  # text put in, or taken out
        at, length = rng.integers(len(text) + 1), rng.integers(6)
        text = text[:at] + TEXT[rng.integers(len(TEXT))] + text[at + length :]
    size = len(text)
    if 4 in kinds:
        size = int([0, 1, size - 1, size + 1, size + len(data), 2**31, 2**63, 2**64 - 1][rng.integers(8)])
    file = bytearray(size.to_bytes(8, "little") + text + data)
    if 5 in kinds:
        for at in rng.integers(len(file), size=3):
            file[at] ^= 1 << rng.integers(8)
    if 6 in kinds:
        file = file[: rng.integers(len(file) + 1)] if rng.integers(2) else file + bytes(int(rng.integers(1, 9)))
    return bytes(file)


def agrees(arrays: dict, data: bytes) -> bool:
    """Whether the package reads the same, where it reads the file at all."""
    try:
        theirs = dict(safetensors.deserialize(data))
    except safetensors.SafetensorError:
        return True
    half = {"F16": np.float16, "BF16": np.uint16}
    for name, entry in theirs.items():
        raw = bytes(entry["data"])
        if entry["dtype"] == "F16":
            raw = np.frombuffer(raw, half["F16"]).astype(np.float32).tobytes()
        if entry["dtype"] == "BF16":
            raw = (np.frombuffer(raw, half["BF16"]).astype(np.uint32) << 16).tobytes()
        if name not in arrays or list(arrays[name].shape) != list(entry["shape"]) or arrays[name].tobytes() != raw:
            return False
    return theirs.keys() == arrays.keys()


def run(count: int, seed: int, minutes: float = float("inf")) -> dict:
    """Read `count` files, or as many as it can in so many minutes, and say what happened."""
    rng = np.random.default_rng(seed)
    result = {"count": 0, "seeds": [seed], "accepted": 0, "refused": 0, "disagreements_with_safetensors": 0}
    others, slowest, largest = [], 0.0, 0
    for _ in fuzz.Until(count, minutes):
        result["count"] += 1
        data = case(rng)
        start = time.perf_counter()
        try:
            arrays = tensorfile.decode(np.frombuffer(bytearray(data), np.uint8), "file")
        except tensorfile.CheckpointError:
            result["refused"] += 1
        except Exception as error:  # this is what the test looks for
            others.append(f"{type(error).__name__}: {error} for {data!r}"[:2000])
        else:
            result["accepted"] += 1
            result["disagreements_with_safetensors"] += not agrees(arrays, data)
            largest = max(largest, sum(a.nbytes for a in arrays.values()) - 2 * len(data))
        slowest = max(slowest, time.perf_counter() - start)
    return result | {
        "other_exceptions": others,
        "slowest_seconds": slowest,
        "bytes_above_twice_the_file": max(0, largest),
    }


def main() -> None:
    options = fuzz.options(__doc__, 200_000).parse_args()
    fuzz.check(options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    result = run(options.count, options.seed, options.minutes)
    result["seconds"] = time.perf_counter() - start
    result["peak_memory_growth_kb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    fuzz.finish(options, result)
    sys.exit(bool(result["other_exceptions"] or result["disagreements_with_safetensors"]))


if __name__ == "__main__":
    main()

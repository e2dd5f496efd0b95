"""Safetensors bytes <-> named NumPy arrays: the package writes them, our own checked reader reads them.

The format (https://github.com/huggingface/safetensors): eight bytes holding n, the length of the header, little-endian;
n bytes of JSON, {name: {"dtype", "shape", "data_offsets": [begin, end]}}; then the bytes of the arrays, without gaps.

A file may come from anywhere, so the readers check every number against the real length of the data before using it.
`decode` gives views of the one buffer that was read (the package's reader makes a second copy, and cannot read
bfloat16); `contents` reads one array after the other, for models that should not be in memory twice, and `pieces`
writes in the same way, which the package cannot.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

# Bytes of a header (about 16,000 arrays), and of any JSON that is read before a checksum has vouched for it.
# Parsed JSON can take 24 times its length in memory: this keeps that below 64 MB.
MAX_HEADER = 2 << 20
MAX_DIMS = 64  # NumPy's own limit

# These are stored and loaded as they are.
EXACT = {
    "BOOL": "<b1",
    "U8": "<u1",
    "U32": "<u4",
    "I8": "<i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "F32": "<f4",
    "F64": "<f8",
}
# These are read, from others' files, and widened to float32; bfloat16 as raw bits, because NumPy has no such type.
HALF = {"F16": "<f2", "BF16": "<u2"}
ORDER = ["BOOL", "U8", "I8", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64", "U64"]  # the package's
FLOATING = ("F16", "BF16", "F32", "F64")
KNOWN = {**EXACT, **HALF, "U16": "<u2", "U64": "<u8"}  # the last two are read as they are, and never written


class Weight(NamedTuple):
    """An array in a file that has not been read yet. read: returns it, writable; dtypes narrower than float32 as
    float32.

    floating: whether it will have a floating dtype. part: returns only array[first:last], where the file supports it,
    with half precision unchanged.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    floating: bool = True
    part: Callable[[int, int], np.ndarray] | None = None


class Made(NamedTuple):
    """An array to be written that need not exist yet. make: returns it when it is about to be written, in any
    layout.
    """

    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]
    dtype: np.dtype = np.dtype(np.float32)


class CheckpointError(Exception):
    """A checkpoint or model cannot be written, is damaged, or is of the wrong kind; the message is one sentence."""


def damaged(source: object, finding: str) -> CheckpointError:
    """The error for contents that differ from what was written."""
    return CheckpointError(f"{source} is damaged: {finding}; restore it from a copy or use another.")


def encode(arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
    """The safetensors file holding `arrays`, of any shapes and strides: equal arrays give equal bytes, in any order.

    metadata: at most one entry, because the package writes several in an order that differs from run to run. Raises
    TypeError for a dtype outside EXACT, ValueError for names that take more than MAX_HEADER bytes.
    """
    import safetensors.numpy

    if metadata is not None and len(metadata) > 1:
        raise ValueError(f"got {len(metadata)} entries of metadata, expected at most one: drop the others.")
    data = safetensors.numpy.save({name: _plain(name, array) for name, array in arrays.items()}, metadata)
    if int.from_bytes(data[:8], "little") > MAX_HEADER:
        raise ValueError(f"the names of {len(arrays)} arrays need more than {MAX_HEADER} bytes: use groups.")
    return data


def pieces(
    arrays: Mapping[str, np.ndarray | Made], dtype: str | None = None, metadata: Mapping[str, str] | None = None
) -> Iterator[bytes]:
    """The safetensors file holding these arrays, piece by piece: the bytes that `encode` would give.

    dtype: None keeps every array's own; F32, F64, F16 or BF16 rounds all to that (to nearest, ties to even). One array
    is in memory at a time. Raises as `encode` does; and ValueError, while it is written, for an array whose shape is
    not the declared one, or with numbers too large for F16.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    kinds = {name: dtype or _kind(name, array) for name, array in arrays.items()}
    order = sorted(arrays, key=lambda name: (-ORDER.index(kinds[name]), _checked_name(name)))
    for name in order:
        size = math.prod(arrays[name].shape) * np.dtype(KNOWN[kinds[name]]).itemsize
        header[name] = {
            "dtype": kinds[name],
            "shape": list(arrays[name].shape),
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"the names of {len(arrays)} arrays need more than {MAX_HEADER} bytes: use groups.")
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        array = np.asarray(arrays[name].make() if isinstance(arrays[name], Made) else arrays[name])  # pyright: ignore[reportAttributeAccessIssue]
        if array.shape != tuple(arrays[name].shape):
            raise ValueError(f"{name} has shape {array.shape}, and {arrays[name].shape} was promised: give that.")
        yield _narrowed(name, array, kinds[name]).reshape(-1).view(np.uint8).data  # pyright: ignore[reportReturnType]


def _kind(name: str, array: np.ndarray | Made) -> str:
    """The format's name for an array's dtype."""
    if not isinstance(array, np.ndarray | Made):
        raise TypeError(f"{name!r} is a {type(array).__name__}, expected a NumPy array: convert it first.")
    dtype = array.dtype.newbyteorder("<")
    for kind, known in EXACT.items():
        if dtype == np.dtype(known):
            return kind
    raise TypeError(f"{name!r} is {array.dtype}, expected one of {', '.join(EXACT)}: cast it first.")


def _checked_name(name: str) -> str:
    if not isinstance(name, str) or name == "__metadata__" or not is_utf8(name):
        raise TypeError(f"got the array name {name!a}, expected printable text other than '__metadata__': rename it.")
    return name


def _narrowed(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """`array` as bits of this dtype, in C order."""
    if dtype == "BF16":  # the upper half of a float32's bits, after rounding the lower half into it
        bits = np.array(array, "<f4", order="C").view("<u4").reshape(array.shape)
        rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
        return np.where(np.isnan(array), (bits >> 16 | 0x40).astype("<u2"), rounded)
    with np.errstate(over="ignore"):
        narrow = np.asarray(array, KNOWN[dtype], order="C")
    if dtype == "F16" and not (np.isfinite(narrow) | ~np.isfinite(array)).all():
        raise ValueError(f"{name} has numbers beyond float16's 65504; save it as bfloat16 or float32")
    return narrow


def contents(file, source: object) -> dict[str, Weight]:
    """The arrays of a safetensors file, in the order of their bytes, each to be read on its own.

    file: with `size` and `read(begin, count)`, see files.RegularFile. source: for messages. Raises CheckpointError for
    anything but a well-formed file. Only the header is read here.
    """
    head = file.read(0, min(8, file.size))
    length = int.from_bytes(head.tobytes(), "little") if head.size == 8 else 0
    head = file.read(0, min(8 + min(length, MAX_HEADER), file.size))
    header, start = _header(head, source, file.size)

    def weight(name, dtype, shape, begin, end):
        def part(first, last):
            size = (end - begin) // shape[0]  # of one of the first axis
            raw = file.read(start + begin + first * size, (last - first) * size)
            return _array(raw, name, dtype, [last - first, *shape[1:]], source, widened=False)

        read = lambda: _array(file.read(start + begin, end - begin), name, dtype, shape, source)  # noqa: E731
        return Weight(tuple(shape), read, dtype in FLOATING, part if shape and shape[0] else None)

    return {entry[0]: weight(*entry) for entry in _in_order(header, file.size - start, source)}


def _plain(name: str, array: np.ndarray) -> np.ndarray:
    """`array` in C order and little-endian. np.asarray keeps a 0-d array 0-d, where np.ascontiguousarray does not."""
    return np.asarray(array, dtype=EXACT[_kind(_checked_name(name), array)], order="C")


def decode(buffer: np.ndarray, source: object) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, in the order of their bytes; writable, half precision as float32.

    buffer: (size,) uint8, the whole file, which the arrays keep alive and write to.  source: its path, for messages.
    Raises CheckpointError for anything but a well-formed file, before allocating by any number found in it.
    """
    header, start = _header(buffer, source, buffer.size)
    return {
        name: _array(buffer[start + begin : start + end], name, dtype, shape, source)
        for name, dtype, shape, begin, end in _in_order(header, buffer.size - start, source)
    }


def _in_order(header: dict, size: int, source: object) -> Iterable[tuple[str, str, list[int], int, int]]:
    """(name, dtype, shape, begin, end) of all arrays, which fill the `size` bytes after the header without a gap."""
    position = 0
    entries = sorted((_entry(name, entry, source) for name, entry in header.items()), key=lambda entry: entry[3:])
    for name, _, _, begin, end in entries:
        if begin != position:
            raise damaged(source, f"the array {name!a} begins at byte {begin}, expected {position}")
        if end > size:
            raise damaged(source, f"the array {name!a} ends at byte {end} of {size}")
        position = end
    if position != size:
        raise damaged(source, f"{size - position} bytes at its end belong to no array")
    return entries


def _header(buffer: np.ndarray, source: object, size: int) -> tuple[dict, int]:
    """The parsed header without its metadata, and where the data starts. buffer: the first bytes of `size`."""
    if size < 8:
        raise damaged(source, f"it has {size} bytes, a safetensors file at least 8")
    length = int.from_bytes(buffer[:8].tobytes(), "little")
    limit = min(size - 8, MAX_HEADER)
    if length > limit:
        raise damaged(source, f"its header claims {length} bytes, expected at most {limit}")
    header = parse_json(buffer[8 : 8 + length].tobytes(), source)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(source, "its metadata is not an object of strings")
    return header, 8 + length


def _entry(name: str, entry: object, source: object) -> tuple[str, str, list[int], int, int]:
    """(name, dtype, shape, begin, end) of one array, consistent with each other."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise damaged(source, f"the array {name!a} has not just a dtype, a shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in KNOWN:
        known = ", ".join(KNOWN)
        raise CheckpointError(f"{source}: the array {name!a} has dtype {dtype!a:.40}, expected {known}: convert it.")
    if not _are_sizes(shape) or len(shape) > MAX_DIMS or not _are_sizes(offsets) or len(offsets) != 2:
        raise damaged(source, f"the array {name!a} has a shape or offsets that are not sizes")
    begin, end = offsets
    size = math.prod(shape) * np.dtype(KNOWN[dtype]).itemsize
    if end - begin != size:
        raise damaged(source, f"the array {name!a} spans {end - begin} bytes, its shape needs {size}")
    return name, dtype, shape, begin, end


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _array(
    raw: np.ndarray, name: str, dtype: str, shape: list[int], source: object, widened: bool = True
) -> np.ndarray:
    """The array whose bytes are `raw`: a view where possible. widened: half precision becomes float32."""
    if dtype == "BOOL" and raw.size and raw.max() > 1:
        raise damaged(source, f"the boolean array {name!a} holds the byte {raw.max()}")
    flat = raw.view(KNOWN[dtype])
    if dtype == "F16" and widened:
        flat = flat.astype(np.float32)
    elif dtype == "BF16":  # the upper half of a float32's bits
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    elif not flat.flags.aligned:  # others' headers may end anywhere
        flat = flat.copy()
    try:
        return flat.reshape(shape)
    except ValueError as error:  # an empty array, with sizes too large even for NumPy's index type
        raise damaged(source, f"the array {name!a} has a shape that NumPy cannot hold") from error


def parse_json(data: bytes, source: object, infinite: bool = False) -> dict:
    """The JSON object in `data`: UTF-8, no duplicate key, no NaN, no lone surrogate. Raises CheckpointError for
    anything else.

    infinite: whether to allow the numbers Infinity and -Infinity, which Python writes and JSON does not have.
    """
    constant = _infinity if infinite else _no_constant
    try:
        value = json.loads(data.decode(), object_pairs_hook=_no_key_twice, parse_constant=constant)
        readable = is_utf8(json.dumps(value, ensure_ascii=False))
    except (ValueError, RecursionError) as error:  # whether encoding, syntax, digits or nesting
        raise damaged(source, f"it is not readable JSON ({str(error)!a:.80})") from error
    if not readable or not isinstance(value, dict):
        raise damaged(source, f"it holds a JSON {type(value).__name__}, expected an object of printable text")
    return value


def is_utf8(text: str) -> bool:
    """Whether `text` can be printed and stored: a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_key_twice(pairs: list[tuple[str, object]]) -> dict:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _infinity(name: str) -> float:
    if name == "NaN":
        _no_constant(name)
    return float(name)

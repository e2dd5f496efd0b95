"""Weights in PyTorch's own files (.bin, .pt), read without PyTorch and without executing anything.

Such a file is a zip archive (PyTorch 1.6 and later) with one pickle, which describes the tensors, and one stored entry
per block of numbers. Earlier files are five pickles in a row (a magic number, a version, the machine, the tensors, the
keys of the blocks) and then the blocks, each after its length. A pickle is a program; unpickling it would run whatever
it names. Here it is read as text: the standard library splits it into instructions (`genops` only decodes), and the few
that a dict of tensors consists of are carried out on plain values below. Nothing is imported or called by name: GLOBAL
gives a `Name`, and REDUCE knows four of them. Everything else, such as os.system, is refused by its name.
"""

import io
import itertools
import math
import pickletools
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from pydiff.formats.files import RegularFile
from pydiff.formats.safetensors import MAX_DIMS, CheckpointError, Weight, damaged

MAX_PICKLE = 16 << 20  # bytes; the largest published U-Net's has 0.2 million
MAX_DEPTH = 16  # of dicts in dicts
MAGIC = 0x1950A86A20F9469CFC6C  # what a file of PyTorch before 1.6 starts with, as a pickle
LEGACY = b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."
LEGACY_VERSION = 1001
STORAGES = {  # PyTorch's class of storage -> dtype
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "<b1",
}


class Name(NamedTuple):
    """What a pickle refers to by name. It is never resolved."""

    module: str
    name: str


class Storage(NamedTuple):
    """A block of numbers in the file, or, in files of PyTorch before 0.4, a part of one: `count` numbers from number
    `first`.
    """

    kind: str
    key: str
    count: int
    first: int = 0


class Tensor(NamedTuple):
    """Which numbers of a storage belong to a tensor, in PyTorch's terms."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Block(NamedTuple):
    """Where a storage's bytes are, and their byte order: "<" or ">"."""

    begin: int
    size: int
    order: str = "<"


class _Mark:
    """Marks where the arguments of an instruction start on the stack."""


MARK = _Mark()
ORDERED_DICT = Name("collections", "OrderedDict")
REBUILD = Name("torch._utils", "_rebuild_tensor_v2")
REBUILD_OLD = Name("torch._utils", "_rebuild_tensor")  # PyTorch 0.1 to 0.3
PARAMETER = Name("torch._utils", "_rebuild_parameter")
OPAQUE = {  # what training programs leave beside the weights: neither called nor read
    Name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
    Name("numpy.core.multiarray", "scalar"),
    Name("numpy._core.multiarray", "scalar"),
    Name("numpy", "dtype"),
    Name("_codecs", "encode"),
}


def is_archive(file: RegularFile) -> bool:
    """Whether a file starts like a zip archive."""
    return file.read(0, min(4, file.size)).tobytes() == b"PK\x03\x04"


def contents(file: RegularFile, source: object) -> dict[str, Weight]:
    """The tensors of a state dict, {name: Weight}; the file has to stay open. A dict under "state_dict" is used if
    there is one.

    Raises CheckpointError for anything but a state dict, for a damaged file, and for a pickle that would call anything.
    Memory: the pickle's, at most MAX_PICKLE, and the archive's table of contents.
    """
    found = tree(file, source)
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(n, str) for n in found):
        raise CheckpointError(f"{source} holds a {type(found).__name__}, expected a state dict: use another.")
    other = next((name for name, value in found.items() if not isinstance(value, Weight)), None)
    if other is not None:
        raise CheckpointError(f"{source} holds {other!a:.60}, which is no tensor, expected a state dict: use another.")
    return found


def tree(file: RegularFile, source: object) -> object:
    """The contents of the file: dicts, lists, numbers and text unchanged, with a Weight for every tensor.

    Other objects that training programs store next to the weights become a Name. Raises as `contents` does.
    """
    if is_archive(file):
        found, blocks = _zipped(file, source)
    elif file.read(0, min(len(LEGACY), file.size)).tobytes() == LEGACY:
        found, blocks = _in_a_row(file, source)
    elif file.size > 262 and file.read(257, 5).tobytes() == b"ustar":
        raise CheckpointError(
            f"{source} is a tar archive, as PyTorch 0.1 wrote: convert it with torch.save(torch.load(old), new)."
        )
    else:
        raise CheckpointError(f"{source} is no file that PyTorch writes, or damaged: download it again or use another.")
    made = {}  # by id: what a pickle names many times is made once

    def weights(value, name, depth=0):
        if depth > MAX_DEPTH:
            raise damaged(source, "it is nested too deeply")
        if isinstance(value, Tensor):
            return _weight(file, source, name, value, blocks)
        if not isinstance(value, dict | list):
            return value
        if id(value) not in made:
            if isinstance(value, dict):
                made[id(value)] = {key: weights(inner, key, depth + 1) for key, inner in value.items()}
            else:
                made[id(value)] = [weights(inner, name, depth + 1) for inner in value]
        return made[id(value)]

    return weights(found, "the root")


def _zipped(file: RegularFile, source: object) -> tuple[object, dict[str, Block]]:
    """The contents of an archive, and where its blocks are."""
    entries = _archive(file, source)
    pickles = [name for name in entries if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        raise CheckpointError(f"{source} has {len(pickles)} pickles, expected the one of a state dict: use another.")
    root = pickles[0].removesuffix("data.pkl")
    begin, count = entries[pickles[0]]
    if count > MAX_PICKLE:
        raise CheckpointError(f"{source} has a pickle of {count} bytes, expected at most {MAX_PICKLE}: use another.")
    order = entries.get(f"{root}byteorder", (0, 0))
    order = file.read(*order).tobytes() if order[1] <= 6 else b"?"
    if order not in (b"", b"little", b"big"):
        raise damaged(source, f"its byte order is {order!a:.20}")
    found, _ = Machine(source).run(file.read(begin, count).tobytes())
    data = f"{root}data/"
    order = ">" if order == b"big" else "<"
    return found, {n.removeprefix(data): Block(*place, order) for n, place in entries.items() if n.startswith(data)}


def _in_a_row(file: RegularFile, source: object) -> tuple[object, dict[str, Block]]:
    """The contents of a file from before PyTorch 1.6, whose numbers are little-endian on every machine, and where its
    blocks are.
    """
    head, at, parts = file.read(0, min(file.size, MAX_PICKLE)).tobytes(), 0, []
    for _ in range(5):
        value, at = Machine(source).run(head, at)
        parts.append(value)
    _, version, _, found, keys = parts
    if version != LEGACY_VERSION:
        raise CheckpointError(f"{source} is of version {version!a:.20}, expected {LEGACY_VERSION}: use another.")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise damaged(source, "the list of its blocks makes no sense")
    sizes = {s.key: np.dtype(STORAGES[s.kind]).itemsize for s in _storages(found)}
    blocks = {}
    for key in keys:
        if key not in sizes:
            raise damaged(source, f"its block {key!a:.40} belongs to no tensor, so its length is not known")
        if at + 8 > file.size:
            raise damaged(source, "it ends before its last block")
        size = int.from_bytes(file.read(at, 8).tobytes(), "little") * sizes[key]
        if size > file.size - at - 8:
            raise damaged(source, f"its block {key!a:.40} ends behind the end of the file")
        blocks[key] = Block(at + 8, size)
        at += 8 + size
    return found, blocks


def _storages(found: object) -> Iterator[Storage]:
    """The storages of all tensors in what a pickle describes, at any depth."""
    left, seen = [found], set()
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            yield value.storage
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, dict) else value


def _archive(file: RegularFile, source: object) -> dict[str, tuple[int, int]]:
    """{name: (where its bytes start, how many)}. PyTorch compresses nothing, so compressed entries are refused."""
    entries = {}
    try:
        with zipfile.ZipFile(_Seekable(file)) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                    raise damaged(source, f"its entry {info.filename!a:.60} is compressed, which PyTorch never does")
                if info.flag_bits & 1 or info.filename in entries:
                    raise damaged(source, f"its entry {info.filename!a:.60} is encrypted, or there twice")
                head = file.read(info.header_offset, 30).tobytes()
                if head[:4] != b"PK\x03\x04":
                    raise damaged(source, f"its entry {info.filename!a:.60} does not begin where it should")
                begin = info.header_offset + 30 + int.from_bytes(head[26:28], "little")
                begin += int.from_bytes(head[28:30], "little")
                if begin + info.file_size > file.size:
                    raise damaged(source, f"its entry {info.filename!a:.60} ends behind the end of the file")
                entries[info.filename] = (begin, info.file_size)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, ValueError, OverflowError, IndexError) as error:
        raise damaged(source, f"it is no readable zip archive ({str(error)!a:.60})") from error
    return entries


class _Seekable:
    """A RegularFile with the methods that zipfile needs."""

    def __init__(self, file):
        self._file, self._at = file, 0

    def seekable(self):
        return True

    def tell(self):
        return self._at

    def seek(self, offset, whence=0):
        self._at = max(0, offset + (0, self._at, self._file.size)[whence])
        return self._at

    def read(self, count=-1):
        left = max(self._file.size - self._at, 0)
        count = left if count is None or count < 0 else min(count, left)
        data = self._file.read(self._at, count).tobytes()
        self._at += count
        return data


def _weight(file, source, name, tensor, blocks: Mapping[str, Block]) -> Weight:
    """A tensor, after checking that its storage exists and is large enough."""
    storage = tensor.storage
    if storage.key not in blocks:
        raise damaged(source, f"the numbers of {name!a:.60} are missing")
    begin, size, order = blocks[storage.key]
    dtype = np.dtype(STORAGES[storage.kind]).newbyteorder(order)  # pyright: ignore[reportArgumentType]
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    count, begin = math.prod(tensor.shape), begin + storage.first * dtype.itemsize
    held = (storage.first + storage.count) * dtype.itemsize
    made = 4 if dtype.char in "eH" else dtype.itemsize  # bytes of a number; halves become float32
    if math.prod(filter(None, tensor.shape)) * made >= 1 << 63:  # an empty one, with sizes beyond NumPy's
        raise damaged(source, f"{name!a:.60} has a shape that NumPy cannot hold")
    if held > size or (count and last >= storage.count) or count > storage.count:
        raise damaged(source, f"{name!a:.60} has the shape {tensor.shape}, more than its {size} bytes hold")

    def read():
        if not count:
            return np.zeros(tensor.shape, np.float32 if dtype.char in "eH" else dtype.newbyteorder("="))
        flat = file.read(begin + tensor.offset * dtype.itemsize, (last + 1 - tensor.offset) * dtype.itemsize)
        if dtype.kind == "b" and flat.max() > 1:
            raise damaged(source, f"the boolean tensor {name!a:.60} holds the byte {flat.max()}")
        steps = [step * dtype.itemsize if n > 1 else 0 for n, step in zip(tensor.shape, tensor.strides, strict=True)]
        array = np.lib.stride_tricks.as_strided(flat.view(dtype), tensor.shape, steps)
        if storage.kind == "BFloat16Storage":
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(np.float32 if dtype.char == "e" else dtype.newbyteorder("="))

    return Weight(tensor.shape, read, dtype.kind == "f" or storage.kind == "BFloat16Storage")


class Machine:
    """Carries out the instructions of a pickled state dict on plain values: dicts, lists, tuples, numbers, text, and
    the classes above.

    source: for messages. Raises CheckpointError for every other instruction and name.
    """

    def __init__(self, source: object):
        self.source, self.stack, self.memo = source, [], {}

    def run(self, program: bytes, begin: int = 0) -> tuple[object, int]:
        """What the pickle at byte `begin` describes, and where it ends."""
        stream = io.BytesIO(program)
        stream.seek(begin)
        try:
            for opcode, argument, _ in self._instructions(stream):
                if opcode == "STOP":
                    return self._pop(), stream.tell()
                self._do(opcode, argument)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
            raise damaged(self.source, f"its pickle makes no sense ({str(error)!a:.60})") from error
        raise damaged(self.source, "its pickle has no end")

    def _instructions(self, program) -> Iterator[tuple[str, object, int]]:
        for opcode, argument, position in pickletools.genops(program):
            yield opcode.name, argument, position  # pyright: ignore[reportReturnType]

    def _do(self, opcode, argument):
        if opcode in ("PROTO", "FRAME"):
            return
        if opcode in PUSHED:
            self.stack.append(argument)
        elif opcode in MADE:
            self.stack.append(MADE[opcode]())
        elif opcode in TUPLES:
            items = [self._pop() for _ in range(TUPLES[opcode])]
            self.stack.append(tuple(reversed(items)))
        elif opcode in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            self.memo[len(self.memo) if opcode == "MEMOIZE" else int(argument)] = self.stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[int(argument)])
        elif (method := getattr(self, f"_{opcode.lower()}", None)) is not None and opcode in CARRIED_OUT:
            method(argument)
        else:
            raise CheckpointError(
                f"{self.source} has the instruction {opcode}, which no state dict needs: use another."
            )

    def _pop(self):
        value = self.stack.pop()
        if value is MARK:
            raise ValueError("an instruction lacks its arguments")
        return value

    def _since_mark(self) -> list:
        items = list(itertools.takewhile(lambda value: value is not MARK, reversed(self.stack)))
        del self.stack[len(self.stack) - len(items) :]
        self.stack.pop()  # the mark itself
        return items[::-1]

    def _mark(self, _):
        self.stack.append(MARK)

    def _pop_mark(self, _):
        self._since_mark()

    def _tuple(self, _):
        self.stack.append(tuple(self._since_mark()))

    def _list(self, _):
        self.stack.append(self._since_mark())

    def _dict(self, _):
        items = self._since_mark()
        self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def _append(self, _):
        value = self._pop()
        self._top(list).append(value)

    def _appends(self, _):
        items = self._since_mark()
        self._top(list).extend(items)

    def _setitem(self, _):
        value, key = self._pop(), self._pop()
        self._top(dict)[key] = value

    def _setitems(self, _):
        items = self._since_mark()
        self._top(dict).update(zip(items[::2], items[1::2], strict=True))

    def _top(self, kind):
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"expected a {kind.__name__} to fill")
        return self.stack[-1]

    def _global(self, argument):
        module, _, name = argument.partition(" ")
        self._named(module, name)

    def _stack_global(self, _):
        name, module = self._pop(), self._pop()
        self._named(str(module), str(name))

    def _named(self, module, name):
        found = Name(module, name)
        is_storage = module == "torch" and name in STORAGES
        if not is_storage and found not in (ORDERED_DICT, REBUILD, REBUILD_OLD, PARAMETER, *OPAQUE):
            raise CheckpointError(
                f"{self.source} names {module!a:.40} {name!a:.40}, which no state dict needs and which is not called: "
                "do not trust this file."
            )
        self.stack.append(found)

    def _binpersid(self, _):
        word, kind, key, _, count, *part = self._pop()
        if word != "storage" or not isinstance(kind, Name) or kind.name not in STORAGES or not _is_size(count):
            raise ValueError("a block of numbers is not described as PyTorch does it")
        first = 0
        if part not in ([], [None]):  # (its own key, where it begins, how many)
            ((_, first, count),) = part
            if not _is_size(first) or not _is_size(count):
                raise ValueError("a part of a block is not described as PyTorch does it")
        self.stack.append(Storage(kind.name, str(key), count, first))

    def _reduce(self, _):
        arguments, called = self._pop(), self._pop()
        if called == ORDERED_DICT and arguments == ():
            self.stack.append({})
        elif called == ORDERED_DICT:
            (pairs,) = arguments
            self.stack.append({key: value for key, value in pairs})  # noqa: C416  (pairs may be lists of two)
        elif called in (REBUILD, REBUILD_OLD):
            self.stack.append(self._tensor(*arguments[:4]))
        elif called == PARAMETER and isinstance(arguments[0], Tensor):
            self.stack.append(arguments[0])
        elif called in OPAQUE:
            self.stack.append(called)  # its name alone
        else:
            raise ValueError("it calls what cannot be called")

    def _tensor(self, storage, offset, shape, strides) -> Tensor:
        sizes = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= MAX_DIMS
        if not sizes or not isinstance(storage, Storage) or not all(map(_is_size, (offset, *shape, *strides))):
            raise ValueError("a tensor is not described as PyTorch does it")
        if any(n > 1 and step == 0 for n, step in zip(shape, strides, strict=True)):
            raise ValueError("a tensor repeats numbers instead of holding them")
        return Tensor(storage, offset, shape, strides)

    def _build(self, _):
        """Ignored: attributes set on an OrderedDict (PyTorch's `_metadata`) or on a Name do not affect numbers."""
        self._pop()
        if not isinstance(self.stack[-1], Name):
            self._top(dict)


def _is_size(value) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


PUSHED = {
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "BINFLOAT", "FLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING",
}  # fmt: skip
MADE = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
CARRIED_OUT = {
    "MARK", "POP_MARK", "TUPLE", "LIST", "DICT", "APPEND", "APPENDS", "SETITEM", "SETITEMS",
    "GLOBAL", "STACK_GLOBAL", "BINPERSID", "REDUCE", "BUILD",
}  # fmt: skip

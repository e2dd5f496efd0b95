"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) as published: pickled batches, read without unpickling, or binary ones.

cifar-10-batches-py/data_batch_1 .. 5, test_batch, batches.meta       cifar-100-python/train, test, meta
cifar-10-batches-bin/data_batch_1.bin .., batches.meta.txt            cifar-100-binary/train.bin, ..

They are read from a folder, or from the .tar.gz that they come in. A pickle is a program; formats/pytorch.py explains
how its instructions are carried out here on plain values only. Beyond that, a batch needs just a few names: those with
which NumPy pickles arrays.
"""

import numpy as np

from pydiff.data.asked import NOTHING_ASKED, Asked
from pydiff.data.dataset import Dataset
from pydiff.formats.pytorch import Machine, Name
from pydiff.formats.safetensors import CheckpointError
from pydiff.printed import printable

ROW = 3072  # bytes of an image: 3 x 32 x 32
LARGEST = 400 << 20  # bytes of one file; CIFAR-100's train has 155 million
TRAIN, TEST = tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",)
LABELS = ("labels", "fine_labels", "coarse_labels")


def holds_cifar(root) -> bool:
    """Whether a folder or an archive holds CIFAR batches."""
    return bool(_layout(root))


def _layout(root) -> dict[str, list]:
    """{"train": files, "test": files, "meta": files}; {} if there are no batches."""
    files = _files(root)
    for suffix in ("", ".bin"):
        train = [files[name + suffix] for name in TRAIN if name + suffix in files]
        test = [files[name + suffix] for name in TEST if name + suffix in files]
        meta = [files[name] for name in ("batches.meta", "batches.meta.txt") if name in files]
        if train or test:
            return {"train": train, "test": test, "meta": meta}
        if f"train{suffix}" in files and f"test{suffix}" in files:
            meta = [files[name] for name in ("meta", "fine_label_names.txt") if name in files]
            return {"train": [files[f"train{suffix}"]], "test": [files[f"test{suffix}"]], "meta": meta}
    return {}


def _files(root) -> dict:
    """{name: file} of a folder, of the only folder inside it, or of an archive."""
    if hasattr(root, "paths"):
        return {path.split("/")[-1]: root / path for path in root.paths()[0]}
    found = {file.name: file for file in root.iterdir() if file.is_file()}
    inner = [folder for folder in root.iterdir() if folder.is_dir() and folder.name.startswith("cifar-10")]
    return found if found or len(inner) != 1 else _files(inner[0])


def load_cifar(root, asked: Asked = NOTHING_ASKED) -> Dataset:
    """The training set (or asked.split), (N, 32, 32, 3) uint8, with classes. Raises ValueError for damaged files."""
    layout, split = _layout(root), asked.split or "train"
    files = layout["train"] + layout["test"] if split == "all" else layout.get(split, [])
    if split == "meta" or not files:
        raise ValueError(f"{printable(str(root))} has no batches for split={split!r}; leave it out")
    asked.limit.check(sum(file.stat().st_size for file in files) * 2, printable(str(root)))
    batches = [_batch(file, root) for file in files]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches]).astype(np.int64)
    notes = []
    if split != "all" and layout["train"] and layout["test"]:
        other = "test" if split == "train" else "train"
        notes.append(f"batches for {split} taken, those for {other} left out (split={other!r}, 'all')")
    classes = _classes(layout["meta"], int(labels.max(initial=0)) + 1)
    images = np.ascontiguousarray(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return Dataset(printable(root.name), images, labels, classes, notes=notes)


def load_batch(path, asked: Asked = NOTHING_ASKED) -> Dataset:
    """Reads a single CIFAR batch, pickled or binary."""
    asked.limit.check(path.stat().st_size * 2, printable(str(path)))
    images, labels = _batch(path, path)
    images = np.ascontiguousarray(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    names = [str(i) for i in range(int(labels.max(initial=0)) + 1)]
    return Dataset(printable(path.name), images, labels.astype(np.int64), names, notes=["one batch of CIFAR alone"])


def _batch(file, where) -> tuple[np.ndarray, np.ndarray]:
    """(pixels (n, 3072) uint8, labels (n,)) of one file."""
    name = printable(str(getattr(file, "name", where)))
    if file.stat().st_size > LARGEST:
        raise ValueError(f"{name} has {file.stat().st_size:,} bytes, too many for a batch of CIFAR; fetch it again")
    data = file.read_bytes()
    if not data.startswith(b"\x80"):
        return _binary(data, name)
    found = unpickled(data, name)
    labels = next((found[key] for key in LABELS if key in found), None)
    pixels = found.get("data")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != ROW:
        raise ValueError(f"{name} holds no images of CIFAR (data of {ROW} bytes a row); fetch it again")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not all(type(n) is int for n in labels):
        raise ValueError(f"{name} holds no label for each image; fetch it again")
    if not all(0 <= n < 1000 for n in labels):
        raise ValueError(f"{name} has labels beyond 0 .. 999; fetch it again")
    return pixels, np.array(labels, np.int64)


def _binary(data: bytes, name: str):
    """(pixels, labels) of a binary batch: per image one label, or two of which the second is finer, and 3072 bytes."""
    for labels in (1, 2):
        if data and len(data) % (ROW + labels) == 0:
            rows = np.frombuffer(data, np.uint8).reshape(-1, ROW + labels)
            return rows[:, labels:], rows[:, labels - 1].astype(np.int64)
    raise ValueError(f"{name} is no batch of CIFAR ({len(data):,} bytes); fetch it again")


def _classes(meta, count: int) -> list[str]:
    """Names of the classes from the meta file; numbers if it is missing or does not fit."""
    numbers = [str(i) for i in range(count)]
    if not meta or meta[0].stat().st_size > 1 << 20:
        return numbers
    data = meta[0].read_bytes()
    if data.startswith(b"\x80"):
        found = unpickled(data, "meta")
        names = next((found[key] for key in ("label_names", "fine_label_names") if key in found), [])
    else:
        names = data.decode("utf-8", "replace").split()
    names = [printable(name) for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return names if len(names) >= count and len(set(names)) == len(names) else numbers


# ---- pickles, without unpickling -------------------------------------------------------------------------------------

RECONSTRUCT = (Name("numpy.core.multiarray", "_reconstruct"), Name("numpy._core.multiarray", "_reconstruct"))
ARRAY, DTYPE, ENCODE = Name("numpy", "ndarray"), Name("numpy", "dtype"), Name("_codecs", "encode")


class _Blank:
    """An array or a dtype that a later BUILD instruction fills."""

    def __init__(self, kind):
        self.kind = kind


class Batch(Machine):
    """Runs the instructions of a pickled dict of uint8 arrays, lists, numbers and strings."""

    known = frozenset({*RECONSTRUCT, ARRAY, DTYPE, ENCODE})

    def _do(self, opcode, argument):
        if opcode in ("BINBYTES", "SHORT_BINBYTES"):
            self.stack.append(argument)
        else:
            super()._do(opcode, argument)

    def _named(self, module, name):
        if Name(module, name) in self.known:
            self.stack.append(Name(module, name))
        else:
            super()._named(module, name)

    def _reduce(self, _):
        arguments, called = self.stack[-1], self.stack[-2]
        if called in RECONSTRUCT or called == DTYPE:
            del self.stack[-2:]
            if called == DTYPE and (not arguments or arguments[0] not in ("u1", "|u1", "uint8")):
                raise ValueError("it has numbers that are no bytes")
            self.stack.append(_Blank("dtype" if called == DTYPE else "array"))
        elif called == ENCODE:  # how Python 3 writes bytes for Python 2
            del self.stack[-2:]
            self.stack.append(arguments[0])
        else:
            super()._reduce(_)

    def _build(self, _):
        if isinstance(self.stack[-2], _Blank):
            state, blank = self._pop(), self.stack.pop()
            self.stack.append(blank if blank.kind == "dtype" else _array(state))
        else:
            super()._build(_)


def _array(state) -> np.ndarray:
    _, shape, dtype, fortran, data = state
    data = data.encode("latin-1") if isinstance(data, str) else data
    if not isinstance(dtype, _Blank) or dtype.kind != "dtype" or not isinstance(data, bytes):
        raise ValueError("an array is not described as NumPy does it")
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n <= len(data) for n in shape):
        raise ValueError("an array has no shape")
    return np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


def unpickled(data: bytes, source: str) -> dict:
    """The dict in a CIFAR pickle. Raises ValueError for anything else; no function that the pickle names is called."""
    try:
        found, _ = Batch(source).run(data)
    except CheckpointError as error:
        raise ValueError(str(error)) from error
    if not isinstance(found, dict):
        raise ValueError(f"{source} holds a {type(found).__name__}, expected a batch of CIFAR; fetch it again")
    return {key.decode("latin-1") if isinstance(key, bytes) else key: _text(value) for key, value in found.items()}


def _text(value):
    """Decodes a list of strings that Python 2 wrote as bytes."""
    if isinstance(value, list):
        return [item.decode("latin-1") if isinstance(item, bytes) else item for item in value]
    return value

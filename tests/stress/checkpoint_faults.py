"""Faults for the checkpoint tests: known contents, failing calls, and the states a crash may leave on a disk."""

import contextlib
import errno
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from pydiff.store import checkpoint

CONFIG = {"sample_size": 8, "block_out_channels": [8, 16], "note": "µ"}
CALLS = ("mkdir", "open", "write", "fsync", "close", "rename", "unlink", "rmdir")  # all that sealed.py writes with


def contents(step: int, revision: int = 0, size: int = 6) -> tuple[dict, dict]:
    """The arrays and the state of a checkpoint, as a function of its step and of which writing of it this is."""
    words = np.arange(size * 4, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(step * 7 + revision)
    model = {
        "conv.weight": (words.view(np.int32) / np.float32(2**31)).astype(np.float32).reshape(size, 4),
        "scale": np.array(step + 0.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }
    optimizer = {"conv.weight.m": model["conv.weight"].astype(np.float64).T, "count": np.array(step, np.int64)}
    return {"model": model, "optimizer": optimizer}, {
        "step": step,
        "revision": revision,
        "loss": [1 / (step + 1), None],
    }


def same(a: dict, b: dict) -> bool:
    """Whether two nested dicts of arrays agree in names, dtypes, shapes and bits."""
    if a.keys() != b.keys():
        return False
    return all(
        same(x, b[name]) if isinstance(x, dict)
        else (x.dtype, x.shape, x.tobytes()) == (b[name].dtype, b[name].shape, b[name].tobytes())
        for name, x in a.items()
    )  # fmt: skip


def is_checkpoint(loaded: tuple[dict, dict], step: int, revision: int = 0, size: int = 6) -> bool:
    arrays, state = contents(step, revision, size)
    return same(loaded[0], arrays) and loaded[1] == state


def save(directory: Path, step: int, revision: int = 0) -> Path:
    return checkpoint.save(directory, step, *contents(step, revision))


def save_model(directory: Path, step: int = 1) -> None:
    checkpoint.save_model(directory, CONFIG, contents(step)[0]["model"], {"step": step})


def is_model(loaded: checkpoint.Model, step: int = 1) -> bool:
    config, arrays, extra, _ = loaded
    return config == CONFIG and same(arrays, contents(step)[0]["model"]) and extra == {"step": step}


def newest(directory: Path) -> tuple[int, int] | None:
    """(step, revision) of the newest checkpoint, which has to be bitwise right, or None; none is damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = checkpoint.latest(directory)
    if path is None:
        return None
    loaded = checkpoint.load(path)
    step, revision = loaded[1]["step"], loaded[1]["revision"]
    assert is_checkpoint(loaded, step, revision)
    return step, revision


def damage(path: Path, bits: Iterable[int]) -> Iterator[None]:
    """Flip these bits of a file, cut it at every byte, lengthen it by one: yields after each, and then repairs.

    In place: writing whole files anew is what takes the time.
    """
    data = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for bit in bits:
            os.pwrite(file.fileno(), bytes([data[bit // 8] ^ 1 << bit % 8]), bit // 8)
            yield
            os.pwrite(file.fileno(), data[bit // 8 : bit // 8 + 1], bit // 8)
        for length in reversed(range(len(data))):
            file.truncate(length)
            yield
        os.pwrite(file.fileno(), data + b"\0", 0)
        yield
        file.truncate(len(data))


@contextlib.contextmanager
def failing(at: int, number: int = errno.ENOSPC, for_good: bool = False) -> Iterator[list[str]]:
    """Let the call number `at` of CALLS raise OSError(number), or also all calls after it; yields the calls made.

    A failing write first writes half of its bytes and a failing close does close, as they do on a real disk.
    """
    calls = []

    def wrap(name: str, real):
        def call(*args, **kwargs):
            calls.append(name)
            index = len(calls) - 1
            if index != at and not (for_good and index > at):
                return real(*args, **kwargs)
            if name == "write":
                real(args[0], args[1][: len(args[1]) // 2])
            if name == "close":
                real(*args)
            raise OSError(number, os.strerror(number))

        return call

    with mock.patch.multiple(os, **{name: wrap(name, getattr(os, name)) for name in CALLS}):
        yield calls


class Recorder:
    """Records the calls of CALLS made below `base`, and builds the states of the disk a crash may leave behind.

    A node is a file or a folder, whatever its name of the moment. The operations, in the order of the calls:
    ("mkdir" | "create", parent, name, node), ("rename", parent, name, new name, node), ("remove", parent, name, node):
    these last once the parent has been fsynced; ("write", node, bytes) lasts once the file has; ("fsync", node).
    """

    def __init__(self, base: Path):
        self.base = base
        self.initial = {0: {}}  # node -> its bytes, or {name: node}
        self._scan(base, 0)
        self.operations = []
        self._paths = {}  # descriptor -> node
        self._now = {node: dict(value) if isinstance(value, dict) else value for node, value in self.initial.items()}

    def _scan(self, folder: Path, node: int) -> None:
        for path in sorted(folder.iterdir()):
            child = len(self.initial)
            self.initial[node][path.name] = child
            self.initial[child] = {} if path.is_dir() else path.read_bytes()
            if path.is_dir():
                self._scan(path, child)

    def _find(self, path: os.PathLike) -> int:
        node = 0
        for name in Path(path).relative_to(self.base).parts:
            node = self._now[node][name]
        return node

    def _place(self, path: os.PathLike) -> tuple[int, str]:
        return self._find(Path(path).parent), Path(path).name

    def _do(self, operation: tuple) -> None:
        self.operations.append(operation)
        _apply(self._now, operation)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        real = {name: getattr(os, name) for name in CALLS}

        def mkdir(path, *args):
            real["mkdir"](path, *args)
            self._do(("mkdir", *self._place(path), len(self._now)))

        def open_(path, flags, *args):
            new = flags & os.O_CREAT and not os.path.lexists(path)
            descriptor = real["open"](path, flags, *args)
            if new:
                self._do(("create", *self._place(path), len(self._now)))
            self._paths[descriptor] = self._find(path)
            return descriptor

        def write(descriptor, data):
            count = real["write"](descriptor, data)
            self._do(("write", self._paths[descriptor], bytes(data[:count])))
            return count

        def fsync(descriptor):  # only recorded: a real one takes a millisecond and changes nothing visible
            self._do(("fsync", self._paths[descriptor]))

        def close(descriptor):
            self._paths.pop(descriptor)
            real["close"](descriptor)

        def rename(source, target):
            assert Path(source).parent == Path(target).parent
            real["rename"](source, target)
            self._do(("rename", *self._place(source), Path(target).name, self._find(source)))

        def unlink(path):
            real["unlink"](path)
            self._do(("remove", *self._place(path), self._find(path)))

        def rmdir(path):
            real["rmdir"](path)
            self._do(("remove", *self._place(path), self._find(path)))

        fakes = {"mkdir": mkdir, "open": open_, "write": write, "fsync": fsync}
        fakes |= {"close": close, "rename": rename, "unlink": unlink, "rmdir": rmdir}
        with mock.patch.multiple(os, **fakes):
            yield

    def crash_states(self) -> Iterator[tuple[int, dict]]:
        """(operations done, {path: bytes, or None for a folder}) of each different state, after each operation.

        What was not fsynced may be lost: any subset of the changes of names, and the data wholly, by half, or to zeros.
        """
        seen = set()
        for done in range(len(self.operations) + 1):
            prefix = self.operations[:done]
            synced = {op[1]: index for index, op in enumerate(prefix) if op[0] == "fsync"}  # node -> its last fsync
            changes = [index for index, op in enumerate(prefix) if op[0] not in ("write", "fsync")]
            loose = [index for index in changes if synced.get(prefix[index][1], -1) < index]
            for kept in itertools.chain.from_iterable(itertools.combinations(loose, n) for n in range(len(loose) + 1)):
                for damage in (None, 0, 1, 2):
                    state = self._state(prefix, synced, set(loose) - set(kept), damage)
                    key = (done == len(self.operations), frozenset(state.items()))
                    if key not in seen:
                        seen.add(key)
                        yield done, state

    def _state(self, prefix: list, synced: dict, lost: set[int], damage: int | None) -> dict:
        nodes = {node: dict(value) if isinstance(value, dict) else value for node, value in self.initial.items()}
        for index, operation in enumerate(prefix):
            if operation[0] == "write" and synced.get(operation[1], -1) < index and damage is not None:
                data = operation[2]
                operation = (*operation[:2], (b"", data[: len(data) // 2], bytes(len(data)))[damage])
            _apply(nodes, operation, index in lost)
        return _flatten(nodes, 0, "")


def _apply(nodes: dict, operation: tuple, lost: bool = False) -> None:
    """Carry out an operation; where it is lost, a new file or folder exists without a name."""
    kind, node, *names = operation
    if kind == "write":
        nodes[node] += names[0]
    if kind in ("mkdir", "create"):
        nodes[names[1]] = {} if kind == "mkdir" else b""
    if kind in ("write", "fsync") or lost:
        return
    entries, child = nodes[node], names[-1]
    if kind in ("rename", "remove") and entries.get(names[0]) == child:
        del entries[names[0]]
    if kind != "remove":
        entries[names[-2]] = child


def _flatten(nodes: dict, node: int, path: str) -> dict:
    flat = {}
    for name, child in nodes[node].items():
        value = nodes[child]
        flat[path + name] = None if isinstance(value, dict) else value
        if isinstance(value, dict):
            flat |= _flatten(nodes, child, f"{path}{name}/")
    return flat


def materialise(state: dict, folder: Path) -> None:
    """Build the files and folders of a state."""
    folder.mkdir(parents=True)
    for path, data in state.items():
        if data is None:
            (folder / path).mkdir(exist_ok=True)
        else:
            (folder / path).write_bytes(data)

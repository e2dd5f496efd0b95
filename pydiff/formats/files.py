"""Reads files of unknown origin with plain reads: never maps them, opens pipes, or allocates what they claim
to need.
"""

import contextlib
import errno
import os
import stat
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pydiff.formats.safetensors import CheckpointError, damaged
from pydiff.printed import expanded

CHUNK = 64 << 20  # bytes given to one write or read


def folder_path(value, name="directory") -> Path:
    """The path of a folder that somebody gave, with ~ expanded. Raises TypeError or ValueError for what is no path.

    name: of the argument.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} is {value!r:.60}, expected the path of a folder")
    if not str(value):
        raise ValueError(f"{name} is empty, expected the path of a folder")
    return expanded(value)


class RegularFile:
    """An open regular file, not a folder or a pipe: its `size`, and any of its bytes.

    Uses plain reads: a mapped file that shrinks would kill the process. Close it, or use it in a `with`. lasting: it
    can still be read after `close`, even if the name is gone, as long as this object exists; reading raises if the
    content has changed since.

    Raises CheckpointError for every error of the operating system.
    """

    def __init__(self, path: Path, lasting: bool = False):
        self.path, self._lasting, self._closed = Path(path), lasting, False
        self._descriptor, found = _opened(path)
        self.size, self._found = found.st_size, _identity(found)
        if lasting:
            weakref.finalize(self, os.close, self._descriptor)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Closes the descriptor; for a lasting file, only once this object is released. A second call does nothing."""
        self._closed = True
        if self._descriptor is not None and not self._lasting:
            descriptor, self._descriptor = self._descriptor, None
            with disk(f"read {self.path}"):
                os.close(descriptor)

    def read(self, begin: int, count: int) -> np.ndarray:
        """`count` bytes from `begin`, (count,) uint8. Raises CheckpointError if the file does not have them."""
        if begin + count > self.size:
            raise damaged(self.path, f"it has {self.size} bytes, and byte {begin + count} was asked for")
        if self._closed and self._lasting and _identity(os.fstat(self._descriptor)) != self._found:  # pyright: ignore[reportArgumentType]
            raise CheckpointError(f"{self.path} has been changed since it was opened: open the model again.")
        data, done = np.empty(count, np.uint8), 0
        with disk(f"read {self.path}"):
            while done < count:
                got = os.preadv(self._descriptor, [memoryview(data)[done : done + CHUNK]], begin + done)  # pyright: ignore[reportArgumentType]
                if not got:
                    raise damaged(self.path, f"it ended at byte {begin + done} of {self.size} while being read")
                done += got
        return data

    def chunks(self, size: int = 1 << 20) -> Iterator[np.ndarray]:
        """The whole file, one piece at a time."""
        for begin in range(0, self.size, size):
            yield self.read(begin, min(size, self.size - begin))


def _opened(path) -> tuple[int, os.stat_result]:
    """(descriptor, stat result) of a regular file."""
    with disk(f"read {path}"):
        try:
            # Without O_NONBLOCK, opening a pipe of that name would block.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except ValueError as error:  # a NUL in the name
            raise CheckpointError(f"{str(path)!a:.80} is no name of a file: {error}.") from error
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise CheckpointError(f"{path} is not a regular file, expected one: put the file itself there.")
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor, found


def _identity(found: os.stat_result):
    return found.st_size, found.st_mtime_ns


def read_file(path: Path, size: int | None = None, limit: int | None = None) -> np.ndarray:
    """The bytes of a file, (size,) uint8. size: the exact size it must have. limit: the largest allowed."""
    with RegularFile(path) as file:
        if size is not None and file.size != size:
            raise damaged(path, f"it has {file.size} bytes, expected {size}")
        if limit is not None and file.size > limit:
            raise damaged(path, f"it has {file.size} bytes, expected at most {limit}")
        return file.read(0, file.size)


READS = ("read ", "list ")  # how actions begin that need what they name


@contextlib.contextmanager
def disk(action: str) -> Iterator[None]:
    """Turns the operating system's errors into a CheckpointError that says what failed."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"Could not {action}: {error.strerror or error}; {advice_on(error, action.startswith(READS))}."
        ) from error


def advice_on(error: OSError, reads: bool = False) -> str:
    """What to do about an error of the operating system, in a few words. reads: something that should be there."""
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        return "something else has this name, choose another"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "change its permissions, or choose another place"
    if error.errno in (errno.ENAMETOOLONG, errno.ENOENT, errno.ELOOP, errno.EINVAL):
        return "restore it from a copy or use another" if reads else "choose another place"
    return "check the disk"

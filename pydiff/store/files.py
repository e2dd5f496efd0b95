"""Atomic replacement of files."""

import contextlib
import os
from pathlib import Path


def write_atomic(path: Path, data: bytes):
    """Writes bytes such that neither a reader nor a crash sees half a file. See `writing`."""
    with writing(path) as file:
        file.write(data)


@contextlib.contextmanager
def writing(path: Path):
    """Yields an open file that becomes `path` when the block ends: a temporary file beside it, then a rename, so that
    neither a reader nor a crash sees half a file. After an error, what was there before is as it was.

    Then the file is on disk under its name. A link with the temporary name is not followed. Raises OSError with the
    name of the file, also where the system leaves it out.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno is None or (error.filename is not None and os.fspath(error.filename) != str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(path: Path):
    """Makes the names in a folder durable: fsync of a file does not cover the directory entry that points to it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Atomic replacement of files."""

import os
from pathlib import Path


def write_atomic(path: Path, data: bytes):
    """Writes bytes such that neither a reader nor a crash sees half a file: to a temporary file beside path, then a
    rename.

    When this returns, the file is on disk under its name. A link with the temporary name is not followed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(path: Path):
    """Makes the names in a folder durable: fsync of a file does not cover the directory entry that points to it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

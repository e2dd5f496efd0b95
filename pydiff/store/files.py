"""Files that are replaced as a whole."""

import os
from pathlib import Path


def write_atomic(path: Path, data: bytes):
    """Write bytes such that no reader and no crash leaves half a file: a temporary name beside path, then a rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

"""The log of a run: one dict per step, as a line of JSON in its folder or, without a folder, in memory."""

import contextlib
import json
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import NoneType

from pydiff.store.files import write_atomic

IN_MEMORY = 10_000  # entries kept without a folder; beyond that, every other one of the older half is dropped
NUMBERS = {"loss", "lr", "time", "images_per_second"}  # what pages are made of
WAITING = 1_000  # lines kept while the disk is full


class Log:
    """The only owner of the entries and of their file.

    path: of log.jsonl, or None for a log in memory, which begins with `entries` and stays of bounded size. A line that
    is not an entry, such as a last one that a crash cut short, is ignored and counted in `damaged`: the log describes
    how a run went, but is not needed to resume it. lost: entries lost because of a full disk.
    """

    def __init__(self, path: Path | None = None, entries=()):
        self.path, self.damaged, self.lost = path, 0, 0
        self._kept = list(entries)
        self._waiting: deque[bytes] = deque()
        self.last = next(iter(deque(self, maxlen=1)), None)  # the newest entry

    @property
    def entries(self) -> list[dict]:
        """All entries; of a long run in memory, fewer of the older ones."""
        return list(self)

    def __iter__(self) -> Iterator[dict]:
        """One entry after the other, read from the file if there is one."""
        if self.path is None:
            yield from list(self._kept)
            return
        self.damaged = 0
        if self.path.is_file():
            with self.path.open("rb") as file:
                for line in file:
                    for part in line.splitlines():
                        entry = _entry(part)
                        if entry is None:
                            self.damaged += 1
                        else:
                            yield entry
        yield from (json.loads(line) for line in list(self._waiting))

    def append(self, entry: dict) -> str | None:
        """Adds the entry of a step. Returns None, or why it could not be written; it is then written with a
        later one.
        """
        self.last = entry
        if self.path is None:
            self._kept.append(entry)
            if len(self._kept) > IN_MEMORY:
                half = IN_MEMORY // 2
                self._kept[:half] = self._kept[:half:2]
            return None
        self._waiting.append(json.dumps(entry).encode() + b"\n")
        if len(self._waiting) > WAITING:
            self._waiting.popleft()
            self.lost += 1
        try:
            _append(self.path, b"".join(self._waiting))
        except OSError as error:
            return error.strerror or str(error)
        self._waiting.clear()
        return None

    def sync(self):
        """Flushes everything appended so far to disk."""
        if self.path is not None:
            with self.path.open("ab") as file:
                os.fsync(file.fileno())

    def cut(self, step: int):
        """Drops the entries after this step, as those steps are about to be repeated."""
        kept = [entry for entry in self if entry["step"] <= step]
        self.last = kept[-1] if kept else None
        if self.path is None:
            self._kept = kept
            return
        write_atomic(self.path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())


def _append(path: Path, data: bytes):
    """Appends all of the data to the file, or none of it."""
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def _entry(line: bytes) -> dict | None:
    """A line as an entry; None if no training wrote it."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or type(entry.get("step")) is not int:
        return None
    return entry if all(type(entry[name]) in (int, float, NoneType) for name in NUMBERS & entry.keys()) else None

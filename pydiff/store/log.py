"""The log of a run: one dict a step, in memory and, where the run has a folder, one line of JSON a step."""

import json
import os
from pathlib import Path

from pydiff.store.files import write_atomic


class Log:
    """The only owner of the entries and of their file.

    path: of log.jsonl, whose entries are read, or None. A line that is no entry, such as a last one that a crash cut
    short, is left out and counted in `damaged`: the log says how a run went, the run itself is elsewhere. entries: what
    a log in memory begins with.
    """

    def __init__(self, path: Path | None = None, entries=()):
        self.path, self.entries, self.damaged = path, list(entries), 0
        if path is not None and path.is_file():
            for line in path.read_bytes().splitlines():
                entry = _entry(line)
                if entry is None:
                    self.damaged += 1
                else:
                    self.entries.append(entry)

    def append(self, entry: dict):
        """Takes note of a step."""
        self.entries.append(entry)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def sync(self):
        """What was appended is on disk when this returns."""
        if self.path is not None:
            with self.path.open("a") as file:
                os.fsync(file.fileno())

    def cut(self, step: int):
        """Forgets what was logged after this step: those steps are about to be taken again."""
        self.entries = [entry for entry in self.entries if entry["step"] <= step]
        if self.path is not None:
            write_atomic(self.path, "".join(json.dumps(entry) + "\n" for entry in self.entries).encode())


def _entry(line: bytes) -> dict | None:
    """A line as an entry, or None for what no training wrote."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    return entry if isinstance(step, int) and not isinstance(step, bool) else None

"""The log of a run: one dict a step, in memory and, where the run has a folder, one line of JSON a step."""

import json
import os
from pathlib import Path

from pydiff.store.files import write_atomic


class Log:
    """The only owner of the entries and of their file.

    path: of log.jsonl, whose entries are read, or None. A last line that a crash cut short is left out. entries: what a
    log in memory begins with.
    """

    def __init__(self, path: Path | None = None, entries=()):
        self.path, self.entries = path, list(entries)
        if path is not None and path.exists():
            lines = path.read_text().splitlines(keepends=True)
            self.entries += [json.loads(line) for line in lines if line.endswith("}\n")]

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

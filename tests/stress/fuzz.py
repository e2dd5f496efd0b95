"""What the fuzzers share: their options, and the figures of one run added to those of earlier ones.

    python -m tests.stress.data_fuzz --count 100000 --seed 3 --minutes 10 --json FIGURES [--more]

`--minutes` ends a run before its count is reached. `--more` adds to the figures that are in FIGURES; a seed that ran
before is refused, for it would be the same files once more.
"""

import argparse
import json
import time
from pathlib import Path

LARGEST = {"slowest_seconds", "peak_memory_growth_kb", "most_bytes_at_once", "bytes_above_twice_the_file"}  # not added
KEPT = 40  # examples of what went wrong


def options(description: str, count: int) -> argparse.ArgumentParser:
    """The options of every fuzzer."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which it ends in any case")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--more", action="store_true", help="adds to the figures in that file; takes another seed")
    return parser


def check(arguments):
    """Refuses what would count the same files twice."""
    if arguments.more and arguments.seed in json.loads(arguments.json.read_text())["seeds"]:
        raise SystemExit(f"{arguments.json} has the files of seed {arguments.seed} already; take another one")


class Until:
    """Counts cases, and says when the last one was: `for i in until: ...`."""

    def __init__(self, count: int, minutes: float = float("inf")):
        self.most, self.end, self.count = count, time.monotonic() + 60 * minutes, 0

    def __iter__(self):
        while self.count < self.most and time.monotonic() < self.end:
            yield self.count
            self.count += 1


def added(before: dict, result: dict) -> dict:
    """The figures of two runs as those of one: sums of counts, lists one after the other, the slowest of both."""
    slower = result.get("slowest_seconds", 0) > before.get("slowest_seconds", 0)
    total = {}
    for name in [*before, *(name for name in result if name not in before)]:
        old, new = before.get(name), result.get(name)
        if old is None or new is None:
            total[name] = new if old is None else old
        elif isinstance(old, dict):
            total[name] = added(old, new)
        elif isinstance(old, list):
            total[name] = [*old, *new] if name == "seeds" else [*old, *new][:KEPT]
        elif isinstance(old, str):
            total[name] = new if slower else old
        else:
            total[name] = max(old, new) if name in LARGEST else old + new
    return total


def finish(arguments, result: dict):
    """Prints what came of a run, and writes it or adds it to what is there."""
    print(json.dumps(result, indent=1)[:8000])
    if arguments.json:
        if arguments.more:
            result = added(json.loads(arguments.json.read_text()), result)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")

"""The suite, or parts of it, in random orders: no test may need, or disturb, another one.

    python -m tests.stress.shuffled [--times 5] [--seed 0] [--json tests/stress/shuffled.json] [tests/store ..]

Every order is that of its seed, and can be had again. `--load N` keeps N processors busy besides, which moves the
moments at which threads, signals and processes meet.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import random
import sys
import time
from pathlib import Path

import pytest


class Shuffle:
    """A plugin of pytest: another order, and what failed in it."""

    def __init__(self, seed):
        self.seed, self.passed, self.skipped, self.failed = seed, 0, 0, []

    def pytest_collection_modifyitems(self, items):
        random.Random(self.seed).shuffle(items)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.append(f"{report.nodeid} ({report.when}): {str(report.longrepr).splitlines()[-1][:300]}")
        elif report.when == "call" or report.skipped:
            self.passed += report.passed
            self.skipped += report.skipped


def busy():
    """Keeps a processor busy."""
    while True:
        sum(range(10_000))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tests", nargs="*", default=["tests"])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--load", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    others = [multiprocessing.Process(target=busy, daemon=True) for _ in range(arguments.load)]
    for other in others:
        other.start()
    figures = {"tests": arguments.tests, "load": arguments.load, "orders": [], "failed": []}
    for seed in range(arguments.seed, arguments.seed + arguments.times):
        order, began, told = Shuffle(seed), time.monotonic(), io.StringIO()
        with contextlib.redirect_stdout(told):
            code = pytest.main(["-q", "-p", "no:cacheprovider", *arguments.tests], plugins=[order])
        if code not in (0, 1):
            print(told.getvalue())
            return int(code)
        seconds = round(time.monotonic() - began)
        one = {"seed": seed, "passed": order.passed, "skipped": order.skipped, "seconds": seconds}
        figures["orders"].append(one)
        figures["failed"] += [f"seed {seed}: {failed}" for failed in order.failed]
        print(json.dumps({**one, "failed": order.failed}), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    for other in others:
        other.terminate()
    return 1 if figures["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

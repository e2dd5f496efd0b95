"""The suite, or parts of it, in random orders: no test may need, or disturb, another one.

    python -m tests.stress.shuffled [--times 5] [--seed 0] [--json FILE [--more]] [tests/store ..]

Every order is that of its seed, and can be had again. Each is run by a process of its own, so that what one order left
in memory cannot help the next; processes that a test leaves running are ended, and count as failures. `--load N` keeps
N processors busy besides, which moves the moments at which threads, signals and processes meet.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


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


def one_order(seed, tests, told: Path) -> int:
    """Runs the tests in the order of a seed, and writes what came of it."""
    order, began = Shuffle(seed), time.monotonic()
    code = pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:randomly", *tests], plugins=[order])
    found = {"seed": seed, "passed": order.passed, "skipped": order.skipped, "seconds": round(time.monotonic() - began)}
    told.write_text(json.dumps({**found, "failed": order.failed}))
    return int(code)


def left_running(group) -> list[str]:
    """The commands of processes in a process group whose leader has ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " ").strip()[:200])
        except OSError:
            continue
    return found


def run(seed, tests, minutes) -> dict:
    """One order in a process of its own. {"seed", "passed", "skipped", "seconds", "failed"}."""
    with tempfile.TemporaryDirectory() as folder:
        told, output = Path(folder) / "told.json", Path(folder) / "output"
        command = [sys.executable, "-m", "tests.stress.shuffled", "--order", str(seed), str(told), *tests]
        with open(output, "wb") as stream:
            process = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True)
        try:
            code = process.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            code = None
        left = left_running(process.pid) if code is not None else []
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        last = output.read_text(errors="replace").strip().splitlines()[-1:]
        found = json.loads(told.read_text()) if told.exists() else {"seed": seed, "failed": []}
    if code is None:
        found["failed"].append(f"not over after {minutes:g} minutes: {last}")
    elif code not in (0, 1) or "passed" not in found:
        found["failed"].append(f"ended with status {code}: {last}")
    return {**found, "failed": [*found["failed"], *(f"left running: {command}" for command in left)]}


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
    parser.add_argument("--minutes", type=float, default=120, help="that one order may take")
    parser.add_argument("--json", type=Path, help="a list of runs, of which this becomes one")
    parser.add_argument("--more", action="store_true", help="keep the runs that are in the file")
    arguments = parser.parse_args()
    others = [multiprocessing.Process(target=busy, daemon=True) for _ in range(arguments.load)]
    for other in others:
        other.start()
    before = json.loads(arguments.json.read_text()) if arguments.more else []
    figures = {"tests": arguments.tests, "load": arguments.load, "orders": [], "failed": []}
    for seed in range(arguments.seed, arguments.seed + arguments.times):
        one = run(seed, arguments.tests, arguments.minutes)
        print(json.dumps(one), flush=True)
        figures["failed"] += [f"seed {seed}: {failed}" for failed in one.pop("failed")]
        figures["orders"].append(one)
        if arguments.json:
            arguments.json.write_text(json.dumps([*before, figures], indent=1) + "\n")
    for other in others:
        other.terminate()
    return 1 if figures["failed"] else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--order"]:
        sys.exit(one_order(int(sys.argv[2]), sys.argv[4:], Path(sys.argv[3])))
    sys.exit(main())

"""The map of mutation.py, out of one run of the tests under coverage: which tests enter which functions of pydiff.

    COVERED=lasted.json python -m pytest -n auto -p tests.stress.covered --cov=pydiff --cov-branch --cov-context=test
    python -m tests.stress.covered .coverage lasted.json map.json [--source TREE]

The first line is the nightly step `coverage` with two options more; this module is a plugin of pytest there, which
writes how long every test took and which ones did not pass. A test enters a function if it reaches a line of it that is
no line of a function inside. The map also says which tests reach which line, for files that have not changed since: a
line in the middle of a loop that a thousand tests enter may be reached by ten of them. What the commands that a test
starts reach is covered, and belongs to no test.
"""

import argparse
import ast
import hashlib
import json
import os
from collections import defaultdict
from pathlib import Path


class Lasted:
    """The plugin: seconds of each test, and which did not pass."""

    def __init__(self, path):
        self.path, self.seconds, self.failed = path, defaultdict(float), set()

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration
        if report.failed or report.skipped:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self):
        self.path.write_text(json.dumps({"seconds": self.seconds, "bad": sorted(self.failed)}))


def pytest_configure(config):
    if "COVERED" in os.environ and not hasattr(config, "workerinput"):  # the workers tell the first process
        config.pluginmanager.register(Lasted(Path(os.environ["COVERED"]).absolute()))


def functions_of(source: str) -> dict[str, set[int]]:
    """{name of a function, with what encloses it: the lines of its body}, without those of functions inside."""
    found = {}

    def visit(node, path):
        inner = set()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                named = [*path, child.name]
                below = visit(child, named)
                if not isinstance(child, ast.ClassDef):
                    body = set(range(child.body[0].lineno, child.end_lineno + 1)) - below
                    found.setdefault(".".join(named), set()).update(body)
                inner |= set(range(child.lineno, child.end_lineno + 1))
            else:
                inner |= visit(child, path)
        return inner

    visit(ast.parse(source), [])
    return found


def entered(data, tree: Path, failed: set[str]) -> dict[str, list[str]]:
    """{"file:function": tests that enter it and pass}. data: coverage.CoverageData with a context a test."""
    functions = defaultdict(set)
    for file in data.measured_files():
        path = Path(file)
        if not path.is_relative_to(tree):
            continue
        tests = data.contexts_by_lineno(file)
        for function, lines in functions_of(path.read_text()).items():
            names = {name.rpartition("|")[0] for line in lines for name in tests.get(line, ())}
            functions[f"{path.relative_to(tree)}:{function}"] |= names - failed - {""}
    return {key: sorted(tests) for key, tests in functions.items()}


MOST = 400  # tests of a line that are written down: where there are more, those named after its file, and the quickest


def reached(data, tree: Path, failed: set[str], seconds: dict[str, float]) -> tuple[list[str], dict[str, dict]]:
    """(names of tests, {file: {"sha256": of its source, "lines": {line: numbers of the tests that reach it}}})."""
    numbers, files = {}, {}
    for file in data.measured_files():
        path = Path(file)
        if not path.is_relative_to(tree):
            continue
        lines = {}
        for line, contexts in data.contexts_by_lineno(file).items():
            names = {name.rpartition("|")[0] for name in contexts} - failed - {""}
            if len(names) > MOST:
                names = sorted(names, key=lambda n: (path.stem not in n.split("::")[0], seconds.get(n, 9e9), n))[:MOST]
            lines[str(line)] = [numbers.setdefault(name, len(numbers)) for name in sorted(names)]
        known = hashlib.sha256(path.read_bytes()).hexdigest()
        files[str(path.relative_to(tree))] = {"sha256": known, "lines": lines}
    return list(numbers), files


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="that coverage wrote")
    parser.add_argument("lasted", type=Path, help="that the plugin wrote")
    parser.add_argument("map", type=Path, help="to be written, for mutation.py --map")
    parser.add_argument("--source", type=Path, default=Path(), help="the tree that was covered; left out, this one")
    arguments = parser.parse_args()
    from coverage import CoverageData

    data = CoverageData(str(arguments.data))
    data.read()
    lasted = json.loads(arguments.lasted.read_text())
    tree, failed = arguments.source.resolve(), set(lasted["bad"])
    functions = entered(data, tree, failed)
    tests, lines = reached(data, tree, failed, lasted["seconds"])
    told = {"functions": functions, "seconds": lasted["seconds"], "tests": tests, "lines": lines}
    arguments.map.write_text(json.dumps(told))
    print(f"{sum(map(bool, functions.values())):,} of {len(functions):,} functions are entered by tests")


if __name__ == "__main__":
    main()

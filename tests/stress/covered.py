"""The map of mutation.py, out of one run of the tests under coverage: which tests enter which functions of pydiff.

    COVERED=lasted.json python -m pytest -n auto -p tests.stress.covered --cov=pydiff --cov-branch --cov-context=test
    python -m tests.stress.covered .coverage lasted.json map.json [--source TREE]

The first line is the nightly step `coverage` with two options more; this module is a plugin of pytest there, which
writes how long every test took and which ones did not pass. A test enters a function if it reaches a line of it that is
no line of a function inside. What the commands that a test starts reach is covered, and belongs to no test.
"""

import argparse
import ast
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
    functions = entered(data, arguments.source.resolve(), set(lasted["bad"]))
    arguments.map.write_text(json.dumps({"functions": functions, "seconds": lasted["seconds"]}))
    print(f"{sum(map(bool, functions.values())):,} of {len(functions):,} functions are entered by tests")


if __name__ == "__main__":
    main()

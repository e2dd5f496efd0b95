"""The tools of tests/stress that count: figures of several runs, and which test enters which function."""

import json
import random

import pytest

from tests.stress import covered, folder_fuzz, fuzz, mutation, right_folders


def test_figures_of_two_runs_become_those_of_one():
    first = {"count": 3, "seeds": [1], "by_kind": {"a": {"read": 1}}, "bad": [], "slowest_seconds": 0.3, "slowest": "x"}
    second = {"count": 4, "seeds": [2], "by_kind": {"a": {"read": 2, "refused": 1}, "b": {"read": 1}}, "bad": ["!"],
              "slowest_seconds": 0.2, "slowest": "y", "refused": 7}  # fmt: skip
    kinds = {"a": {"read": 3, "refused": 1}, "b": {"read": 1}}
    both = {"count": 7, "seeds": [1, 2], "by_kind": kinds, "bad": ["!"], "slowest_seconds": 0.3, "slowest": "x"}
    assert fuzz.added(first, second) == {**both, "refused": 7}
    assert fuzz.added(second, first) == {**both, "refused": 7, "seeds": [2, 1]}


def test_the_same_seed_counts_once(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text(json.dumps({"seeds": [4]}))
    parser = fuzz.options("Fuzz.", 10)
    fuzz.check(parser.parse_args(["--seed", "5", "--json", str(path), "--more"]))
    with pytest.raises(SystemExit, match="has the files of seed 4 already"):
        fuzz.check(parser.parse_args(["--seed", "4", "--json", str(path), "--more"]))


def test_a_run_ends_by_its_count_or_by_its_time():
    until = fuzz.Until(3)
    assert (list(until), until.count) == ([0, 1, 2], 3)
    until = fuzz.Until(3, minutes=0)
    assert (list(until), until.count) == ([], 0)


def test_folders_are_spoiled_judged_opened_and_restored(tmp_path):
    found = folder_fuzz.run(400, seed=1, draw=1)
    assert found["bad"] == []
    assert found["count"] == 400
    assert {"judged, refused", "judged, passed", "refused", "opened, drawn"} <= found.keys()
    for target in folder_fuzz.targets(right_folders.make(tmp_path)):
        target.spoil(random.Random(1))
        target.restore()
        assert folder_fuzz.tried(target, whole=True, draw=True)[0] == "opened, drawn", target.name


SOURCE = '''
X = 1

@decorated
def outer(a):
    """Says what."""
    def inner():
        return a
    return inner

class A:
    y = 2
    def method(self):
        if self:
            return [i for i in self]
        class B:
            def deep(self):
                return 3
'''


def test_lines_belong_to_the_innermost_function():
    assert covered.functions_of(SOURCE) == {
        "outer": {6, 9}, "outer.inner": {8}, "A.method": {14, 15}, "A.method.B.deep": {18}
    }  # fmt: skip


def test_faults_are_known_by_the_same_names():
    planter = mutation.Planter("x.py", SOURCE.replace("a\n", "a + 1\n"))
    planter.visit(mutation.ast.parse(SOURCE.replace("a\n", "a + 1\n")))
    assert {fault.function for fault in planter.faults} == {"outer.inner", "A.method", "A.method.B.deep"}


LOOPS = """
def sign(a):
    if a < 0:
        return (
            -1
        )
    return 1
"""


class Covered:
    """As coverage.CoverageData says it of one file."""

    def __init__(self, file, lines):
        self.file, self.lines = str(file), lines

    def measured_files(self):
        return [self.file, "/elsewhere.py"]

    def contexts_by_lineno(self, file):
        return self.lines if file == self.file else {}


def test_tests_that_reach_the_line_are_asked(tmp_path, monkeypatch):
    file = tmp_path / "sign.py"
    file.write_text(LOOPS)
    below = ["t.py::down|run", "t.py::bad|run"]
    data = Covered(file, {2: [""], 3: ["t.py::up|run", *below], 4: below, 7: ["t.py::up|setup", "t.py::up|run"]})
    seconds = {"t.py::up": 1.0, "t.py::down": 2.0}
    tests, files = covered.reached(data, tmp_path, {"t.py::bad"}, seconds)
    functions = covered.entered(data, tmp_path, {"t.py::bad"})
    known = {"functions": functions, "seconds": seconds, "tests": tests, "lines": files}
    monkeypatch.setattr(mutation, "ROOT", tmp_path)
    planter = mutation.Planter("sign.py", LOOPS)
    planter.visit(mutation.ast.parse(LOOPS))
    asked = {fault.number: mutation.chosen(fault, known, 60) for fault in planter.faults}
    assert asked == {3: ["t.py::up", "t.py::down"], 5: ["t.py::down"], 7: ["t.py::up"]}
    more = {"sign.py:sign": [*functions["sign.py:sign"], "t.py::new"]}
    newer = {**known, "functions": more, "seconds": {**seconds, "t.py::new": 3.0}}
    assert mutation.chosen(planter.faults[-1], newer, 60) == ["t.py::up", "t.py::new"]
    file.write_text(LOOPS + "# changed since")
    assert mutation.chosen(planter.faults[-1], known, 60) == ["t.py::up", "t.py::down"]
    assert mutation.chosen(planter.faults[-1], {**known, "lines": {}}, 60) == ["t.py::up", "t.py::down"]

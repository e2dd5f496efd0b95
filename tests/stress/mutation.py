"""Mutation testing: plants one fault after the other into a copy of pydiff, and counts how many the tests catch.

    python -m tests.stress.mutation [--faults 200] [--seed 0] [--json tests/stress/mutation.json] [--parts loop data]

A fault is one changed operator, comparison, constant or condition, one statement taken away, or two arguments swapped.
Which tests run is decided by a map of the functions that every test enters, recorded once or made of a covered run
(tests.stress.covered): those that reach the faulty line, or if that is not known enter its function, the shortest
first, until one of them fails. A fault that none of them notices has survived, unless it is among the EQUIVALENT ones
below, each with the reason why no test can tell it from the original.

`--json FILE` is written after every fault; the same command goes on where it was stopped. `--budget S` gives every
fault S seconds of tests; survivors can be given more with `--again FILE`, which tries them anew.

Nothing is changed in the working tree. Every fault is tried in a process that was forked from one in which NumPy and
pytest are loaded already, so that most take a few seconds. Faults in the pool of threads, which is C++: pool_faults.py.
"""

import argparse
import ast
import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from tests.stress.children import in_child

ROOT = Path(__file__).resolve().parents[2]
# What may be at fault, and the tests that are asked about it.
PARTS = {
    "loop": ["pydiff/training/*.py", "pydiff/optim.py", "pydiff/warm.py", "pydiff/reopen.py"],
    "data": ["pydiff/data/order.py", "pydiff/data/origin.py"],
    "condition": ["pydiff/condition.py"],
    "diffusion": ["pydiff/diffusion/*.py", "pydiff/pipeline.py", "pydiff/edit.py"],
    "samplers": ["pydiff/diffusion/samplers/*.py"],
    "store": ["pydiff/store/*.py"],
    "maths": [
        "pydiff/random.py",
        "pydiff/tensor.py",
        "pydiff/codec.py",
        "pydiff/ops/elementwise.py",
        "pydiff/ops/shape.py",
        "pydiff/ops/reduction.py",
    ],
}
# Not of the arithmetic of one process: several processes have tests of their own, under mpiexec, and what autoencoders
# and segmenters learn is judged by whole trainings.
LEFT_OUT = (
    "distributed.py",
    "progress.py",
    "inversion.py",
    "autoencoder.py",
    "segment.py",
    "classify.py",
    "clip_task.py",
)
TESTS = [
    "tests/data/test_order.py", "tests/test_condition.py", "tests/test_optim.py", "tests/training/test_task.py",
    "tests/training/test_loop.py", "tests/training/test_config.py", "tests/training/test_shards.py",
    "tests/training/test_health.py", "tests/training/test_train.py", "tests/training/test_forecast.py",
    "tests/training/test_clip_task.py", "tests/training/test_distributed.py", "tests/store", "tests/diffusion",
    "tests/test_run.py", "tests/test_run_folder.py", "tests/test_reopen.py", "tests/test_edit.py",
    "tests/test_diffusion_options.py", "tests/test_random.py", "tests/test_tensor.py", "tests/test_tensor_function.py",
    "tests/test_tensor_graph.py", "tests/test_codec.py", "tests/ops/test_elementwise.py", "tests/ops/test_shape.py",
    "tests/ops/test_reduction.py", "tests/ops/test_calls.py", "tests/test_asked_for.py", "tests/data/test_honoured.py",
    "tests/data/test_arrays.py", "tests/data/test_stream.py", "tests/test_recompute.py", "tests/test_rooms.py",
    "tests/test_device.py", "tests/test_drawing.py", "tests/test_prompts.py", "tests/test_steering.py",
    "tests/test_latents.py", "tests/test_cli.py", "tests/test_streams.py", "tests/test_advice.py",
    "tests/test_likelihood.py", "tests/formats/test_safetensors.py", "tests/test_recorded_bits.py",
    "tests/test_graph.py", "tests/test_nn.py",
]  # fmt: skip
# Of what the map does not see: tests that start processes of their own, and what is done while a module is imported.
ELSEWHERE = {
    "pydiff/tensor.py:Function.read_signature": ["tests/ops/test_calls.py"],
    "pydiff/edit.py": ["tests/formats/diffusers/test_stable_diffusion.py::test_image_to_image_is_that_of_diffusers"],
    "pydiff/training/sums.py": ["tests/training/test_distributed.py::test_any_number_of_processes_gives_the_same_bits"],
    "pydiff/training/gradient.py": [
        "tests/training/test_distributed.py::test_any_number_of_processes_gives_the_same_bits"
    ],
}
TIMEOUT = 300  # seconds for all tests of one fault; a fault that makes them hang is caught
BUDGET = 45.0  # seconds of tests, as they lasted without a fault, that are run for one
# (file, function, the line with the fault) -> why no test can notice it.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "pydiff/training/forecast.py",
        "_certainly_small",
        'shape = getattr(getattr(trainer.task, "codec", None), "shape", (2 << 12,))',
    ): "a guess at samples whose shape nobody knows, which are not measured in any case",
    (
        "pydiff/optim.py",
        "AdamW.__init__",
        "for p, data, grad in zip(self.parameters, self._data, self._grads, strict=False):",
    ): "all are made with one length",
    (
        "pydiff/diffusion/editing.py",
        "inpaint",
        "x = ops.noise(x, np.full(n, ratio), np.full(n, up), key, keep=True)[0].data",
    ): "keeps the noise for a gradient that nobody asks for",
    (
        "pydiff/diffusion/editing.py",
        "image_to_image",
        "x = ops.noise(images, np.full(n, part.alpha[0]), np.full(n, part.sigma[0]), key, keep=True)[0].data",
    ): "nor here",
    (
        "pydiff/diffusion/samplers/walk.py",
        "_ask",
        "raw = tuple(map(float, process.eps_coefficients(alpha, sigma))) if stage.raw_eps else (1.0, 0.0)",
    ): "is multiplied by that zero",
    (
        "pydiff/diffusion/process.py",
        "Process.scale",
        "return np.where(np.abs(scale - 1.0) <= 1e-9, 1.0, scale) # own scale, up to rounding: leave x unchanged",
    ): "what is exactly so far off is rounding, too",
    (
        "pydiff/diffusion/continuous.py",
        "edm",
        "return lambda u: (np.ones_like(u / 1.0), (low + u * (high - low)) ** rho)",
    ): "makes a float of a whole number, as the product does",
    (
        "pydiff/store/files.py",
        "sync_folder",
        "descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY & os.O_CLOEXEC)",
    ): "a folder opens without either, and Python closes what it opened in children by itself",
    (
        "pydiff/ops/reduction.py",
        "mean",
        'return total * (total.size / x.size) if x.size else total / float("nan")',
    ): "of nothing the sum is 0, and NaN is what comes of 0 and NaN either way",
    (
        "pydiff/tensor.py",
        "Tensor.__init__",
        "self.output_index = 1",
    ): "read of what an operation made, which sets it",
    (
        "pydiff/training/gradient.py",
        "Gradient.of_step",
        "share = (group.seconds - seconds) / max(time.monotonic() - began, 2e-09)",
    ): "keeps the clock's zero out of a division, and a step takes longer than either",
}


class Fault(NamedTuple):
    """One change of a file: characters from `start` to `end` become `new`. line: the whole line, changed."""

    file: str
    function: str
    kind: str
    start: int
    end: int
    new: str
    number: int
    line: str


OPERATORS = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "//", ast.Pow: "*",
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.Is: "is not",
    ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in", ast.And: "or", ast.Or: "and",
    ast.BitAnd: "|", ast.BitOr: "&",
}  # fmt: skip
TOKENS = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.Is: "is",
    ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in", ast.And: "and", ast.Or: "or",
    ast.BitAnd: "&", ast.BitOr: "|",
}  # fmt: skip

COMMUTATIVE = {"min", "max", "minimum", "maximum", "hypot", "array_equal"}  # of two arguments


class Planter(ast.NodeVisitor):
    """Finds every place of a file where a fault can be planted."""

    def __init__(self, file, source):
        self.file, self.source, self.faults = file, source, []
        self.path, self.functions = [], 0  # names of what encloses a place; how many of these are functions
        self.starts = [0]
        for line in source.encode().splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.bytes = source.encode()

    def at(self, node, end=False):
        """Where a node begins or ends, in bytes."""
        return self.starts[(node.end_lineno if end else node.lineno) - 1] + (
            node.end_col_offset if end else node.col_offset
        )

    def add(self, kind, start, end, new):
        """One fault, if it is in a function: what is decided while a module is imported is left alone."""
        if not self.functions:
            return
        number = self.bytes[:start].count(b"\n") + 1
        begin = self.starts[number - 1]
        stop = self.bytes.find(b"\n", end)
        changed = (self.bytes[begin:start] + new.encode() + self.bytes[end : stop if stop > 0 else None]).decode()
        self.faults.append(
            Fault(
                self.file,
                ".".join(self.path),
                kind,
                start,
                end,
                new,
                number,
                " ".join((f"pass  # {self.bytes[start:end].decode()}" if new == "pass" else changed).split())[:200],
            )
        )

    def between(self, left, right, operator, kind):
        """The operator that stands between two nodes."""
        begin, end = self.at(left, end=True), self.at(right)
        token = TOKENS[type(operator)].encode()
        place = self.bytes.find(token, begin, end)
        if place >= 0:
            self.add(kind, place, place + len(token), OPERATORS[type(operator)])

    def visit_FunctionDef(self, node):
        self.path.append(node.name)
        self.functions += 1
        for child in node.body:
            self.visit(child)
        self.path.pop()
        self.functions -= 1

    def visit_ClassDef(self, node):
        self.path.append(node.name)
        for child in node.body:
            if self.functions or isinstance(child, ast.FunctionDef | ast.ClassDef):
                self.visit(child)
        self.path.pop()

    def visit_Raise(self, node):
        self.add("statement removed", self.at(node), self.at(node, True), "pass")  # and never what a message says

    def visit_JoinedStr(self, node):
        pass

    def visit_AnnAssign(self, node):
        if node.value is not None:
            self.visit(node.value)

    def visit_Compare(self, node):
        for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            self.between(left, right, operator, "comparison")
        self.generic_visit(node)

    def visit_BinOp(self, node):
        text = isinstance(node.left, ast.JoinedStr) or isinstance(getattr(node.left, "value", None), str)
        if type(node.op) in OPERATORS and not text:
            self.between(node.left, node.right, node.op, "operator")
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between(left, right, node.op, "condition")
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if isinstance(node.op, ast.Not | ast.USub):
            self.add("operator", self.at(node), self.at(node.operand), "")
        self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, bool):
            self.add("constant", self.at(node), self.at(node, True), repr(not node.value))
        elif isinstance(node.value, int):
            self.add("constant", self.at(node), self.at(node, True), str(node.value + 1))
        elif isinstance(node.value, float):
            self.add("constant", self.at(node), self.at(node, True), repr(2 * node.value if node.value else 1.0))

    def visit_If(self, node):
        self.add("condition", self.at(node.test), self.at(node.test, True), f"not ({self.text(node.test)})")
        self.generic_visit(node)

    def visit_IfExp(self, node):
        self.add("condition", self.at(node.test), self.at(node.test, True), f"not ({self.text(node.test)})")
        self.generic_visit(node)

    def visit_Call(self, node):
        plain = [a for a in node.args if not isinstance(a, ast.Starred)]
        either = len(plain) == 2 and self.text(node.func).split(".")[-1] in COMMUTATIVE
        if len(plain) == len(node.args) >= 2 and self.text(plain[0]) != self.text(plain[1]) and not either:
            a, b = plain[:2]
            swapped = self.text(b) + self.bytes[self.at(a, True) : self.at(b)].decode() + self.text(a)
            self.add("arguments swapped", self.at(a), self.at(b, True), swapped)
        self.generic_visit(node)

    def visit_Expr(self, node):
        if isinstance(node.value, ast.Constant):
            return  # a docstring
        if isinstance(node.value, ast.Call):
            self.add("statement removed", self.at(node), self.at(node, True), "pass")
        self.generic_visit(node)

    def visit_Assign(self, node):
        if any(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
            self.add("statement removed", self.at(node), self.at(node, True), "pass")
        self.generic_visit(node)

    def visit_AugAssign(self, node):
        self.add("statement removed", self.at(node), self.at(node, True), "pass")
        self.generic_visit(node)

    def visit_Continue(self, node):
        self.add("statement removed", self.at(node), self.at(node, True), "pass")

    def text(self, node):
        """The source of a node."""
        return self.bytes[self.at(node) : self.at(node, True)].decode()


def all_faults(parts) -> list[Fault]:
    """Every fault that can be planted into these parts of pydiff."""
    found = []
    for part in parts:
        for pattern in PARTS[part]:
            for path in sorted(ROOT.glob(pattern)):
                if path.name in LEFT_OUT:
                    continue
                source = path.read_text()
                planter = Planter(str(path.relative_to(ROOT)), source)
                planter.visit(ast.parse(source))
                found += planter.faults
    return found


def is_program(fault) -> bool:
    """Whether Python would still read the file."""
    source = (ROOT / fault.file).read_bytes()
    try:
        compile(source[: fault.start] + fault.new.encode() + source[fault.end :], fault.file, "exec")
    except (SyntaxError, ValueError):
        return False
    return True


# ---- the copy, and tests in it ---------------------------------------------------------------------------------------


def copy_tree(target: Path):
    """The files that git knows, and the compiled modules, wherever they were installed."""
    import pydiff
    from pydiff import compiled  # noqa: F401 - for the modules that it brings

    names = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)

    places = {Path(pydiff.__file__).parent}
    places |= {Path(m.__file__).parent for n, m in sys.modules.items() if n.startswith("pydiff._") and m.__file__}
    for place in places:
        for module in place.glob("_*.so"):
            shutil.copy2(module, target / "pydiff" / module.name)


def settle_in(tree: Path):
    """From here on this process imports pydiff and its tests from the copy, and nowhere else."""
    sys.meta_path[:] = [f for f in sys.meta_path if "ScikitBuild" not in getattr(f, "__name__", type(f).__name__)]
    sys.path[:] = [str(tree), *(p for p in sys.path if p not in ("", str(ROOT)))]
    for name in [n for n in sys.modules if n.split(".")[0] in ("pydiff", "tests")]:
        del sys.modules[name]
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)  # of the commands that tests start; an editable installation would come first
    (tree / "sitecustomize.py").write_text(
        "import sys\n"
        "finders = {f: getattr(f, '__name__', type(f).__name__) for f in sys.meta_path}\n"
        "sys.meta_path[:] = [f for f, name in finders.items() if 'ScikitBuild' not in name]\n"
    )


class Recorder:
    """A plugin of pytest: which functions of pydiff every test enters, how long it takes, and whether it passes."""

    def __init__(self, tree):
        self.tree, self.functions, self.seconds, self.failed = f"{tree}/", defaultdict(set), {}, set()
        self.entered = set()

    def trace(self, frame, _event, _argument):
        name = frame.f_code.co_filename
        if name.startswith(self.tree):
            self.entered.add((name, frame.f_code.co_qualname.replace(".<locals>", "")))

    def pytest_runtest_setup(self):
        import threading

        self.entered, self.began = set(), time.monotonic()
        sys.settrace(self.trace)
        threading.settrace(self.trace)

    def pytest_runtest_teardown(self, item):
        import threading

        sys.settrace(None)
        threading.settrace(None)
        self.seconds[item.nodeid] = time.monotonic() - self.began
        for name, function in self.entered:
            self.functions[f"{name.removeprefix(self.tree)}:{function}"].add(item.nodeid)

    def pytest_runtest_logreport(self, report):
        if report.failed or report.skipped:
            self.failed.add(report.nodeid)


def record(tree, tests, path):
    """Runs the tests once in the copy and writes the map."""
    import pytest

    recorder = Recorder(tree)
    pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[recorder])
    functions = {key: sorted(tests - recorder.failed) for key, tests in recorder.functions.items()}
    path.write_text(json.dumps({"functions": functions, "seconds": recorder.seconds}))
    return 0


def list_tests(tests, path):
    """Writes the names of all tests that there are."""
    import pytest

    class Collector:
        def pytest_collection_modifyitems(self, items):
            path.write_text(json.dumps([item.nodeid for item in items]))

    return pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", *tests], plugins=[Collector()])


def still_there(functions, names) -> dict:
    """A map without the tests that have another name by now, or are gone."""
    return {key: [test for test in tests if test in names] for key, tests in functions.items()}


def merged(known, new) -> dict:
    """A map with the tests of another one in it, which count where both have them."""
    functions = {key: set(tests) - new["seconds"].keys() for key, tests in known["functions"].items()}
    for key, tests in new["functions"].items():
        functions.setdefault(key, set()).update(tests)
    told = {key: sorted(tests) for key, tests in functions.items()}
    return {**known, "functions": told, "seconds": known["seconds"] | new["seconds"]}


def reaching(fault, known) -> list[str]:
    """Tests that reach the line with the fault, or the beginning of its statement; without a map of lines, or with one
    of another source, those that enter the function.
    """
    inside = known["functions"].get(f"{fault.file}:{fault.function}", [])
    file = known.get("lines", {}).get(fault.file)
    if file is None or file["sha256"] != hashlib.sha256((ROOT / fault.file).read_bytes()).hexdigest():
        return inside
    line = fault.number
    while line > 0 and str(line) not in file["lines"]:
        line -= 1
    there = {known["tests"][number] for number in file["lines"].get(str(line), ())}
    new = set(inside).difference(known["tests"])  # since the map of lines was made
    return [test for test in inside if test in there or test in new] or inside


def chosen(fault, known, budget) -> list[str]:
    """Tests that reach the fault, as many as fit into `budget` seconds; those named after its file come first, then the
    shortest.
    """
    tests = reaching(fault, known)
    taken, seconds, stem = [], 0.0, Path(fault.file).stem
    for place in (fault.file, f"{fault.file}:{fault.function}"):
        taken += ELSEWHERE.get(place, ())
    for test in sorted(tests, key=lambda t: (stem not in t.split("::")[0], known["seconds"].get(t, 9e9))):
        seconds += known["seconds"].get(test, 9e9)
        if taken and seconds > budget:
            break
        taken.append(test)
    return taken


def attempt(fault, tree, tests) -> str:
    """caught, survived, or untested."""
    if not tests:
        return "untested"
    path = tree / fault.file
    original, times = path.read_bytes(), path.stat()

    def work():
        import pytest

        return pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])

    try:
        path.write_bytes(original[: fault.start] + fault.new.encode() + original[fault.end :])
        return "survived" if in_child(work, TIMEOUT) == 0 else "caught"
    finally:
        path.write_bytes(original)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # its compiled form counts again


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tests", nargs="+", default=TESTS, help="that are asked")
    parser.add_argument("--map", type=Path, help="where the map of tests is kept, to be used again")
    parser.add_argument("--renew", nargs="+", help="tests that are new in the map, or changed", default=[])
    parser.add_argument("--again", type=Path, help="figures of an earlier run, whose survivors are tried")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds of tests for one fault")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = all_faults(arguments.parts)
    order = random.Random(arguments.seed).sample(found, len(found))
    faults = list(itertools.islice(filter(is_program, order), arguments.faults))
    results: dict[tuple, str] = {}  # what came of a fault, by its key
    before = arguments.again or arguments.json
    if before is not None and before.exists():
        results = {tuple(f[name] for name in KEY): f["result"] for f in json.loads(before.read_text())["faults"]}
    if arguments.again is not None:
        missed = {key for key, result in results.items() if result in ("survived", "untested")}
        results = {key: result for key, result in results.items() if key not in missed}
        faults = [fault for fault in found if key_of(fault) in missed] + faults
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve() / "tree"
        copy_tree(tree)
        settle_in(tree)
        places = Path(folder) / "map.json" if arguments.map is None else arguments.map.resolve()
        if not places.exists():
            in_child(lambda: record(tree, arguments.tests, places), 3 * 3600)
        known = json.loads(places.read_text())
        there = Path(folder) / "there.json"
        in_child(lambda: list_tests(arguments.tests + arguments.renew, there), 600)
        known["functions"] = still_there(known["functions"], set(json.loads(there.read_text())))
        if arguments.renew:
            part = Path(folder) / "part.json"
            in_child(lambda: record(tree, arguments.renew, part), 3600)
            known = merged(known, json.loads(part.read_text()))
            places.write_text(json.dumps(known))
        import numpy  # noqa: F401 - here once, and not in every child
        import pytest  # noqa: F401

        for i, fault in enumerate(faults):
            began, key = time.monotonic(), key_of(fault)
            if key in results or len(results) >= arguments.faults:
                continue
            reason = EQUIVALENT.get((fault.file, fault.function, fault.line))
            result = "equivalent" if reason else attempt(fault, tree, chosen(fault, known, arguments.budget))
            results[key] = result
            print(
                f"{i + 1:4} {result:10} {time.monotonic() - began:5.1f} s  {fault.file}:{fault.number} {fault.kind}: "
                f"{fault.line}",
                flush=True,
            )
            if arguments.json is not None:
                write(arguments, found, results)


KEY = ("file", "function", "kind", "line")  # of a fault in the figures


def key_of(fault) -> tuple:
    """What a fault is known by, from one run to the next."""
    return tuple(getattr(fault, name) for name in KEY)


def write(arguments, found, results):
    """The figures so far."""
    counts = Counter(results.values())
    judged = counts["caught"] + counts["survived"] + counts["untested"]
    told = [dict(zip(KEY, key, strict=True)) | {"result": result} for key, result in results.items()]
    for fault in told:
        if fault["result"] == "equivalent":
            fault["reason"] = EQUIVALENT[fault["file"], fault["function"], fault["line"]]
    figures = {
        "possible faults": len(found),
        "tried": len(results),
        "seed": arguments.seed,
        "parts": arguments.parts,
        **{name: counts[name] for name in ("caught", "survived", "untested", "equivalent")},
        "share caught": round(counts["caught"] / max(1, judged), 4),
        "kinds": dict(sorted(Counter(fault["kind"] for fault in told).items())),
        "faults": told,
    }
    arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Plant single faults in the source, one after the other: does a test of that module see it?

    python -m tests.stress.planted_faults [--count 40] [--modules training.rate ..] [--json tests/stress/faults.json]

A fault is one change of one expression, drawn from all that there are in MODULES: a comparison turned round, + for -,
and for or, a number off by one, a condition negated, an argument's default changed, a statement left out. The source
on the disk stays as it is: the tests' process loads the changed text in the module's place. A fault that changes
nothing (an order of evaluation, a message) may survive rightly; those that do are printed, to be looked at.
"""

import argparse
import ast
import copy
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
# module -> the tests that ought to know it
MODULES = {
    "optim": "tests/test_optim.py",
    "random": "tests/test_random.py",
    "condition": "tests/test_condition.py",
    "codec": "tests/test_codec.py",
    "tensor": "tests/test_tensor.py tests/test_tensor_function.py tests/test_tensor_graph.py",
    "ops.group_norm": "tests/ops/test_group_norm.py",
    "ops.shape": "tests/ops/test_shape.py",
    "ops.reduction": "tests/ops/test_reduction.py",
    "ops.elementwise": "tests/ops/test_elementwise.py",
    "diffusion.schedule": "tests/diffusion/test_schedule.py",
    "diffusion.process": "tests/diffusion/test_process.py tests/diffusion/test_samplers.py",
    "diffusion.loss": "tests/diffusion/test_loss.py",
    "diffusion.timesteps": "tests/diffusion/test_timesteps.py",
    "diffusion.guidance": "tests/diffusion/test_guidance.py",
    "diffusion.samplers.ancestral": "tests/diffusion/test_samplers.py tests/diffusion/test_samplers_plain.py",
    "training.rate": "tests/training/test_loop.py tests/training/test_train.py",
    "training.task": "tests/training/test_task.py",
    "training.health": "tests/training/test_health.py",
    "training.shards": "tests/training/test_shards.py",
    "store.log": "tests/store/test_log.py",
    "store.sealed": "tests/store/test_sealed.py tests/store/test_checkpoint.py",
    "data.order": "tests/data/test_order.py",
    "data.arrays": "tests/data/test_arrays.py",
    "report.grid": "tests/report/test_grid.py",
}
TURNED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def faults(tree):
    """(line, what, number) of every fault that can be planted in a module, in order; `plant` takes the number."""
    found = []
    for number, node in enumerate(ast.walk(tree)):
        match node:
            case ast.Compare(ops=[op]) | ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in TURNED:
                found.append((node.lineno, f"{type(op).__name__} -> {TURNED[type(op)].__name__}", number))
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                found.append((node.lineno, f"{value} -> {value + 1}", number))
            case ast.Constant(value=bool() as value):
                found.append((node.lineno, f"{value} -> {not value}", number))
            case ast.If() | ast.IfExp() | ast.While():
                found.append((node.lineno, "condition negated", number))
            case ast.AugAssign() | ast.Expr(value=ast.Call()):
                found.append((node.lineno, "statement left out", number))
    return found


def plant(tree, number):
    """The source with that fault."""
    tree = copy.deepcopy(tree)
    node = next(node for i, node in enumerate(ast.walk(tree)) if i == number)
    match node:
        case ast.Compare(ops=[op]):
            node.ops = [TURNED[type(op)]()]
        case ast.BinOp() | ast.BoolOp():
            node.op = TURNED[type(node.op)]()
        case ast.Constant(value=bool() as value):
            node.value = not value
        case ast.Constant():
            node.value += 1
        case ast.If() | ast.IfExp() | ast.While():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case _:
            for parent in ast.walk(tree):
                for body in (getattr(parent, name, None) for name in ("body", "orelse", "finalbody")):
                    if isinstance(body, list) and node in body:
                        body[body.index(node)] = ast.copy_location(ast.Pass(), node)
    return ast.unparse(ast.fix_missing_locations(tree))


def seen(module, source, tests, seconds):
    """Whether one of these tests fails with this source in the module's place: "failed", "hung" or "" for no."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "planted.py"
        text.write_text(source)
        environment = {**os.environ, "PYDIFF_PLANTED": f"pydiff.{module}={text}", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "tests.stress.planted_module", *tests.split()]
        command += ["-p", "no:cacheprovider"]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return "hung"
        return "failed" if done.returncode else ""


def main():
    """The command; status 1 if more than one in twenty survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600, help="after which a test hangs")
    parser.add_argument("--modules", nargs="*", default=list(MODULES))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    draw, survivors, figures = random.Random(arguments.seed), [], {"planted": 0, "failed": 0, "hung": 0}
    trees = {m: ast.parse((ROOT / "pydiff" / f"{m.replace('.', '/')}.py").read_text()) for m in arguments.modules}
    for module, tree in trees.items():
        if seen(module, ast.unparse(tree), MODULES[module], arguments.seconds):
            raise SystemExit(f"the tests of {module} fail without a fault: {MODULES[module]}")
    for _ in range(arguments.count):
        module = draw.choice(arguments.modules)
        line, what, number = draw.choice(faults(trees[module]))
        answer = seen(module, plant(trees[module], number), MODULES[module], arguments.seconds)
        figures["planted"] += 1
        if answer:
            figures[answer] += 1
        else:
            survivors.append(f"{module}:{line} {what}")
        print(f"{answer or 'SURVIVED':8} {module}:{line} {what}", flush=True)
    figures |= {"survived": len(survivors), "survivors": survivors}
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(len(survivors) > arguments.count / 20)


if __name__ == "__main__":
    sys.exit(main())

"""What every bench_<op>.py shares: first all contenders are checked against float64, then they are timed in turns.

A contender that is wrong, or that gives NaN, is not timed, and the script ends with status 1.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.contenders import OURS, PEER, Contender, available_threads, keep_freed_memory, peer, set_threads
from benchmarks.machine import ceilings, describe, stolen_time
from benchmarks.restraint import ENVIRONMENT, in_words, restrain
from benchmarks.timing import take_turns
from pydiff import backend
from pydiff.tensor import Tensor


class Settings(NamedTuple):
    """quick: few and small shapes, few repetitions. all_levels: every instruction set. rounds, seconds: timing.py."""

    quick: bool = False
    all_levels: bool = False
    rounds: int = 15
    seconds: float = 12.0


@dataclass
class Case:
    """One thing to compute at one shape.

    inputs: sets of inputs to rotate through. exact: float64 arrays, the truth for inputs[0]. limit: largest error
    allowed, relative to max|exact| of each array. flops or nbytes: what the equation needs, whichever bounds it.
    """

    op: str
    shape: str
    inputs: list
    contenders: list[Contender]
    exact: list[np.ndarray]
    limit: float
    flops: float | None = None
    nbytes: float | None = None
    rows: list[dict] = field(default_factory=list)


# ---- correctness -----------------------------------------------------------------------------------------------------


def error_of(got, exact):
    """Largest |got - exact| relative to max|exact|, of the worst array; NaN for NaN or a wrong shape."""
    if len(got) != len(exact) or any(g.shape != e.shape for g, e in zip(got, exact, strict=True)):
        return float("nan")
    errors = [
        np.abs(g.astype(np.float64) - e).max() / max(np.abs(e).max(), 1e-30) for g, e in zip(got, exact, strict=True)
    ]
    return float(np.max(errors))  # np.max, unlike max, hands a NaN on


def truth(op, reference, inputs, cotangent, first, rng):
    """[output, gradient of every input], float64: what contenders are compared with.

    The array path in float64, after it has been compared with pydiff/reference on a smaller problem: the output itself,
    and the gradients against the reference's slope along a random direction with a random cotangent.
    op: Tensors -> Tensor; reference: arrays -> array; first(inputs): the inputs of the first sample alone.
    """
    wide = [a.astype(np.float64) for a in first(inputs)]
    out, *gradients = differentiate(op, wide, None)
    expected = reference(*wide)
    trusted = error_of([out], [expected]) <= 1e-9
    weights = rng.standard_normal(out.shape)
    out, *gradients = differentiate(op, wide, weights)
    directions = [rng.standard_normal(a.shape) for a in wide]
    ahead, behind = (reference(*(a + h * d for a, d in zip(wide, directions, strict=True))) for h in (1e-5, -1e-5))
    slope = np.sum(weights * (ahead - behind)) / 2e-5
    parts = [np.sum(g * d) for g, d in zip(gradients, directions, strict=True)]
    trusted = trusted and abs(sum(parts) - slope) <= 1e-5 * (sum(map(abs, parts)) + 1e-3)
    if not trusted:
        raise AssertionError(f"the array path in float64 does not agree with the reference of {reference.__name__}")
    return differentiate(op, [a.astype(np.float64) for a in inputs], cotangent.astype(np.float64))


def differentiate(op, inputs, cotangent):
    """[output, gradient of every input]; with cotangent None the output alone."""
    tensors = [Tensor(a, requires_grad=cotangent is not None) for a in inputs]
    out = op(*tensors)
    if cotangent is None:
        return [out.data]
    out.backward(cotangent)
    return [out.data, *(t.grad for t in tensors)]


# ---- one case --------------------------------------------------------------------------------------------------------


def run_case(case, settings, limits, show=print):
    """Checks and times every contender, fills case.rows and prints them. limits: the machine's ceilings.

    Returns the names of the contenders that were wrong.
    """
    show(f"\n{case.op}   {case.shape}")
    runs, errors = {}, {}
    for contender in case.contenders:
        run = contender.make(case.inputs[0])
        got = contender.outputs(run())
        exact = contender.exact(case.inputs[0], got) if contender.exact else case.exact
        errors[contender.name] = error_of(got, exact)
        if errors[contender.name] <= case.limit:
            runs[contender.name] = [run, *(contender.make(inputs) for inputs in case.inputs[1:])]
    calls = {name: (lambda i, each=each: each[i % len(each)]()) for name, each in runs.items()}
    timings = take_turns(calls, settings.rounds, settings.seconds) if calls else {}
    for contender in case.contenders:
        row = row_of(case, contender, errors[contender.name], timings.get(contender.name), limits)
        case.rows.append(row)
        show(line_of(row, case.limit))
    value = ratio(case.rows)
    if value is not None:
        show(f"  best peer / ours      {value:9.2f}")
    return [f"{case.op} {case.shape}: {name}" for name in errors if name not in runs]


def row_of(case, contender, error, timing, limits):
    """A row of the report."""
    row = {"op": case.op, "shape": case.shape, "name": contender.name, "kind": contender.kind}
    row["error"] = error if np.isfinite(error) else None
    row["wrong"] = timing is None
    if timing is None:
        return row | {"median_ms": None, "min_ms": None}
    row |= {"median_ms": timing.median * 1e3, "min_ms": timing.minimum * 1e3}
    row |= {"kept": timing.kept, "discarded": timing.discarded, "quiet": timing.quiet}
    unit, amount, ceiling = (
        ("gflops", case.flops, limits["sgemm_gflops"]) if case.flops else ("gbs", case.nbytes, limits["copy_gbs"])
    )
    rate = amount / timing.median * 1e-9
    return row | {unit: rate, "share": rate / ceiling}


def line_of(row, limit):
    """A row as text."""
    error = "NaN" if row["error"] is None else f"{row['error']:.1e}"
    if row["wrong"]:
        return f"  {row['name']:<22}WRONG, not timed: error {error}, allowed {limit:.1e}"
    rate = f"{row['gflops']:7.1f} GFLOP/s" if "gflops" in row else f"{row['gbs']:7.1f} GB/s   "
    noisy = "" if row["quiet"] else "  disturbed"
    return (
        f"  {row['name']:<22}{row['median_ms']:9.3f} ms (min {row['min_ms']:.3f}) {rate} {row['share']:6.1%}"
        f"   error {error}   {row['kept']} of {row['kept'] + row['discarded']} kept{noisy}"
    )


def ratio(rows):
    """Median time of the best peer over that of pydiff's first C++ row: above 1, pydiff is ahead.

    None without both, and None if any of these rows was disturbed: such a ratio would say more about the machine.
    """
    ours = [r for r in rows if r["kind"] == OURS and not r["wrong"]][:1]
    peers = [r for r in rows if r["kind"] == PEER and not r["wrong"]]
    if not ours or not peers or not all(r["quiet"] for r in ours + peers):
        return None
    return min(r["median_ms"] for r in peers) / ours[0]["median_ms"]


# ---- a whole script --------------------------------------------------------------------------------------------------


def run(scripts: list[Callable[[Settings], Iterator[Case]]], settings, threads, show=print):
    """Runs the cases of several scripts. Returns the report, a dict for JSON, whose "wrong" names wrong contenders."""
    peer("torch")  # set_threads speaks to those who are there
    set_threads(threads)
    keep_freed_memory()  # everyone's outputs then come from memory that is there already, as in training
    stolen = stolen_time()
    machine, limits = describe(threads), ceilings(threads, settings.quick)
    report = {"machine": machine, "ceilings": limits, "rows": [], "ratio": {}, "wrong": []}
    show(heading(report))
    if backend.cpu is None:
        show(f"no C++ rows: the compiled kernels are {backend.cpu_reason}")
    for cases in scripts:
        for case in cases(settings):
            report["wrong"] += run_case(case, settings, limits, show)
            report["rows"] += case.rows
            if ratio(case.rows) is not None:
                report["ratio"][f"{case.op} {case.shape}"] = ratio(case.rows)
    report["machine"]["stolen_seconds"] = None if stolen is None else stolen_time() - stolen
    return report


def heading(report):
    """Machine and ceilings as text."""
    machine, limits = report["machine"], report["ceilings"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['threads']} threads of {machine['cores']} processors, {in_words(machine)}\n"
        f"{versions}\n"
        f"best sgemm rate seen {limits['sgemm_gflops']:.0f} GFLOP/s ({limits['sgemm_by']}), best copy rate seen "
        f"{limits['copy_gbs']:.1f} GB/s; shares are of these"
    )


def finish(report, path, show=print):
    """Writes the JSON file, if one was asked for, and returns the exit status: 1 if a contender was wrong."""
    if path is not None:
        Path(path).write_text(json.dumps(report, indent=1) + "\n")
        show(f"\nfigures written to {path}")
    for name in report["wrong"]:
        show(f"wrong: {name}")
    return 1 if report["wrong"] else 0


def parser(description):
    """The flags that every script has."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    p.add_argument("--quick", action="store_true", help="few and small shapes, few repetitions")
    p.add_argument("--threads", type=int, default=available_threads(), metavar="N", help="threads of every contender")
    p.add_argument("--simd", choices=ENVIRONMENT, help="restrain every contender to this instruction set")
    return p


def main(cases, description, arguments=None):
    """A bench_<op>.py script: returns its exit status."""
    p = parser(description)
    p.add_argument("--all-levels", action="store_true", help="time the C++ kernels at every instruction set")
    p.add_argument("--rounds", type=int, metavar="N", help="undisturbed repetitions to aim at (default 15)")
    p.add_argument("--seconds", type=float, metavar="S", help="most time for a case (default 12)")
    options = p.parse_args(arguments)
    if options.threads < 1:
        p.error(f"--threads must be at least 1, got {options.threads}")
    restrain(options.simd, arguments)
    settings = settings_of(options.quick, options.all_levels)
    if options.rounds is not None:
        settings = settings._replace(rounds=options.rounds)
    if options.seconds is not None:
        settings = settings._replace(seconds=options.seconds)
    report = run([cases], settings, options.threads)
    return finish(report, options.json)


def settings_of(quick, all_levels=False):
    """The Settings of a command line."""
    return Settings(True, all_levels, rounds=5, seconds=0.5) if quick else Settings(False, all_levels)


if __name__ == "__main__":
    sys.exit("harness.py is what the bench_<op>.py scripts share; run one of those, for example bench_conv2d.py")

"""What benchmarks of ops share: first all contenders are checked against float64, then they are timed in turns.

A contender that is wrong, or that gives NaN, is not timed, and the script ends with status 1.

    python -m benchmarks.bench_conv2d        `main` here; benchmarks.gpu asks for `check` and `measure` itself
"""

import argparse
import importlib
import json
import math
import sys
import traceback
from functools import partial
from pathlib import Path

from benchmarks.cases import OURS, PEER, Unsupported, error_of, timed
from benchmarks.contenders import available_threads, keep_freed_memory, peer, set_threads
from benchmarks.devices import Cpu, Settings
from benchmarks.machine import ceilings, describe, stolen_time
from benchmarks.processes import ContenderFailed, workers
from benchmarks.restraint import ENVIRONMENT, in_words, restrain
from benchmarks.timing import alternate, figures
from pydiff import backend

# ---- one case --------------------------------------------------------------------------------------------------------


def check(device, case):
    """Rows about one case on a GPU: ours by the naive kernel and by the fast one, each twice, against float64."""
    (inputs, *_), exact = device.inputs(case.problem), case.exact(device.truth(case.problem))
    (contender,) = [c for c in case.contenders if c.kind == OURS]
    return [_checked(device, case, contender, inputs, exact, naive) for naive in (*[True] * case.naive, False)]


def _checked(device, case, contender, inputs, exact, naive):
    row = {"op": case.op, "shape": case.problem.shape, "dtype": case.problem.dtype}
    row |= {"kernel": "naive" if naive else "fast", "limit": case.limit, "ok": False, "error": None, "repeats": None}
    try:
        if device.reason:
            raise RuntimeError(device.reason)
        device.kernels.set_naive(naive)
        with device.unwritten_is_nan():
            first, second = (contender.outputs(contender.make(inputs)()) for _ in range(2))
        device.synchronize()
    except Exception as error:  # whatever it was, the other kernels want to be checked too
        device.synchronize()  # unless it was the GPU's: then the process has to end
        return row | {"failure": in_a_line(error)}
    finally:
        if not device.reason:
            device.kernels.set_naive(False)
    got = [device.wide(a) for a in first]
    error = error_of(got, contender.exact(inputs, got) if contender.exact else exact)
    repeats = all(same_bits(a, b) for a, b in zip(first, second, strict=True))
    return row | {"error": finite(error), "repeats": repeats, "ok": repeats and error <= case.limit}


def same_bits(a, b):
    """Whether two arrays are the same to the last bit."""
    bits = f"uint{8 * a.dtype.itemsize}"
    return a.shape == b.shape and bool((a.view(bits) == b.view(bits)).all())


def measure(device, case, limits):
    """(rows, ratio) of one case: everyone checked against float64, then those who are right are timed.

    limits: the ceilings, perhaps empty. ratio: the best peer's median over ours, or None.
    """
    rows = {c.name: first_row(case, c) for c in case.contenders}
    if getattr(device, "settings", None) and device.settings.processes:
        taken = measure_apart(device, case, rows)
    else:
        taken = measure_here(device, case, rows)
    for name, found in taken.items():
        rows[name] |= found | rate_of(device, case, found["median_ms"], limits)
    return list(rows.values()), ratio(rows.values())


def first_row(case, contender):
    """A row before anything is known."""
    row = {"op": case.op, "shape": case.problem.shape, "dtype": case.problem.dtype}
    row |= {"name": contender.name, "kind": contender.kind, "error": None, "wrong": True, "quiet": True}
    return row | {"median_ms": None, "min_ms": None}


def measure_here(device, case, rows):
    """{name: figures} of those who are right, all in this process; the errors of everyone go into their rows."""
    (first, *others), exact = device.inputs(case.problem, many=True), case.exact(device.truth(case.problem))
    programs = {}
    for contender in case.contenders:
        row = rows[contender.name]
        try:
            call = contender.make(first)
            got = [device.wide(a) for a in contender.outputs(call())]
            device.synchronize()
            if judged(row, case, contender, got, contender.exact(first, got) if contender.exact else exact):
                programs[contender.name] = device.program([call, *map(contender.make, others)])
        except Unsupported as reason:
            row |= {"unsupported": str(reason)}
        except Exception as error:  # the other contenders want their turn
            device.synchronize()
            row |= {"wrong": True, "failure": in_a_line(error)}
            traceback.print_exc()
    return device.take_turns(programs) if programs else {}


def judged(row, case, contender, got, exact):
    """Whether it is right; its row says so."""
    error, allowed = error_of(got, exact), contender.limit or case.limit
    row |= {"error": finite(error), "wrong": not error <= allowed}
    if row["wrong"]:
        row["failure"] = f"error {error:.1e}, allowed {allowed:.1e}".replace("nan", "NaN")
    return not row["wrong"]


def rate_of(device, case, milliseconds, limits):
    """A row's part about the rate, and its share of the ceiling that bounds it."""
    if case.flops:
        unit, rate, bound = device.unit, case.flops * device.scale, device.bound(case.problem.dtype)
    else:
        unit, rate, bound = "gbs", case.nbytes * 1e-9, "copy_gbs"
    rate /= milliseconds * 1e-3
    return {unit: rate, "share": rate / limits[bound] if limits.get(bound) else None}


def line_of(row):
    """A row as text."""
    head = f"  {row['name']:<28}"
    if "unsupported" in row:
        return f"{head}not possible: {row['unsupported']}"
    if row["wrong"]:
        return f"{head}WRONG, not timed: {row['failure']}"
    unit, words = next((u, w) for u, w in (("gflops", "GFLOP/s"), ("tflops", "TFLOP/s"), ("gbs", "GB/s")) if u in row)
    share = "" if row["share"] is None else f"{row['share']:6.1%}"
    how = row["how"] if "how" in row else f"{row['kept']} of {row['kept'] + row['discarded']} kept"
    return (
        f"{head}{row['median_ms']:10.4f} ms (min {row['min_ms']:.4f}) {row[unit]:7.1f} {words:<7} {share}"
        f"   error {row['error']:.1e}   {how}{'' if row['quiet'] else '  disturbed'}"
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


def finite(value):
    """The number, or None, which is how JSON says NaN."""
    return value if math.isfinite(value) else None


def in_a_line(error):
    """An exception as a line of a report."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


# ---- everyone in a process of their own ------------------------------------------------------------------------------


class Alone:
    """A contender of a case in its own process (processes.py)."""

    def __init__(self, settings, op, title, name):
        device = Cpu(settings)
        (self.case,) = [case for case in timed(op, device) if case.title == title]
        (self.contender,) = [c for c in self.case.contenders if c.name == name]
        self.device, self.calls, self.turn = device, None, 0

    def answer(self):
        """What it computes of the first inputs, and its own truth, if it has one; or why it cannot."""
        keep_freed_memory()
        self.sets = self.device.inputs(self.case.problem, many=True)
        try:
            self.calls = [self.contender.make(self.sets[0])]
            got = [self.device.wide(a).copy() for a in self.contender.outputs(self.calls[0]())]
        except Unsupported as reason:
            return str(reason)
        self.calls += map(self.contender.make, self.sets[1:])
        return got, self.contender.exact(self.sets[0], got) if self.contender.exact else None

    def step(self):
        """One call, on the next inputs."""
        self.calls[self.turn % len(self.calls)]()
        self.turn += 1


def measure_apart(device, case, rows):
    """{name: figures} of those who are right, everyone in a process of their own: no library's threads or allocator can
    then meet another's."""
    settings, exact = device.settings, case.exact(device.truth(case.problem))
    factories = {c.name: partial(Alone, settings, case.problem.op, case.title, c.name) for c in case.contenders}
    with workers(factories, backend.threads()) as running:
        right = {}
        for contender in case.contenders:
            row, worker = rows[contender.name], running[contender.name]
            try:
                answer = worker.ask("answer")
            except ContenderFailed as failure:
                row |= {"failure": failure.reason}
                print(failure, file=sys.stderr)
                continue
            if isinstance(answer, str):
                row |= {"unsupported": answer}
            elif judged(row, case, contender, answer[0], exact if answer[1] is None else answer[1]):
                right[contender.name] = worker.repetition
        timings = alternate(right, settings.rounds, settings.seconds) if right else {}
    return {name: figures(t) for name, t in timings.items()}


# ---- a whole script, on the CPU --------------------------------------------------------------------------------------


def run(ops, settings, threads, show=print):
    """Runs the cases of some ops. Returns the report, a dict for JSON, whose "wrong" names wrong contenders."""
    peer("torch")  # set_threads speaks to those who are there
    set_threads(threads)
    keep_freed_memory()  # everyone's outputs then come from memory that is there already, as in training
    stolen = stolen_time()
    machine, limits = describe(threads), ceilings(threads, settings.quick)
    report = {"machine": machine, "ceilings": limits, "rows": [], "ratio": {}, "wrong": []}
    show(heading(report))
    if backend.cpu is None:
        show(f"no C++ rows: the compiled kernels are {backend.cpu_reason}")
    device = Cpu(settings)
    for op in ops:
        for case in timed(op, device):
            run_case(device, case, report, show)
    report["machine"]["stolen_seconds"] = None if stolen is None else stolen_time() - stolen
    return report


def run_case(device, case, report, show=print):
    """One case into the report and onto the screen."""
    name = f"{case.op} {case.problem.shape}"
    show(f"\n{case.op}   {case.problem.shape}")
    rows, value = measure(device, case, report["ceilings"])
    for row in rows:
        show(line_of(row))
    report["rows"] += rows
    report["wrong"] += [f"{name}: {row['name']}" for row in rows if row["wrong"] and "unsupported" not in row]
    if value is not None:
        report["ratio"][name] = value
        show(f"  best peer / ours      {value:9.2f}")


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


def main(op, arguments=None):
    """The script of an op: returns its exit status."""
    module = importlib.import_module(f"benchmarks.bench_{op}")
    p = parser(module.__doc__)
    p.add_argument("--all-levels", action="store_true", help="time the C++ kernels at every instruction set")
    p.add_argument("--rounds", type=int, metavar="N", help="undisturbed repetitions to aim at (default 15)")
    p.add_argument("--seconds", type=float, metavar="S", help="most time for a case (default 12)")
    p.add_argument("--processes", action="store_true", help="everyone in a process of their own")
    p.set_defaults(part=None)
    if hasattr(module, "PARTS"):
        p.add_argument("--part", choices=module.PARTS, help="other shapes; without the array path")
    options = p.parse_args(arguments)
    if options.threads < 1:
        p.error(f"--threads must be at least 1, got {options.threads}")
    restrain(options.simd, arguments)
    more = {name: getattr(options, name) for name in ("rounds", "seconds", "part", "processes")}
    settings = settings_of(options.quick, options.all_levels)
    settings = settings._replace(**{name: value for name, value in more.items() if value is not None})
    return finish(run([op], settings, options.threads), options.json)


def settings_of(quick, all_levels=False):
    """The Settings of a command line."""
    return Settings(True, all_levels, rounds=5, seconds=0.5) if quick else Settings(False, all_levels)


if __name__ == "__main__":
    sys.exit("harness.py is what the bench_<op>.py scripts share; run one of those, for example bench_conv2d.py")

"""What training.py and sampling.py share: who competes, agreement first, then times, memory and a table."""

import importlib.util
from functools import partial
from typing import NamedTuple

import numpy as np

from benchmarks import harness
from benchmarks.cases import OTHER, OURS, PEER
from benchmarks.contenders import set_threads
from benchmarks.machine import ceilings, describe
from benchmarks.processes import ContenderFailed, workers
from benchmarks.restraint import restrain
from benchmarks.timing import alternate
from benchmarks.workloads import WORKLOADS
from pydiff import backend

PYDIFF, EAGER = "pydiff", "torch"
# Judges the others and is not timed: torch in float64. A result may be FACTOR times as far from its as torch's own in
# float32 is: how much of a rounding error reaches the result depends on the network and on the processor, so no number
# would fit everywhere. FLOOR is for a torch that is exact by luck. Beyond SENSELESS it is not rounding that moves
# torch's result, and torch's distance says nothing.
JUDGE = "torch in float64"
FACTOR, FLOOR, SENSELESS = 4.0, 4 * float(np.finfo(np.float32).eps), 1e-3
# What torch.compile is told. By itself it changes the layout of convolutions where it thinks that pays; torch
# 2.13.0+cpu then gets gradients of some filters of cifar32 and image64 wrong, zero for example, and only then.
COMPILED = {"torch compile": {}, "torch compile NCHW": {"options": {"layout_optimization": False}}}
QUICK_BATCH = 2


class Title(NamedTuple):
    """What is measured: a name, the images in words and their number; `repeats` timed steps make one whole."""

    op: str
    shape: str
    images: int
    repeats: int = 1


def words(workload, batch):
    """The workload in words."""
    w = WORKLOADS[workload]
    return f"{workload}: {batch} x {w.size}x{w.size}x{w.channels}"


def contenders(options, ours, torchs, batch, **more):
    """{name: function that makes the contender}; torchs takes the arguments of ours and how it is set up."""
    common = {"workload": options.workload, "batch": batch, **more}
    found = {PYDIFF: partial(ours, **common)}
    if options.peers == "torch":
        setups = {EAGER: {}, "torch channels_last": {"channels_last": True}, "torch keeping memory": {"keep": True}}
        setups[JUDGE] = {"exact": True}
        if options.compile:
            setups |= {name: {"compiled": told} for name, told in COMPILED.items()}
        found |= {name: partial(torchs, **common, **setup) for name, setup in setups.items()}
    return found


def allowed(agreement):
    """How far a result may be from the judge's, if {name: difference} are those of everyone."""
    return min(SENSELESS, FACTOR * agreement.get(EAGER, 0.0) + FLOOR)  # SENSELESS for a NaN


def compete(title, factories, options, ask, difference, fastest, profile=0):
    """Rows, agreement and profile of one workload, as a part of the report.

    ask: the method whose results have to agree, by difference(theirs, the judge's) <= allowed(..). The judge is JUDGE
    if it is among the factories, and else pydiff, with which its own variants agree to the bit. fastest: GFLOP/s of
    this machine.
    """
    print(f"\n{title.op}   {title.shape}", flush=True)
    with workers(factories, options.threads) as running:
        judge = JUDGE if JUDGE in running else PYDIFF
        agreement, left_out = warm_up(running, ask, difference)
        limit = allowed(agreement)
        differ = [name for name, off in agreement.items() if not off <= limit]
        # What was compiled wrongly is no sign that pydiff is wrong, if torch itself is right.
        miscompiled = [name for name in differ if name in COMPILED and EAGER in agreement and EAGER not in differ]
        wrong = [name for name in differ if name not in miscompiled]
        for name, off in agreement.items():
            verdict = "agrees" if name not in differ else f"DOES NOT AGREE (allowed {limit:.0e}), not timed"
            print(f"  {name:<22}{verdict}: differs from {judge} by {off:.1e}", flush=True)
        for name in miscompiled:
            left_out[name] = (
                f"{name} is left out because it computes something else than torch, by {agreement.pop(name):.0e}."
            )
            print(f"  {left_out[name]}", flush=True)
        timed = {name: worker for name, worker in running.items() if name not in [*wrong, *left_out]}
        timings = alternate({name: w.repetition for name, w in timed.items()}, options.rounds, options.seconds)
        memory = {name: worker.ask("peak_memory") for name, worker in timed.items()}
        shares = running[PYDIFF].ask("profile", profile) if profile else {}
        operations = running[PYDIFF].ask("operations")
    rows = [row_of(title, name, timings[name], memory[name], operations, fastest) for name in timings]
    for row in rows:
        print(line_of(row))
    value = harness.ratio(rows)
    if value is not None:
        print(f"  best peer / ours      {value:9.2f}")
    for name, share in shares.items():
        print(f"    {name:<30}{share:7.2%}")
    return {
        "rows": rows,
        "ratio": value,
        "judge": judge,
        "agreement": {name: off if off == off else None for name, off in agreement.items()},
        "left_out": left_out,
        "profile": shares,
        "wrong": [f"{title.op} {title.shape}: {name}" for name in wrong],
    }


def warm_up(running, ask, difference):
    """The first calls of everyone, which are not timed and in which torch.compile compiles.

    Returns ({name: difference from the judge}, {name: why it is left out, a sentence}). A contender that compiles may
    fail, for want of a compiler for example; any other failure ends the benchmark.
    """
    weights, ours = running[PYDIFF].ask("weights"), running[PYDIFF].ask(ask)
    agreement, left_out, truth = {}, {}, ours
    if JUDGE in running:
        running[JUDGE].ask("load", weights)
        truth = running[JUDGE].ask(ask)
        running.pop(JUDGE).close()  # its memory is the others' again
        agreement[PYDIFF] = difference(ours, truth)
    for name, worker in running.items():
        try:
            if name != PYDIFF:
                worker.ask("load", weights)
                agreement[name] = difference(worker.ask(ask), truth)
            for _ in range(2):
                worker.ask("step")
        except ContenderFailed as failure:
            if name not in COMPILED:
                raise
            agreement.pop(name, None)
            left_out[name] = f"{name} is left out because it failed to compile: {failure.reason.rstrip('.')}."
            print(f"  {left_out[name]}", flush=True)
    return agreement, left_out


def row_of(title, name, timing, memory, operations, fastest):
    """A row of the report; times are of a step. operations: of a step, by the plain algorithms, so that a rate may be
    above what the machine can do where an algorithm needs fewer."""
    rate = operations / timing.median * 1e-9
    return {
        "op": title.op,
        "shape": title.shape,
        "name": name,
        "kind": OURS if name == PYDIFF else OTHER if name.startswith(PYDIFF) else PEER,
        "wrong": False,
        "median_ms": timing.median * 1e3,
        "min_ms": timing.minimum * 1e3,
        "total_s": timing.median * title.repeats,
        "images_s": title.images / (timing.median * title.repeats),
        "peak_rss_mb": memory,
        "gflops": rate,
        "share": rate / fastest,
        "kept": timing.kept,
        "discarded": timing.discarded,
        "quiet": timing.quiet,
    }


def line_of(row):
    """A row as text."""
    noisy = "" if row["quiet"] else "  disturbed"
    return (
        f"  {row['name']:<22}{row['median_ms']:9.1f} ms a step (min {row['min_ms']:.1f})"
        f" {row['images_s']:8.1f} images/s {row['gflops']:7.0f} GFLOP/s {row['share']:5.0%}"
        f"  {row['peak_rss_mb']:6.0f} MB at most"
        f"  {row['kept']} of {row['kept'] + row['discarded']} kept{noisy}"
    )


def parse(description, arguments, batch, steps):
    """The command line of both scripts. batch: None for the workload's."""
    p = harness.parser(description)
    p.add_argument("--workload", choices=WORKLOADS, default="digits8", help="which U-Net (default: digits8)")
    p.add_argument("--peers", choices=("torch", "none"), default="torch", help="whom to compare with (default: torch)")
    p.add_argument("--compile", action="store_true", help="torch.compile too; compiling takes minutes")
    p.add_argument("--rounds", type=int, default=15, help="undisturbed repetitions wanted (default: 15)")
    p.add_argument("--seconds", type=float, default=300.0, help="stop then with what there is (default: 300)")
    p.add_argument("--batch", type=int, default=batch, help=f"images (default: {batch or 'what the workload says'})")
    if steps:
        p.add_argument("--steps", type=int, default=steps, help=f"steps of the sampler (default: {steps})")
    options = p.parse_args(arguments)
    if options.threads < 1:
        p.error(f"--threads must be at least 1, got {options.threads}")
    if options.batch is not None and options.batch < 1:
        p.error(f"--batch must be at least 1, got {options.batch}")
    missing = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]
    if options.peers == "torch" and missing:
        p.error(f"--peers torch needs {' and '.join(missing)}, not installed here; install it or say --peers none")
    restrain(options.simd, arguments)
    return options


def main(measure, description, arguments=None, batch=None, steps=None):
    """Both scripts. measure(options, batch, fastest) -> a part of the report; batch: None for the workload's.

    Returns the exit status: 1 if results differed.
    """
    options = parse(description, arguments, batch, steps)
    batch = options.batch or WORKLOADS[options.workload].batch
    if options.quick:
        options.rounds, options.seconds, batch = 3, 1.0, QUICK_BATCH
    if options.peers == "torch":
        importlib.import_module("torch")  # set_threads speaks to those who are there
    set_threads(options.threads)
    report = {"machine": describe(options.threads), "ceilings": ceilings(options.threads, options.quick)}
    print(harness.heading(report))
    if backend.cpu is None:
        print(f"pydiff runs its array path here: the compiled kernels are {backend.cpu_reason}")
    report |= measure(options, batch, report["ceilings"]["sgemm_gflops"])
    return harness.finish(report, options.json)

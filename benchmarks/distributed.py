"""Training on several processes: what the same bits cost, what overlap saves, and what a model of it says.

    python -m benchmarks.distributed [--json FILE] [--quick] [--rounds 15] [--rate MBIT]

Under mpiexec, every number of processes takes turns between three ways of adding gradients: exact (a fixed tree, pieces
travel while the rest is computed), the same without overlap, and MPI's own all-reduce (reduce="fast"). Before anything
is timed, the losses of the exact way must be those of one process, bit for bit.

--rate puts every process into a network namespace of its own, behind a link of so many megabits a second (root and
Linux only; a token bucket limits the rate, and the kernel's own delay is measured). Then the model is compared with
what happened; without, all processes share the memory and the processors of this machine.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import describe
from pydiff.data import Dataset
from pydiff.training import DiffusionTask, Options, Trainer, join, training_steps
from pydiff.training.gradient import ExactSum

SIZE, BATCH, CHECKED = 16, 32, 3  # pixels of a side, samples of a step, steps that are compared
CHANNELS = (32, 64, 128)
WAYS = {  # name -> (options, whether gradients travel while others are computed)
    "exact": ({"reduce": "exact"}, True),
    "exact, no overlap": ({"reduce": "exact"}, False),
    "fast": ({"reduce": "fast"}, True),
}
PREFIX = "pydiffbench"


# ---- in every process ------------------------------------------------------------------------------------------------


def task_of(options):
    """A U-Net on noise: what it learns is nothing, and takes as long."""
    images = np.random.default_rng(0).integers(0, 256, (256, SIZE, SIZE, 3), np.uint8)
    return DiffusionTask(Dataset("noise", images), options)


def trainer_of(way, group, quick):
    """A Trainer that adds gradients this way."""
    keywords, _ = WAYS[way]
    channels = (8, 16) if quick else CHANNELS
    options = Options(channels=channels, groups=4, steps=10**6, batch_size=BATCH, shards=8, **keywords)
    return Trainer(task_of(options), options, group=group)


def worker(rounds, quick):
    """Times the ways in turns; process 0 prints a line of JSON."""
    group = join()
    with group.together(), group.own_threads():
        steps, figures, losses, trainers = {}, {}, [], {}
        for way in WAYS:
            trainer = trainers[way] = trainer_of(way, group, quick)
            steps[way] = training_steps(trainer)
            figures[way] = {"ms": [], "communication_ms": [], "sent_bytes": []}
            for _ in range(CHECKED):
                ExactSum.overlap = WAYS[way][1]
                state = next(steps[way])
                losses += [state.loss.hex()] * (way == "exact")
        for _ in range(rounds):
            for way, mine in figures.items():
                ExactSum.overlap = WAYS[way][1]
                group.everyone(None)
                began, seconds, sent = time.perf_counter(), group.seconds, group.sent
                next(steps[way])
                mine["ms"].append(max(group.everyone((time.perf_counter() - began) * 1e3)))
                mine["communication_ms"].append((group.seconds - seconds) * 1e3)
                mine["sent_bytes"].append(group.sent - sent)
        result = {"losses": losses, "elements": int(trainers["exact"].optimizer.p.size), "threads": threads_of(group)}
        result["ways"] = {w: {k: statistics.median(v) for k, v in mine.items()} for w, mine in figures.items()}
        result["link"] = link_of(group, 3 if quick else 9)
        if group.size == 1:
            result["plain_ms"] = timed(training_steps(plain_trainer(quick)), rounds)
            result["update_ms"] = update_ms(trainers["exact"], rounds)
    if group.first:
        print(json.dumps(result), flush=True)


def plain_trainer(quick):
    """As `pydiff.train` without mpiexec: one shard."""
    options = Options(channels=(8, 16) if quick else CHANNELS, groups=4, steps=10**6, batch_size=BATCH)
    return Trainer(task_of(options), options)


def timed(steps, rounds):
    """Median milliseconds of a step."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        next(steps)
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times[1:])


def update_ms(trainer, rounds):
    """Median milliseconds of the optimiser alone, which every process does in full."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        trainer.optimizer.step(1, 1e-3)
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def threads_of(group):
    """Of every process."""
    from pydiff import backend

    return group.everyone(backend.threads())


def link_of(group, rounds):
    """{latency_ms, mbytes_s} between processes 0 and 1, as this program sends; None for one alone."""
    if group.size == 1:
        return None
    small, large = np.zeros(1, np.float32), np.zeros(1 << 20, np.float32)
    times = {}
    for array in (small, large):
        times[array.nbytes] = []
        for _ in range(rounds):
            group.everyone(None)
            if group.rank > 1:
                continue
            other, began = 1 - group.rank, time.perf_counter()
            for sends in (True, False) if group.rank == 0 else (False, True):
                request = [(group.send(array, other, 7) if sends else group.receive(array, other, 7),)]
                group.wait(lambda request=request: bool(group.finished(request)[0]))
            times[array.nbytes].append((time.perf_counter() - began) / 2)
    if group.rank > 1:
        return None
    latency, long = (statistics.median(times[n]) for n in (small.nbytes, large.nbytes))
    return {"latency_ms": latency * 1e3, "mbytes_s": large.nbytes / max(long - latency, 1e-9) / 1e6}


# ---- the model -------------------------------------------------------------------------------------------------------


def predicted_ms(processes, alone_ms, update, elements, latency_ms, mbytes_s, cores=None, shards=8, overlap=0.0):
    """Milliseconds of a step: the shards of the busiest process, the traffic of a piecewise reduction, the update.

    alone_ms: of a step of one process on one core with all shards, without the update. Each process sends and receives
    2 (P - 1) / P gradients, as a ring all-reduce does, in two rounds of P - 1 messages. cores: that all of them share;
    None for a core each. overlap: share of the computation behind which traffic hides.
    """
    busiest = math.ceil(shards / processes)
    slower = max(1.0, processes / cores) if cores else 1.0
    compute = alone_ms * busiest / shards * slower
    traffic = 2 * (processes - 1) / processes * elements * 4 / (mbytes_s * 1e3) if processes > 1 else 0.0
    traffic += 2 * math.ceil(math.log2(processes)) * latency_ms if processes > 1 else 0.0
    hidden = min(traffic, overlap * compute / busiest)
    return compute + traffic - hidden + update * slower


def on_paper(elements, alone_ms, update):
    """Weak scaling, a shard of 4 samples a process, over a network that is assumed: {processes: efficiency}."""
    table = {}
    for processes in (1, 2, 4, 16, 64, 256, 1024):
        ms = predicted_ms(
            processes, alone_ms * processes / 8, update, elements, 0.02, 1250.0, shards=processes, overlap=0.0
        )
        table[processes] = (alone_ms / 8 + update) / ms
    return table


# ---- the driver ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def namespaces(n, rate):
    """Network namespaces behind one bridge, each with a link of `rate` megabits a second; their names."""
    names = [f"{PREFIX}{i}" for i in range(n)]
    try:
        run("ip", "link", "add", PREFIX, "type", "bridge")
        run("ip", "link", "set", PREFIX, "up")
        for i, name in enumerate(names):
            run("ip", "netns", "add", name)
            run("ip", "link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "link", "set", f"{name}v", "master", PREFIX, "up")
            inside = ("ip", "netns", "exec", name)
            run(*inside, "ip", "addr", "add", f"10.98.0.{i + 1}/24", "dev", "eth0")
            run(*inside, "ip", "link", "set", "eth0", "up")
            run(*inside, "ip", "link", "set", "lo", "up")
            limit = ("rate", f"{rate}mbit", "burst", "64kb", "latency", "400ms")
            run(*inside, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *limit)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
            subprocess.run(["ip", "link", "del", f"{name}v"], capture_output=True)
        subprocess.run(["ip", "link", "del", PREFIX], capture_output=True)


def run(*command):
    """The command, which must succeed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def measure(processes, rounds, quick, places=None):
    """What the workers of so many processes print. places: a namespace for each, or None."""
    beside = Path(sys.executable).parent / "mpiexec"
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    this = [sys.executable, "-m", "benchmarks.distributed", "--worker", str(rounds), *(["--quick"] if quick else [])]
    environment = dict(os.environ)
    if places is None:
        command = [mpiexec, "-n", str(processes), *this]
    else:
        parts = [["-n", "1", "ip", "netns", "exec", place, *this] for place in places[:processes]]
        command = [mpiexec, *[word for part in parts for word in [":", *part]][1:]]
        environment |= {"MPIR_CVAR_NOLOCAL": "1", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "eth0", "PYDIFF_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{processes} processes failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv=None):
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="a tiny network: to see whether it runs")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each way that are timed (default: 15)")
    parser.add_argument("--rate", type=int, help="megabits a second of each process's link")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3, 4, 8])
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        return worker(options.worker, options.quick)
    counts = sorted({1, *options.processes})
    most = namespaces(max(counts), options.rate) if options.rate else contextlib.nullcontext()
    rows = []
    with most as places:
        for processes in counts:
            row = measure(processes, options.rounds, options.quick, places) | {"processes": processes}
            if rows and row["losses"] != rows[0]["losses"]:
                print(f"{processes} processes came to other losses than one: {row['losses']}", file=sys.stderr)
                return 1
            rows.append(row)
            print(f"{processes} processes: {row['ways']}", flush=True)
    report = {"machine": describe(1), "rate_mbit": options.rate, "batch": BATCH, "distributed": rows}
    print("\n".join(table(report)))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def table(report):
    """Lines of Markdown."""
    rows, cores = report["distributed"], report["machine"]["cores"]
    alone, elements = rows[0], rows[0]["elements"]
    compute = alone["ways"]["exact"]["ms"] - alone["update_ms"]
    link = f"a link of {report['rate_mbit']} Mbit/s each" if report["rate_mbit"] else "shared memory"
    yield (
        f"{report['machine']['cpu']}, {cores} cores for all processes, load {report['machine']['load']:.0f} from "
        f"elsewhere; {link}; {elements:,} parameters, batch {report['batch']}, 8 shards; medians. One process: "
        f"{alone['plain_ms']:.0f} ms in one piece, {alone['ways']['exact']['ms']:.0f} ms in 8 shards."
    )
    yield ""
    heads = ("processes", "exact, ms", "without overlap, ms", "fast, ms", "exact / fast", "sent a step, MB")
    heads += ("communication", "model, ms")
    yield f"| {' | '.join(heads)} |"
    yield "| --- " * len(heads) + "|"
    for row in rows:
        exact, late, fast = (row["ways"][way] for way in WAYS)
        links = row["link"] or {"latency_ms": 0.0, "mbytes_s": 1.0}
        model = predicted_ms(row["processes"], compute, alone["update_ms"], elements, **links, cores=cores)
        yield (
            f"| {row['processes']} | {exact['ms']:.0f} | {late['ms']:.0f} | {fast['ms']:.0f} | "
            f"{exact['ms'] / fast['ms']:.2f} | {exact['sent_bytes'] / 1e6:.1f} | "
            f"{exact['communication_ms'] / exact['ms']:.0%} | {model:.0f} |"
        )
    paper = on_paper(elements, compute, alone["update_ms"])
    yield ""
    yield (
        "On paper, the same network, 4 samples and a core a process, 20 µs and 10 Gbit/s assumed, nothing hidden: "
        + ", ".join(f"{n:,} processes {share:.0%}" for n, share in paper.items())
        + " of perfect scaling."
    )


if __name__ == "__main__":
    sys.exit(main())

"""Training on several processes: what the same bits cost, what overlap saves, and what a model of it says.

    python -m benchmarks.distributed [--json FILE] [--quick] [--rounds 15] [--shards 8] [--rate MBIT] [--delay MS]

Under mpiexec, every number of processes takes turns between three ways of adding gradients: exact (a fixed tree, pieces
travel while the rest is computed), the same without overlap, and MPI's own all-reduce (reduce="fast"). Before anything
is timed, the losses of the exact way must be those of one process, bit for bit, and the bytes that process 0 sends in a
step must be those that the model says.

--rate puts every process into a network namespace of its own, behind a link of so many megabits a second (root and
Linux only; tc's token bucket limits the rate). Without, all processes share this machine's memory. --delay makes
messages of gradients arrive so many milliseconds later: the receiver holds them back, since tc's netem is not in every
kernel.
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
from typing import NamedTuple

import numpy as np

from benchmarks.machine import describe
from pydiff.data import Dataset
from pydiff.training import DiffusionTask, Options, Trainer, join, training_steps
from pydiff.training.distributed import Processes
from pydiff.training.shards import cut, whole_nodes
from pydiff.training.sums import ExactSum, pieces_of

SIZE, BATCH, CHECKED = 16, 32, 3  # pixels of a side, samples of a step, steps that are compared
CHANNELS, QUICK = (32, 64, 128), (8, 16)
WAYS = {  # name -> (options, whether gradients travel while others are computed)
    "exact": ({"reduce": "exact"}, True),
    "exact, no overlap": ({"reduce": "exact"}, False),
    "fast": ({"reduce": "fast"}, True),
}
PREFIX = "pydiffbench"
BACKWARD = 2 / 3  # of a forward and a backward pass: it computes two products where the other computes one


# ---- in every process ------------------------------------------------------------------------------------------------


def task_of(options):
    """A U-Net on noise: what it learns is nothing, and takes as long."""
    images = np.random.default_rng(0).integers(0, 256, (256, SIZE, SIZE, 3), np.uint8)
    return DiffusionTask(Dataset("noise", images), options)


def trainer_of(way, group, channels, shards):
    """A Trainer that adds gradients this way."""
    keywords, _ = WAYS[way]
    options = Options(channels=channels, groups=4, steps=10**6, batch_size=BATCH, shards=shards, **keywords)
    return Trainer(task_of(options), options, group=group)


def delayed(group, seconds):
    """The group, in which what has been received counts as arrived so many seconds later."""
    if seconds and isinstance(group, Processes):
        finished, held = group.finished, {}

        def later(entries):
            arrived, waiting = finished([entry for entry in entries if id(entry) not in held])
            now = time.monotonic()
            held.update({id(entry): (now + seconds, entry) for entry in arrived if len(entry) == 4})  # not what is sent
            due = [entry for entry in entries if id(entry) in held and held[id(entry)][0] <= now]
            rest = [entry for entry in entries if id(entry) in held and held[id(entry)][0] > now]
            for entry in due:
                del held[id(entry)]
            return [entry for entry in arrived if len(entry) != 4] + due, waiting + rest

        group.finished = later
    return group


def worker(rounds, channels, shards, delay):
    """Times the ways in turns; process 0 prints a line of JSON."""
    group = delayed(join(), delay / 1e3)
    with group.together(), group.own_processors():
        steps, figures, losses, trainers = {}, {}, [], {}
        for way in WAYS:
            trainer = trainers[way] = trainer_of(way, group, channels, shards)
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
                mine["sent_bytes"].append(group.sent - sent)  # of gradients; a few numbers more are gathered
        result = {"losses": losses, "elements": int(trainers["exact"].optimizer.p.size), "threads": threads_of(group)}
        result["ways"] = {w: {k: statistics.median(v) for k, v in mine.items()} for w, mine in figures.items()}
        result["link"] = link_of(group, 9)
        if result["link"] is not None:
            result["link"]["latency_ms"] += delay
        if group.size > 1:
            sent = statistics.median(figures["exact"]["sent_bytes"])
            modelled = traffic_of(group.size, result["elements"], shards)[group.rank].sent
            if group.any(sent != modelled):
                raise RuntimeError(f"process {group.rank} sends {sent:,} bytes a step, and {modelled:,} are expected")
        if group.size == 1:
            result["plain_ms"] = timed(training_steps(plain_trainer(channels)), rounds)
            result["update_ms"] = update_ms(trainers["exact"], rounds)
    if group.first:
        print(json.dumps(result), flush=True)


def plain_trainer(channels):
    """As `pydiff.train` without mpiexec: one shard."""
    options = Options(channels=channels, groups=4, steps=10**6, batch_size=BATCH)
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


class Traffic(NamedTuple):
    """Bytes of gradients that a process sends and receives in a step."""

    sent: int
    received: int


def traffic_of(processes, elements, shards):
    """[Traffic of every process], piece by piece, as training/gradient.py has it."""
    pieces = cut(elements, pieces_of(elements, processes))
    nodes = [len(whole_nodes(*some, shards)) for some in cut(shards, processes)]
    sizes = np.array([(end - first) * 4 for first, end in pieces])
    found = []
    for rank in range(processes):
        own = int(sizes[rank::processes].sum())
        rest = int(sizes.sum()) - own
        found.append(Traffic(rest * nodes[rank] + own * (processes - 1), own * (sum(nodes) - nodes[rank]) + rest))
    return found


class Predicted(NamedTuple):
    """Milliseconds of a step: where nothing travels while others compute, and at best. share: of communication, in the
    former.
    """

    late: float
    best: float
    share: float


def predicted(processes, alone_ms, update, elements, latency_ms, mbytes_s, cores=None, shards=8):
    """What a step takes: the shards of the busiest process, the traffic of the busiest link, the update.

    alone_ms: of a step of one process on one core with all shards, without the update. A piece is sent to the process
    that adds it up, and comes back: two latencies. cores: that all processes share; None for a core each. At best all
    traffic but the last latency hides behind the backward pass of the last shard.
    """
    busiest = math.ceil(shards / processes)
    slower = max(1.0, processes / cores) if cores else 1.0
    compute = alone_ms * busiest / shards * slower
    if processes == 1:
        return Predicted(compute + update, compute + update, 0.0)
    traffic = max(max(one) for one in traffic_of(processes, elements, shards)) / (mbytes_s * 1e3) + 2 * latency_ms
    hidden = min(traffic - latency_ms, BACKWARD * compute / busiest)
    late = compute + traffic + update * slower
    return Predicted(late, late - hidden, traffic / late)


def on_paper(elements, alone_ms, update, shards):
    """Weak scaling, a shard and a core a process, over a network that is assumed: {processes: (late, best)}, as shares
    of perfect scaling.
    """
    table = {}
    for processes in (1, 2, 4, 16, 64, 256, 1024):
        made = predicted(processes, alone_ms * processes / shards, update, elements, 0.02, 1250.0, shards=processes)
        table[processes] = [(alone_ms / shards + update) / ms for ms in made[:2]]
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


def measure(processes, options, places=None):
    """What the workers of so many processes print. places: a namespace for each, or None."""
    beside = Path(sys.executable).parent / "mpiexec"
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    this = [sys.executable, "-m", "benchmarks.distributed", "--worker", str(options.rounds)]
    this += ["--shards", str(options.shards), "--delay", str(options.delay), "--channels", *map(str, options.channels)]
    environment = dict(os.environ)
    if places is None:
        command = [mpiexec, "-n", str(processes), *this]
    else:
        parts = [["-n", "1", "ip", "netns", "exec", place, *this] for place in places[:processes]]
        command = [mpiexec, *[word for part in parts for word in [":", *part]][1:]]
        environment |= {"MPIR_CVAR_NOLOCAL": "1", "PYDIFF_THREADS": "1"}
        environment |= {"FI_PROVIDER": "tcp", "FI_TCP_IFACE": "eth0", "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth0"}
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
    parser.add_argument("--delay", type=float, default=0.0, help="milliseconds that messages of gradients are late")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3, 4, 8])
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--channels", type=int, nargs="+", default=CHANNELS)
    options = parser.parse_args(argv)
    options.channels = QUICK if options.quick else options.channels
    if options.worker:
        return worker(options.worker, tuple(options.channels), options.shards, options.delay)
    counts = sorted({1, *options.processes})
    most = namespaces(max(counts), options.rate) if options.rate else contextlib.nullcontext()
    rows = []
    with most as places:
        for processes in counts:
            row = measure(processes, options, places) | {"processes": processes}
            if rows and row["losses"] != rows[0]["losses"]:
                print(f"{processes} processes came to other losses than one: {row['losses']}", file=sys.stderr)
                return 1
            if row["link"] and options.rate and row["link"]["mbytes_s"] * 8 > 2 * options.rate:
                print(f"MPI takes another way than the link that is limited: {row['link']}", file=sys.stderr)
                return 1
            rows.append(row)
            print(f"{processes} processes: {row['ways']}", flush=True)
    report = {"machine": describe(1), "rate_mbit": options.rate, "delay_ms": options.delay, "shards": options.shards}
    report |= {"batch": BATCH, "distributed": rows}
    print("\n".join(table(report)))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def table(report):
    """Lines of Markdown."""
    rows, cores, shards = report["distributed"], report["machine"]["cores"], report["shards"]
    alone, elements = rows[0], rows[0]["elements"]
    compute = alone["ways"]["exact"]["ms"] - alone["update_ms"]
    link = f"a link of {report['rate_mbit']} Mbit/s each" if report["rate_mbit"] else "shared memory"
    late = f", messages {report['delay_ms']:g} ms late" if report["delay_ms"] else ""
    yield (
        f"{report['machine']['cpu']}, {cores} cores for all processes, load {report['machine']['load']:.0f} from "
        f"elsewhere; {link}{late}; {elements:,} parameters, batch {report['batch']}, {shards} shards; medians. One "
        f"process: {alone['plain_ms']:.0f} ms in one piece, {alone['ways']['exact']['ms']:.0f} ms in {shards} shards."
    )
    yield ""
    heads = ("processes", "exact, ms", "without overlap, ms", "fast, ms", "exact / fast", "sent a step, MB")
    heads += ("communication", "without overlap", "model, ms", "model without overlap, ms")
    yield f"| {' | '.join(heads)} |"
    yield "| --- " * len(heads) + "|"
    for row in rows:
        exact, late, fast = (row["ways"][way] for way in WAYS)
        links = row["link"] or {"latency_ms": 0.0, "mbytes_s": 1.0}
        model = predicted(row["processes"], compute, alone["update_ms"], elements, **links, cores=cores, shards=shards)
        yield (
            f"| {row['processes']} | {exact['ms']:.0f} | {late['ms']:.0f} | {fast['ms']:.0f} | "
            f"{exact['ms'] / fast['ms']:.2f} | {exact['sent_bytes'] / 1e6:.1f} | "
            f"{exact['communication_ms'] / exact['ms']:.0%} | {late['communication_ms'] / late['ms']:.0%} | "
            f"{model.best:.0f} | {model.late:.0f} |"
        )
    paper = on_paper(elements, compute, alone["update_ms"], shards)
    yield ""
    yield (
        f"On paper, the same network, {report['batch'] // shards} samples and a core a process, 20 µs and 10 Gbit/s "
        "assumed, of perfect scaling, without overlap and at best: "
        + ", ".join(f"{n:,} processes {late:.0%} and {best:.0%}" for n, (late, best) in paper.items())
        + "."
    )


if __name__ == "__main__":
    sys.exit(main())

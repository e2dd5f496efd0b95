"""Kill -9 one process of a training over MPI, start it again on another number of processes, compare the end.

    python -m tests.stress.mpi_kill [--kills 200] [--at-once 1] [--json tests/stress/mpi_kill.json [--more]]

Every life of the run has 1 to 4 processes. One of them, any, is killed: in half of the lives some time after the start,
in the other half some time after a step that was drawn, so that kills hit the imports, the meeting of the processes,
the steps, the exchange of gradients and the saving alike. When a run is complete, its model, samples, losses and last
checkpoint must equal those of the run that nobody killed, on one process, and a new one begins.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pydiff.store.log import Log
from tests.stress.kill import outcome

STEPS = 12
TRAIN = ["-m", "pydiff", "train", "digits", "--steps", str(STEPS), "--batch-size", "8", "--seed", "3", "--shards", "4"]
TRAIN += ["--channels", "8", "--groups", "4", "--checkpoint-every", "2", "--sample-every", "6"]
TRAIN += ["--timestep-sampling", "loss_aware", "--timesteps", "20", "--conditional", "--dropout", "0.1"]
MARK = "PYDIFF_STRESS"


def mpiexec():
    """The one beside this Python, or that of the system."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def members(mark):
    """{rank: process id} of the processes that were started with this mark."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            said = dict(part.split(b"=", 1) for part in (entry / "environ").read_bytes().split(b"\0") if b"=" in part)
            if said.get(MARK.encode()) == mark.encode() and b"PMI_RANK" in said:
                found[int(said[b"PMI_RANK"])] = int(entry.name)
    return found


def steps_done(out):
    """Of the run, as its log says."""
    log = out / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


class Life:
    """One start of the run on n processes."""

    def __init__(self, out, n):
        self.mark, self.out, self.n = f"{os.getpid()}-{time.monotonic_ns()}", out, n
        self.process = subprocess.Popen(
            [mpiexec(), "-n", str(n), sys.executable, *TRAIN, "--out", out],
            env=os.environ | {MARK: self.mark, "PYDIFF_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.began = time.monotonic()

    def over(self):
        """Whether it has ended."""
        return self.process.poll() is not None

    def wait_until(self, reached):
        """Returns when reached() is true or the run is over."""
        while not reached() and not self.over():
            time.sleep(0.01)

    def kill(self, rank):
        """Kills one process; mpiexec ends the others. Whether it was there to be killed."""
        victim = members(self.mark).get(rank)
        if victim is None:
            return False
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.process.communicate(timeout=120)
        self.wait_for_the_rest()
        return True

    def wait_for_the_rest(self):
        """Until the last of its processes is gone."""
        until = time.monotonic() + 60
        while members(self.mark):
            if time.monotonic() > until:
                raise RuntimeError(f"mpiexec left processes behind: {members(self.mark)}")
            time.sleep(0.02)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=1, help="trials side by side, which disturb each other")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--more", action="store_true", help="adds to the figures in that file; take another seed")
    arguments = parser.parse_args()
    if arguments.at_once > 1 or arguments.more:
        return side_by_side(arguments)
    figures = trial(arguments)
    print(json.dumps(figures, indent=1))
    return verdict(figures)


def verdict(figures):
    """0 where every run ended like the one that nobody killed."""
    return 0 if figures["runs_equal"] == figures["runs_completed"] > 0 and not figures["lives_that_failed"] else 1


def side_by_side(arguments):
    """Several trials with seeds of their own; their figures are added up."""
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / f"{i}.json" for i in range(arguments.at_once)]
        share = -(-arguments.kills // arguments.at_once)
        this = [sys.executable, "-m", "tests.stress.mpi_kill", "--kills", str(share)]
        trials = [
            subprocess.Popen([*this, "--seed", str(arguments.seed + i), "--json", place], stdout=subprocess.DEVNULL)
            for i, place in enumerate(places)
        ]
        before = [json.loads(arguments.json.read_text())] if arguments.more else []
        running = True
        while running:
            time.sleep(5)
            running = any(trial.poll() is None for trial in trials)
            figures = added_up([*before, *(json.loads(place.read_text()) for place in places if place.exists())])
            if figures:
                write(arguments.json, figures)
    print(json.dumps(figures, indent=1))
    return verdict(figures) or any(trial.returncode for trial in trials)


def added_up(parts):
    """The figures of several trials, numbers and numbers by name, as those of one."""
    total = {}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, dict):
                total[name] = added_up([total.get(name, {}), value])
            else:
                total[name] = total.get(name, 0) + value
    return total


def trial(arguments):
    """Kills until enough have been killed; the figures."""
    draw = random.Random(arguments.seed)
    figures = {"kills": 0, "kills_by_processes": {}, "kills_of_rank_0": 0, "kills_before_the_first_step": 0}
    figures |= {"kills_while_saving": 0, "runs_completed": 0, "runs_equal": 0, "lives_that_failed": 0}
    figures |= {"lives_on_another_number": 0}
    with tempfile.TemporaryDirectory() as folder:
        expected, out = Path(folder) / "expected", Path(folder) / "killed"
        subprocess.run([sys.executable, *TRAIN, "--out", expected], check=True, capture_output=True)
        truth, before, length = outcome(expected), 0, 6.0
        while figures["kills"] < arguments.kills:
            n, start = draw.randint(1, 4), steps_done(out)
            life = Life(out, n)
            figures["lives_on_another_number"] += before not in (0, n)
            before = n
            if draw.random() < 0.5:
                moment = draw.uniform(0, 1.2 * length)
                life.wait_until(lambda: time.monotonic() - life.began > moment)  # noqa: B023
            else:
                step, more = start + draw.randint(0, STEPS - 4), draw.uniform(0, 0.3)
                life.wait_until(lambda: steps_done(out) > step)  # noqa: B023
                time.sleep(more)
            rank = draw.randrange(n)
            if not life.over() and life.kill(rank):
                figures["kills"] += 1
                figures["kills_by_processes"][n] = figures["kills_by_processes"].get(n, 0) + 1
                figures["kills_of_rank_0"] += rank == 0
                figures["kills_before_the_first_step"] += steps_done(out) == start
                figures["kills_while_saving"] += (out / "checkpoints" / ".partial").exists()
                write(arguments.json, figures)
                continue
            _, message = life.process.communicate(timeout=300)
            if life.process.returncode:
                figures["lives_that_failed"] += 1
                print(message, file=sys.stderr)
                break
            length = time.monotonic() - life.began
            figures["runs_completed"] += 1
            figures["runs_equal"] += outcome(out) == truth
            assert len(Log(out / "log.jsonl").entries) == STEPS
            shutil.rmtree(out)
            before = 0
            print(json.dumps(figures), flush=True)
    write(arguments.json, figures)
    return figures


def write(place, figures):
    """Of a trial that may be killed itself, at any moment."""
    if place:
        beside = place.with_suffix(".partial")
        beside.write_text(json.dumps(figures, indent=1) + "\n")
        beside.replace(place)


if __name__ == "__main__":
    sys.exit(main())

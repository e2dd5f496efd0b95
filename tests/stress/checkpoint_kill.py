"""Kill a process that saves checkpoints, again and again: what it had saved must load, bit for bit.

    python -m tests.stress.checkpoint_kill --rounds 300 --json tests/stress/checkpoint_kill.json

Each round a child resumes from the newest checkpoint and saves on, replacing some steps and pruning; it reports each
save that returned. In even rounds the parent kills it (SIGKILL) at a random moment; in odd rounds it kills itself
before or within a random system call. Then the newest checkpoint must be right, and not older than the last reported.
"""

import argparse
import errno
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from pydiff.store import checkpoint
from tests.stress import checkpoint_faults as faults

SIZE = 20_000  # of contents(): about 1 MB in all, so that kills hit the middle of writes too


def child(directory: Path, pipe: int, suicide: int | None) -> None:
    """Save for ever; with `suicide`, until that many system calls have been made."""
    found = checkpoint.latest(directory)
    step = checkpoint.load(found)[1]["step"] if found else 0

    def work(step: int) -> None:
        while True:
            step += 1
            for revision in range(2 if step % 3 == 0 else 1):
                checkpoint.save(directory, step, *faults.contents(step, revision, SIZE))
                os.write(pipe, b"%d %d\n" % (step, revision))
            if step % 2:
                checkpoint.prune(directory, keep=2)

    if suicide is None:
        work(step)
    _die_at(suicide, pipe)
    work(step)


def _die_at(count: int, pipe: int) -> None:
    """Replace the system calls: the one numbered `count` is the last, and a write then only writes a half."""
    calls = 0

    def wrap(name, real):
        def call(*args, **kwargs):
            nonlocal calls
            if args[0] != pipe:
                calls += 1
            if calls > count:
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in faults.CALLS:
        setattr(os, name, wrap(name, getattr(os, name)))


def one_round(directory: Path, rng: random.Random, itself: bool) -> tuple[list[tuple[int, int]], bool]:
    """The (step, revision) that were saved before the kill, and whether it came in the middle of a write."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            child(directory, write, rng.randrange(80) if itself else None)
        finally:
            os._exit(errno.EPROTO)  # only reached through an exception
    os.close(write)
    if not itself:
        time.sleep(rng.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(read) as pipe:
        saved = [tuple(map(int, line.split())) for line in pipe]
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != -signal.SIGKILL:
        raise RuntimeError(f"the child ended with {status}, expected to be killed: see the error above.")
    return saved, any(name.startswith(".") for name in os.listdir(directory))


def run(rounds: int, seed: int, directory: Path) -> dict:
    rng = random.Random(seed)
    directory.mkdir(parents=True, exist_ok=True)
    result = {"kills": 0, "kills_inside_a_write": 0, "saves_returned": 0, "lost": 0, "damaged_seen": 0, "seed": seed}
    last = None
    for index in range(rounds):
        saved, inside = one_round(directory, rng, itself=index % 2 == 1)
        result["kills"] += 1
        result["kills_inside_a_write"] += inside
        result["saves_returned"] += len(saved)
        last = max([*saved, *([last] if last else [])], default=None)
        newest, passed_over = checkpoint.survey(directory)
        result["damaged_seen"] += len(passed_over)
        if newest is None:
            result["lost"] += last is not None
            continue
        loaded = checkpoint.load(newest)
        found = (loaded[1]["step"], loaded[1]["revision"])
        right = faults.is_checkpoint(loaded, *found, SIZE)
        result["lost"] += not right or (last is not None and found < last)
        last = max(last, found) if last else found
    return result | {"last_step": last[0] if last else 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, help="where to save; default: a temporary folder")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        result = run(options.rounds, options.seed, options.directory or Path(temporary))
    result["seconds"] = time.perf_counter() - start
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    sys.exit(bool(result["lost"] or result["damaged_seen"]))


if __name__ == "__main__":
    main()

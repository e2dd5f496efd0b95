"""Whether memory grows: 10,000 training steps, resident memory all the way.

    python -m tests.stress.memory [--steps 10000] [--json tests/stress/memory.json]

Digits and a small U-Net, so that a leak of one array a step would show: 10,000 times 4 kB are 40 MB. Status 1 if the
memory of the last tenth is more than 2 % above that of the second tenth (the first one warms up), or if the arena
(csrc/cpu/arena.h) touched more memory or asked the system for some after the first tenth.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import pydiff
from pydiff import backend
from pydiff.data import load
from pydiff.training import training_steps
from tests.trainers import diffusion_trainer

ALLOWED = 1.02


def resident():
    """MB of this process in memory now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1e3
    raise RuntimeError("this system does not tell how much memory a process has")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    options = pydiff.Options(steps=arguments.steps, batch_size=16, channels=(16, 32), groups=8)
    every, seen, arena = max(1, arguments.steps // 100), [], []
    for state in training_steps(diffusion_trainer(load("digits"), options)):
        if state.bad:
            raise RuntimeError(f"step {state.step}: {state.bad}")
        if state.step % every == 0:
            seen.append(resident())
            arena.append({} if backend.cpu is None else backend.cpu.arena_counters())
    tenth = len(seen) // 10
    early, late = statistics.median(seen[tenth : 2 * tenth]), statistics.median(seen[-tenth:])
    figures = {"steps": arguments.steps, "early_mb": early, "late_mb": late, "most_mb": max(seen)}
    figures |= {f"arena_{what}_mb": arena[-1][what] / 1e6 for what in ("peak", "touched", "reserved") if arena[-1]}
    print(json.dumps(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    grown = any(arena[tenth].get(what) != arena[-1].get(what) for what in ("touched", "system_calls"))
    return int(late > ALLOWED * early or grown)


if __name__ == "__main__":
    sys.exit(main())

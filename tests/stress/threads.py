"""Eight threads draw from one model on the CPU while another thread trains on the emulator; everything is compared,
byte by byte, with what the same calls gave alone.

    python -m tests.stress.threads [--rounds 1000] [--json tests/stress/threads.json]

Every round every thread draws samples of its own seed, with a sampler of its own; the trainings follow one another as
long as somebody draws. Nobody may wait for, slow down to death, or change anybody else.
"""

import argparse
import hashlib
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import pydiff

DRAWERS = 8
SAMPLERS = ("ddim", "ddpm", "euler", "heun", "dpm_solver", "unipc", "lms", "euler_ancestral")
MODEL = {"steps": 3, "batch_size": 4, "channels": (8, 16), "timesteps": 50, "sample_every": 0, "progress": False}
LESSON = {"steps": 2, "batch_size": 2, "channels": (4,), "groups": 2, "head_dim": 4, "timesteps": 20, "seed": 5}
LESSON |= {"sample_every": 0, "progress": False}


def digest(arrays) -> str:
    """SHA-256 of arrays."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()


def drawn(run, thread, number) -> str:
    """What one thread draws in one round."""
    options = {"steps": 4, "seed": 100 * thread + number % 3, "sampler": SAMPLERS[thread % len(SAMPLERS)]}
    return digest([run.sample(2, **options)])


def lesson(device) -> str:
    """A whole training."""
    run = pydiff.train("digits", device=device, **LESSON)
    return digest(p.numpy() for p in run.pipeline.model.parameters())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--device", default="simt", help="that the trainings are on")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    run = pydiff.train("digits", **MODEL)
    alone = {(thread, number): drawn(run, thread, number) for thread in range(DRAWERS) for number in range(3)}
    learned = lesson(arguments.device)
    over, trainings, began = threading.Event(), [], time.perf_counter()

    def teach():
        while not over.is_set():
            trainings.append(lesson(arguments.device) == learned)

    def draw(thread):
        return sum(drawn(run, thread, n) == alone[thread, n % 3] for n in range(arguments.rounds))

    with ThreadPoolExecutor(DRAWERS + 1) as pool:
        teacher = pool.submit(teach)
        try:
            equal = sum(pool.map(draw, range(DRAWERS)))
        finally:
            over.set()
        teacher.result()
    figures = {
        "threads": DRAWERS,
        "rounds": arguments.rounds,
        "drawings": DRAWERS * arguments.rounds,
        "drawings_equal": equal,
        "device of the trainings": arguments.device,
        "trainings": len(trainings),
        "trainings_equal": sum(trainings),
        "seconds": round(time.perf_counter() - began),
    }
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if equal == DRAWERS * arguments.rounds and trainings and all(trainings) else 1


if __name__ == "__main__":
    sys.exit(main())

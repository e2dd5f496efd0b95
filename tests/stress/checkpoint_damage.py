"""Damage a checkpoint and a model folder in every way that one bit or one cut can, and at random: no load may succeed.

    python -m tests.stress.checkpoint_damage --random 1000000 --json tests/stress/checkpoint_damage.json

Exhaustive: every bit of every file flipped, every file cut at every byte and lengthened by one. Random: 1 to 8 bits in
one file, or a run of up to 64 bytes replaced by zeros or noise.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pydiff.store import checkpoint
from tests.stress import checkpoint_faults as faults


def is_silent(load: Callable, folder: Path) -> bool:
    """Whether the load of a damaged folder gives anything at all; any exception but CheckpointError ends the script."""
    try:
        load(folder)
    except checkpoint.CheckpointError:
        return False
    return True


def every_bit_and_cut(load: Callable, folder: Path) -> tuple[int, int]:
    """(damaged folders tried, silent loads)"""
    tried = silent = 0
    for path in sorted(folder.iterdir()):
        for _ in faults.damage(path, range(path.stat().st_size * 8)):
            silent += is_silent(load, folder)
            tried += 1
    return tried, silent


def at_random(load: Callable, folder: Path, count: int, rng: np.random.Generator) -> tuple[int, int]:
    """(damaged folders tried, silent loads); larger files are hit more often."""
    tried = silent = 0
    files = [(path, path.read_bytes()) for path in sorted(folder.iterdir())]
    weights = np.array([len(data) for _, data in files], np.float64)
    descriptors = [os.open(path, os.O_RDWR) for path, _ in files]
    while tried < count:
        which = rng.choice(len(files), p=weights / weights.sum())
        data = bytearray(files[which][1])
        if rng.integers(2):
            for bit in rng.integers(len(data) * 8, size=rng.integers(1, 9)):
                data[bit // 8] ^= 1 << int(bit % 8)
        else:
            start, length = rng.integers(len(data)), rng.integers(1, 65)
            length = min(length, len(data) - start)
            data[start : start + length] = rng.bytes(length) if rng.integers(2) else bytes(length)
        if data == files[which][1]:  # zeros over zeros, or a bit flipped twice
            continue
        os.pwrite(descriptors[which], data, 0)
        silent += is_silent(load, folder)
        os.pwrite(descriptors[which], files[which][1], 0)
        tried += 1
    for descriptor in descriptors:
        os.close(descriptor)
    return tried, silent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", type=int, default=1_000_000, help="random damages, shared by both kinds of folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    start = time.perf_counter()
    result = {"seed": options.seed}
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        faults.save_model(Path(temporary) / "model")
        folders = {
            "checkpoint": (checkpoint.load, checkpoint.save(temporary, 150, *faults.contents(150, size=60))),
            "model": (checkpoint.load_model, Path(temporary) / "model"),
        }
        for kind, (load, folder) in folders.items():
            load(folder)
            bits = 8 * sum(path.stat().st_size for path in folder.iterdir())
            tried, silent = every_bit_and_cut(load, folder)
            result[kind] = {"bits": bits, "bits_and_cuts_tried": tried, "bits_and_cuts_silent": silent}
            tried, silent = at_random(load, folder, options.random // 2, rng)
            result[kind] |= {"random_tried": tried, "random_silent": silent}
            load(folder)  # it was repaired after each, so only the damage can have been the reason
    result["seconds"] = time.perf_counter() - start
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    sys.exit(any(result[kind][key] for kind in folders for key in ("bits_and_cuts_silent", "random_silent")))


if __name__ == "__main__":
    main()

"""Stable Diffusion's autoencoder at its full size, whole and in bands of rows (pydiff/models/bands.py): the same bits?
In how much memory, in how much time?

    python -m benchmarks.autoencoder_bands                writes benchmarks/results/autoencoder_bands.json
    python -m benchmarks.autoencoder_bands --quick        a small one, to try the script

Weights are random, in a file of half precision. In bands they are read layer by layer and not kept, as --low-memory
does. Both ways are processes of their own that take turns. Memory is the process's own (RssAnon), Python and all.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.contenders import set_threads
from benchmarks.machine import describe
from benchmarks.processes import workers
from benchmarks.stable_diffusion import SMALL_VAE, VAE
from benchmarks.stable_diffusion_folder import Watch

DIRECTIONS = ("decode", "encode")


def write(path, config):
    """The autoencoder with random weights, in half precision."""
    from pydiff.formats import safetensors
    from pydiff.models import AutoencoderKL

    with path.open("wb") as file:
        file.writelines(safetensors.pieces(AutoencoderKL(**config, seed=1).state_dict(), "F16"))


class Autoencoder:
    """One way to work, on this file."""

    def __init__(self, path, config, in_bands, size, threads):
        from pydiff.formats import safetensors
        from pydiff.formats.diffusers.parameters import fill
        from pydiff.formats.files import RegularFile
        from pydiff.models import AutoencoderKL
        from pydiff.nn import deferred

        set_threads(threads)
        self.network = AutoencoderKL(**config).work_in_bands(in_bands)
        with RegularFile(path, lasting=True) as file:
            fill(self.network, safetensors.contents(file, path), deferred=True)
        deferred.keep(self.network, not in_bands)
        rng, factor = np.random.default_rng(0), self.network.factor
        height, width = size
        self.inputs = {
            "decode": rng.standard_normal((1, height // factor, width // factor, 4), np.float32),
            "encode": rng.uniform(-1, 1, (1, height, width, 3)).astype(np.float32),
        }
        self.watch = Watch()

    def turn(self, direction):
        """{seconds, processor_seconds, gb, bits} of decoding or encoding once."""
        from pydiff.tensor import no_grad

        self.watch.doing = direction
        began, spent = time.perf_counter(), time.process_time()
        with no_grad():
            made = getattr(self.network, direction)(self.inputs[direction])
        took = {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - spent}
        made = made.data if direction == "decode" else made.mean.data
        self.watch.note()
        self.watch.doing = "waiting"
        bits = hashlib.sha256(made.tobytes()).hexdigest()[:16]
        return {**took, "gb": self.watch.most.pop(direction), "bits": bits}


def measure(config, size, threads, rounds):
    """{direction: {"whole": .., "bands": .., "time": ratio of processor seconds}}. RuntimeError for other bits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vae.safetensors")
        write(path, config)
        ways = {"whole": False, "bands": True}
        made = {way: partial(Autoencoder, path, config, in_bands, size, threads) for way, in_bands in ways.items()}
        turns = {direction: {way: [] for way in ways} for direction in DIRECTIONS}
        with workers(made, threads) as running:
            for turn in range(rounds + 1):
                for direction in DIRECTIONS:
                    for way, worker in running.items():
                        took = worker.ask("turn", direction)
                        turns[direction][way] += [took] if turn else []  # the first one reads the file
                        print(direction, way, took, flush=True)
    return {direction: compared(found) for direction, found in turns.items()}


def compared(found):
    """The figures of one direction, of {"whole": turns, "bands": turns}."""
    if len({turn["bits"] for turns in found.values() for turn in turns}) > 1:
        raise RuntimeError("bands gave other bits")
    figures = {
        way: {
            "seconds": median(turn["seconds"] for turn in turns),
            "processor_seconds": median(turn["processor_seconds"] for turn in turns),
            "gb": max(turn["gb"] for turn in turns),
        }
        for way, turns in found.items()
    }
    ratio = {
        f"time_by_{what}": median(b[what] / w[what] for b, w in zip(found["bands"], found["whole"], strict=True))
        for what in ("seconds", "processor_seconds")
    }
    return figures | ratio


def table(report):
    """The report as Markdown."""
    height, width = report["size"]
    lines = [
        f"{height} x {width} pixels, {report['machine']['threads']} threads of {report['machine']['cpu']}, load "
        f"{max(report['load']):.0f}:",
        "",
        "| | memory, whole | in bands | processor time, whole | in bands | ratio, turn by turn |",
        "|---|---|---|---|---|---|",
    ]
    for direction, found in report["directions"].items():
        whole, bands = found["whole"], found["bands"]
        lines.append(
            f"| {direction} | {whole['gb']:.2f} GB | {bands['gb']:.2f} GB | {whole['processor_seconds']:.1f} s | "
            f"{bands['processor_seconds']:.1f} s | {found['time_by_processor_seconds']:.2f} |"
        )
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small one")
    parser.add_argument("--size", type=int, nargs=2, default=[512, 512], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results/autoencoder_bands.json")
    options = parser.parse_args(arguments)
    config = SMALL_VAE if options.quick else VAE
    load = os.getloadavg()[0]
    report = {
        "script": "autoencoder_bands",
        "what": ("a small" if options.quick else "Stable Diffusion's") + " autoencoder, random weights",
        "size": options.size,
        "directions": measure(config, options.size, options.threads, options.rounds),
        "load": [load, os.getloadavg()[0]],
        "machine": describe(options.threads),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())

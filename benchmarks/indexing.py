"""How long it takes to find a million small files, and how much memory that needs: data that are streamed.

    python -m benchmarks.indexing [--files 1000000] [--json FILE] [--folder FOLDER]

Makes the files (hard links to a few, 1,000 a folder), opens them with pydiff.data.load(.., cache_gb=..) in a process of
its own, and reads a batch. The file system's cache is warm.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pydiff.data import load
from pydiff.report.grid import save_png

A_FOLDER, LINKS = 1000, 50_000  # files of a folder; names that one file may have on any file system


def make(root, files):
    """So many files of 16 x 16 pixels under the folder."""
    for start in range(0, files, A_FOLDER):
        folder = root / f"class{start // A_FOLDER % 100:02d}" / f"{start // A_FOLDER:05d}"
        folder.mkdir(parents=True)
        original = root.parent / f"original{start // LINKS}.png"
        if not original.exists():
            pixels = np.random.default_rng(start).integers(0, 256, (16, 16, 3), np.uint8)
            save_png(original, pixels)
        for i in range(start, min(start + A_FOLDER, files)):
            os.link(original, folder / f"{i:07d}.png")


def measure(root):
    """Figures of this process, which does nothing else, as JSON."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.perf_counter(), time.process_time()
    dataset = load(root, cache_gb=0.1)
    opened, opened_cpu = time.perf_counter() - began, time.process_time() - cpu
    began = time.perf_counter()
    fingerprint = dataset.fingerprint()
    fingerprinted = time.perf_counter() - began
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    samples = dataset.samples(dataset.usable(rng.integers(0, len(dataset), 64)))
    return {
        "files": len(dataset),
        "classes": len(dataset.classes),
        "seconds": opened,
        "cpu_seconds": opened_cpu,
        "fingerprint_seconds": fingerprinted,
        "batch_of_64_ms": (time.perf_counter() - began) * 1e3,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "before_mb": before * 1024 / 1e6,
        "load": os.getloadavg()[0],
        "checked": [fingerprint[:8], list(samples.shape)],
    }


def main(argv=None):
    """Prints the figures and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--folder", type=Path, help="where to make the files; left out, where temporary files are")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder) / "files"
        make(root, options.files)
        command = [sys.executable, "-m", "benchmarks.indexing", "--measure", str(root)]
        figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

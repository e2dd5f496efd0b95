"""How long it takes to find a million small files, and how much memory that needs: data that are streamed.

    python -m benchmarks.indexing [--files 1000000] [--kinds folder zip tar] [--json FILE] [--folder FOLDER] [--keep]

Makes the files, 1,000 a folder (hard links to a few, or members of an archive), opens them with
pydiff.data.load(.., cache_gb=..) in a process of its own, and reads a batch. The file system's cache is warm. All three
must hold the same, in the same order.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.processes import peak_memory
from pydiff.data import load

A_FOLDER, LINKS = 1000, 50_000  # files of a folder; names that one file may have on any file system


def originals(files):
    """(path, contents) of so many files of 16 x 16 pixels; LINKS of them are alike."""
    for i in range(files):
        if i % LINKS == 0:
            pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, "png")
            contents = data.getvalue()
        yield f"class{i // A_FOLDER % 100:02d}/{i // A_FOLDER:05d}/{i:07d}.png", contents


def make_folder(root, files):
    """As files of their own."""
    for i, (path, contents) in enumerate(originals(files)):
        original = root.parent / f"original{i // LINKS}.png"
        if i % LINKS == 0:
            original.write_bytes(contents)
        if i % A_FOLDER == 0:
            os.makedirs(root / os.path.dirname(path))
        os.link(original, f"{root}/{path}")


def make_zip(path, files):
    """As members that are not packed, which images are already."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, contents in originals(files):
            archive.writestr(name, contents)


def make_tar(path, files):
    """As members."""
    with tarfile.open(path, "w") as archive:
        for name, contents in originals(files):
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            archive.addfile(info, io.BytesIO(contents))
            archive.members = []  # or it would remember them all


KINDS = {"folder": ("files", make_folder), "zip": ("files.zip", make_zip), "tar": ("files.tar", make_tar)}


def measure(root):
    """Figures of this process, which does nothing else, as JSON."""
    before = peak_memory(None)
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
        "peak_mb": peak_memory(None),
        "before_mb": before,
        "load": os.getloadavg()[0],
        "nice": os.nice(0),
        "checked": [hashlib.sha256(samples.tobytes()).hexdigest()[:8], fingerprint[:8]],
    }


def main(argv=None):
    """Prints the figures and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="where to make the files")
    parser.add_argument("--keep", action="store_true", help="leave them there, and use those that are there already")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return 0
    kept = contextlib.nullcontext(options.folder)
    with kept if options.keep else tempfile.TemporaryDirectory(dir=options.folder) as folder:
        report = {kind: figures_of(kind, Path(folder), options.files) for kind in options.kinds}
    if len({figures["checked"][0] for figures in report.values()}) > 1:
        print("the folder and the archives do not hold the same images in the same order", file=sys.stderr)
        return 1
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def figures_of(kind, folder, files):
    """Makes the files, if they are not there, and measures in a process of its own."""
    name, make = KINDS[kind]
    if not (folder / name).exists():
        make(folder / name, files)
    command = [sys.executable, "-m", "benchmarks.indexing", "--measure", str(folder / name)]
    figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(kind, json.dumps(figures), flush=True)
    return figures


if __name__ == "__main__":
    sys.exit(main())

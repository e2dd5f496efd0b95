"""Failing allocations: number N finds no memory, for N drawn from all; the process must say so, and go on.

    python -m tests.stress.failing_allocations [--count 100] [--json tests/stress/failing_allocations.json]

A library that is loaded before C's (failing_allocations.c, compiled here) counts the allocations of at least `--least`
bytes, of NumPy, of the kernels and of the interpreter, and refuses one of them. What is tried: training with a folder,
drawing, reading data, gradients. Every attempt is a forked process. Right is a MemoryError, or one of our
sentences, and after it the same work in the same process with the same result as ever; or that result at once, where
whoever asked could do without. Wrong are a crash, another exception, another result, and a process that hangs.
"""

import argparse
import collections
import ctypes
import faulthandler
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.stress.children import in_child

HERE = Path(__file__).parent
AT_ONCE, AFTERWARDS, OTHER_ERROR, OTHER_RESULT, NOT_AGAIN = 0, 10, 11, 12, 13
SAID = {
    AT_ONCE: "done without it",
    AFTERWARDS: "MemoryError, then as ever",
    OTHER_ERROR: "another exception",
    OTHER_RESULT: "another result",
    NOT_AGAIN: "another result, or an error, when it was tried again",
}
RIGHT = (AT_ONCE, AFTERWARDS)
TIMEOUT = 120  # seconds for one attempt


# ---- what is tried: functions of an empty folder, whose result is compared -------------------------------------------


def training(folder):
    """Three steps with checkpoints, a log and a model."""
    import pydiff

    options = {"steps": 3, "batch_size": 4, "channels": (8, 16), "groups": 4, "timesteps": 20, "checkpoint_every": 1}
    run = pydiff.train("digits", out=folder / "run", sample_every=0, progress=False, seed=1, **options)
    return b"".join(p.data.tobytes() for p in run.model.parameters())


def drawing(folder):
    """Images of the model that is there."""
    import pydiff

    return pydiff.load(folder / "model").sample(4, steps=3).tobytes()


def data(folder):
    """An archive of images, an .npz and an array."""
    import numpy as np

    from pydiff.data import load

    found = [
        load(folder / "images.zip"),
        load(folder / "images.npz"),
        load(np.full((9, 40, 40, 3), 7, np.uint8), size=16),
    ]
    if found[0].skipped:  # Pillow's "codec configuration error", which is said, and damage can lead to it, too
        raise MemoryError(str(found[0].skipped))
    return b"".join(dataset.images.tobytes() for dataset in found)


def gradients(_folder):
    """Forward and backward through a U-Net with attention."""
    import numpy as np

    from pydiff import Tensor
    from pydiff.training import Options
    from pydiff.training.config import build_unet

    network = build_unet(Options(channels=(16, 32), attention=(1,)), (16, 16, 3))
    network.initialize(0)
    x = np.linspace(-1, 1, 2 * 16 * 16 * 3, dtype=np.float32).reshape(2, 16, 16, 3)
    (network(Tensor(x), np.array([3, 7])) ** 2).sum().backward()
    return b"".join(p.grad.tobytes() for p in network.parameters())


TRIED = {"training": training, "drawing": drawing, "data": data, "gradients": gradients}


def prepare(folder):
    """What the functions above read."""
    import zipfile

    import numpy as np
    from PIL import Image

    import pydiff

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
    np.savez_compressed(folder / "images.npz", images=images)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / "image.png")
            archive.write(folder / "image.png", f"{i}.png")
    pydiff.train("digits", steps=1, batch_size=2, channels=(8, 16), groups=4, timesteps=20, progress=False).save(
        folder / "model"
    )


# ---- one attempt -----------------------------------------------------------------------------------------------------


def attempt(function, expected, library, number, least, source) -> int:
    """What became of it, in a forked process: a key of SAID, or less than 0 for a signal. 124: it hung."""

    def work():
        with open(source.parent / "said", "w") as stream:
            faulthandler.enable(stream, all_threads=False)
            try:
                return tried(function, expected, library, number, least, source)
            except BaseException:  # when there was memory again
                return NOT_AGAIN

    return in_child(work, TIMEOUT)


def tried(function, expected, library, number, least, source) -> int:
    """The same in this process."""
    with tempfile.TemporaryDirectory(dir=source.parent) as name:
        folder = Path(name)
        for file in source.iterdir():
            (folder / file.name).symlink_to(file)
        failed = None
        library.fail_at(number, least)
        try:
            result = function(folder)
        except BaseException as error:
            failed = error
        finally:
            library.fail_at(0, least)
        if failed is None:
            return AT_ONCE if result == expected else OTHER_RESULT
        told = str(failed).lower()
        if not isinstance(failed, MemoryError) and "memory" not in told and "allocate" not in told:
            (source.parent / "said").write_text(f"{type(failed).__name__}: {str(failed)[:300]}")
            return OTHER_ERROR
        return AFTERWARDS if function(folder) == expected else NOT_AGAIN


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="attempts of each kind")
    parser.add_argument("--least", type=int, default=4096, help="bytes; smaller allocations are left alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=TRIED, default=list(TRIED))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if "PYDIFF_FAILING" not in os.environ:
            library = Path(name) / "failing.so"
            compile_ = [
                os.environ.get("CC", "cc"),
                "-O1",
                "-fPIC",
                "-shared",
                "-o",
                library,
                HERE / "failing_allocations.c",
            ]
            subprocess.run(compile_, check=True)
            environment = {**os.environ, "LD_PRELOAD": str(library), "PYDIFF_FAILING": str(library)}
            environment |= {"PYDIFF_THREADS": "3", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            return subprocess.call(
                [sys.executable, "-m", "tests.stress.failing_allocations", *sys.argv[1:]], env=environment
            )
        library = ctypes.CDLL(os.environ["PYDIFF_FAILING"])
        library.fail_at.argtypes = [ctypes.c_long, ctypes.c_size_t]
        library.allocations_seen.restype = ctypes.c_long
        folder = Path(name) / "source"
        folder.mkdir()
        prepare(folder)
        figures = {"least": arguments.least, "seed": arguments.seed, "kinds": {}, "wrong": []}
        for kind in arguments.kinds:
            function = TRIED[kind]
            expected, many = counted(function, library, arguments.least, folder)
            numbers = random.Random(arguments.seed).sample(range(1, many + 1), min(arguments.count, many))
            results = collections.Counter()
            for number in sorted(numbers):
                code = attempt(function, expected, library, number, arguments.least, folder)
                said = SAID.get(
                    code, "it hung" if code == 124 else f"ended by signal {-code}" if code < 0 else f"{code}"
                )
                results[said] += 1
                if code not in RIGHT:
                    lines = (folder.parent / "said").read_text().splitlines()
                    more = f" ({' '.join(lines[-1:] if code > 0 else lines[3:5])})" if lines else ""
                    figures["wrong"].append(f"{kind}: allocation {number} of {many}: {said}{more}")
                    print(figures["wrong"][-1], flush=True)
            figures["kinds"][kind] = {"allocations": many, **results}
            print(kind, figures["kinds"][kind], flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if figures["wrong"] else 0


def counted(function, library, least, source):
    """(the right result, how many allocations it takes), once everything that is imported has been."""
    for _ in range(2):
        with tempfile.TemporaryDirectory(dir=source.parent) as name:
            folder = Path(name)
            for file in source.iterdir():
                (folder / file.name).symlink_to(file)
            library.fail_at(0, least)
            result = function(folder)
            many = library.allocations_seen()
    return result, many


if __name__ == "__main__":
    sys.exit(main())

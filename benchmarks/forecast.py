"""What `pydiff train --dry-run` says a step takes, against what a step then took: the growth of the process.

    python -m benchmarks.forecast [--json benchmarks/results/forecast.json]

Each case is a process of its own. Memory is the resident set (Linux: VmHWM, reset before the step).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

# side, batch, channels, native
CASES = [
    (16, 64, (32, 64), True),
    (64, 8, (32, 64, 128, 256), True),
    (128, 4, (32, 64, 128, 256), True),
    (160, 2, (16, 32, 64), True),
    (256, 1, (32, 64, 128), True),
    (64, 4, (16, 32, 64), False),
]


def status(name):
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure(side, batch, channels):
    """Prints a JSON object: what was said, what was used, seconds that it took to say it."""
    import numpy as np

    import pydiff
    from pydiff.training import DiffusionTask, Options, Trainer, training_steps
    from pydiff.training.forecast import at_once, need_of

    images = np.random.default_rng(0).integers(0, 256, (max(8, batch), side, side, 3)).astype(np.uint8)
    options = Options(batch_size=batch, channels=channels, steps=9)

    def trainer():
        return Trainer(DiffusionTask(pydiff.data.load(images), options), options)

    used = trainer()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    for _, _state in zip(range(2), training_steps(used), strict=False):
        pass
    used = status("VmHWM") - before  # before anything else was computed, so that no old memory is used again
    began = time.perf_counter()
    said = need_of(trainer()).of(at_once(options))
    print(json.dumps({"said": round(said), "used": used, "seconds": round(time.perf_counter() - began, 2)}))


def main():
    """Runs all cases and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", type=json.loads)
    arguments = parser.parse_args()
    if arguments.case:
        measure(*arguments.case)
        return
    rows = []
    for side, batch, channels, native in CASES:
        case = json.dumps([side, batch, channels])
        environment = {**os.environ, "PYDIFF_NATIVE": "auto" if native else "off"}
        line = [sys.executable, "-m", "benchmarks.forecast", "--case", case]
        done = subprocess.run(line, check=True, capture_output=True, text=True, env=environment)
        rows.append({"side": side, "batch": batch, "channels": channels, "kernels": native, **json.loads(done.stdout)})
        rows[-1]["said / used"] = round(rows[-1]["said"] / rows[-1]["used"], 2)
        print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

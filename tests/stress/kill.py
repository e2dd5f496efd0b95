"""Kill -9 a training run at random moments, start it again by the same command, and compare the end byte for byte.

    python -m tests.stress.kill [--kills 1000] [--json tests/stress/kill.json]

Every life of the run gets a random time to live, a tenth to six tenths of what the run took that nobody killed, so that
kills hit the import, the steps, the middle of a checkpoint and the writing of the model alike, on any machine; lives
grow until a run is complete, should the machine have become slower. When one is, its model, samples, losses and last
checkpoint must equal those of the run that nobody killed, and a new one begins.
"""

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pydiff.store import checkpoint
from pydiff.store.log import Log

COMMAND = [sys.executable, "-m", "pydiff", "train", "digits", "--steps", "60", "--batch-size", "8", "--seed", "3"]
COMMAND += ["--channels", "8", "16", "--groups", "4", "--checkpoint-every", "2", "--sample-every", "20"]


def outcome(directory):
    """Everything that has to be equal: hashes of the model's files and samples, every loss, the last checkpoint."""
    files = [*sorted(f for f in (directory / "model").rglob("*") if f.is_file()), directory / "samples.png"]
    hashes = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    losses = [(e["step"], e["loss"]) for e in Log(directory / "log.jsonl").entries]
    arrays, state = checkpoint.load(checkpoint.latest(directory / "checkpoints"))
    weights = {n: hashlib.sha256(a.tobytes()).hexdigest() for n, a in arrays["optimizer"].items()}
    return {"files": hashes, "losses": losses, "weights": weights, "state": state}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    figures = {"kills": 0, "runs_completed": 0, "runs_equal": 0, "kills_while_saving": 0, "lives_that_failed": 0}
    with tempfile.TemporaryDirectory() as folder:
        expected, out = Path(folder) / "expected", Path(folder) / "killed"
        began = time.monotonic()
        subprocess.run([*COMMAND, "--out", expected], check=True, capture_output=True)
        length, lives = time.monotonic() - began, 0
        truth = outcome(expected)
        while figures["kills"] < arguments.kills:
            process = subprocess.Popen(
                [*COMMAND, "--out", out], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            lives += 1
            try:
                _, message = process.communicate(timeout=length * moments.uniform(0.1, 0.6) * (1 + lives / 10))
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                figures["kills"] += 1
                figures["kills_while_saving"] += (out / "checkpoints" / ".partial").exists()
            else:
                if process.returncode:
                    figures["lives_that_failed"] += 1
                    print(message, file=sys.stderr)
                    break
                figures["runs_completed"] += 1
                figures["runs_equal"] += outcome(out) == truth
                shutil.rmtree(out)
                lives = 0
                print(json.dumps(figures), flush=True)
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["runs_equal"] == figures["runs_completed"] > 0 and not figures["lives_that_failed"] else 1


if __name__ == "__main__":
    sys.exit(main())

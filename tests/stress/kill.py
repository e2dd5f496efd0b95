"""Kill -9 a training run at random moments, start it again by the same command, and compare the end byte for byte.

    python -m tests.stress.kill [--kills 1000] [--stories plain longer ..] [--json tests/stress/kill.json]

Every life of the run gets a random time to live, a tenth to six tenths of what the run took that nobody killed, so that
kills hit the import, the steps, the middle of a checkpoint and the writing of the model alike, on any machine; lives
grow until a run is complete, should the machine have become slower. When one is, its model, samples, losses and last
checkpoint must equal those of the run that nobody killed, and the next of the stories begins: a plain run; one that is
trained to step 40 and, by another command, to step 60 at another rate; one whose batches are computed in two parts; one
that begins with the weights of another.
"""

import argparse
import hashlib
import itertools
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

COMMAND = [sys.executable, "-m", "pydiff", "train", "digits", "--batch-size", "8", "--seed", "3"]
COMMAND += ["--channels", "8", "16", "--groups", "4", "--checkpoint-every", "2", "--sample-every", "20"]
# What is added to the command, one after the other.
STORIES = {
    "plain": [["--steps", "60"]],
    "longer": [["--steps", "40"], ["--steps", "60", "--lr", "5e-4"]],
    "accumulated": [["--steps", "60", "--accumulate", "2"]],
    "begun warm": [["--steps", "60", "--init-from", "SOURCE"]],
}


def outcome(directory):
    """Everything that has to be equal: hashes of the model's files and samples, every loss, the last checkpoint."""
    files = [*sorted(f for f in (directory / "model").rglob("*") if f.is_file()), directory / "samples.png"]
    hashes = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    losses = [(e["step"], e["loss"]) for e in Log(directory / "log.jsonl").entries]
    arrays, state = checkpoint.load(checkpoint.latest(directory / "checkpoints"))
    weights = {n: hashlib.sha256(a.tobytes()).hexdigest() for n, a in arrays["optimizer"].items()}
    return {"files": hashes, "losses": losses, "weights": weights, "state": state}


def commands(story, source, out):
    """What is called for a story, one after the other."""
    return [[*COMMAND, *(str(source) if word == "SOURCE" else word for word in more), "--out", str(out)]
            for more in STORIES[story]]  # fmt: skip


def live(command, length, out, figures, moments):
    """Lives of one command, until it ends by itself. length: seconds that it takes if nobody kills it."""
    for lives in itertools.count(1):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            _, message = process.communicate(timeout=length * moments.uniform(0.1, 0.6) * (1 + lives / 10))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            figures["kills"] += 1
            figures["kills_while_saving"] += (out / "checkpoints" / ".partial").exists()
            continue
        if process.returncode:
            figures["lives_that_failed"] += 1
            print(message, file=sys.stderr)
        return


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stories", nargs="+", choices=STORIES, default=list(STORIES))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    figures = {"kills": 0, "runs_completed": 0, "runs_equal": 0, "kills_while_saving": 0, "lives_that_failed": 0}
    figures["stories"] = dict.fromkeys(arguments.stories, 0)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source", Path(folder) / "killed"
        subprocess.run([*COMMAND, "--steps", "5", "--out", source], check=True, capture_output=True)
        truths, lengths = {}, {}
        for story in arguments.stories:
            lengths[story] = []
            for command in commands(story, source, expected := Path(folder) / story):
                began = time.monotonic()
                subprocess.run(command, check=True, capture_output=True)
                lengths[story].append(time.monotonic() - began)
            truths[story] = outcome(expected)
        for story in itertools.cycle(arguments.stories):
            if figures["kills"] >= arguments.kills or figures["lives_that_failed"]:
                break
            for command, length in zip(commands(story, source, out), lengths[story], strict=True):
                if not figures["lives_that_failed"]:
                    live(command, length, out, figures, moments)
            if not figures["lives_that_failed"]:
                figures["runs_completed"] += 1
                figures["runs_equal"] += outcome(out) == truths[story]
                figures["stories"][story] += 1
            shutil.rmtree(out, ignore_errors=True)
            print(json.dumps(figures), flush=True)
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["runs_equal"] == figures["runs_completed"] > 0 and not figures["lives_that_failed"] else 1


if __name__ == "__main__":
    sys.exit(main())

"""Trains the model in pydiff/trained/digits and prints its lines for NOTICE: `python -m pydiff.trained.make_digits`.

Users do not need it. It takes three minutes on one idle core, and resumes if it is interrupted. On processors with the
same instruction set, the same pydiff writes the same weights, in float16.
"""

import argparse
import hashlib
import shutil
from pathlib import Path

import pydiff
from pydiff.trained import FOLDER

# Twice as many steps as the demo's own model.
RECIPE = {"steps": 3000, "conditional": True, "lr": 2e-3, "ema": 0.999, "dropout": 0.1, "sample_every": 0, "seed": 0}
LARGEST = 3_000_000  # bytes of the folder


def make(work: Path, folder: Path = FOLDER / "digits") -> list[str]:
    """Trains in the folder `work` and writes the model. Returns the lines of its files for NOTICE."""
    made = pydiff.train("digits", out=work, **RECIPE)
    shutil.rmtree(folder, ignore_errors=True)
    made.save(folder, "float16")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if (size := sum(path.stat().st_size for path in files)) > LARGEST:
        raise ValueError(f"the model has {size} bytes, more than {LARGEST}; make it smaller")
    return [f"{path.relative_to(FOLDER.parents[1])}: {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]


def main():
    """Trains, writes the folder, and prints the lines for NOTICE."""
    parser = argparse.ArgumentParser(
        description="Trains the digits that come with pydiff; prints their lines for NOTICE."
    )
    parser.add_argument("--work", type=Path, default=Path("runs/shipped-digits"), help="folder of the training")
    print("\n".join(make(parser.parse_args().work)))


if __name__ == "__main__":
    main()

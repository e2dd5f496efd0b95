"""Trained models that come with pydiff, for the first image without a network and without a wait.

pydiff.load("digits"), `pydiff sample digits`: handwritten digits, by class. How each was made is a script beside it.
"""

from pathlib import Path

NAMES = ("digits",)
FOLDER = Path(__file__).parent


def place(path: str | Path) -> Path:
    """Where a model lies: for a name in NAMES the folder that comes with pydiff, unless something of that name lies in
    the current folder; for everything else the path itself, with ~ expanded.
    """
    asked = Path(path).expanduser()
    return FOLDER / asked if str(path) in NAMES and not asked.exists() else asked

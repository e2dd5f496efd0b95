"""Trained models that come with pydiff, so that the first image needs neither a download nor a training.

pydiff.load("digits"), `pydiff sample digits`: handwritten digits, by class. A script beside each model makes it.
"""

from pathlib import Path

from pydiff.formats.files import folder_path

NAMES = ("digits",)
FOLDER = Path(__file__).parent


def place(path: str | Path) -> Path:
    """The path of a model: for a name in NAMES the folder that comes with pydiff, unless the current folder has
    something of that name; for anything else the path itself, with ~ expanded.
    """
    asked = folder_path(path)
    return FOLDER / asked if str(path) in NAMES and not asked.exists() else asked

"""Emoji at 32 x 32 with captions in English and German, shipped with pydiff: see emoji.LICENSE.txt, make_emoji.py.

They include a full factorial design: 80 roles, each drawn as a man and as a woman in six tones. 144 of its 960 images,
always the same ones, are marked to be held out: a model trained on the other 816 has seen every role, gender and tone,
and can be asked for combinations that it never saw. Two drawings occur twice among those that are kept: people of
medium-light skin have blond hair, whether the caption says so or not. Gender and tone are words in the captions of
drawings; nothing here says anything about people.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pydiff.data.arrays import read_npz
from pydiff.data.dataset import Dataset

FILE = Path(__file__).with_name("emoji.npz")
GENDERS = ("man", "woman")
TONES = ("none", "light", "medium-light", "medium", "medium-dark", "dark")  # none: the yellow of most emoji


class Factorial(NamedTuple):
    """roles: 80 names. cells: (80, 2, 6), numbers of the images in the set, by role, gender and tone.

    held_out: (80, 2, 6) bool.
    """

    roles: tuple[str, ...]
    cells: np.ndarray
    held_out: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """Numbers of the images to train on, (816,)."""
        return self.cells[~self.held_out]

    @property
    def unseen(self) -> np.ndarray:
        """Numbers of the images that are held out, (144,)."""
        return self.cells[self.held_out]


def load_emoji() -> Dataset:
    """Images (N, 32, 32, 3) uint8 on white, two captions each, English first. Needs no network."""
    arrays = read_npz(FILE)
    texts = [[text.decode() for text in arrays[f"captions_{language}"].tolist()] for language in ("en", "de")]
    languages = (("en", "de"),) * len(arrays["images"])
    return Dataset("emoji", arrays["images"], captions=tuple(zip(*texts, strict=True)), languages=languages)


def factorial() -> Factorial:
    """The full factorial design in the set: which images belong to it, and which of these are held out."""
    arrays = read_npz(FILE)
    roles = tuple(role.decode() for role in arrays["roles"].tolist())
    return Factorial(roles, arrays["cells"].astype(np.int64), arrays["held_out"])

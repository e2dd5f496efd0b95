"""The 1,797 handwritten digits of the UCI "optdigits" test set, 8 x 8, shipped with pydiff: see digits.LICENSE.txt."""

from pathlib import Path

import numpy as np

from pydiff.data.arrays import read_npz
from pydiff.data.dataset import Dataset

FILE = Path(__file__).with_name("digits.npz")
LEVELS = 16  # a pixel counts the ink in a 4 x 4 block of the scan: 0..16


def load_digits() -> Dataset:
    """Images (1797, 8, 8, 1) uint8, the counts 0..16 spread over 0..255, with the digit as label. Needs no network."""
    arrays = read_npz(FILE)
    counts = arrays["images"].astype(np.int64)
    images = ((counts * 255 + LEVELS // 2) // LEVELS).astype(np.uint8)
    return Dataset("digits", images[..., None], arrays["labels"].astype(np.int64), [str(digit) for digit in range(10)])

"""Writes digits.npz from scikit-learn's copy of the data: `python -m pydiff.data.make_digits`. Users do not need it.

digits.npz holds images (1797, 8, 8) uint8 in 0..16 and labels (1797,) uint8, as the source has them. Archive members
carry a fixed date, so the same NumPy and zlib write the same bytes.
"""

from pathlib import Path

import numpy as np

from pydiff.data.digits import FILE


def make(path: Path = FILE) -> None:
    """Write the file; raises ImportError without scikit-learn."""
    from sklearn.datasets import load_digits

    source = load_digits()
    images, labels = source.images.astype(np.uint8), source.target.astype(np.uint8)
    if not (images == source.images).all():
        raise ValueError("scikit-learn's digits are no longer whole numbers in 0..255; look at what changed")
    np.savez_compressed(path, images=images, labels=labels)


if __name__ == "__main__":
    make()

"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 70,000 grey images of clothes, 28 x 28. pydiff does not ship them.

The set's four IDX files are those of idx.py. On Debian they are in the package dataset-fashion-mnist.
"""

import dataclasses
from pathlib import Path

from pydiff.data import idx
from pydiff.data.dataset import Dataset

FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts them
CLASSES = [
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
]  # fmt: skip


def load_fashion(folder: Path = FOLDER) -> Dataset:
    """The 60,000 training images (N, 28, 28, 1) uint8 of a folder of IDX files, with classes and captions.

    Raises FileNotFoundError if the files are missing, ValueError if they are damaged.
    """
    if not folder.is_dir() or not idx.holds_idx(folder):
        raise FileNotFoundError(
            f"there are no files of Fashion-MNIST in {folder}; install Debian's package dataset-fashion-mnist, or give "
            "the folder that holds train-images-idx3-ubyte.gz"
        )
    return named_clothes(idx.load_idx(folder), "fashion")


def named_clothes(dataset: Dataset, name: str | None = None) -> Dataset:
    """The same data with the names of Fashion-MNIST's ten classes, and a caption for each image."""
    if dataset.labels is None or dataset.labels.max(initial=0) >= len(CLASSES):
        return dataset
    captions = tuple((f"{'an' if word[0] in 'aeiou' else 'a'} {word}",) for word in CLASSES)
    texts = tuple(captions[label] for label in dataset.labels)
    languages = (("en",),) * len(texts)
    return dataclasses.replace(
        dataset, name=name or dataset.name, classes=CLASSES, captions=texts, languages=languages, notes=dataset.notes
    )

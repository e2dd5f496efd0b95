"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 70,000 grey pictures of clothes, 28 x 28. pydiff does not ship them.

The set's four IDX files, as MNIST has them too: train-images-idx3-ubyte and t10k-labels-idx1-ubyte and so on, with or
without .gz. On Debian they are in the package dataset-fashion-mnist.
"""

import math
from pathlib import Path

import numpy as np

from pydiff.data.dataset import Dataset

FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts them
CLASSES = [
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
]  # fmt: skip
LARGEST = 2**31  # bytes of an unpacked file; a small .gz can claim any number


def load_fashion(folder: Path = FOLDER) -> Dataset:
    """The 60,000 training pictures (N, 28, 28, 1) uint8 of a folder of IDX files, with classes and captions.

    FileNotFoundError, in one sentence, where the files are not there; ValueError for damaged ones.
    """
    if not holds_idx(folder):
        raise FileNotFoundError(
            f"there are no files of Fashion-MNIST in {folder}; install Debian's package dataset-fashion-mnist, or give "
            "the folder that holds train-images-idx3-ubyte.gz"
        )
    images, labels = (read_idx(_file(folder, f"train-{name}-ubyte")) for name in ("images-idx3", "labels-idx1"))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"{folder} holds images {images.shape} and labels {labels.shape}, which do not fit together")
    classes = CLASSES if folder == FOLDER or "fashion" in str(folder).lower() else None
    if classes is None or labels.max(initial=0) >= len(classes):
        return Dataset(
            folder.name, images[..., None], labels.astype(np.int64), [str(i) for i in range(labels.max() + 1)]
        )
    captions = tuple((f"{'an' if name[0] in 'aeiou' else 'a'} {name}",) for name in classes)
    texts = tuple(captions[label] for label in labels)
    return Dataset(
        "fashion",
        images[..., None],
        labels.astype(np.int64),
        classes,
        captions=texts,
        languages=(("en",),) * len(texts),
    )


def holds_idx(folder: Path) -> bool:
    """Whether a folder holds a training set of MNIST's kind."""
    return all(_file(folder, f"train-{name}-ubyte") for name in ("images-idx3", "labels-idx1"))


def read_idx(path: Path) -> np.ndarray:
    """The array of uint8 in an IDX file, plain or .gz.

    The bytes 0, 0, 8 and the number of axes, then their lengths as big-endian 32-bit numbers, then the data.
    ValueError for anything else, and for a file that is longer or shorter than it says.
    """
    import gzip
    import zlib

    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
            magic = stream.read(4)
            if len(magic) < 4 or magic[:3] != b"\0\0\x08" or magic[3] == 0:
                raise ValueError("it does not begin like an IDX file of bytes")
            shape = tuple(int.from_bytes(stream.read(4), "big") for _ in range(magic[3]))
            size = math.prod(shape)
            if size > LARGEST:
                raise ValueError(f"it claims {size:,} bytes")
            data = stream.read(size + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}); fetch it again") from error
    if len(data) != size:
        raise ValueError(f"{path} cannot be read (its header promises {size:,} bytes); fetch it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _file(folder: Path, stem: str) -> Path | None:
    return next((folder / name for name in (stem, f"{stem}.gz") if (folder / name).is_file()), None)

"""Training data: shipped digits, folders of pictures, .npz and .npy files and arrays all become (N, H, W, C) pictures.

`load` recognises the source; each kind has its own small module. The rest of pydiff sees only `Dataset`,
`batch_indices`, `flip` and the two functions at the edge between uint8 and [-1, 1].
"""

import dataclasses
import os
from pathlib import Path

from pydiff.data.arrays import from_array, load_arrays_file
from pydiff.data.dataset import Dataset
from pydiff.data.describe import describe
from pydiff.data.digits import load_digits
from pydiff.data.faces import load_faces
from pydiff.data.folder import load_folder
from pydiff.data.order import batch_indices, flip
from pydiff.data.pixels import check_size, from_uint8, resize, to_channels, to_uint8

__all__ = [
    "Dataset",
    "batch_indices",
    "describe",
    "flip",
    "from_uint8",
    "load",
    "to_uint8",
]

NAMED = {"digits": load_digits, "faces": load_faces}


def load(source, size=None, channels: int | None = None, labels=None) -> Dataset:
    """A data set from almost anything.

    source    "digits" (8 x 8, shipped), "faces" (25 x 25, needs scikit-image), a folder of pictures, a .npz or .npy
              file, an array (N, H, W), (N, H, W, C) or (N, C, H, W), or a Dataset; "./digits" is a folder of that name
    size      an integer or (height, width): pictures are resized by their shorter side and cropped in the middle
    channels  1 (grey), 3 (RGB) or 4 (RGBA); None reads it from the data
    labels    (N,) integers or strings, for arrays only: folders and .npz files bring their own

    Raises ValueError for data that cannot be used, FileNotFoundError, and ImportError where scikit-image is missing.
    """
    size = check_size(size)
    if isinstance(source, (str, os.PathLike)):
        if labels is not None:
            raise ValueError(f"labels were given with {source!r}, which brings its own; labels= belongs to arrays")
        if isinstance(source, str) and source in NAMED:
            dataset = NAMED[source]()
        else:
            path = Path(source).expanduser()
            if path.is_dir():
                return load_folder(path, size, channels)
            dataset = load_arrays_file(_arrays_path(path))
    elif isinstance(source, Dataset):
        if labels is not None:
            raise ValueError("labels were given with a Dataset, which brings its own; labels= belongs to arrays")
        dataset = source
    elif hasattr(source, "__array__"):
        dataset = from_array(source, labels)
    else:
        raise TypeError(f"cannot load data from {type(source).__name__}; {_EXPECTED}")
    images = dataset.images if channels is None else to_channels(dataset.images, channels)
    images = images if size is None else resize(images, size)
    return dataset if images is dataset.images else dataclasses.replace(dataset, images=images)


_EXPECTED = f"expected {', '.join(map(repr, NAMED))}, a folder of pictures, a .npz or .npy file, or an array"


def _arrays_path(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"there is no {str(path)!r}; {_EXPECTED}")
    if path.suffix.lower() not in (".npz", ".npy"):
        raise ValueError(f"cannot load data from {str(path)!r}; {_EXPECTED}")
    return path

"""Images that somebody holds in Python: lists of them, (x, y) pairs, lists of pairs, dicts of arrays.

Images are arrays (H, W) or (H, W, C), Pillow images, or paths; what has an `__array__` or a `numpy` counts as an array.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pydiff.data.arrays import from_array, from_named
from pydiff.data.asked import NOTHING_ASKED, Asked
from pydiff.data.classes import class_labels, renumbered
from pydiff.data.dataset import Dataset
from pydiff.data.folder import path_of, read_images
from pydiff.printed import printable


def is_pair(source) -> bool:
    """Whether this is (x, y): images, and a label for each."""
    if not isinstance(source, tuple) or len(source) != 2 or _is_image(source[0]):
        return False
    try:
        return len(source[0]) == len(source[1]) and np.ndim(source[1]) in (1, 2) and not _is_image(source[1])
    except TypeError:
        return False


def load_list(source: Sequence, labels=None, captions=None, asked: Asked = NOTHING_ASKED) -> Dataset:
    """A data set from a list of images, or of (image, label). ValueError or TypeError, in one sentence."""
    items = list(source)
    if not items:
        raise ValueError("the list of images is empty; give at least one")
    if all(isinstance(item, tuple | list) and len(item) == 2 and _is_image(item[0]) for item in items):
        if labels is not None:
            raise ValueError("labels were given beside a list of (image, label); give one of them")
        if not all(isinstance(label, str | bytes) or np.asarray(label).dtype.kind in "iub" for _, label in items):
            raise ValueError("a list of pairs needs a label for each image, a number or a name")
        items, labels = [image for image, _ in items], [label for _, label in items]
    wrong = next((item for item in items if not _is_image(item)), None)
    if wrong is not None:
        raise TypeError(
            f"a list of images holds a {type(wrong).__name__}, expected arrays (H, W) or (H, W, C), Pillow images, "
            "or paths"
        )
    arrays = [np.asarray(item) for item in items if not _is_file(item) and not _is_pillow(item)]
    if len(arrays) == len(items) and len({(a.shape, a.dtype) for a in arrays}) == 1:
        return from_array(np.stack(arrays), labels, captions, "list", asked.only("a list of arrays", "layout", "bits"))
    if captions is not None:
        raise ValueError("captions= belongs to arrays of one shape; put images of several into a folder with captions")
    return _of_several_kinds(items, labels, asked.only("a list of images", "pages", "bits"))


def _of_several_kinds(items, labels, asked) -> Dataset:
    sources = {f"number {i}": _source(i, item) for i, item in enumerate(items)}
    skipped: list[tuple[str, str]] = []
    kept, images, notes = read_images("the list", sources, asked, skipped)
    rows = [int(path_of(name).removeprefix("number ")) for name in kept]
    if labels is None:
        return Dataset("list", images, skipped=skipped, notes=notes)
    if len(labels) != len(items):
        raise ValueError(f"there are {len(labels)} labels for {len(items)} images; give one for each")
    ranks, classes = class_labels(np.asarray(labels)[rows], len(rows))
    return Dataset("list", images, ranks, classes, skipped, notes + renumbered(classes))


def _source(i, item):
    """What read_images takes."""
    from PIL import Image

    if _is_file(item):
        path = Path(item).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"there is no {printable(str(path))!r}, number {i} of the list")
        return path
    if _is_pillow(item):
        return item
    array = np.asarray(item)
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if array.dtype != np.uint8 or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise ValueError(
            f"number {i} of the list is {array.dtype} {array.shape}; images of different shapes must be uint8 (H, W), "
            "(H, W, 3) or (H, W, 4)"
        )
    return Image.fromarray(array)


def load_pair(source: tuple, asked: Asked = NOTHING_ASKED) -> Dataset:
    """Reads a pair (x, y) of images and their labels, as scikit-learn and Keras give them."""
    images, labels = source
    if hasattr(images, "__array__"):
        return from_array(np.asarray(images), labels, asked=asked.only("an array", "layout", "bits"))
    return load_list(images, labels, asked=asked)


def load_mapping(source: Mapping, asked: Asked = NOTHING_ASKED) -> Dataset:
    """{"images": .., "labels": ..}, named as in a .npz file."""
    return from_named(dict(source), "the dict", "dict", asked.only("a dict of arrays", "layout", "bits"))


def _is_file(item) -> bool:
    return isinstance(item, str | os.PathLike)


def _is_pillow(item) -> bool:
    return type(item).__module__.startswith("PIL.") and hasattr(item, "convert")


def _is_image(item) -> bool:
    if _is_file(item) or _is_pillow(item):
        return True
    return hasattr(item, "__array__") and np.ndim(item) in (2, 3) and not isinstance(item, list | tuple)

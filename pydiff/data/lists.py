"""Images in Python objects: lists of them, (x, y) pairs, lists of pairs, dicts of arrays, and whatever can be iterated
like a list: generators, and data sets such as those of torchvision.

Images are arrays (H, W) or (H, W, C), Pillow images, or paths; objects with `__array__` count as arrays.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pydiff.data import captions as words
from pydiff.data.arrays import LABEL_KEYS, captions_of, from_array, from_named
from pydiff.data.asked import NOTHING_ASKED, Asked
from pydiff.data.classes import class_labels, named_labels, renumbered
from pydiff.data.dataset import Dataset
from pydiff.data.folder import path_of, read_images
from pydiff.data.held import as_array
from pydiff.data.limits import Limit
from pydiff.printed import expanded, printable

# Names of the image in a row that is a dict; the last ones of its file.
IMAGE_ROW = ("image", "img", "picture", "x", "pixel_values", "jpg", "png",
             "image_path", "file_name", "filename", "filepath", "path", "file")  # fmt: skip


NO_NAMES: Mapping = {}  # never written to


def is_pair(source, least: int = 3) -> bool:
    """Whether this is (x, y): images and labels. Their lengths may differ; that is reported later.

    least: axes of x if it is an array; 2 admits points (N, D), floats.
    """
    if not isinstance(source, tuple | list) or len(source) != 2:
        return False
    x, y = source
    if hasattr(x, "__array__") and not _is_pillow(x):
        # Two arrays may also be two images: then the second has two or three axes. Labels may be a column.
        column = np.ndim(x) >= 3 and np.ndim(y) == 2 and (np.ndim(x) >= 4 or np.shape(y)[1] == 1)
        several = np.ndim(x) >= 3 or (np.ndim(x) == least and np.asarray(x).dtype.kind == "f")  # or it is one image
        return several and (np.ndim(y) == 1 or column) and not isinstance(y, str | bytes)
    several = isinstance(source, tuple) and isinstance(x, list | tuple) and len(x) > 0 and all(map(_is_image, x))
    return several and isinstance(y, list | tuple | np.ndarray) and not any(map(_has_pixels, y))


def listed(source: Iterable, limit: Limit) -> list | None:
    """The items of a generator, or of an object with a length and numbered items; None if it is neither.

    Their size is compared with the limit as they arrive, so that an endless generator stops there.
    """
    numbered = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    if not (isinstance(source, Iterator) or numbered) or isinstance(source, bytes | bytearray):
        return None
    items, size = [], 0
    for item in source if isinstance(source, Iterator) else map(source.__getitem__, range(len(source))):  # pyright: ignore
        items.append(item)
        image = _image_in(item)
        size += getattr(image, "nbytes", 0) or 4 * getattr(image, "width", 0) * getattr(image, "height", 0) or 64
        limit.check(size, f"the first {len(items):,} images")
    return items


def load_list(
    source: Sequence, labels=None, captions=None, asked: Asked = NOTHING_ASKED, names: Mapping[Any, Any] = NO_NAMES
) -> Dataset:
    """A data set from a list of images, of (image, label), or of rows {"image": .., "label": .., "text": ..}.

    names: {column of labels, or None: what labels 0 .. K - 1 are called}. Raises ValueError or TypeError for lists that
    cannot be used.
    """
    items: list[Any] = list(source)
    if not items:
        raise ValueError("the list of images is empty; give at least one")
    if all(isinstance(item, tuple | list) and len(item) == 1 for item in items):
        items = [item[0] for item in items]  # as a TensorDataset of images alone gives them
    column, told = None, []
    if all(map(is_pair, items)):
        raise ValueError("this is a list of pairs (x, y), as of training and test data; give one of them")
    if all(isinstance(item, Mapping) and _image_in(item) is not None for item in items):
        items, labels, captions, column = _of_rows(items, labels, captions)
    elif all(isinstance(item, Mapping) for item in items):
        columns = ", ".join(printable(str(key)) for key in dict.fromkeys(key for item in items for key in item))
        bare = next((i for i, item in enumerate(items) if _image_in(item) is None), 0)
        raise ValueError(
            f"row {bare} has no image; the columns are {columns}, and an image is looked for in "
            f"{', '.join(IMAGE_ROW[:5])}"
        )
    elif all(isinstance(item, tuple | list) and len(item) == 2 and _is_image(item[0]) for item in items):
        if labels is not None:
            raise ValueError("labels were given beside a list of (image, label); give one of them")
        if not all(isinstance(label, str | bytes) or np.asarray(label).dtype.kind in "iub" for _, label in items):
            raise ValueError("a list of pairs needs a label for each image, a number or a name")
        items, labels = [image for image, _ in items], [label for _, label in items]
    if labels is not None and column in names:
        labels, note = named_labels(labels, names[column], "the data set")
        told = [note]
    wrong = next((i for i, item in enumerate(items) if not _is_image(item)), None)
    if wrong is not None:
        raise TypeError(
            f"number {wrong} of a list of images is {_kind(items[wrong])}, expected arrays (H, W) or (H, W, C), Pillow "
            f"images, paths, or (image, label){_apart(items[wrong])}"
        )
    arrays = [
        as_array(item, f"pixels of number {i}")
        for i, item in enumerate(items)
        if not _is_file(item) and not _is_pillow(item) and not isinstance(item, bytes)
    ]
    if len(arrays) == len(items) and len({(a.shape, a.dtype) for a in arrays}) == 1:
        asked = asked.only("a list of arrays", "layout", "bits")
        return from_array(np.stack(arrays), labels, captions, "list", asked, told)
    found = _of_several_kinds(items, labels, captions, asked.only("a list of images", "pages", "bits"))
    return dataclasses.replace(found, notes=[*found.notes, *told])


def _of_rows(items, labels, captions):
    """(images, labels, captions, the column of the labels or None) from rows that are dicts."""
    found = [{str(key).lower(): value for key, value in item.items()} for item in items]
    label = next((key for key in (*words.LABEL, *LABEL_KEYS) if key in found[0]), None)
    told = next((key for key in found[0] if words.language_of(key) is not None), None)
    if (labels is not None and label) or (captions is not None and told):
        raise ValueError("labels or captions were given beside rows that bring their own; give one of them")
    if not all((label is None or label in row) and (told is None or told in row) for row in found):
        raise ValueError(f"some rows have {label or told!r}, and others do not; give it in all of them")
    labels = [row[label] for row in found] if label else labels
    captions = [row[told] for row in found] if told else captions
    column = None if label is None else next(key for key in items[0] if str(key).lower() == label)
    return [_image_in(item) for item in items], labels, captions, column


def _image_in(item):
    """The image in an item of a list: the item, the first of a pair, or the value under an image's name in a dict."""
    if isinstance(item, Mapping):
        named = {str(key).lower(): value for key, value in item.items()}
        value = next((named[key] for key in IMAGE_ROW if named.get(key) is not None), None)
        if isinstance(value, Mapping):  # of Hugging Face, where nothing was decoded
            return value.get("bytes") or value.get("path")
        return value
    return item[0] if isinstance(item, tuple | list) and len(item) == 2 else item


def _kind(item) -> str:
    """A few words that say what an item is."""
    if hasattr(item, "__array__"):
        return f"an array of shape {np.shape(item)}"
    return "None" if item is None else one_of(item)


def _apart(item) -> str:
    """What makes a list of images of this item, if it holds several."""
    several = hasattr(item, "__array__") and np.ndim(item) > 3
    return "; numpy.concatenate(list) is one array of all images in it" if several else ""


def one_of(value) -> str:
    """The name of a value's class with an article."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _of_several_kinds(items, labels, captions, asked) -> Dataset:
    for what, given in (("labels", labels), ("captions", captions)):
        if given is not None and not isinstance(given, dict) and len(given) != len(items):
            raise ValueError(f"there are {len(given)} {what} for {len(items)} images; give one for each")
    sources = {f"number {i}": _source(i, item) for i, item in enumerate(items)}
    skipped: list[tuple[str, str]] = []
    kept, images, notes = read_images("the list", sources, asked, skipped)
    rows = [int(path_of(name).removeprefix("number ")) for name in kept]
    more: dict[str, Any] = {}
    if captions is not None:
        told = captions_of(captions, len(items))
        more, caption_notes = words.columns([told[row] for row in rows], list(kept))
        notes = notes + caption_notes
    if labels is None:
        return Dataset("list", images, skipped=skipped, notes=notes, **more)
    ranks, classes = class_labels(np.asarray(labels)[rows], len(rows))
    return Dataset("list", images, ranks, classes, skipped, notes + renumbered(classes), **more)


def _source(i, item):
    """An item as `read_images` takes it. Raises FileNotFoundError for a missing file."""
    from PIL import Image

    if _is_file(item):
        path = expanded(item)
        if not path.exists():
            raise FileNotFoundError(f"there is no {printable(str(path))!r}, number {i} of the list")
        return path
    if _is_pillow(item) or isinstance(item, bytes):
        return item
    array = as_array(item, f"pixels of number {i}")
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if array.dtype != np.uint8 or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise ValueError(
            f"number {i} of the list is {array.dtype} {array.shape}; images of different shapes must be uint8 (H, W), "
            "(H, W, 3) or (H, W, 4)"
        )
    return Image.fromarray(array)


def load_pair(source: Sequence, asked: Asked = NOTHING_ASKED) -> Dataset:
    """A data set from a pair (x, y) of images and labels, as scikit-learn and Keras provide them."""
    images, labels = source
    if hasattr(images, "__array__"):
        return from_array(images, labels, asked=asked.only("an array", "layout", "bits"))
    return load_list(images, labels, asked=asked)


def load_mapping(source: Mapping, asked: Asked = NOTHING_ASKED) -> Dataset:
    """A data set from {"images": .., "labels": ..}, with names as in a .npz file; None counts as left out."""
    given = {name: value for name, value in source.items() if value is not None}
    return from_named(given, "the dict", "dict", asked.only("a dict of arrays", "layout", "bits"))


def _is_file(item) -> bool:
    return isinstance(item, str | os.PathLike)


def _is_pillow(item) -> bool:
    return type(item).__module__.startswith("PIL.") and hasattr(item, "convert")


def _is_image(item) -> bool:
    return _is_file(item) or isinstance(item, bytes) or _has_pixels(item)  # bytes are what is in a file


def _has_pixels(item) -> bool:
    if _is_pillow(item):
        return True
    return hasattr(item, "__array__") and np.ndim(item) in (2, 3) and not isinstance(item, list | tuple)

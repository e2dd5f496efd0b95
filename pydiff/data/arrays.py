"""Arrays in memory and in .npy and .npz files: layout and value range are recognised, and said in the notes.

A .npz may hold captions: `captions`, `text` or `prompts`, also `captions_de` and so on, strings (N,), or (N, K) for
several a picture, "" for none.
"""

import math
import warnings
from pathlib import Path

import numpy as np

from pydiff.data import captions as words
from pydiff.data.clips import RATE, Clips
from pydiff.data.dataset import Dataset
from pydiff.data.points import Points

IMAGE_KEYS = ("images", "x", "x_train", "train_images", "arr_0")
LABEL_KEYS = ("labels", "y", "y_train", "train_labels", "arr_1")
FEW = (1, 2, 3, 4)  # channel counts that name an axis at sight
SLACK = 1e-5  # rounding that a value range may exceed its ends by


def load_arrays_file(path: Path) -> Dataset:
    """A .npy file of images, or a .npz file with images and perhaps labels and captions, named as in IMAGE_KEYS and
    LABEL_KEYS and at the top of this file.
    """
    if path.suffix.lower() == ".npy":
        return from_array(read_npy(path), name=path.name)
    arrays = {name.lower(): array for name, array in read_npz(path).items()}
    images = next((arrays[key] for key in IMAGE_KEYS if key in arrays), None)
    if images is None:
        raise ValueError(
            f"{path} holds the arrays {', '.join(arrays) or '(none)'}, expected images under one of "
            f"{', '.join(IMAGE_KEYS)}; save it with numpy.savez(path, images=..., labels=...)"
        )
    labels = next((arrays[key] for key in LABEL_KEYS if key in arrays), None)
    texts = {language: arrays[key] for key in arrays if (language := words.language_of(key)) is not None}
    return from_array(images, labels, texts, name=path.name)


def from_array(images, labels=None, captions=None, name: str = "array", rate: float | None = None) -> Dataset:
    """A data set from (N, H, W), (N, H, W, C) or (N, C, H, W) images, (N, F, H, W, C) clips of `rate` frames a second
    or (N, D) points and, if given, (N,) labels: integers or strings.

    captions: N strings or sequences of strings, or {language: those}. uint8 and bool are taken as they are; floats must
    lie in [0, 1] or [-1, 1]. Raises ValueError otherwise.
    """
    images, kind, more, values = np.asarray(images), Dataset, {}, None
    if images.ndim == 2:
        kind, layout = Points, f"array {images.shape} read as points (N, D)"
    elif images.ndim == 5 and images.size:
        kind, layout = Clips, f"array {images.shape} read as clips (N, F, H, W, C)"
        more = {"rate": RATE if rate is None else float(rate)}
        images, values = _standard_values(images)
    else:
        images, layout = _channels_last(images)
        images, values = _standard_values(images)
    notes = [layout, *([values] if values else [])]
    if captions is not None:
        told, caption_notes = words.columns(
            _captions(captions, len(images)), [f"number {i}" for i in range(len(images))]
        )
        more, notes = more | told, notes + caption_notes
    if labels is None:
        return kind(name, images, notes=notes, **more)
    return kind(name, images, *class_labels(labels, len(images)), notes=notes, **more)


def _captions(captions, n: int) -> list[list[words.Caption]]:
    """The captions of each of n pictures from N strings, from N sequences of strings, or from {language: those}."""
    found: list[list[words.Caption]] = [[] for _ in range(n)]
    for language, texts in (captions if isinstance(captions, dict) else {"": captions}).items():
        if isinstance(texts, np.ndarray) and texts.dtype.kind == "S":
            texts = np.char.decode(texts, "utf-8", "replace")
        rows = texts.tolist() if isinstance(texts, np.ndarray) else list(texts)
        if len(rows) != n:
            raise ValueError(f"there are captions for {len(rows)} pictures, and {n} pictures")
        for row, of_one in zip(rows, found, strict=True):
            cleaned = [c._replace(text=words.clean(c.text)) for c in words.captions_in(row, language)]
            of_one += [c for c in dict.fromkeys(cleaned) if c.text]
    return found


def class_labels(labels, n: int) -> tuple[np.ndarray, list[str]]:
    """((n,) int64 in 0 .. K - 1, the K class names), from n integers or strings; classes are in sorted order."""
    labels = np.asarray(labels)
    if labels.shape == (n, 1):
        labels = labels[:, 0]
    if labels.shape != (n,):
        raise ValueError(f"labels have shape {labels.shape}, expected ({n},); for one-hot rows use .argmax(axis=1)")
    if labels.dtype.kind not in "iubUS":
        raise ValueError(f"labels are {labels.dtype}, expected integers or strings; convert them with .astype(int)")
    values, ranks = np.unique(labels, return_inverse=True)
    names = [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value) for value in values]
    return ranks.astype(np.int64).reshape(n), names


def _channels_last(images: np.ndarray) -> tuple[np.ndarray, str]:
    """(N, H, W, C) and a sentence on how the axes were read."""
    shape = images.shape
    if images.ndim not in (3, 4) or 0 in shape:
        raise ValueError(
            f"images have shape {shape}, expected (N, H, W), (N, H, W, C) or (N, C, H, W) "
            "with at least one pixel; reshape them"
        )
    if images.ndim == 3:
        return images[..., None], f"array {shape} read as (N, H, W)"
    # An axis of length 1..4 is the channel axis; without one, the shorter candidate is. The last axis wins a tie.
    if shape[3] not in FEW and (shape[1] in FEW or shape[1] < shape[3]):
        return np.ascontiguousarray(np.moveaxis(images, 1, 3)), f"array {shape} read as (N, C, H, W)"
    return images, f"array {shape} read as (N, H, W, C)"


def _standard_values(images: np.ndarray) -> tuple[np.ndarray, str | None]:
    """uint8, or float32 in [-1, 1] if 8 bits would lose something, and a sentence on the range that was recognised."""
    if images.dtype == np.uint8:
        return images, None
    if images.dtype == np.bool_:
        return images.astype(np.uint8) * np.uint8(255), "True and False read as white and black"
    if images.dtype.kind != "f":
        raise ValueError(
            f"images are {images.dtype}, expected uint8 in 0..255 or floats in [0, 1] or [-1, 1]; "
            "convert them with images.astype('uint8') if they are 0..255, else divide by their maximum"
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= -1 - SLACK and high <= 1 + SLACK):  # NaN ends up here too
        advice = "divide them by 255" if low >= 0 and 1 < high <= 255 else "remove NaN and scale them"
        raise ValueError(f"float images run from {low:g} to {high:g}, expected [0, 1] or [-1, 1]; {advice}")
    lowest = 0.0 if low >= -SLACK else -1.0
    text = f"floats from {low:g} to {high:g} read as the range [{lowest:g}, 1]"
    scale = 255 / (1 - lowest)
    out, eight_bit = np.empty(images.shape, np.float32), True
    tolerance = 255 * max(np.finfo(images.dtype).eps, np.finfo(np.float32).eps)
    for image, target in zip(images, out, strict=True):  # one at a time: no float64 copy of the whole set
        levels = (np.clip(image.astype(np.float64), lowest, 1) - lowest) * scale  # 0..255
        eight_bit = eight_bit and bool((np.abs(levels - np.rint(levels)) <= tolerance).all())
        target[...] = levels / 127.5 - 1
    if eight_bit:  # the floats were 8-bit pictures once: nothing is lost
        return np.rint((out + 1) * 127.5).astype(np.uint8), text + ", all on 8-bit grey levels"
    return out, text


def read_npy(path: Path) -> np.ndarray:
    """The array of a .npy file. Pickled objects are never opened. Raises ValueError if the file is damaged."""
    try:
        with open(path, "rb") as stream:
            return _parse_npy(stream, path.stat().st_size)
    except Exception as error:  # damaged headers make NumPy raise a dozen types, SyntaxError and MemoryError among them
        raise ValueError(f"{path} cannot be read ({_reason(error)}); save it again with numpy.save") from error


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name. Pickled objects are never opened. Raises ValueError if the file is damaged."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {}
            for member in archive.infolist():
                if member.filename.endswith(".npy"):
                    with archive.open(member) as stream:
                        arrays[member.filename.removesuffix(".npy")] = _parse_npy(stream, member.file_size)
            return arrays
    except Exception as error:  # as above, and zipfile and zlib add theirs
        raise ValueError(f"{path} cannot be read ({_reason(error)}); save it again with numpy.savez") from error


def _parse_npy(stream, size: int) -> np.ndarray:
    """NumPy's format, with the lengths checked before anything is allocated: a false header cannot ask for memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # headers written by Python 2 warn, and are read all the same
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"format version {version} holds structured data, not pictures")
        read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        shape, fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects, which are never opened")
    expected, found = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if expected != found:
        raise ValueError(f"its header promises {expected} bytes of data, and there are {found}")
    data = stream.read()
    if len(data) != expected:
        raise ValueError(f"its header promises {expected} bytes of data, and there are {len(data)}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

"""Arrays in memory and in .npy and .npz files. Layout and value range are recognised, and reported in the notes.

A .npz may hold captions, `captions`, `text` or `prompts`, also `captions_de` and so on: strings (N,), or (N, K) for
several captions per image, "" for none.
"""

import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pydiff.data import captions as words
from pydiff.data.asked import NOTHING_ASKED, Asked
from pydiff.data.classes import class_labels, named_labels, renumbered
from pydiff.data.clips import RATE, Clips
from pydiff.data.dataset import Dataset, some
from pydiff.data.held import as_array
from pydiff.data.limits import USUAL, Limit, check_memory, check_system
from pydiff.data.points import Points
from pydiff.printed import first_line, printable

IMAGE_KEYS = ("images", "x", "x_train", "train_images", "arr_0")
NAME_KEYS = ("classes", "class_names", "label_names")
LABEL_KEYS = ("labels", "y", "y_train", "train_labels", "targets", "label", "target", "arr_1")
FEW = (1, 2, 3, 4)  # an axis of this length is taken to be the channels
SLACK = 1e-5  # how far rounding may take values beyond the ends of their range


def load_npy(path: Path, asked: Asked = NOTHING_ASKED) -> Dataset:
    """Reads images from a .npy file, as `from_array` does from the array in it."""
    return from_array(read_npy(path, asked.limit), name=printable(path.name), asked=asked)


def load_npz(path: Path, asked: Asked = NOTHING_ASKED) -> Dataset:
    """A .npz file with images and perhaps labels and captions, under the names in IMAGE_KEYS and LABEL_KEYS and at the
    top of this file. Arrays that are not used are listed in the notes.
    """
    return from_named(read_npz(path, asked.limit), path, printable(path.name), asked)


def from_named(found: dict, where: object, name: str, asked: Asked = NOTHING_ASKED) -> Dataset:
    """A data set from named arrays: those of a .npz file, or of a dict."""
    where, keys = printable(str(where)), {}
    for key in found:
        if str(key).lower() in keys:
            twice = f"{printable(str(key))} and {printable(keys[str(key).lower()])}"
            raise ValueError(f"{where} holds the arrays {twice}, which differ in case alone; rename one")
        keys[str(key).lower()] = key
    arrays = {lower: as_array(found[key], f"{printable(str(key))} of {where}") for lower, key in keys.items()}
    images = next((key for key in IMAGE_KEYS if key in arrays), None)
    if images is None:
        likely = [key for key, array in arrays.items() if array.ndim in (3, 4) and array.dtype.kind in "uifb"]
        images = likely[0] if len(likely) == 1 else None
    if images is None:
        raise ValueError(
            f"{where} holds the arrays {', '.join(map(printable, arrays)) or '(none)'}, expected images under one of "
            f"{', '.join(IMAGE_KEYS)}; save it with numpy.savez(path, images=..., labels=...)"
        )
    labels = next((key for key in LABEL_KEYS if key in arrays and key != images), None)
    texts = {language: arrays[key] for key in arrays if (language := words.language_of(key)) is not None}
    names = next((key for key in NAME_KEYS if key in arrays and labels is not None), None)
    used = {images, labels, names, *(key for key in arrays if words.language_of(key) is not None)}
    notes = (
        [] if images in IMAGE_KEYS else [f"images are taken from '{printable(images)}', the only array of their shape"]
    )
    notes += [] if labels in (None, *LABEL_KEYS[:4], "arr_1") else [f"labels are taken from {labels!r}"]
    rest = [f"'{printable(key)}' {a.shape} {a.dtype}" for key, a in arrays.items() if key not in used]
    if rest:
        wanted = "" if labels else f"; labels are looked for under {', '.join(LABEL_KEYS[:4])}"
        notes.append(f"not used: {some(rest, ', ', 8)}{wanted}")
    given = None if labels is None else arrays[labels]
    if names is not None:
        given, told = named_labels(given, arrays[names], f"{names!r}")
        notes.append(told)
    return from_array(arrays[images], given, texts or None, name=name, asked=asked, notes=notes)


def from_array(
    images,
    labels=None,
    captions=None,
    name: str = "array",
    asked: Asked = NOTHING_ASKED,
    notes: Sequence[str] = (),
) -> Dataset:
    """A data set from (N, H, W), (N, H, W, C) or (N, C, H, W) images, (N, F, H, W, C) clips of asked.rate frames per
    second or (N, D) points and, if given, (N,) labels: integers or strings.

    captions: N strings or sequences of strings, or {language: those}. uint8 and bool are taken as they are; floats must
    lie in [0, 1] or [-1, 1]; uint16 is taken over the range of bits that it uses. Raises ValueError otherwise.
    """
    images, kind, more, values = as_array(images), Dataset, {}, None
    asked.limit.check(images.nbytes + 4 * images.size, f"{name} {images.shape}")
    if images.ndim == 2:
        kind, layout = Points, f"array {images.shape} read as points (N, D){_flat(images.shape[1])}"
    elif images.ndim == 5 and images.size:
        kind, layout = Clips, f"array {images.shape} read as clips (N, F, H, W, C)"
        more: dict[str, Any] = {"rate": RATE if asked.rate is None else float(asked.rate)}
        images, values = _standard_values(images, asked.bits)
    else:
        images, layout = _channels_last(images, asked.layout)
        images, values = _standard_values(images, asked.bits)
    notes = [layout, *([values] if values else []), *notes]
    if captions is not None:
        told, caption_notes = words.columns(
            captions_of(captions, len(images)), [f"number {i}" for i in range(len(images))]
        )
        more, notes = more | told, notes + caption_notes
    if labels is None:
        return kind(name, images, notes=notes, **more)
    ranks, classes = class_labels(labels, len(images))
    return kind(name, images, ranks, classes, notes=notes + renumbered(classes), **more)


def _flat(n: int) -> str:
    """What makes images of rows of n numbers, in brackets, if they may be flattened ones."""
    for channels in (1, 3):
        side = math.isqrt(n // channels)
        if side >= 8 and side * side * channels == n:
            axes = f"-1, {side}, {side}" + (f", {channels}" if channels > 1 else "")
            return f" (x.reshape({axes}) if they are images in rows)"
    return ""


def captions_of(captions, n: int) -> list[list[words.Caption]]:
    """The captions of each of n images from N strings, from N sequences of strings, or from {language: those}."""
    found: list[list[words.Caption]] = [[] for _ in range(n)]
    for language, texts in (captions if isinstance(captions, dict) else {"": captions}).items():
        if isinstance(texts, np.ndarray) and texts.dtype.kind == "S":
            texts = np.char.decode(texts, "utf-8", "replace")
        if not hasattr(texts, "__iter__"):
            raise TypeError(f"captions are {texts!r:.50}; give a list with one for each image")
        rows = texts.tolist() if isinstance(texts, np.ndarray) else list(texts)
        if isinstance(texts, str | bytes):
            raise TypeError(f"captions are the text {texts!r:.50}; give a list with one for each image")
        if len(rows) != n:
            raise ValueError(f"there are captions for {len(rows)} images, and {n} images")
        for number, (row, of_one) in enumerate(zip(rows, found, strict=True)):
            try:
                cleaned = [c._replace(text=words.clean(c.text)) for c in words.captions_in(row, language)]
            except ValueError as error:
                raise ValueError(f"caption number {number}: {error}") from None
            of_one += [c for c in dict.fromkeys(cleaned) if c.text]
    return found


def _channels_last(images: np.ndarray, layout: str | None) -> tuple[np.ndarray, str]:
    """(N, H, W, C) and a sentence on how the axes were read."""
    shape = images.shape
    if images.ndim not in (3, 4) or 0 in shape:
        raise ValueError(
            f"images have shape {shape}, expected (N, H, W), (N, H, W, C) or (N, C, H, W) "
            "with at least one pixel, or points (N, D); reshape them"
        )
    if layout is not None and len(layout) != images.ndim:
        raise ValueError(f"images have shape {shape}, which is not layout={layout!r}; leave it out")
    if images.ndim == 3 and layout is None and shape[2] in (3, 4) and min(shape[:2]) >= 8:
        raise ValueError(
            f"images have shape {shape}, which looks like one image (H, W, C); give images[None] then, or "
            "layout='NHW' if they are grey ones"
        )
    if images.ndim == 3:
        return images[..., None], f"array {shape} read as (N, H, W)"
    # An axis of length 1..4 is the channel axis. If there is none, two equal axes are those of a square image, and the
    # third is the channel axis; in all other cases, the last axis is.
    few = shape[3] in FEW or shape[1] in FEW
    first = shape[3] not in FEW and (shape[1] in FEW or (shape[2] == shape[3] != shape[1]))
    first = first if layout is None else layout == "NCHW"
    found, other = ("(N, C, H, W)", "NHWC") if first else ("(N, H, W, C)", "NCHW")
    note = f"array {shape} read as {found}"
    if layout is not None:
        note += ", as asked for"
    elif not few or (shape[1] in FEW and shape[3] in FEW):
        note += f" (layout={other!r} for the other way)"
    return (np.ascontiguousarray(np.moveaxis(images, 1, 3)) if first else images), note


def _standard_values(images: np.ndarray, bits: int | None = None) -> tuple[np.ndarray, str | None]:
    """(images as uint8, or as float32 in [-1, 1] if 8 bits would lose information; the range as a sentence)."""
    if images.dtype == np.uint16:
        return _deep(images, bits)
    if bits is not None:
        images, note = _standard_values(images)
        unused = f"bits={bits} changes nothing: it is for uint16"
        return images, unused if note is None else f"{note}; {unused}"
    if images.dtype == np.uint8:
        return images, None
    if images.dtype == np.bool_:
        return images.astype(np.uint8) * np.uint8(255), "True and False read as white and black"
    expected = "expected uint8 in 0..255 or floats in [0, 1] or [-1, 1]"
    if images.dtype.kind in "iu":
        raise ValueError(
            f"images are {images.dtype}, {expected}; "
            "convert them with images.astype('uint8') if they are 0..255, else divide them by their largest value"
        )
    if images.dtype.kind != "f":
        raise ValueError(f"images are {images.dtype}, {expected}; give an array of such numbers")
    low, high = float(images.min()), float(images.max())
    if not (low >= -1 - SLACK and high <= 1 + SLACK):  # NaN ends up here too
        raise ValueError(
            f"float images run from {low:g} to {high:g}, expected [0, 1] or [-1, 1]; {_advice(images, low, high)}"
        )
    lowest = 0.0 if low >= -SLACK else -1.0
    text = f"floats from {low:g} to {high:g} read as the range [{lowest:g}, 1]"
    scale = 255 / (1 - lowest)
    out, eight_bit = np.empty(images.shape, np.float32), True
    tolerance = 255 * max(np.finfo(images.dtype).eps, np.finfo(np.float32).eps)
    for image, target in zip(images, out, strict=True):  # one at a time: no float64 copy of the whole set
        levels = (np.clip(image.astype(np.float64), lowest, 1) - lowest) * scale  # 0..255
        eight_bit = eight_bit and bool((np.abs(levels - np.rint(levels)) <= tolerance).all())
        target[...] = levels / 127.5 - 1
    if eight_bit:  # the floats were 8-bit images once: nothing is lost
        return np.rint((out + 1) * 127.5).astype(np.uint8), text + ", all on 8-bit grey levels"
    return out, text


def _deep(images, bits):
    """uint16 over the fewest bits that hold the values, or over as many as requested."""
    highest = int(images.max())
    if bits is None:
        bits = next(n for n in (8, 10, 12, 14, 16) if highest < 2**n)
        told = f"uint16 with levels up to {highest} read as {bits} bits" + (" (bits=16 for all)" if bits < 16 else "")
    elif highest >= 2**bits:
        raise ValueError(f"images have levels up to {highest}, more than bits={bits} hold; leave bits out")
    else:
        told = f"uint16 read as {bits} bits, as asked for"
    if bits == 8:
        return images.astype(np.uint8), told
    out = np.empty(images.shape, np.float32)
    for image, target in zip(images, out, strict=True):
        target[...] = image.astype(np.float64) * (2 / (2**bits - 1)) - 1  # pyright: ignore[reportIndexIssue]
    return out, told


def _advice(images, low: float, high: float) -> str:
    """How to bring these float images into range: half a sentence."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "remove NaN and infinity, with numpy.nan_to_num, and scale them"
    if low < 0:
        return f"divide them by {max(-low, high):g}, their largest magnitude"
    if high <= 255 and (high > 127 or (_whole(images) and high > 16)):
        return "divide them by 255, or by their largest value if that is not white"
    return f"divide them by {high:g}, their largest value"


def _whole(images) -> bool:
    return all((image == np.rint(image)).all() for image in images)


def read_npy(path: Path, limit: Limit = USUAL) -> np.ndarray:
    """The array of a .npy file. Pickled objects are never opened. Raises ValueError if the file is damaged."""
    where = printable(str(path))
    limit.check(path.stat().st_size, where)
    try:
        with open(path, "rb") as stream:
            return _parse_npy(stream, path.stat().st_size)
    except Exception as error:  # damaged headers make NumPy raise a dozen types of error, even SyntaxError
        check_memory(error)
        check_system(error)
        raise ValueError(f"{where} cannot be read ({first_line(error)}); save it again with numpy.save") from error


def read_npz(path: Path, limit: Limit = USUAL) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name. Pickled objects are never opened. Raises ValueError if the file is damaged."""
    import zipfile

    where = printable(str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
            total = sum(member.file_size for member in members)
            arrays: dict[str, np.ndarray] = {}
            for member in members if _fits(total, path, limit) else ():
                with archive.open(member) as stream:
                    arrays[member.filename.removesuffix(".npy")] = _parse_npy(stream, member.file_size)
    except Exception as error:  # as above, and zipfile and zlib add theirs
        check_memory(error)
        check_system(error)
        raise ValueError(f"{where} cannot be read ({first_line(error)}); save it again with numpy.savez") from error
    limit.check_unfolding(total, path.stat().st_size, where)
    return arrays


def _fits(size, path, limit) -> bool:
    """Whether this many bytes may be unpacked. The caller raises the error, outside its catch-all `except`."""
    try:
        limit.check_unfolding(size, path.stat().st_size, "")
    except ValueError:
        return False
    return True


def _parse_npy(stream, size: int) -> np.ndarray:
    """Reads NumPy's format, with lengths checked before anything is allocated: a false header cannot claim memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # headers written by Python 2 warn, and are read all the same
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"format version {version} holds structured data, not images")
        read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        try:
            shape, fortran, dtype = read_header(stream)
        except MemoryError as error:  # raised by Python's parser for deep nesting
            raise ValueError("its header is damaged, or there is no memory for it") from error
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects, which are never opened")
    expected, found = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if expected != found:
        raise ValueError(f"its header promises {expected} bytes of data, and there are {found}")
    data = stream.read(found)
    if len(data) != expected:
        raise ValueError(f"its header promises {expected} bytes of data, and there are {len(data)}")
    if dtype.kind == "U" and data:
        points = np.frombuffer(data, np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if points.max() > sys.maxunicode:  # NumPy would make strings that are invalid in Python
            raise ValueError("it holds text of numbers that are no characters")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")

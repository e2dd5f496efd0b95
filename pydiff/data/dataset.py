"""What every source becomes: images (N, H, W, C), labels or none, and a record of what was skipped or decided."""

import dataclasses
import json
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from pydiff import random
from pydiff.codec import Codec, Pixels, from_uint8
from pydiff.condition import Condition, Conditioning
from pydiff.data.held import as_array
from pydiff.data.pixels import resize, to_channels

# `split` draws from the data-order stream at an epoch that training never reaches, so it shares no numbers with it.
SPLIT_EPOCH = 2**32 - 1
FEW, LARGE_SIDE, BATCH = 500, 128, 64  # for hints


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images for training. `pydiff.data.load` makes one from a folder, a file or an array.

    Other kinds of samples have subclasses (points.py, clips.py), in which `images` holds the samples.

    name     what it was loaded from
    images   (N, H, W, C) uint8, or float32 in [-1, 1] where the source is finer than 8 bits; read-only; or
             stream.StreamedImages, which are decoded when they are needed
    labels   (N,) int64 in 0 .. len(classes) - 1, or None; read-only
    classes  the name of each class, or None
    skipped  (path, reason) of every file that could not be used, in order of path
    notes    what was decided for you: the size, the value range, the layout
    columns  {name: (N, ...)}: further arrays that a network may be given; read-only
    nothing  {name: one row (...)} of each column that means "nothing asked for", for classifier-free guidance
    captions   for each image a tuple of its captions, () if it has none; None: no image has any
    languages  for each caption its language, such as "en", "" if unknown; None: all are unknown
    """

    name: str
    images: Any  # ndarray, or StreamedImages
    labels: np.ndarray | None = None
    classes: list[str] | None = None
    skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    nothing: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    captions: Sequence[Sequence[str]] | None = None
    languages: Sequence[Sequence[str]] | None = None

    noun = "image"  # what one sample is called
    mirrors = True  # whether a mirrored sample is as valid

    def __post_init__(self):
        if not self.streamed:
            object.__setattr__(self, "images", _read_only(self._checked(self.images)))
        if (self.labels is None) != (self.classes is None):
            raise ValueError("labels and classes belong together: give both, or neither")
        if self.labels is not None:
            object.__setattr__(self, "labels", _read_only(_checked_labels(self.labels, len(self.images), self.classes)))
        columns = {name: _read_only(_checked_column(name, c, self)) for name, c in self.columns.items()}
        object.__setattr__(self, "columns", columns)
        captions, languages = _checked_captions(self.captions, self.languages, len(self.images))
        object.__setattr__(self, "captions", captions)
        object.__setattr__(self, "languages", languages)

    def __len__(self) -> int:
        return len(self.images)

    @staticmethod
    def _checked(samples) -> np.ndarray:
        """The samples as an array; raises ValueError for what this kind of data set cannot hold."""
        return _checked_images(samples)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image, (H, W, C)."""
        return self.images.shape[1:]

    @property
    def stream(self):
        """The StreamedImages that decodes the images on demand (stream.py); None if all are in memory."""
        return self.images if getattr(self.images, "streamed", False) else None

    @property
    def streamed(self) -> bool:
        """Whether the images are decoded on demand."""
        return self.stream is not None

    def usable(self, indices) -> np.ndarray:
        """The indices, with those of images that cannot be decoded replaced. Only a stream can have such images."""
        return self.images.usable(self._checked_indices(indices)) if self.streamed else np.asarray(indices)

    def in_memory(self) -> "Dataset":
        """The same data with all images decoded into memory."""
        return dataclasses.replace(self, images=self.images[:]) if self.streamed else self

    def ahead(self, indices):
        """Announces which images will be needed soon, so that a stream can decode them."""
        if self.streamed:
            self.images.ahead(self._checked_indices(indices))

    @property
    def codec(self) -> Codec:
        """The default codec for these samples."""
        return Pixels(self.shape)

    def resized(self, size=None, channels=None) -> "Dataset":
        """The same images at (height, width) `size` and with 1, 3 or 4 channels; None keeps what they have."""
        images = self.images if channels is None else to_channels(self.images, channels)
        images = images if size is None else resize(images, size)
        return self if images is self.images else dataclasses.replace(self, images=images)

    def coded(self, name: str = "auto") -> Codec:
        """The codec of this name for these samples; "auto" is `codec`. Raises ValueError for other kinds of samples."""
        if name != "auto":
            raise ValueError(f"codec {name!r} is for sounds, and {self.name} holds {self.noun}s; leave it out")
        return self.codec

    def samples(self, indices) -> np.ndarray:
        """The images with these indices (n,) in 0 .. N - 1 (else IndexError), as they are stored."""
        return self.images[self._checked_indices(indices)]

    @property
    def conditioning(self) -> Conditioning:
        """The Conditioning of a network that is given everything known about these images."""
        return Conditioning(self.classes, self.nothing)

    def condition(self, indices, conditioning: Conditioning | None = None, captions=None) -> Condition:
        """What is known about the images with these indices (n,), as a Condition: their classes and further columns.

        conditioning: which of it counts, all if None. captions: n of them, if conditioning has a text encoder.
        """
        indices = self._checked_indices(indices)
        labels = None if self.labels is None else self.labels[indices]
        columns = {name: column[indices] for name, column in self.columns.items()}
        return (self.conditioning if conditioning is None else conditioning).of_data(labels, columns, captions)

    def titles(self, indices) -> list[str] | None:
        """A line for each image with these indices: its first caption, else the name of its class, else "".

        None if the data set has neither.
        """
        if self.captions is None and self.classes is None:
            return None
        indices = self._checked_indices(indices)
        classes: list[str] = [""] * len(indices)
        if self.classes is not None and self.labels is not None:
            classes = [self.classes[label] for label in self.labels[indices]]
        if self.captions is None:
            return classes
        return [(*self.captions[i], c)[0] for i, c in zip(indices, classes, strict=True)]  # pyright: ignore[reportReturnType]

    def in_languages(self, languages: Sequence[str]) -> "Dataset":
        """The same images with only the captions in these languages, or in an unknown one.

        Raises ValueError if no caption is left.
        """
        if self.languages is None:
            return self
        kept = [[i for i, lang in enumerate(row) if not lang or lang in languages] for row in self.languages]
        if not any(kept):
            found = some(sorted({lang for row in self.languages for lang in row}), ", ", 5)
            raise ValueError(f"{self.name} has captions in {found} and none in {' or '.join(languages)}")
        parts = {
            name: tuple(tuple(row[i] for i in those) for row, those in zip(getattr(self, name), kept, strict=True))
            for name in ("captions", "languages")
        }
        return dataclasses.replace(self, **parts)

    def normalized(self, indices) -> np.ndarray:
        """The images with these indices (n,) in 0 .. N - 1 (else IndexError): (n, H, W, C) float32 in [-1, 1]."""
        picked = self.samples(indices)
        return from_uint8(picked) if picked.dtype == np.uint8 else picked

    def split(self, fraction: float, seed: int = 0) -> tuple["Dataset", "Dataset"]:
        """(rest, held out): a random `fraction` of the images is held out, at least 1 and at most N - 1.

        A pure function of N, fraction and seed; both parts keep the order of the images.
        """
        if not (isinstance(fraction, numbers.Real) and 0 < fraction < 1):
            raise ValueError(f"fraction is {fraction!r}, expected a number between 0 and 1; use for example 0.1")
        n = len(self)
        if n < 2:
            raise ValueError(f"cannot hold images out of {self.name}, which has only {n}; at least 2 are needed")
        count = min(max(round(n * fraction), 1), n - 1)
        order = random.permutation(seed, random.DATA, SPLIT_EPOCH, n)
        held, rest = np.sort(order[:count]), np.sort(order[count:])
        return self.subset(rest), dataclasses.replace(self.subset(held), name=f"{self.name} (held out)", skipped=[])

    def subset(self, indices) -> "Dataset":
        """A data set of the images with these indices, in this order; the classes are unchanged."""
        indices = self._checked_indices(indices)
        labels = None if self.labels is None else self.labels[indices]
        columns = {name: column[indices] for name, column in self.columns.items()}
        words = {name: getattr(self, name) for name in ("captions", "languages")}
        words = {name: None if w is None else tuple(w[i] for i in indices) for name, w in words.items()}
        images = self.images.part(indices) if self.streamed else self.images[indices]
        return dataclasses.replace(self, images=images, labels=labels, columns=columns, **words)

    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of shape, dtype, pixels, labels, columns and captions. For streamed images, their
        names, their sizes and the contents of some of them stand in for the pixels.

        A resumed run compares it to detect changed data.
        """
        import hashlib

        digest = hashlib.sha256(f"{self.images.dtype.name} {self.images.shape} {self.labels is not None}".encode())
        little_endian = self.images.dtype.newbyteorder("<")
        if self.streamed:
            digest.update(self.images.fingerprint().encode())
        for image in () if self.streamed else self.images:  # one at a time: no second copy of the data
            digest.update(np.ascontiguousarray(image, little_endian))
        if self.labels is not None:
            digest.update(self.labels.astype("<i8"))
        for name in sorted(self.columns):
            column = self.columns[name]
            digest.update(f"{name} {column.dtype.name} {column.shape}".encode())
            digest.update(np.ascontiguousarray(column, column.dtype.newbyteorder("<")))
        for words in (self.captions, self.languages):
            if words is not None:
                digest.update(json.dumps(words).encode())
        return digest.hexdigest()

    def summary(self) -> str:
        """A few lines of text: count, size, channels, classes, then what was decided and how much was skipped."""
        line = f"{self.name}: {self.kind()}, {self.images.dtype}"
        if self.classes is not None:
            line += f", {plural(len(self.classes), 'class', 'classes')}"
        lines = [line, *self.notes]
        if self.skipped:
            path, reason = self.skipped[0]
            lines.append(f"{plural(len(self.skipped), 'file')} skipped (first: {path}: {reason})")
        return "\n".join(lines)

    def kind(self) -> str:
        """The number of samples and what they are, as a phrase."""
        height, width, channels = self.shape
        return f"{plural(len(self), 'image')}, {height} x {width}, {colours(channels)}"

    def facts(self, count: int | None = None) -> dict[str, str]:
        """What a run's page says about the data: {term: description}. count: of samples, if these are only some."""
        height, width, channels = self.shape
        colour = {1: "grey", 3: "RGB", 4: "RGBA"}.get(channels, f"{channels} channels")
        return {"Images": f"{count or len(self):,}, {height} × {width}, {colour}"}

    def hints(self) -> list[str]:
        """Sentences of advice on training with this data."""
        height, width, _ = self.shape
        found = []
        if height % 4 or width % 4:
            below, above = max(min(height, width) // 8 * 8, 8), -(-max(height, width) // 8) * 8
            sizes = f"size={above}" if below == above else f"size={below} or size={above}"
            found.append(f"{height} x {width} cannot be halved twice, as a U-Net does; try {sizes}")
        if max(height, width) > LARGE_SIDE:
            found.append(f"{height} x {width} is slow without a GPU; size=64 shows sooner whether training works")
        return found + self._hints(compare="compare samples with the nearest images")

    def _hints(self, compare):
        found, count = [], plural(len(self), self.noun)
        if len(self) < FEW:
            found.append(f"{count} may be learned by heart; {compare}")
        batch = min(BATCH, len(self))
        found.append(f"a batch of {batch} sees every {self.noun} once in {plural(-(-len(self) // batch), 'step')}")
        return found

    def _checked_indices(self, indices) -> np.ndarray:
        indices = np.asarray(indices)
        if indices.ndim != 1 or not (indices.dtype.kind in "iu" or indices.size == 0):
            raise TypeError(f"got {indices.dtype} indices of shape {indices.shape}, expected integers of shape (n,)")
        if indices.size and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"indices run from {indices.min()} to {indices.max()}, expected 0 .. {len(self) - 1}")
        return indices.astype(np.int64)


def some(items: Sequence[str], separator: str, shown: int) -> str:
    """The first `shown` items, joined, and how many more there are."""
    rest = [f"and {len(items) - shown:,} more"] if len(items) > shown else []
    return separator.join([*items[:shown], *rest])


def colours(channels: int) -> str:
    """The channel count as a phrase, such as "3 channels (RGB)"."""
    return plural(channels, "channel") + {1: " (grey)", 3: " (RGB)", 4: " (RGBA)"}.get(channels, "")


def plural(count: int, singular: str, several: str | None = None) -> str:
    """The number with its noun: 1 file, 1,797 files."""
    return f"{count:,} {singular if count == 1 else several or singular + 's'}"


def _checked_images(images) -> np.ndarray:
    images = as_array(images)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images have shape {images.shape}, expected (N, H, W, C), each at least 1; reshape them")
    if images.dtype != np.uint8 and images.dtype != np.float32:
        raise ValueError(f"images are {images.dtype}, expected uint8 or float32; pydiff.data.load converts others")
    if images.dtype == np.float32 and not (images.min() >= -1 and images.max() <= 1):  # also catches NaN
        raise ValueError(f"images run from {images.min()} to {images.max()}, expected [-1, 1]; use pydiff.data.load")
    return images


def _checked_labels(labels, n: int, classes) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels are {labels.dtype} of shape {labels.shape}, expected integers of shape ({n},)")
    if not (labels.min() >= 0 and labels.max() < len(classes)):
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}, expected 0 .. {len(classes) - 1}")
    return labels.astype(np.int64, copy=False)


def _checked_column(name: str, column, dataset) -> np.ndarray:
    column = np.asarray(column)
    if column.ndim < 1 or len(column) != len(dataset.images) or column.dtype.kind not in "fiub":
        raise ValueError(
            f"column {name!r} is {column.dtype} {column.shape}, expected {len(dataset.images)} rows of numbers"
        )
    if name not in dataset.nothing or np.shape(dataset.nothing[name]) != column.shape[1:]:
        raise ValueError(
            f'column {name!r} needs a row of shape {column.shape[1:]} that says "nothing asked for"; '
            f"give it in nothing={{{name!r}: ...}}, for example zeros"
        )
    return column


def _checked_captions(captions, languages, n: int):
    """(captions, languages), each a tuple of tuples of strings or None; a single string is one caption."""
    if captions is None and languages is None:
        return None, None
    if captions is None or len(captions) != n or (languages is not None and len(languages) != n):
        raise ValueError(f"captions and languages belong together, one entry for each of {n} images")
    rows = tuple((row,) if isinstance(row, str) else tuple(row) for row in captions)
    if not all(isinstance(text, str) for row in rows for text in row):
        raise ValueError("an image's captions are a string or a sequence of strings")
    if languages is None or not any(lang for row in languages for lang in row):
        return rows, None
    languages = tuple((row,) if isinstance(row, str) else tuple(row) for row in languages)
    if [len(row) for row in languages] != [len(row) for row in rows]:
        raise ValueError("every caption has its language: as many languages as captions for each image")
    return rows, languages


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()  # the caller's own array stays writeable
    view.flags.writeable = False
    return view

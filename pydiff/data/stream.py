"""Data larger than memory: images are decoded on demand, by threads that work ahead of the training, into a cache of
limited size.

`StreamedImages` takes the place of a Dataset's array: the same indices give the same pixels. A file that cannot be
decoded when its turn comes is replaced by the next one, in order, that can be: a rule that all processes and all
resumed runs follow alike. docs/distributed.md, "Data larger than memory".
"""

import hashlib
import logging
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pydiff.data.asked import BITS, NOTHING_ASKED, Asked
from pydiff.data.dataset import Dataset, plural
from pydiff.data.folder import LARGEST_UNASKED
from pydiff.data.image import Decoded, Look, look, read_image
from pydiff.data.pixels import to_channels
from pydiff.data.places import places_of
from pydiff.printed import first_line, printable

THREADS = min(4, os.cpu_count() or 1)
LOOKED_AT = 64  # images that are examined at the start, and whose contents are in the fingerprint
GB = 1_000_000_000
MANY = 4096  # names that are hashed at a time


class StreamedImages:
    """(N, H, W, C) uint8, decoded on demand. Stands in for the array in a Dataset.

    places: data.places.Places. asked: with the size and channels that all images get. cache: bytes of pixels that are
    kept. part: (N,) numbers of the places that count, None for all. Attributes: failed, {name: reason} of what could
    not be decoded so far; waited, the seconds spent waiting for images that had not been decoded ahead.
    """

    streamed = True
    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, places, asked: Asked, cache, part=None):
        self.places, self.asked, self.cache = places, asked, cache
        self.numbers = np.arange(len(places)) if part is None else np.asarray(part)
        self.shape: Any = (len(self.numbers), *asked.size, asked.channels)  # pyright: ignore[reportOptionalIterable]
        self.failed, self.waited = {}, 0.0
        self.kept, self.ahead_of, self.recent = {}, {}, {}  # place -> pixels, a future, pixels of the last request
        self.room = int(cache // max(1, math.prod(self.shape[1:])))
        self.pool = None

    size = property(lambda self: int(np.prod(self.shape)))

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, indices):
        if isinstance(indices, slice):
            indices = np.arange(len(self))[indices]
        if np.ndim(indices) == 0:
            return self[np.array([indices])][0]
        chosen = self.usable(indices)
        return (
            np.stack([self.recent[self.numbers[i]] for i in chosen])
            if len(chosen)
            else np.empty((0, *self.shape[1:]), np.uint8)
        )

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def part(self, indices):
        """The images with these indices, as StreamedImages; nothing is decoded."""
        return StreamedImages(self.places, self.asked, self.cache, self.numbers[indices])

    def usable(self, indices):
        """The indices, with each one that cannot be decoded replaced by the next that can, cyclically. Raises
        ValueError if none can.
        """
        indices = np.asarray(indices)
        self._begin(self.numbers[np.unique(indices)])
        found, chosen = {}, []
        for index in indices.tolist():
            while (pixels := self._pixels(self.numbers[index], found)) is None:
                index = (index + 1) % len(self)
                if len(self.failed) >= len(self):
                    name, reason = next(iter(self.failed.items()))
                    raise ValueError(f"none of {len(self):,} images can be read (first: {name}: {reason})")
            chosen.append(index)
            found[self.numbers[index]] = pixels
        self.recent = found
        return np.array(chosen, np.int64)

    def ahead(self, indices):
        """Begins to decode images that will be needed soon."""
        self._begin(self.numbers[np.unique(indices)])

    def give_up(self, failed):
        """Excludes images that failed here or in another process, {name: reason}, from now on. Returns the same, sorted
        and printable.
        """
        self.failed |= failed
        return {printable(name): failed[name] for name in sorted(failed)}

    def fingerprint(self):
        """SHA-256 of names and sizes, and of the contents of up to LOOKED_AT images, evenly spread."""
        digest = hashlib.sha256()
        names, sizes = self.places.names, self.places.sizes
        for first in range(0, len(self), MANY):
            some = self.numbers[first : first + MANY].tolist()
            lines = "".join([f"{names[i]}\0{size}\n" for i, size in zip(some, sizes[some].tolist(), strict=True)])
            digest.update(lines.encode("utf-8", "surrogateescape"))
        for number in spread(self.numbers):
            try:
                data = self.places.read(number)
                data = data.read_bytes() if isinstance(data, Path) else data
            except (OSError, ValueError):
                data = b"cannot be read"
            digest.update(hashlib.sha256(data).digest())
        return digest.hexdigest()

    def _begin(self, places):
        if self.pool is None:
            self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="pydiff-images")
        for place in places.tolist():
            if place not in self.kept and place not in self.ahead_of and place not in self.recent:
                self.ahead_of[place] = self.pool.submit(self._decode, place)

    def _pixels(self, place, found):
        """The pixels at a place; None if they cannot be decoded."""
        if self.places.names[place] in self.failed:
            return None
        for known in (self.kept, self.recent, found):
            if place in known:
                return known[place]
        self._begin(np.array([place]))
        future = self.ahead_of.pop(place)
        began = time.perf_counter()
        result = future.result()
        self.waited += time.perf_counter() - began
        if isinstance(result, str):
            name = printable(self.places.names[place])
            self.failed[self.places.names[place]] = result
            logging.getLogger("pydiff").warning("%s cannot be used (%s); the next one takes its place", name, result)
            return None
        if len(self.kept) < self.room:
            self.kept[place] = result
        return result

    def _decode(self, place):
        """Pixels, or the reason why there are none."""
        image = decoded(self.places, place, self.asked)
        return image if isinstance(image, str) else to_channels(image.pixels, self.shape[3])


def decoded(places, number, asked: Asked) -> Decoded | str:
    """One image, or the reason why it cannot be used."""
    top = None if asked.bits is None else 2**asked.bits - 1
    try:
        return read_image(places.read(number), asked.size, top, asked.limit, places.frame(number))  # pyright: ignore[reportArgumentType]
    except (OSError, ValueError) as error:
        return f"cannot be read ({first_line(error)})"


def spread(numbers):
    """Up to LOOKED_AT of these numbers, evenly spread, including the first and the last."""
    count = min(LOOKED_AT, len(numbers))
    return [numbers[i] for i in np.unique(np.linspace(0, len(numbers) - 1, count).round().astype(int))] if count else []


def load_streamed(path: Path, cache_gb: float, asked: Asked = NOTHING_ASKED) -> Dataset:
    """A Dataset whose images stay on disk: a folder, a .zip, .tar or .parquet file, or a folder of these files.

    Images, labels and notes are those of data in memory, as far as they can be known without reading everything:
    without a size, it takes the common size of the images examined; without channels, those that these need; deep grey
    needs `bits`. Raises ValueError for data that cannot be streamed.
    """
    where = printable(str(path))
    asked.only(where, "pages", "split", "bits")
    places = places_of(path, asked)
    looked = spread(np.arange(len(places)))
    headers = [_header(places, number, asked.limit) for number in looked]
    if asked.bits is None and (deep := max((seen.top for seen in headers if seen), default=0)):
        fit = next((n for n in BITS if deep < 2**n), 16)
        raise ValueError(
            f"{where} holds grey levels up to {deep}; streamed data need bits, for example bits={fit} (--bits {fit})"
        )
    asked = asked._replace(size=asked.size or _common_size(headers, where))
    found = [decoded(places, number, asked) for number in looked]
    broken = [(places.names[n], reason) for n, reason in zip(looked, found, strict=True) if isinstance(reason, str)]
    if 2 * len(broken) > len(looked):
        name, reason = broken[0]
        raise ValueError(
            f"{len(broken)} of {len(looked)} images looked at in {where} cannot be used (first: "
            f"{printable(name)}: {reason}); remove or repair them"
        )
    needed = max(image.pixels.shape[-1] for image in found if isinstance(image, Decoded))
    asked = asked._replace(channels=asked.channels or needed)
    notes = [
        f"streamed: at most {cache_gb:g} GB of decoded images are kept; size and channels were read from "
        f"{plural(len(looked), 'image')}, and a resumed run compares names, lengths and the contents of those"
    ]
    if any(seen.deep_colour for seen in headers if seen):
        notes.append("some images have colours of more than 8 bits a channel, which are reduced to 8 bits")
    if asked.pages != "all" and any(seen.frames > 1 for seen in headers if seen):
        notes.append("of files with several pages or frames the first is taken (pages='all' takes all)")
    said = places.said()
    skipped = sorted(places.skipped + said.skipped)
    images = StreamedImages(places, asked, cache_gb * GB)
    notes += [*places.notes, *said.notes]
    return Dataset(printable(path.name or str(path)), images, said.labels, said.classes, skipped, notes, **said.words)


def _header(places, number, limit) -> Look | None:
    try:
        return look(places.read(number), limit)
    except (OSError, ValueError):
        return None


def _common_size(headers, where):
    sizes = {seen.size for seen in headers if seen}
    if len(sizes) != 1 or max(next(iter(sizes))) > LARGEST_UNASKED:
        found = "of several sizes" if len(sizes) > 1 else "too large to be taken as they are" if sizes else "unreadable"
        raise ValueError(f"the images in {where} are {found}; streamed data need a size, for example size=64")
    return sizes.pop()

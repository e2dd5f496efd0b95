"""Data larger than memory: images that are decoded when a step needs them, by threads that work ahead of it, into a
cache that has an end.

`StreamedImages` stands where a Dataset has its array: the same indices give the same pixels. A file that cannot be
decoded when its turn comes is replaced by the next one, in order, that can: a rule that every process and every
resumed run follows alike. docs/distributed.md, "Data larger than memory".
"""

import hashlib
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from pydiff.data import captions as words
from pydiff.data.arrays import class_labels
from pydiff.data.asked import BITS, Asked
from pydiff.data.dataset import Dataset, plural
from pydiff.data.folder import labels_of
from pydiff.data.limits import USUAL
from pydiff.data.parquet import _captions, _labels
from pydiff.data.picture import Picture, look, read_picture
from pydiff.data.pixels import to_channels
from pydiff.data.places import Files, Rows, places_of, told_beside
from pydiff.printed import printable

THREADS = min(4, os.cpu_count() or 1)
LOOKED_AT = 64  # images that are decoded at the start, and whose contents are in the fingerprint
LARGEST_UNASKED = 256  # pixels of a side
GB = 1_000_000_000


class StreamedImages:
    """(N, H, W, C) uint8, decoded when asked for. A stand-in for the array in a Dataset.

    places: data.places.Places. size: (H, W). channels: 1, 3 or 4. cache: bytes of pixels that are kept. part: (N,)
    numbers of the places that count, None for all. decode: of a number, what `decoded` gives.
    Attributes: failed, {name: reason} of what could not be decoded so far; waited, seconds that were spent on waiting
    for images that nobody had decoded ahead.
    """

    streamed = True
    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, places, size, channels, cache, part=None, decode=None):
        self.places, self.cache = places, cache
        self.decode = partial(decoded, places, size=size) if decode is None else decode
        self.numbers = np.arange(len(places)) if part is None else np.asarray(part)
        self.shape = (len(self.numbers), *size, channels)
        self.failed, self.waited = {}, 0.0
        self.kept, self.ahead_of, self.recent = {}, {}, {}  # place -> pixels, a future, pixels of the last request
        self.room = int(cache // max(1, size[0] * size[1] * channels))
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
        """Those with these indices, still undecoded."""
        numbers = self.numbers[indices]
        return StreamedImages(self.places, self.shape[1:3], self.shape[3], self.cache, numbers, self.decode)

    def usable(self, indices):
        """The indices with those that cannot be decoded replaced: by the next after them that can, the first following
        the last. ValueError where none can.
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
        """Begins to decode images that will soon be asked for."""
        self._begin(self.numbers[np.unique(indices)])

    def fingerprint(self):
        """SHA-256 of names and sizes, and of the contents of up to LOOKED_AT images, evenly spread."""
        digest = hashlib.sha256()
        for number in self.numbers:
            digest.update(
                f"{self.places.names[number]}\0{self.places.sizes[number]}\n".encode("utf-8", "surrogateescape")
            )
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
        """The pixels at a place, None if they cannot be had."""
        for known in (self.kept, self.recent, found):
            if place in known:
                return known[place]
        if self.places.names[place] in self.failed:
            return None
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
        picture = self.decode(place)
        return picture if isinstance(picture, str) else to_channels(picture.pixels, self.shape[3])


def decoded(places, number, size, top=65535, limit=USUAL) -> Picture | str:
    """One image, or the reason why it cannot be used. top, limit: as for `read_picture`."""
    try:
        return read_picture(places.read(number), size, top, limit)
    except (OSError, ValueError) as error:
        return f"cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__})"


def spread(numbers):
    """Up to LOOKED_AT of these, evenly spread, the first and the last among them."""
    count = min(LOOKED_AT, len(numbers))
    return [numbers[i] for i in np.unique(np.linspace(0, len(numbers) - 1, count).round().astype(int))] if count else []


def load_streamed(path: Path, asked: Asked, cache_gb) -> Dataset:
    """A Dataset whose images stay where they are: a folder, .zip, .tar or .parquet file, or a folder of these files.

    asked.size: (height, width); None: the size that the images looked at have in common. asked.channels: None: what the
    images looked at need. asked.bits: of deep grey, has to be given, since it cannot be looked up in them all.
    ValueError, in one sentence, for data that cannot be used so.
    """
    asked.only("what is streamed (cache_gb)", "pages", "split", "bits")
    if asked.pages == "all":
        raise ValueError("streamed pictures are the first page of every file; leave out pages, or cache_gb")
    places, shown = places_of(path, asked), printable(str(path))
    if not len(places):
        raise ValueError(f"{shown} holds no pictures")
    looked = spread(np.arange(len(places)))
    looks = [found for number in looked if (found := _look(places, number, asked.limit)) is not None]
    size = _common_size({found.size for found in looks}, shown) if asked.size is None else asked.size
    top, depth_notes = _depth(looks, asked.bits)
    decode = partial(decoded, places, size=size, top=top, limit=asked.limit)
    found = [decode(number) for number in looked]
    broken = [(places.names[n], reason) for n, reason in zip(looked, found, strict=True) if isinstance(reason, str)]
    if 2 * len(broken) > len(looked):
        name, reason = broken[0]
        raise ValueError(
            f"{len(broken)} of {len(looked)} pictures looked at in {shown} cannot be used (first: "
            f"{printable(name)}: {reason}); remove or repair them"
        )
    channels = asked.channels or max(picture.pixels.shape[-1] for picture in found if isinstance(picture, Picture))
    notes = [
        f"streamed: at most {cache_gb:g} GB of decoded pictures are kept; size and channels were read from "
        f"{plural(len(looked), 'picture')}, and a resumed run compares names, lengths and the contents of those"
    ]
    notes += places.notes + depth_notes
    labels, classes, more = _told(places, notes)
    images = StreamedImages(places, size, channels, cache_gb * GB, decode=decode)
    return Dataset(printable(path.name or str(path)), images, labels, classes, places.skipped, notes, **more)


def _look(places, number, limit):
    try:
        return look(places.read(number), limit)
    except (OSError, ValueError):
        return None


def _depth(looks, bits):
    """(what white is in grey deeper than 8 bits, notes on depths and pages), from the pictures looked at."""
    highest = max((found.top for found in looks), default=0)
    if highest and bits is None:
        fit = next((n for n in BITS if highest < 2**n), 16)
        raise ValueError(
            f"some of these pictures have grey deeper than 8 bits, those looked at up to {highest}; streamed data "
            f"have to be told how many bits are used, for example bits={fit} (--bits {fit})"
        )
    notes = [f"deep grey read as {bits} bits, as asked for"] if highest else []
    if any(found.deep_colour for found in looks):
        notes.append("some pictures have colours of more than 8 bits a channel, which are reduced to 8 bits")
    if any(found.frames > 1 for found in looks):
        notes.append("of files with several pages or frames the first is taken")
    return (2**bits - 1 if bits else 65535), notes


def _common_size(sizes, shown):
    """The one size of the pictures looked at. ValueError where there is none, or where it is large."""
    if len(sizes) != 1 or max(next(iter(sizes))) > LARGEST_UNASKED:
        found = "of several sizes" if len(sizes) > 1 else "too large to be taken as they are" if sizes else "unreadable"
        raise ValueError(f"the pictures in {shown} are {found}; streamed data need a size, for example size=64")
    return sizes.pop()


def _told(places, notes):
    """(labels, classes, captions as keywords of a Dataset) of images in folders or with files beside them."""
    more = {}
    if isinstance(places, Files):
        labels, classes, class_notes = labels_of(places.names)
        notes += class_notes
        captions = words.find_captions(places.root, places.names, places.texts)
        if captions is not None:
            more, caption_notes = words.columns([captions.of[path] for path in places.names], places.names)
            notes += caption_notes + captions.notes
        return labels, classes, more
    if isinstance(places, Rows):
        table, rows = places.facts(), list(range(len(places)))
        labels, classes = _labels(table, rows)
        captions, problems = _captions(table, rows)
        more, caption_notes = words.columns(captions, places.names)
        notes += caption_notes + problems
        return labels, classes, more
    names, captions = told_beside(places)
    if captions is not None:
        more = {"captions": [(caption,) if caption else () for caption in captions]}
    if names is not None:
        labels, classes = class_labels(np.array(names), len(names))
        return labels, classes, more
    labels, classes, _ = labels_of(places.names) if not places.beside and "/" in places.names[0] else (None, None, [])
    return labels, classes, more

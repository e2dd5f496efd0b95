"""A folder of pictures: finds them, chooses size and channel count from the data, and skips what is broken."""

import os
import warnings
from functools import partial
from pathlib import Path

import numpy as np

from pydiff.data import captions as words
from pydiff.data.dataset import Dataset, plural, printable
from pydiff.data.picture import SUFFIXES, Picture, read_picture, read_size
from pydiff.data.pixels import check_room, to_channels

THREADS = min(4, os.cpu_count() or 1)  # decoders run outside the interpreter lock; each may hold one large picture
LARGEST_UNASKED = 256  # a common size above this is reduced unless size= asks for it
REDUCED = (8, 64)  # bounds of the side that is chosen for pictures of mixed or large size


def load_folder(root: Path, size: tuple[int, int] | None = None, channels: int | None = None) -> Dataset:
    """All pictures under `root`, in order of path; the class is the first folder below the one that all pictures share.

    size      (height, width): each picture is resized by its shorter side and cropped in the middle. None: the common
              size if there is one (up to 256 a side), else a square of 8 to 64 a side that suits the smaller pictures
    channels  1, 3 or 4; None: 1 if every picture is grey, 4 if any has transparency, else 3

    Captions are found where captions.py says, beside class folders or without them.
    Files with the suffix of a picture that cannot be read are skipped and listed; other and hidden files are ignored.
    Raises ValueError if no picture is left, or if more than half are broken.
    """
    if channels not in (None, 1, 3, 4):
        raise ValueError(f"channels is {channels!r}, expected 1 (grey), 3 (RGB), 4 (RGBA) or None; leave it out")
    paths, texts, skipped = find_files(root)
    found, images, notes = read_pictures(root, {path: root / path for path in paths}, size, channels, skipped)
    labels, classes, class_notes = labels_of(found)
    notes += class_notes
    more, captions = {}, words.find_captions(root, paths, texts)
    if captions is not None:
        more, caption_notes = words.columns([captions.of[path] for path in found], found)
        notes += caption_notes + captions.notes
        skipped = sorted(skipped + captions.skipped)
    return Dataset(root.name or str(root), images, labels, classes, skipped, notes, **more)


def read_pictures(
    where: Path,
    sources: dict[str, Path | bytes],
    size: tuple[int, int] | None,
    channels: int | None,
    skipped: list[tuple[str, str]],
) -> tuple[list[str], np.ndarray, list[str]]:
    """(names of the usable ones, their pixels (N, H, W, C), notes) of pictures by name: files, or their contents.

    Adds the others to `skipped`. where: what they come from, for messages. size, channels: as for load_folder.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of large sizes, which are checked here, and of odd metadata
        pictures, target, notes = _read_all(sources, size, skipped)
    if len(skipped) > len(pictures):
        path, reason = skipped[0]
        raise ValueError(
            f"{len(skipped)} of {len(skipped) + len(pictures)} pictures in {where} cannot be used "
            f"(first: {path}: {reason}); remove or repair them"
        )
    if not pictures:
        raise ValueError(f"{where} holds no pictures; expected files such as .png or .jpg in it or in its subfolders")
    if small := sum(h < target[0] or w < target[1] for _, (h, w) in pictures.values()):
        notes.append(f"{plural(small, 'picture')} smaller than {target[0]} x {target[1]} enlarged")
    images, channel_notes = _stack([picture.pixels for picture in pictures.values()], channels)
    return list(pictures), images, notes + channel_notes


def find_files(root: Path, suffixes=SUFFIXES) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """(pictures, texts, skipped): paths below `root` with one of these suffixes, and of files that may hold captions,
    each sorted, and the (path, reason) of folders that cannot be listed.

    Follows links to folders, but enters each folder once, so that a loop of links ends.
    """
    found, texts, skipped, entered, waiting = [], [], [], set(), [""]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            names = sorted(os.listdir(root / folder), reverse=True)  # popped from the end: first name first
        except OSError as error:
            skipped.append((printable(folder) or ".", f"folder cannot be listed ({error.strerror})"))
            continue
        for name in names:
            path = f"{folder}/{name}" if folder else name
            if name.startswith(".") or name == "__MACOSX":  # hidden, or the droppings of an archiver
                continue
            if os.path.isdir(root / path):
                waiting.append(path)
            elif os.path.splitext(name)[1].lower() in suffixes:
                found.append(path)
            elif name.lower() in words.METADATA or name.lower().endswith(".txt"):
                texts.append(path)
    return *(sorted(paths, key=lambda path: path.split("/")) for paths in (found, texts)), skipped


def _read_all(sources, size, skipped) -> tuple[dict[str, Picture], tuple[int, int], list[str]]:
    """The usable pictures by path, their size and notes; adds the others to `skipped`."""
    notes, sizes = [], [s for s in each(read_size, sources, "looking") if s] if size is None else []
    pictures: dict[str, Picture] = {}
    target = size or _choose_size(sizes, notes)
    check_room(len(sources), target, 2)  # one by one, and then all in one array; of one channel at least
    while True:
        results = dict(zip(sources, each(partial(read_picture, size=target), sources, "reading"), strict=True))
        pictures = {path: result for path, result in results.items() if isinstance(result, Picture)}
        skipped += [(printable(path), result) for path, result in results.items() if isinstance(result, str)]
        skipped.sort()
        notes.clear()
        # Headers of broken files and rotations can mislead the first choice; the second sees the true sizes and stands.
        better = size or _choose_size([picture.size for picture in pictures.values()], notes)
        if better == target or not pictures:
            return pictures, target, notes
        target, sources = better, {path: sources[path] for path in pictures}


def each(function, sources: dict[str, Path | bytes], verb: str, unit: str = "picture") -> list:
    """function(source) of every source, in order, on a few threads, with a progress bar after a second."""
    from concurrent.futures import ThreadPoolExecutor  # which brings logging with it

    from tqdm import tqdm

    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(function, sources.values())
        return list(tqdm(results, verb, len(sources), unit=unit, delay=1, disable=None, leave=False))


def _choose_size(sizes: list[tuple[int, int]], notes: list[str]) -> tuple[int, int]:
    """(height, width) for pictures of these sizes; adds a note unless it is simply the size of them all."""
    if not sizes:
        return REDUCED[0], REDUCED[0]
    if len(set(sizes)) == 1 and max(sizes[0]) <= LARGEST_UNASKED:
        return sizes[0]
    shorter = sorted(min(pair) for pair in sizes)
    # The tenth percentile: a few thumbnails do not shrink everything, and few pictures need enlarging.
    # Multiples of 8 can be halved three times.
    side = min(max(shorter[len(shorter) // 10] // 8 * 8, REDUCED[0]), REDUCED[1])
    (h0, w0), (h1, w1) = min(sizes), max(sizes)
    found = f"all {h0} x {w0}" if len(set(sizes)) == 1 else f"of {len(set(sizes))} sizes, {h0} x {w0} to {h1} x {w1}"
    notes.append(f"pictures are {found}; resized and cropped to {side} x {side}, pass size= for another size")
    return side, side


def _stack(pictures: list[np.ndarray], channels: int | None) -> tuple[np.ndarray, list[str]]:
    """(N, H, W, C) with the channel count asked for, or the largest that any picture needs."""
    counts = [picture.shape[-1] for picture in pictures]
    chosen, notes = channels or max(counts), []
    if channels is None and chosen == 4 and min(counts) < 4:
        few = plural(counts.count(4), "picture")
        notes.append(f"{few} with transparency, so all have 4 channels; pass channels=3 to lay them on white")
    elif channels is None and chosen == 3 and 1 in counts:
        notes.append(f"{plural(counts.count(1), 'grey picture')} read as RGB like the others")
    return np.stack([to_channels(picture, chosen) for picture in pictures]), notes


def labels_of(paths: list[str], noun: str = "picture") -> tuple[np.ndarray | None, list[str] | None, list[str]]:
    """Labels (N,), class names and notes. Pictures beside the class folders, or a single folder, mean no classes."""
    folders = [path.split("/")[:-1] for path in paths]
    levels = zip(*folders, strict=False)
    shared = next((depth for depth, names in enumerate(levels) if len(set(names)) > 1), min(map(len, folders)))
    if all(len(folder) == shared for folder in folders):
        return None, None, []
    loose = sum(len(folder) == shared for folder in folders)
    if loose:
        return None, None, [f"no classes: {plural(loose, noun)} beside the subfolders, not in one"]
    names = [folder[shared] for folder in folders]
    classes = sorted(set(names))
    ranks = {name: rank for rank, name in enumerate(classes)}
    return np.array([ranks[name] for name in names], np.int64), [printable(name) for name in classes], []

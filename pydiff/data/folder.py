"""A folder of images, or an archive, as listed by listing.py: size and channel count are chosen from the data, and
broken images are skipped.
"""

import os
import warnings
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from pydiff.data import captions as words
from pydiff.data.asked import NOTHING_ASKED, Asked
from pydiff.data.classes import class_labels, divided, natural, renumbered, undivided
from pydiff.data.dataset import Dataset, plural
from pydiff.data.image import Decoded, look, read_frames
from pydiff.data.listing import Found, files_in
from pydiff.data.pixels import check_room, to_channels
from pydiff.data.unreadable import notes_on
from pydiff.printed import first_line, printable

THREADS = min(4, os.cpu_count() or 1)  # decoders run outside the interpreter lock; each may hold one large image
LARGEST_UNASKED = 256  # a common size above this is reduced unless size= asks for it
REDUCED = (8, 64)  # bounds of the side that is chosen for images of mixed or large size


def load_folder(root, asked: Asked = NOTHING_ASKED) -> Dataset:
    """All images under `root`, in order of path; the class is the first folder below the one that all images share.

    asked.size: each image is resized by its shorter side and cropped in the middle. None: the common size if there is
    one (up to 256 a side), else a square of 8 to 64 a side that suits the smaller images. asked.channels: 1, 3 or 4;
    None: 1 if every image is grey, 4 if any has transparency, else 3.

    Captions are read as captions.py describes, with or without class folders. If the first folders are called train,
    val and test, train is taken. Files with the suffix of an image that cannot be read are skipped and listed; others
    are counted. Raises ValueError if no image is left, or if more than half are broken.
    """
    found = files_in(root)
    if not found.images:
        told = "".join(f"; {note}" for note in notes_on(found.others + found.texts, found.thumbnails))
        raise ValueError(
            f"{printable(str(root))} holds no images; expected files such as .png or .jpg in it or in its "
            f"subfolders{told}"
        )
    paths, split_notes = divided(found.images, asked.split, printable(str(root)))
    skipped = found.skipped
    names, images, notes = read_images(root, _sources(root, paths, skipped), asked, skipped)
    said = said_of(root, names, paths, found)
    notes = [*split_notes, *notes, *said.notes]
    skipped = sorted(skipped + said.skipped)
    return Dataset(printable(root.name or str(root)), images, said.labels, said.classes, skipped, notes, **said.words)


def _sources(root, paths, skipped) -> dict:
    """{path: a readable file or contents}; damaged members of an archive are added to `skipped`."""
    sources = {}
    for path in paths:
        try:
            sources[path] = root / path
        except (OSError, ValueError) as error:
            skipped.append((printable(path), f"damaged ({first_line(error)})"))
    return sources


class Said(NamedTuple):
    """What folders and files say about N images. labels: (N,), or None. words: captions as keywords of a Dataset."""

    labels: np.ndarray | None
    classes: list[str] | None
    words: dict
    notes: list[str]
    skipped: list[tuple[str, str]]


def said_of(root, names: list[str], paths: list[str], found: Found) -> Said:
    """See Said. names: of the images that are used. paths: of all images found, which a text may refer to."""
    told = words.find_captions(root, paths, found.texts)
    of_file = [path_of(name) for name in names] if told is not None else []
    if told is not None and all(path in told.classes for path in of_file):
        labels, classes = class_labels(np.array([told.classes[path] for path in of_file]), len(names))
        class_notes = renumbered(classes)
    else:
        inside = root.inside if hasattr(root, "inside") else str
        labels, classes, class_notes = labels_of([inside(name) for name in names])
        if classes is None and not class_notes and (could := labels_of([inside(p) for p in paths])[1]):
            class_notes = [f"no classes: of {len(could)} folders, images of one alone can be used"]
        if told is not None and told.classes:
            told.notes[:] = [note for note in told.notes if not note.startswith(words.CLASSES_FROM)]
            class_notes.append(f"{plural(len(told.classes), 'image')} with a class in a file, not all")
    notes = [*class_notes, *notes_on(found.others, found.thumbnails, found.empty, found.again)]
    if told is None:
        return Said(labels, classes, {}, notes, [])
    more, caption_notes = words.columns([told.of[path] for path in of_file], names)
    return Said(labels, classes, more, notes + caption_notes + told.notes, told.skipped)


FRAME = "\0frame "  # between the path of a file and the number of a frame: no path holds a NUL


def path_of(name: str) -> str:
    """The path of the file that holds the image of this name."""
    return name.split(FRAME)[0]


def read_images(where, sources: dict, asked: Asked, skipped: list[tuple[str, str]]) -> tuple[list, np.ndarray, list]:
    """(names of the usable images, their pixels (N, H, W, C), notes) of sources by name: files, contents, Pillow
    images.

    Adds the others to `skipped`. where: what they come from, for messages. The frames of one file are named by its
    path, FRAME and a number.
    """
    where = printable(str(where))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of large sizes, which are checked here, and of odd metadata
        decoded, target, notes = _read_all(sources, asked, skipped)
    if len(skipped) > len(decoded):
        path, reason = skipped[0]
        raise ValueError(
            f"{len(skipped)} of {len(skipped) + len(decoded)} images in {where} cannot be used "
            f"(first: {path}: {reason}); remove or repair them"
        )
    if small := sum(h < target[0] or w < target[1] for _, (h, w) in decoded.values()):
        notes.append(f"{plural(small, 'image')} smaller than {target[0]} x {target[1]} enlarged")
    images, channel_notes = _stack([image.pixels for image in decoded.values()], asked.channels)
    return list(decoded), images, notes + channel_notes


def _read_all(sources, asked, skipped) -> tuple[dict[str, Decoded], tuple[int, int], list[str]]:
    """({name: usable image}, their size, notes); adds the others to `skipped`."""
    looks = dict(zip(sources, each(partial(look, limit=asked.limit), sources, "looking"), strict=True))
    top, deep_notes = read_depth([found.top for found in looks.values() if found and found.top], asked.bits)
    several = {name: found.frames for name, found in looks.items() if found and found.frames > 1}
    most = None if asked.pages == "all" else 1
    notes: list[str] = []
    target = asked.size or _choose_size([found.size for found in looks.values() if found], notes)
    decoded: dict[str, Decoded] = {}
    while True:
        total = sum(found.frames if most is None else 1 for found in looks.values() if found)
        check_room(max(total, 1), target, 2)  # 2 bytes: the images and the one array, at least one channel
        asked.limit.check(total * target[0] * target[1] * 8, f"{plural(total, 'image')} of {target[0]} x {target[1]}")
        reader = partial(read_frames, size=target, top=top, limit=asked.limit, most=most)
        results = dict(zip(sources, each(reader, sources, "reading"), strict=True))
        decoded = {}
        for path, result in results.items():
            if isinstance(result, str):
                skipped.append((printable(path), result))
            else:
                decoded |= {f"{path}{FRAME}{i}" if i else path: frame for i, frame in enumerate(result)}
        skipped.sort()
        notes.clear()
        # Headers of broken files and rotations can mislead the first choice; the second sees the true sizes and is
        # final.
        better = asked.size or _choose_size([image.size for image in decoded.values()], notes)
        if better == target or not decoded:
            break
        sources = {path: source for path, source in sources.items() if not isinstance(results[path], str)}
        target = better
    notes += deep_notes
    if deep := sum(found.deep_colour for found in looks.values() if found):
        notes.append(f"{plural(deep, 'image')} with colours of more than 8 bits a channel reduced to 8 bits")
    if asked.size and (other := sum(image.size != target for image in decoded.values())):
        notes.append(f"{plural(other, 'image')} of another size resized and cropped to {target[0]} x {target[1]}")
    if several:
        frames = plural(sum(several.values()), "frame")
        how = "all taken" if most is None else "of which the first is taken (pages='all' takes all)"
        notes.append(f"{plural(len(several), 'file')} with {frames}, {how}")
    return decoded, target, notes


def read_depth(tops: list[int], bits: int | None) -> tuple[int, list[str]]:
    """(the value of white in grey deeper than 8 bits, notes), from the fewest bits that hold the largest value."""
    if not tops:
        return 65535, [f"bits={bits} changes nothing: no image has grey of more than 8 bits"] if bits else []
    if bits is not None:
        return 2**bits - 1, [f"{plural(len(tops), 'image')} of deep grey read as {bits} bits, as asked for"]
    highest = max(tops)
    bits = next((n for n in (8, 10, 12, 14, 16) if highest < 2**n), 16)
    if bits == 16:
        return 65535, [f"{plural(len(tops), 'image')} of deep grey read as 16 bits"]
    advice = f"white is {2**bits - 1} (bits=16 makes it 65535)"
    return 2**bits - 1, [
        f"{plural(len(tops), 'image')} of deep grey with levels up to {highest}, so read as {bits} bits: {advice}"
    ]


def each(function, sources: Mapping, verb: str, unit: str = "image") -> list:
    """[function(source) for every source], in order, on a few threads, with a progress bar after a second."""
    from concurrent.futures import ThreadPoolExecutor  # imported here, as it imports logging

    from tqdm import tqdm

    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(function, sources.values())
        return list(tqdm(results, verb, len(sources), unit=unit, delay=1, disable=None, leave=False))


def _choose_size(sizes: list[tuple[int, int]], notes: list[str]) -> tuple[int, int]:
    """(height, width) for images of these sizes; adds a note unless that is the size of all of them."""
    if not sizes:
        return REDUCED[0], REDUCED[0]
    if len(set(sizes)) == 1 and max(sizes[0]) <= LARGEST_UNASKED:
        return sizes[0]
    shorter = sorted(min(pair) for pair in sizes)
    # The tenth percentile: a few thumbnails do not shrink everything, and few images need enlarging.
    # Multiples of 8 can be halved three times.
    side = min(max(shorter[len(shorter) // 10] // 8 * 8, REDUCED[0]), REDUCED[1])
    (h0, w0), (h1, w1) = min(sizes), max(sizes)
    found = f"all {h0} x {w0}" if len(set(sizes)) == 1 else f"of {len(set(sizes))} sizes, {h0} x {w0} to {h1} x {w1}"
    notes.append(f"images are {found}; resized and cropped to {side} x {side}, pass size= for another size")
    return side, side


def _stack(images: list[np.ndarray], channels: int | None) -> tuple[np.ndarray, list[str]]:
    """(the images (N, H, W, C) with the requested channels, or the largest count that any image needs; notes)."""
    counts = [image.shape[-1] for image in images]
    chosen, notes = channels or max(counts), []
    if channels is None and chosen == 4 and min(counts) < 4:
        few = plural(counts.count(4), "image")
        notes.append(
            f"{few} with transparency, so all have 4 channels; channels=3 in pydiff.data.load, image_channels=3 in "
            "train (--image-channels 3) lay them on white"
        )
    elif channels is None and chosen == 3 and 1 in counts:
        notes.append(f"{plural(counts.count(1), 'grey image')} read as RGB like the others")
    elif channels is not None and (other := sum(count != channels for count in counts)):
        notes.append(f"{plural(other, 'image')} with another number of channels made {channels}, as asked for")
    return np.stack([to_channels(image, chosen) for image in images]), notes


def labels_of(paths: list[str], noun: str = "image") -> tuple[np.ndarray | None, list[str] | None, list[str]]:
    """Labels (N,), class names and notes. Images beside the class folders, or a single folder, mean that there are no
    classes. Folders called train, val and test are not classes.
    """
    within = [path.rpartition("/")[0] for path in undivided(paths)]
    counts = Counter(within)
    folders = {folder: folder.split("/") if folder else [] for folder in counts}
    levels = zip(*folders.values(), strict=False)
    deepest = min(map(len, folders.values()))
    shared = next((depth for depth, names in enumerate(levels) if len(set(names)) > 1), deepest)
    if all(len(parts) == shared for parts in folders.values()):
        return None, None, []
    loose = sum(counts[folder] for folder, parts in folders.items() if len(parts) == shared)
    if loose:
        return None, None, [f"no classes: {plural(loose, noun)} beside the subfolders, not in one"]
    names = {folder: parts[shared] for folder, parts in folders.items()}
    classes = sorted(set(names.values()), key=natural)
    ranks = {name: rank for rank, name in enumerate(classes)}
    ranks = {folder: ranks[name] for folder, name in names.items()}
    return (
        np.fromiter((ranks[folder] for folder in within), np.int64, len(within)),
        [printable(name) for name in classes],
        renumbered(classes),
    )

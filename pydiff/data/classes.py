"""Classes of images: their names in the order that people count in, their numbers, and folders that divide the data.

A class is known by its name. Inside, classes are numbered from 0 in the order of their names; where names look like
numbers and are not these (labels 1 .. 3), that is said, and whoever asks for "1" gets the class of that name.
"""

import re

import numpy as np

from pydiff.data.dataset import plural
from pydiff.printed import printable

_SPLIT = re.compile(
    r"(?:(?P<train>train|training)|(?P<val>val|valid|validation|dev|eval)|(?P<test>test|testing))"
    r"(?:[ _-]?(?:images?|imgs?|data|set|split|\d{2,4}))?",
    re.IGNORECASE,
)


def natural(name: str) -> list:
    """A key for sorting: numbers in names count as numbers, so that class10 comes after class9."""
    parts = re.split(r"([0-9]+)", name)
    digits = [part.lstrip("0") for part in parts[1::2]]
    keys: list = [(part,) for part in parts]
    keys[1::2] = [(len(number), number) for number in digits]
    return [*keys, (name,)]


def class_labels(labels, n: int) -> tuple[np.ndarray, list[str]]:
    """((n,) int64 in 0 .. K - 1, the K class names), from n integers or strings; classes are in natural order."""
    labels = np.asarray(labels)
    if labels.shape == (n, 1):
        labels = labels[:, 0]
    if labels.shape != (n,):
        raise ValueError(f"labels have shape {labels.shape}, expected ({n},); for one-hot rows use .argmax(axis=1)")
    if labels.dtype.kind not in "iubUS":
        raise ValueError(f"labels are {labels.dtype}, expected integers or strings; convert them with .astype(int)")
    values, ranks = np.unique(labels, return_inverse=True)
    names = [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value) for value in values]
    if labels.dtype.kind in "US":
        order = sorted(range(len(names)), key=lambda i: natural(names[i]))
        place = np.empty(len(names), np.int64)
        place[order] = np.arange(len(names))
        ranks, names = place[ranks.reshape(-1)], [names[i] for i in order]
    return ranks.astype(np.int64).reshape(n), names


def renumbered(classes: list[str] | None) -> list[str]:
    """A note where names look like numbers and classes have other numbers inside."""
    if not classes or not all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in classes):
        return []
    if classes == [str(i) for i in range(len(classes))]:
        return []
    shown = ", ".join(map(printable, classes[:5])) + (", .." if len(classes) > 5 else "")
    return [f"the classes are called {shown}, and numbered 0 .. {len(classes) - 1} inside: labels are their names"]


def divided(paths: list[str], split: str | None, where: object) -> tuple[list[str], list[str]]:
    """(the paths that count, notes) of images in folders called train, val and test, or of others.

    split: which of them; None is train. ValueError for a split that is not there.
    """
    kinds = _kinds(paths)
    if kinds is None:
        if split not in (None, "all"):
            raise ValueError(f"{where} has no folders called train, val or test; leave out split={split!r}")
        return paths, []
    if split == "all":
        depth = len(next(iter(kinds)).split("/"))
        return paths, [f"train, val and test folders taken together: {_told(_counted(paths, kinds, depth))}"]
    wanted = split or "train"
    if wanted not in kinds.values():
        found = sorted(set(kinds.values()))
        raise ValueError(f"{where} has folders for {', '.join(found)}, and none for {wanted}; use split={found[0]!r}")
    depth = len(next(iter(kinds)).split("/"))
    counts = _counted(paths, kinds, depth)
    kept = [path for path in paths if kinds[_upto(path, depth)] == wanted]
    left = {folder: count for folder, count in counts.items() if kinds[folder] != wanted}
    taken = _told({folder: count for folder, count in counts.items() if kinds[folder] == wanted})
    return kept, [f"{taken} taken; left out: {_told(left)} (split='all' takes all)"] if left else []


def _kinds(paths: list[str]) -> dict[str, str] | None:
    """{folder: "train", "val" or "test"} of all folders at the first level where there are several."""
    folders = [folder.split("/") if folder else [] for folder in {path.rpartition("/")[0] for path in paths}]
    shared = 0
    while all(len(f) > shared for f in folders) and len({f[shared] for f in folders}) == 1:
        shared += 1
    if not folders or not all(len(f) > shared for f in folders):
        return None
    kinds = {"/".join(f[: shared + 1]): _kind(f[shared]) for f in folders}
    return kinds if None not in kinds.values() and "train" in kinds.values() and len(kinds) > 1 else None  # pyright: ignore[reportReturnType]


def _kind(name: str) -> str | None:
    match = _SPLIT.fullmatch(name)
    return None if match is None else match.lastgroup


def _counted(paths, kinds, depth) -> dict[str, int]:
    counts = dict.fromkeys(kinds, 0)
    for path in paths:
        counts[_upto(path, depth)] += 1
    return counts


def _upto(path, depth) -> str:
    """The folders of a path down to this depth."""
    return "/".join(path.split("/", depth)[:depth])


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{printable(folder)}/ ({plural(count, 'image')})" for folder, count in sorted(counts.items()))

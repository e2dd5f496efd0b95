"""Classes of images: their names in natural order, their numbers, and folders that divide the data into parts.

A class is identified by its name. Internally, classes are numbered from 0 in the order of their names. If names look
like numbers and differ from these (labels 1 .. 3), a note says so, and "1" means the class of that name.
"""

import re
from collections.abc import Set

import numpy as np

from pydiff.data.dataset import plural
from pydiff.data.held import as_array
from pydiff.printed import printable

_SPLIT = re.compile(
    r"(?:(?P<train>train|training)|(?P<val>val|valid|validation|dev|eval)|(?P<test>test|testing))"
    r"(?:[ _-]?(?:images?|imgs?|data|set|split|\d{2,4}))?",
    re.IGNORECASE,
)


def natural(name: str) -> tuple:
    """A sort key that compares numbers in names as numbers, so that class10 comes after class9."""
    parts = re.split(r"([0-9]+)", name)
    digits = [part.lstrip("0") for part in parts[1::2]]
    keys: list = [(part,) for part in parts]
    keys[1::2] = [(len(number), number) for number in digits]
    return keys, name


def class_labels(labels, n: int) -> tuple[np.ndarray, list[str]]:
    """((n,) int64 in 0 .. K - 1, the K class names), from n integers or strings; classes are in natural order."""
    labels = _plain_labels(labels)
    if labels.shape == (n, 1):
        labels = labels[:, 0]
    if labels.ndim == 2:
        raise ValueError(f"labels have shape {labels.shape}, expected ({n},); for one-hot rows use .argmax(axis=1)")
    if labels.shape != (n,):
        raise ValueError(f"labels have shape {labels.shape}, expected ({n},); give one for each image")
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.floor(labels)):
        odd = labels[~(labels == np.floor(labels))][0]
        raise ValueError(f"labels are {labels.dtype}, and {odd} is no whole number; classes are integers or strings")
    if labels.dtype.kind == "f":
        raise ValueError(f"labels are {labels.dtype}, expected integers or strings; convert them with .astype(int)")
    if labels.dtype.kind not in "iubUS":
        raise ValueError(f"labels are {labels.dtype}, expected integers or strings; convert them")
    values, ranks = np.unique(labels, return_inverse=True)
    names = [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value) for value in values]
    if labels.dtype.kind in "US":
        order = sorted(range(len(names)), key=lambda i: natural(names[i]))
        place = np.empty(len(names), np.int64)
        place[order] = np.arange(len(names))
        ranks, names = place[ranks.reshape(-1)], [names[i] for i in order]
    return ranks.astype(np.int64).reshape(n), names


def _plain_labels(labels) -> np.ndarray:
    """Labels as an array. Object arrays, as pandas has them, must hold only strings or only integers."""
    if isinstance(labels, str | bytes | Set):
        raise ValueError(f"labels are a {type(labels).__name__}, expected a list or an array with one for each image")
    labels = as_array(labels, "labels")
    if labels.dtype.kind != "O":
        return labels
    values = labels.ravel().tolist()
    kinds = {str if isinstance(v, str) else type(v) for v in values}
    if kinds == {str} or (kinds and all(issubclass(kind, int | np.integer) for kind in kinds)):
        return np.array(values).reshape(labels.shape)
    named = [str if isinstance(v, str) else type(v) for v in values]
    at = named.index(min(kinds, key=named.count))  # the rarest kind
    raise ValueError(
        f"label number {at} is {values[at]!r}, and the labels are {', '.join(sorted(k.__name__ for k in kinds))}; "
        "give all integers or all strings"
    )


def named_labels(labels, names, where: str):
    """(labels, a note): labels 0 .. K - 1 replaced by their K names; the labels unchanged if the names do not fit."""
    labels, names = _plain_labels(labels), _plain_labels(names)
    if names.ndim != 1 or names.dtype.kind not in "US" or labels.dtype.kind not in "iu" or not labels.size:
        return labels, f"not used: {where} {names.shape} {names.dtype}, which are no names of these labels"
    if not (labels.min() >= 0 and labels.max() < len(names)) or len(np.unique(names)) < len(names):
        return labels, f"not used: {where}, {len(names)} names for labels from {labels.min()} to {labels.max()}"
    return names[labels], f"the classes are called what {where} says"


def renumbered(classes: list[str] | None) -> list[str]:
    """A list with one note if class names look like numbers and differ from the internal ones, else an empty list."""
    if not classes or not all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in classes):
        return []
    if classes == [str(i) for i in range(len(classes))]:
        return []
    shown = ", ".join(map(printable, classes[:5])) + (", .." if len(classes) > 5 else "")
    return [f"the classes are called {shown}, and numbered 0 .. {len(classes) - 1} inside: labels are their names"]


def divided(paths: list[str], split: str | None, where: object, noun="image") -> tuple[list[str], list[str]]:
    """(the paths that count, notes): those in the chosen one of the folders train, val and test; all if there are no
    such folders.

    split: which of them; None is train. noun: what is at a path. Raises ValueError if the split does not exist.
    """
    kinds = _kinds(paths)
    if kinds is None:
        if split not in (None, "all"):
            raise ValueError(f"{where} has nothing called train, val or test; leave out split={split!r}")
        return paths, []
    depth = len(next(iter(kinds)).split("/"))
    if split == "all":
        return paths, [f"train, val and test taken together: {_told(_counted(paths, kinds, depth), noun)}"]
    wanted = split or "train"
    if wanted not in kinds.values():
        found = sorted(set(kinds.values()))
        raise ValueError(f"{where} has {', '.join(found)}, and no {wanted}; use split={found[0]!r}")
    counts = _counted(paths, kinds, depth)
    kept = [path for path in paths if kinds[_upto(path, depth)] == wanted]
    left = {folder: count for folder, count in counts.items() if kinds[folder] != wanted}
    taken = _told({folder: count for folder, count in counts.items() if kinds[folder] == wanted}, noun)
    return kept, [f"{taken} taken; left out: {_told(left, noun)} (split='all' takes all)"] if left else []


def undivided(paths: list[str]) -> list[str]:
    """The same paths without the folders train, val and test that divide the data, which are not classes."""
    kinds = _kinds(paths)
    if kinds is None:
        return paths
    at = len(next(iter(kinds)).split("/")) - 1
    parts = [path.split("/") for path in paths]
    return ["/".join(part[:at] + part[at + 1 :]) for part in parts]


def _kinds(paths: list[str]) -> dict[str, str] | None:
    """{folder: "train", "val" or "test"} of all folders at the first level where every folder has such a name, at least
    two names differ, and each parent folder has a train; None if there is no such level.
    """
    folders = [folder.split("/") if folder else [] for folder in {path.rpartition("/")[0] for path in paths}]
    for depth in range(min(map(len, folders), default=0)):
        kinds = {"/".join(f[: depth + 1]): kind_of(f[depth]) for f in folders}
        if None not in kinds.values() and len({f[depth].lower() for f in folders}) > 1:
            trained = {folder.rpartition("/")[0] for folder, kind in kinds.items() if kind == "train"}
            above = {folder.rpartition("/")[0] for folder in kinds}
            return kinds if trained == above else None  # pyright: ignore[reportReturnType]
    return None


def kind_of(name: str) -> str | None:
    """Which part of divided data a folder of this name holds: "train", "val" or "test"; None for other names."""
    match = _SPLIT.fullmatch(name)
    return None if match is None else match.lastgroup


def _counted(paths, kinds, depth) -> dict[str, int]:
    counts = dict.fromkeys(kinds, 0)
    for path in paths:
        counts[_upto(path, depth)] += 1
    return counts


def _upto(path, depth) -> str:
    """The first `depth` folders of a path."""
    return "/".join(path.split("/", depth)[:depth])


def _told(counts: dict[str, int], noun: str) -> str:
    return ", ".join(f"{printable(folder)}/ ({plural(count, noun)})" for folder, count in sorted(counts.items()))

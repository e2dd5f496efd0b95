"""What a run knows about its data: where they are, how to recognise them, and a few samples in case they are missing.

origin = Origin.of(dataset, "~/pics")       at the start of a training
origin.load()                               the same data again; ValueError if they have changed
origin.samples                              a Dataset of a few of them, kept with the run
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pydiff.data.dataset import Dataset, plural
from pydiff.printed import expanded, printable

LONG, FEW = 500, 8  # kept with the samples: characters of a name or caption, captions per sample
KEPT, KEPT_BYTES = 36, 4 << 20  # samples kept with a run: as many as the page shows, up to this many bytes


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the data of one run come from.

    name: what the data are called. path: their absolute path, or None for arrays and what pydiff ships. count, shape:
    the number and the shape of the samples. fingerprint: see `Dataset.fingerprint`. samples: a few of them, or None.
    What is not known is None, or "" for the name.
    """

    name: str = ""
    path: str | None = None
    count: int | None = None
    shape: tuple[int, ...] | None = None
    fingerprint: str | None = None
    samples: Dataset | None = None

    @classmethod
    def of(cls, dataset: Dataset, source) -> "Origin":
        """The Origin of a data set that was loaded from `source`, anything that `pydiff.data.load` takes."""
        path = None
        if isinstance(source, str | os.PathLike) and (found := expanded(source)).exists():
            path = os.fspath(found.absolute())
        count, size = len(dataset), max(1, dataset.samples([0]).nbytes)
        kept = max(1, min(count, KEPT, KEPT_BYTES // size))
        samples = dataset.subset(np.unique(np.linspace(0, count - 1, kept).round().astype(np.int64))).in_memory()
        return cls(printable(dataset.name), path, count, tuple(dataset.shape), dataset.fingerprint(), samples)

    def load(self, read: Callable[[object], Dataset], given=None) -> Dataset:
        """The data again. read: loads them from a source as they were loaded then. given: where they are now, if moved.

        Raises ValueError if they are missing, or if other data are found.
        """
        source = self.path or self.name if given is None else given
        if given is None and (not self.name or (self.path is None and os.path.exists(self.name))):
            raise ValueError(f"it is not known where {self.described()} are; say it: data= (--data)")
        try:
            dataset = read(source)
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(
                f"{self.described()} cannot be had from {source} ({error}); say where they are: data= (--data)"
            ) from error
        if self.fingerprint is not None and dataset.fingerprint() != self.fingerprint:
            found = f"{plural(len(dataset), 'sample')} {_shape(dataset.shape)}"
            raise ValueError(
                f"{source} has other data now ({found}) than {self.described()}; say where those are: data= (--data)"
            )
        return dataset

    def namesake(self) -> str:
        """A sentence on another file of the data's name in the current folder, which is not used instead; or ""."""
        if self.path is None or not os.path.exists(name := os.path.basename(self.path)):
            return ""
        with contextlib.suppress(OSError):
            if os.path.samefile(name, self.path):
                return ""
        return f"{printable(name)} in this folder is another one than {printable(self.path)}, and is not used"

    def described(self) -> str:
        """The data in a few words: "the 4 samples 16 x 16 x 3 of 'pics'"."""
        if self.count is None:
            return f"the training data {self.name!r}" if self.name else "the training data"
        return f"the {plural(self.count, 'training sample')} {_shape(self.shape)} of {self.name!r}"

    def to_config(self, place: bool = True) -> dict:
        """A dict for JSON, without the samples. place: whether to include the path of the data."""
        named = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "samples"}
        if not place:
            del named["path"]
        elif self.path is not None and printable(self.path) != self.path:  # not valid text, as on old disks
            named |= {"path": None, "path_bytes": os.fsencode(self.path).hex()}
        return named | {"shape": None if self.shape is None else list(self.shape)}

    @classmethod
    def from_config(cls, config: Mapping, samples: Dataset | None = None) -> "Origin":
        """The Origin that `to_config` described. Raises ValueError for a config that it cannot have written."""
        given: dict[str, Any] = {}
        for name, (kind, expected) in _RULES.items():
            value = config.get(name) if isinstance(config, Mapping) else config
            if value is not None and not kind(value):
                raise ValueError(f"the origin of the data has {name} = {value!a:.40}, expected {expected}")
            given |= {} if value is None else {name: value}
        if "path_bytes" in given:
            given["path"] = os.fsdecode(bytes.fromhex(given.pop("path_bytes")))
        given["shape"] = None if given.get("shape") is None else tuple(given["shape"])
        return cls(**given, samples=samples)


def to_files(samples: Dataset) -> tuple[dict[str, np.ndarray], dict]:
    """(arrays, JSON) of a small data set: its images and classes, and the first few captions of each."""
    arrays, classes = {"images": samples.images}, None
    if samples.labels is not None:
        used, arrays["labels"] = np.unique(samples.labels, return_inverse=True)
        classes = [samples.classes[label][:LONG] for label in used]  # pyright: ignore[reportOptionalSubscript]
    words = {"name": printable(samples.name), "classes": classes, "kind": samples.noun}
    words["more"] = {name: getattr(samples, name) for name in _further(type(samples))}
    for name in _WORDS:
        rows = getattr(samples, name)
        words[name] = None if rows is None else [[text[:LONG] for text in row[:FEW]] for row in rows]
    return arrays, words


def from_files(arrays: Mapping[str, np.ndarray], words: Mapping) -> Dataset:
    """The data set that `to_files` was given, without its columns of numbers. Raises ValueError for kinds of data that
    do not exist here.
    """
    kinds = {cls.noun: cls for cls in (Dataset, *Dataset.__subclasses__())} | {"picture": Dataset}  # as 0.1 called it
    if words["kind"] not in kinds:
        raise ValueError(f"its samples are of the kind {words['kind']!a:.40}, which this pydiff does not know")
    kind = kinds[words["kind"]]
    more = {name: words["more"][name] for name in _further(kind)} | {name: words[name] for name in _WORDS}
    return kind(words["name"], arrays["images"], arrays.get("labels"), words["classes"], **more)


def _further(kind) -> list[str]:
    """Fields that this kind of data set has in addition to those of Dataset."""
    return sorted({f.name for f in dataclasses.fields(kind)} - {f.name for f in dataclasses.fields(Dataset)})


_RULES = {
    "name": (lambda v: isinstance(v, str), "text"),
    "path": (lambda v: isinstance(v, str), "text"),
    "path_bytes": (lambda v: isinstance(v, str) and re.fullmatch("([0-9a-f]{2})+", v), "bytes in hexadecimal"),
    "count": (lambda v: type(v) is int and v > 0, "a number"),
    "shape": (lambda v: isinstance(v, list) and all(type(n) is int and n > 0 for n in v), "a list of numbers"),
    "fingerprint": (lambda v: isinstance(v, str), "text"),
}
_WORDS = ("captions", "languages")


def _shape(shape) -> str:
    return " x ".join(map(str, shape))

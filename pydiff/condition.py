"""What a network is told besides x and t: class labels, the vectors of a text, masks. The lecture's second context.

    condition = conditioning.rows(numbers, labels=[3, 7])     what a user asks for, as arrays
    f = model(x, t, **condition)                              what a network sees
    condition.null(), condition.drop(where)                   nothing asked for: for classifier-free guidance

Nobody else counts classes, knows an empty prompt, or looks at these arrays.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pydiff.arrays import array_module

LABELS = "class_labels"  # the name under which diffusers' networks take classes


class Condition(Mapping):
    """Named arrays with N rows each, one row a sample; a mapping, so that `**condition` gives them to a network.

    arrays: {name: (N, ...)}, none of them for an unconditional network. nothing: {name: one row (...)} that says
    "nothing asked for"; names that are missing there have no such row, and then guidance is not possible.
    rows: N, for a condition without arrays. ValueError for unequal numbers of rows.
    """

    __slots__ = ("_arrays", "_nothing", "rows")

    def __init__(self, arrays: Mapping = (), nothing: Mapping = (), rows: int | None = None):
        self._arrays, self._nothing = dict(arrays), dict(nothing)
        counts = {len(a) for a in self._arrays.values()} | ({rows} if rows is not None else set())
        if len(counts) > 1:
            shapes = ", ".join(f"{name} {np.shape(a)}" for name, a in self._arrays.items())
            raise ValueError(f"a condition has one row a sample in every array, got {shapes} for {rows} samples")
        self.rows = counts.pop() if counts else 0

    def __getitem__(self, name):
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def has_null(self) -> bool:
        """Whether there is something to leave out, and a row that says so for all of it."""
        return bool(self._arrays) and self._arrays.keys() <= self._nothing.keys()

    def take(self, indices) -> "Condition":
        """The condition of these samples, in this order."""
        taken = {name: a[indices] for name, a in self._arrays.items()}
        return Condition(taken, self._nothing, len(np.arange(self.rows)[indices]))

    def null(self) -> "Condition":
        """The same number of rows, all of them saying "nothing asked for". ValueError where nothing says that."""
        return self.drop(np.ones(self.rows, bool))

    def drop(self, where) -> "Condition":
        """The rows where the mask (N,) is True replaced by the null ones. ValueError where there is no such row."""
        if not self.has_null and self._arrays:
            missing = ", ".join(sorted(self._arrays.keys() - self._nothing.keys()))
            raise ValueError(f"this model was never shown samples without {missing}, so guidance cannot leave it out")
        dropped = {}
        for name, a in self._arrays.items():
            mask = array_module(a).asarray(where).reshape((-1,) + (1,) * (a.ndim - 1))
            dropped[name] = array_module(a).where(mask, array_module(a).asarray(self._nothing[name]), a)
        return Condition(dropped, self._nothing, self.rows)

    def to(self, xp) -> "Condition":
        """With the floats on the device of this library; integers stay on the host, where networks look them up."""
        moved = {n: xp.asarray(a) if a.dtype.kind == "f" else a for n, a in self._arrays.items()}
        return Condition(moved, self._nothing, self.rows)

    def __repr__(self):
        return (
            f"Condition({', '.join(f'{n} {a.dtype} {a.shape}' for n, a in self.items()) or 'none'}; {self.rows} rows)"
        )


class Conditioning:
    """What kind of condition a model was trained with, and how a user's words become a Condition.

    classes: the classes' names, or None. nothing: {name: row} of further arrays, such as the states of a text encoder
    (T, C), each with the row that says "nothing asked for". withheld: whether classes were withheld now and then in
    training, for which the table of class vectors has one row more; without it guidance is not possible.
    """

    def __init__(self, classes: Sequence[str] | None = None, nothing: Mapping = (), withheld: bool = True):
        self.classes = None if classes is None else list(classes)
        self.withheld = withheld
        self.nothing = {name: np.asarray(row) for name, row in dict(nothing).items()}

    @property
    def empty(self) -> bool:
        """Whether the model is told nothing but x and t."""
        return self.classes is None and not self.nothing

    @property
    def embeddings(self) -> int | None:
        """Rows of a table of class vectors: one for each class and, the last, one for "class withheld"; or None."""
        return None if self.classes is None else len(self.classes) + self.withheld

    def rows(self, numbers, labels=None, condition: Mapping | None = None) -> Condition:
        """The condition of the samples with these numbers (N,).

        labels: class numbers or names (N,); None lets the classes take turns by the samples' numbers. condition: the
        further arrays by name, (N, ...) each; those left out are null. ValueError, in one sentence, for what does not
        fit.
        """
        n, given = len(numbers), dict(condition or {})
        arrays = self._label_rows(numbers, labels)
        unknown = sorted(given.keys() - self.nothing.keys())
        if unknown:
            known = ", ".join(self.nothing) or "none"
            raise ValueError(f"this model takes no condition {unknown[0]!r}; it takes {known}")
        for name, row in self.nothing.items():
            array = np.asarray(given[name]).astype(row.dtype) if name in given else np.repeat(row[None], n, 0)
            if len(array) != n or array.ndim != row.ndim + 1 or array.shape[2:] != row.shape[1:]:
                raise ValueError(f"{name} must have shape ({n}, {', '.join(map(str, row.shape))}), got {array.shape}")
            arrays[name] = array
        return Condition(arrays, self._null_rows(), n)

    def nothing_asked(self, n: int) -> Condition:
        """The condition of n samples of which nothing is asked."""
        return self.rows(np.zeros(n, np.int64)).null()

    def of_data(self, labels, columns: Mapping) -> Condition:
        """The condition of a data set: its labels (N,) or None, and its further arrays."""
        arrays = {} if self.classes is None else {LABELS: labels}
        return Condition(arrays | {name: columns[name] for name in self.nothing}, self._null_rows())

    def _null_rows(self):
        has_row = self.classes is not None and self.withheld
        return ({LABELS: np.int64(len(self.classes))} if has_row else {}) | self.nothing

    def _label_rows(self, numbers, labels):
        if self.classes is None:
            if labels is not None:
                raise ValueError("this model was trained without classes, so labels cannot be given")
            return {}
        count, n = len(self.classes), len(numbers)
        labels = numbers % count if labels is None else np.asarray(labels)
        if labels.dtype.kind == "U":
            labels = np.array([self.number_of(str(name)) for name in labels.ravel()]).reshape(labels.shape)
        if labels.shape != (n,) or labels.dtype.kind not in "iu" or not ((labels >= 0) & (labels < count)).all():
            raise ValueError(f"labels must be {n} whole numbers from 0 to {count - 1}, got {labels!r}")
        return {LABELS: labels}

    def number_of(self, name: str) -> int:
        """The class with this name, or with this number where no class is called so. ValueError for neither."""
        classes = self.classes or []
        if name in classes:
            return classes.index(name)
        if name.isdecimal() and int(name) < len(classes):
            return int(name)
        known = ", ".join(classes[:8]) + (", .." if len(classes) > 8 else "")
        raise ValueError(f"there is no class {name!r}; choose one of {known} or a number below {len(classes)}")

    def to_config(self) -> dict:
        """For JSON; `from_config` of it is an equal conditioning."""
        rows = {name: {"dtype": row.dtype.name, "row": row.tolist()} for name, row in self.nothing.items()}
        return {"classes": self.classes, "nothing": rows, "withheld": self.withheld}

    @classmethod
    def from_config(cls, config) -> "Conditioning":
        """The conditioning that `to_config` described."""
        rows = {name: np.array(r["row"], r["dtype"]) for name, r in config.get("nothing", {}).items()}
        return cls(config.get("classes"), rows, config.get("withheld", True))

"""What a network is given besides x and t: class labels, text embeddings, masks. The lecture's second context.

    condition = conditioning.rows(numbers, labels=[3, 7])     what a user asks for, as arrays
    conditioning.rows(numbers, prompts=["a cat", "a dog"])    the same in words
    f = model(x, t, **condition)                              what a network sees
    condition.null(), condition.drop(where)                   nothing asked for: for classifier-free guidance

No other module counts classes, recognises an empty prompt, or looks inside these arrays. Conditions are vectors, which
can be added and subtracted: embed("man firefighter") - embed("man") + embed("woman").
"""

import functools
import operator
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pydiff import text
from pydiff.arrays import array_module
from pydiff.mistakes import callers_level
from pydiff.printed import meant, printable, spelled

_NUMBER = re.compile(r"-?[0-9]{1,18}")  # a name that looks like a number
LABELS = "class_labels"  # the name under which diffusers' networks take classes


NONE: Mapping = {}  # never written to


class Condition(Mapping):
    """Named arrays with N rows each, one row per sample; a mapping, so that `**condition` passes them to a network.

    arrays: {name: (N, ...)}, empty for an unconditional network. nothing: {name: one row (...)} that means "nothing
    asked for"; an array whose name is missing here has no such row, which rules out guidance. rows: N, needed if there
    are no arrays. Raises ValueError for unequal numbers of rows.
    """

    __slots__ = ("_arrays", "_nothing", "rows")

    def __init__(self, arrays: Mapping = NONE, nothing: Mapping = NONE, rows: int | None = None):
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
        """Whether there are arrays, and all of them have a row that means "nothing asked for"."""
        return bool(self._arrays) and self._arrays.keys() <= self._nothing.keys()

    def take(self, indices) -> "Condition":
        """The condition of the samples with these indices, in this order."""
        taken = {name: a[indices] for name, a in self._arrays.items()}
        return Condition(taken, self._nothing, len(np.arange(self.rows)[indices]))

    def null(self) -> "Condition":
        """The same number of rows, all meaning "nothing asked for". Raises ValueError if an array has no such row.

        Each is as long as the null row, whatever the length of the context it replaces.
        """
        self._check_null()
        rows = {}
        for name, a in self._arrays.items():
            row = array_module(a).asarray(self._nothing[name], a.dtype)
            rows[name] = array_module(a).repeat(row[None], self.rows, axis=0)
        return Condition(rows, self._nothing, self.rows)

    def drop(self, where) -> "Condition":
        """The rows where the mask (N,) is True replaced by null rows. Raises ValueError if an array has no null row."""
        self._check_null()
        dropped = {}
        for name, a in self._arrays.items():
            mask = array_module(a).asarray(where).reshape((-1,) + (1,) * (a.ndim - 1))
            dropped[name] = array_module(a).where(mask, array_module(a).asarray(self._nothing[name]), a)
        return Condition(dropped, self._nothing, self.rows)

    def repeat(self, n: int) -> "Condition":
        """A condition of one row repeated n times; one of n rows is returned as it is. Raises ValueError for others."""
        return self if self.rows == n else self._only_row().take(np.zeros(n, np.int64))

    def against(self, other: "Condition") -> "Condition":
        """This condition with the only row of another in place of its null row.

        Guidance then leads away from that row, as from a negative prompt.
        """
        row = other._only_row()
        return Condition(self._arrays, self._nothing | {name: a[0] for name, a in row.items()}, self.rows)

    def _only_row(self):
        if self.rows != 1:
            raise ValueError(f"this takes a condition of one row, and there are {self.rows}")
        return self

    def __add__(self, other):
        return self._combine(other, operator.add)

    def __sub__(self, other):
        return self._combine(other, operator.sub)

    def __mul__(self, factor: float):
        scaled = {n: a * a.dtype.type(factor) if a.dtype.kind == "f" else a for n, a in self._arrays.items()}
        return Condition(scaled, self._nothing, self.rows)

    __rmul__ = __mul__

    def _combine(self, other, operation):
        """Combines floats by `operation`, masks by "or". Integers, such as classes, have no sum: they must be equal."""
        if not isinstance(other, Condition):
            return NotImplemented
        if {n: a.shape for n, a in self.items()} != {n: a.shape for n, a in other.items()}:
            raise ValueError(f"{self} and {other} cannot be added or subtracted: they are of different kinds")
        arrays = {}
        for name, a in self.items():
            if a.dtype.kind in "iu" and not np.array_equal(a, other[name]):
                raise ValueError(f"{name} differ, and they are no vectors that could be added or subtracted")
            rule = {"f": operation, "b": operator.or_}.get(a.dtype.kind, lambda a, _: a)
            arrays[name] = rule(a, other[name])
        return Condition(arrays, self._nothing, self.rows)

    def _check_null(self):
        if not self.has_null and self._arrays:
            missing = ", ".join(sorted(self._arrays.keys() - self._nothing.keys()))
            raise ValueError(f"this model was never shown samples without {missing}, so guidance cannot leave it out")

    def to(self, xp) -> "Condition":
        """Moves floats and masks to this library's device; integers stay on the host, where networks look them up."""
        moved = {n: xp.asarray(a) if a.dtype.kind in "fb" else a for n, a in self._arrays.items()}
        return Condition(moved, self._nothing, self.rows)

    def __repr__(self):
        return (
            f"Condition({', '.join(f'{n} {a.dtype} {a.shape}' for n, a in self.items()) or 'none'}; {self.rows} rows)"
        )


class Conditioning:
    """What kind of condition a model was trained with, and how what a user asks for becomes a Condition.

    classes: the classes' names, or None. nothing: {name: row} of further arrays, each with the row that means "nothing
    asked for". encoder: the TextEncoder that turns prompts into arrays, or None; it provides its own null rows.
    withheld: whether classes were sometimes withheld in training, in which case the class embedding table has one more
    row; otherwise guidance is not possible.
    """

    def __init__(
        self, classes: Sequence[str] | None = None, nothing: Mapping = NONE, encoder=None, withheld: bool = True
    ):
        self.classes = None if classes is None else list(classes)
        self.encoder, self.withheld = encoder, withheld
        self.given = {name: np.asarray(row) for name, row in dict(nothing).items()}

    @property
    def nothing(self) -> dict[str, np.ndarray]:
        """{name: the row that means "nothing asked for"} of all arrays. An encoder's row changes as it is trained."""
        return self.given if self.encoder is None else self.given | self.encoder.null()

    @property
    def empty(self) -> bool:
        """Whether the model is given nothing but x and t."""
        return self.classes is None and not self.given and self.encoder is None

    @property
    def embeddings(self) -> int | None:
        """Rows of the class embedding table: one per class, and the last for "class withheld" if there is one; None
        without classes.
        """
        return None if self.classes is None else len(self.classes) + self.withheld

    def rows(self, numbers, labels=None, condition=None, prompts=None, negative_prompt=None) -> Condition:
        """The condition of the samples with these numbers (N,), one row each.

        labels: class numbers or names (N,); None lets the classes take turns by the samples' numbers. condition: the
        further arrays by name, (N, ...) each, or a Condition of N rows or one, such as `embed` returns; missing arrays
        are null. prompts: N of them, or one for all, see `embed`. negative_prompt: what guidance leads away from, in
        place of "nothing asked for". Raises ValueError for labels, names or shapes that do not fit.
        """
        n = len(numbers)
        if not isinstance(condition, Mapping | None):
            raise TypeError(f"condition is {condition!r:.60}, expected a dict of arrays, or a Condition")
        given = dict(condition.repeat(n) if isinstance(condition, Condition) else condition or {})
        if prompts is not None:
            given |= self.embed(prompts).repeat(n)
        rows = self._rows(numbers, labels, given)
        return rows if negative_prompt is None else rows.against(self.embed(negative_prompt))

    def _rows(self, numbers, labels, given):
        n = len(numbers)
        arrays = self._label_rows(numbers, labels)
        nothing = self.nothing
        unknown = sorted(given.keys() - nothing.keys())
        if unknown:
            known = ", ".join(nothing) or "none"
            raise ValueError(f"this model takes no condition {unknown[0]!r}; it takes {known}")
        for name, row in nothing.items():
            array = np.asarray(given[name]).astype(row.dtype) if name in given else np.repeat(row[None], n, 0)
            if len(array) != n or array.ndim != row.ndim + 1 or array.shape[2:] != row.shape[1:]:
                raise ValueError(f"{name} must have shape ({n}, {', '.join(map(str, row.shape))}), got {array.shape}")
            arrays[name] = array
        return Condition(arrays, self._null_rows(nothing), n)

    def embed(self, prompts) -> Condition:
        """One prompt, or a sequence of N, as the network sees it: a Condition of one row, or of N.

        "[man firefighter] - [man] + [woman]" is computed on the embeddings. A PromptWarning says which parts of a
        prompt are not used. Raises ValueError for a prompt of which nothing is understood, or without a text encoder.
        """
        if self.encoder is None:
            raise ValueError("this model was trained without captions, so prompts cannot be given")
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        for prompt in prompts:
            # What bytes of another encoding become on the command line.
            if isinstance(prompt, str) and re.search("[\ud800-\udfff]", prompt):
                raise ValueError(f"the prompt {prompt!a:.80} holds bytes that are no text in UTF-8; type it anew")
        parts = [text.arithmetic(prompt) for prompt in prompts]
        encoded = {}  # each prompt is encoded once and alone, so that its vectors depend on nothing else
        for prompt in dict.fromkeys(prompt for terms in parts for _, prompt in terms):
            for remark in self.encoder.remarks(prompt):
                warnings.warn(remark, text.PromptWarning, stacklevel=callers_level())
            encoded[prompt] = Condition(self.encoder.encode([prompt]))
        rows = [functools.reduce(operator.add, (encoded[t] * factor for factor, t in terms)) for terms in parts]
        arrays = {name: np.concatenate([row[name] for row in rows]) for name in (rows[0] if rows else ())}
        nothing = self.nothing
        return Condition(arrays, {name: nothing[name] for name in arrays}, len(rows))

    def nothing_asked(self, n: int) -> Condition:
        """The condition of n samples for which nothing is asked for."""
        return self.rows(np.zeros(n, np.int64)).null()

    def of_data(self, labels, columns: Mapping, captions: Sequence[str] | None = None) -> Condition:
        """The condition of samples of a data set: their labels (N,) or None, further arrays, and one caption each."""
        arrays = {} if self.classes is None else {LABELS: labels}
        columns = columns if self.encoder is None else {**columns, **self.encoder.encode(captions)}
        nothing = self.nothing
        return Condition(arrays | {name: columns[name] for name in nothing}, self._null_rows(nothing))

    def _null_rows(self, nothing):
        has_row = self.classes is not None and self.withheld
        return ({LABELS: np.int64(len(self.classes or ()))} if has_row else {}) | nothing

    def _label_rows(self, numbers, labels):
        if self.classes is None:
            if labels is not None:
                raise ValueError("this model was trained without classes, so labels cannot be given")
            return {}
        count, n = len(self.classes), len(numbers)
        given, labels = labels, numbers % count if labels is None else self._numbered(labels)
        labels = np.full(n, labels) if labels.ndim == 0 else labels
        if labels.shape != (n,) or labels.dtype.kind not in "iu" or not ((labels >= 0) & (labels < count)).all():
            what = "names of classes" if self.named_by_numbers else f"whole numbers from 0 to {count - 1}, or names"
            given = given.tolist() if isinstance(given, np.ndarray) else given
            raise ValueError(f"labels must be {n} {what}, or one for all; got {given!s:.60}")
        return {LABELS: labels}

    def _numbered(self, labels) -> np.ndarray:
        """Labels, names or numbers, as numbers. Where class names are numbers, such as "5", a 5 is a name."""
        labels = np.asarray(labels)  # of names and numbers together, names
        labels = np.asarray(labels.tolist()) if labels.dtype.kind == "O" else labels  # what the objects are
        names = any(_NUMBER.fullmatch(name) and name != str(i) for i, name in enumerate(self.classes or ()))
        if labels.dtype.kind == "U" or (labels.dtype.kind in "iu" and names):
            numbers = [self.number_of(str(name)) for name in labels.ravel().tolist()]
            labels = np.array(numbers, np.int64).reshape(labels.shape)
        return labels

    @property
    def named_by_numbers(self) -> bool:
        """Whether all class names look like numbers but are not 0 .. K-1: labels 1 .. K, say."""
        numbers = [str(i) for i in range(len(self.classes or ()))]
        return self.classes != numbers and all(_NUMBER.fullmatch(name) for name in self.classes or ("",))

    def number_of(self, name: str) -> int:
        """The number of the class with this name or, unless all names look like numbers, with this number.

        Raises ValueError if there is neither. Names are matched as given, as printed, with control characters escaped,
        and by their characters, however these are encoded.
        """
        classes = self.classes or []
        for form in (str, printable, spelled):
            if (wanted := form(name)) in (known := [form(known) for known in classes]):
                return known.index(wanted)
        if _NUMBER.fullmatch(name) and not self.named_by_numbers and 0 <= int(name) < len(classes):
            return int(name)
        choice = "; choose one of " + ", ".join(classes[:8]) + (", .." if len(classes) > 8 else "")
        choice += "" if self.named_by_numbers else f" or a number below {len(classes)}"
        raise ValueError(f"there is no class '{printable(name):.200}'{meant(name, classes) or choice}")

    def to_config(self) -> dict:
        """A dict for JSON; `from_config` turns it into an equal Conditioning."""
        rows = {n: {"dtype": r.dtype.name, "row": r.tolist()} for n, r in self.given.items()}
        more = {} if self.encoder is None else {"text_encoder": self.encoder.to_config()}
        more |= {} if self.withheld else {"withheld": False}
        return {"classes": self.classes, "nothing": rows, **more}

    @classmethod
    def from_config(cls, config, network=None) -> "Conditioning":
        """The Conditioning that `to_config` described. network: the text encoder's network, see `text.from_config`."""
        with np.errstate(over="ignore"):  # told below
            rows = {name: np.array(r["row"], r["dtype"]) for name, r in config.get("nothing", {}).items()}
        for name, row in rows.items():
            if not np.isfinite(row).all():
                raise ValueError(f"the row of {printable(name)} that asks for nothing is not finite")
        encoder = text.from_config(config["text_encoder"], network) if config.get("text_encoder") else None
        return cls(config.get("classes"), rows, encoder, config.get("withheld", True))

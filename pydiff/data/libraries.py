"""Data sets and tables of other libraries: Hugging Face's `datasets`, torchvision, pandas and Polars. None of them is
imported; they are known by what they have.
"""

from collections.abc import Mapping
from typing import Any

from pydiff.data.asked import Asked
from pydiff.data.classes import kind_of
from pydiff.printed import printable


def part_of(source: Any, asked: Asked) -> tuple[Any, str] | None:
    """(the requested part of a dict of train, val and test, a note on the others); None for anything else.

    Raises ValueError if there is no such part.
    """
    if not isinstance(source, Mapping) or not source or not all(isinstance(key, str) for key in source):
        return None
    kinds = {key: kind_of(key) for key in source}
    if None in kinds.values():
        return None
    wanted, found = asked.split or "train", [printable(key) for key in source]
    taken = next((key for key, kind in kinds.items() if kind == wanted), None)
    if taken is None:
        advice = "give one of them, data[..]" if wanted == "all" else f"use split={next(iter(kinds.values()))!r}"
        raise ValueError(f"the dict has {', '.join(found)}, and no {wanted}; {advice}")
    left = [printable(key) for key in source if key != taken]
    told = f"{printable(taken)} taken" + (f", {', '.join(left)} left out" if left else "")
    return source[taken], told


def rows_of(source: Any) -> Any:
    """A table of pandas or Polars that holds other things than numbers as a list of dicts, a column of objects as a
    list; anything else as it is.
    """
    if hasattr(source, "columns") and hasattr(source, "dtypes") and hasattr(source, "__array__"):
        numeric = all(str(kind).lower().startswith(("int", "uint", "float", "bool")) for kind in source.dtypes)
        if numeric:
            return source
        return source.to_dicts() if hasattr(source, "to_dicts") else source.to_dict("records")
    if str(getattr(source, "dtype", "")).lower() == "object" and hasattr(source, "tolist"):
        return list(source)
    return source


def names_in(source: Any) -> dict[str | None, list[str]]:
    """{column: names of its classes} of a data set of Hugging Face, {None: names} of one of torchvision, else {}."""
    features = getattr(source, "features", None)
    if isinstance(features, Mapping):
        return {column: list(kind.names) for column, kind in features.items() if getattr(kind, "names", None)}
    while not hasattr(source, "classes") and hasattr(source, "indices"):  # torch.utils.data.Subset
        source = getattr(source, "dataset", None)
    classes = getattr(source, "classes", None)
    if isinstance(classes, list | tuple) and classes and all(isinstance(name, str) for name in classes):
        return {None: list(classes)}
    return {}

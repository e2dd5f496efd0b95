"""Parquet files of pictures, as Hugging Face's data sets are stored: a column of encoded pictures, labels, captions."""

import json
from pathlib import Path

import numpy as np

from pydiff.data import captions as words
from pydiff.data.arrays import class_labels
from pydiff.data.dataset import Dataset, printable
from pydiff.data.folder import find_files, read_pictures

IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "class", "fine_label")


def holds_parquet(root: Path) -> bool:
    """Whether a folder holds .parquet files, and no picture as a file of its own."""
    return any(root.rglob("*.parquet")) and not find_files(root)[0]


def load_parquet(path: Path, size: tuple[int, int] | None = None, channels: int | None = None) -> Dataset:
    """A .parquet file, or all of them in a folder, in order of path.

    Pictures stand in one of IMAGE_COLUMNS, as encoded bytes or as the struct {bytes, path}, labels in one of
    LABEL_COLUMNS; captions as in captions.py. size, channels: as for `load_folder`. Raises ImportError without pyarrow,
    ValueError for files that cannot be used.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f"{path} needs pyarrow, which is missing; run: pip install 'pydiff[parquet]'") from error
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    try:
        table = arrow.concat_tables([pq.read_table(file) for file in files])
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read ({str(error).splitlines()[0]}); download it again") from error
    column = next((name for name in IMAGE_COLUMNS if name in table.column_names), None)
    if column is None:
        raise ValueError(
            f"{path} has the columns {', '.join(map(printable, table.column_names))}, "
            f"expected pictures in one of {', '.join(IMAGE_COLUMNS)}"
        )
    skipped: list[tuple[str, str]] = []
    names = [f"row {i}" for i in range(len(table))]
    sources = {}
    for name, value in zip(names, table[column].to_pylist(), strict=True):
        data = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(data, bytes):
            sources[name] = data
        else:  # a path alone would have to be opened, wherever it leads
            skipped.append((name, "no picture in the file"))
    kept, images, notes = read_pictures(path, sources, size, channels, skipped)
    rows = [int(name.removeprefix("row ")) for name in kept]
    labels, classes = _labels(table, rows)
    captions, problems = _captions(table, rows)
    more, caption_notes = words.columns(captions, kept)
    return Dataset(path.name, images, labels, classes, skipped, notes + caption_notes + problems, **more)


def _labels(table, rows):
    """(labels, classes) of these rows; the names are those that Hugging Face wrote beside the columns, if any."""
    column = next((name for name in LABEL_COLUMNS if name in table.column_names), None)
    if column is None:
        return None, None
    values = table[column].to_pylist()
    values = [values[i] for i in rows]
    if any(value is None for value in values) or len({type(value) for value in values}) > 1:
        return None, None
    if not isinstance(values[0], int | str):
        return None, None
    labels, classes = class_labels(np.array(values), len(rows))
    try:
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        known = features[column]["names"]
        classes = [str(known[int(value)]) for value in classes]
    except (TypeError, KeyError, ValueError, IndexError):
        pass  # nobody wrote them: the numbers are their own names
    return labels, classes


def _captions(table, rows):
    """(captions of these rows, notes on columns that hold none)."""
    found, notes = [[] for _ in rows], []
    for column in table.column_names:
        language = words.language_of(column)
        if language is None:
            continue
        values = table[column].to_pylist()
        try:
            for of_one, i in zip(found, rows, strict=True):
                cleaned = [c._replace(text=words.clean(c.text)) for c in words.captions_in(values[i], language)]
                of_one += [c for c in dict.fromkeys(cleaned) if c.text and c not in of_one]
        except ValueError as error:
            notes.append(f"column {printable(column)} holds no captions: {error}")
    return found, notes

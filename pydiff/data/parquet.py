"""Parquet files of pictures, as Hugging Face's data sets are stored: a column of encoded pictures, labels, captions."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pydiff.data import captions as words
from pydiff.data.asked import NOTHING_ASKED, Asked
from pydiff.data.classes import class_labels, renumbered
from pydiff.data.dataset import Dataset, first_line, plural, printable
from pydiff.data.folder import files_in, path_of, read_pictures
from pydiff.data.limits import GIB

IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "class", "fine_label")


def holds_parquet(root: Path) -> bool:
    """Whether a folder holds .parquet files, and no picture as a file of its own."""
    return hasattr(root, "rglob") and any(root.rglob("*.parquet")) and not files_in(root).pictures


def load_parquet(path: Path, asked: Asked = NOTHING_ASKED) -> Dataset:
    """A .parquet file, or all of them in a folder, in order of path.

    Pictures stand in one of IMAGE_COLUMNS, as encoded bytes or as the struct {bytes, path}, labels in one of
    LABEL_COLUMNS; captions as in captions.py. Other columns are said. Raises ImportError without pyarrow,
    ValueError for files that cannot be used.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f"{path} needs pyarrow, which is missing; run: pip install 'pydiff[parquet]'") from error
    where = printable(str(path))
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    packed = sum(file.stat().st_size for file in files)
    try:
        unpacked = sum(_unpacked(pq.ParquetFile(file).metadata) for file in files)
        fits = unpacked <= asked.limit.gib * GIB
        table: Any = arrow.concat_tables([pq.read_table(file) for file in files]) if fits else None
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{where} cannot be read ({first_line(error)}); download it again") from error
    asked.limit.check(max(unpacked, packed), where)
    column = next((name for name in IMAGE_COLUMNS if name in table.column_names), None)
    if column is None:
        raise ValueError(
            f"{where} has the columns {', '.join(map(printable, table.column_names))}, "
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
    kept, images, notes = read_pictures(path, sources, asked, skipped)
    rows = [int(path_of(name).removeprefix("row ")) for name in kept]
    labels, classes = _labels(table, rows)
    captions, problems = _captions(table, rows)
    more, caption_notes = words.columns(captions, kept)
    notes += caption_notes + problems + renumbered(classes)
    label = next((name for name in LABEL_COLUMNS if name in table.column_names), None)
    rest = [name for name in table.column_names if name not in (column, label) and words.language_of(name) is None]
    if rest:
        notes.append(f"{plural(len(rest), 'column')} not used: {', '.join(map(printable, rest[:8]))}")
    return Dataset(printable(path.name), images, labels, classes, skipped, notes, **more)


def _unpacked(metadata) -> int:
    """Bytes that a file claims to hold."""
    return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


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

"""Parquet files of images, as Hugging Face's data sets are stored: a column of encoded images, labels, captions."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from pydiff.data import captions as words
from pydiff.data.asked import NOTHING_ASKED, Asked
from pydiff.data.classes import class_labels, divided, kind_of, renumbered
from pydiff.data.dataset import Dataset, plural
from pydiff.data.folder import path_of, read_images
from pydiff.data.limits import GIB
from pydiff.data.listing import Found, files_in, in_order
from pydiff.printed import first_line, printable

IMAGE_COLUMNS = ("image", "img", "image", "jpg", "png")


def holds_parquet(root) -> bool:
    """Whether a folder holds .parquet files and no image files."""
    found = files_in(root) if isinstance(root, Path) else None
    return found is not None and not found.images and bool(parquets_among(found))


def parquets_among(found: Found) -> list[str]:
    """The paths of .parquet files among the files found in a folder, in order."""
    return in_order([path for path in found.others if path.lower().endswith(".parquet")])


def load_parquet(path: Path, asked: Asked = NOTHING_ASKED) -> Dataset:
    """A .parquet file, or all of them in a folder, in order of path.

    Images are in one of IMAGE_COLUMNS, as encoded bytes or as the struct {bytes, path}, labels in one of words.LABEL,
    captions as in captions.py. Other columns are noted. Raises ImportError without pyarrow, ValueError for files that
    cannot be used.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f"{path} needs pyarrow, which is missing; run: pip install 'pydiff[parquet]'") from error
    where = printable(str(path))
    files, split_notes = parts_of(path, parquets_among(files_in(path)) if path.is_dir() else None, asked.split)
    packed = sum(file.stat().st_size for file in files)
    try:
        unpacked = sum(_unpacked(pq.ParquetFile(file).metadata) for file in files)
        fits = unpacked <= asked.limit.gib * GIB
        table: Any = arrow.concat_tables([pq.read_table(file) for file in files]) if fits else None
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{where} cannot be read ({first_line(error)}); download it again") from error
    asked.limit.check(max(unpacked, packed), where)
    if not len(table):
        raise ValueError(f"{where} has no rows; give a file with images")
    column = column_of(table.column_names)
    if column is None:
        raise ValueError(
            f"{where} has the columns {', '.join(map(printable, table.column_names))}, "
            f"expected images in one of {', '.join(IMAGE_COLUMNS)}"
        )
    skipped: list[tuple[str, str]] = []
    names = [f"row {i}" for i in range(len(table))]
    sources = {}
    for name, value in zip(names, table[column].to_pylist(), strict=True):
        data = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(data, bytes):
            sources[name] = data
        else:  # a path alone is not followed: it could lead anywhere
            skipped.append((name, "no image in the file"))
    kept, images, notes = read_images(path, sources, asked, skipped)
    rows = [int(path_of(name).removeprefix("row ")) for name in kept]
    labels, classes, more, told = said_in(table, rows, kept)
    return Dataset(printable(path.name), images, labels, classes, skipped, split_notes + notes + told, **more)


def parts_of(root: Path, found: list[str] | None, split: str | None) -> tuple[list[Path], list[str]]:
    """(the files that count, notes) of these paths below a folder, in folders called train, val and test or themselves
    called so: train-00000-of-00001.parquet. found: None for a single file, root.
    """
    where = printable(str(root))
    if found is None:
        return [root], divided([root.name], split, where)[1]
    split_by_name = {}
    for path in found:
        folder, slash, name = path.rpartition("/")
        part = re.split(r"[-_.]", name)[0]
        split_by_name[f"{folder}{slash}{part}/{name}" if kind_of(part) else path] = path
    kept, notes = divided(list(split_by_name), split, where, "file")
    return [root / split_by_name[path] for path in kept], notes


def _unpacked(metadata) -> int:
    """The bytes that a file claims to hold, uncompressed."""
    return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


def said_in(table, rows, names):
    """(labels, classes, captions as keywords of a Dataset, notes) of these rows. table: with or without the images.

    names: of the images in these rows.
    """
    labels, classes, why = _labels(table, rows)
    captions, problems = _captions(table, rows)
    more, notes = words.columns(captions, names)
    notes += why + problems + renumbered(classes)
    used = {next((name for name in words.LABEL if name in table.column_names), None), column_of(table.column_names)}
    rest = [name for name in table.column_names if name not in used and words.language_of(name) is None]
    if rest:
        notes.append(f"{plural(len(rest), 'column')} not used: {', '.join(map(printable, rest[:8]))}")
    return labels, classes, more, notes


def column_of(columns) -> str | None:
    """The name of the column that holds the images, None if there is none."""
    return next((name for name in IMAGE_COLUMNS if name in columns), None)


def _labels(table, rows):
    """(labels, classes, notes) of these rows; class names are those in Hugging Face's metadata, if any."""
    column = next((name for name in words.LABEL if name in table.column_names), None)
    if column is None:
        return None, None, []
    values = table[column].to_pylist()
    values = [values[i] for i in rows]
    if none := sum(value is None for value in values):
        return None, None, [f"no classes: {plural(none, 'row')} of column {printable(column)} with none"]
    if not isinstance(values[0], int | str):
        kind = table.schema.field(column).type
        return None, None, [f"no classes: column {printable(column)} holds {kind}, expected integers or strings"]
    labels, classes = class_labels(np.array(values), len(rows))
    try:
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        known = features[column]["names"]
        classes = [str(known[int(value)]) for value in classes]
    except (TypeError, KeyError, ValueError, IndexError):
        pass  # no metadata: the numbers are their own names
    return labels, classes, []


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

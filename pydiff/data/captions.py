"""Files in a folder of images that describe them: captions in metadata.jsonl, metadata.csv, and a .txt beside an image;
WebDataset's .json and .cls beside it, which may also give its class.

    metadata.jsonl   {"file_name": "a.png", "text": "a red circle"}                  one JSON object per line
    metadata.csv     file_name,text_en,text_de,label                                 separated by , ; or tabs
    a.txt, a.de.txt  one caption per line for a.png; the second in German
    a.json           {"caption": "a red circle", "label": 3} for a.png
    a.cls            3

The first two are what Hugging Face's ImageFolder reads, the third is what trainers of Stable Diffusion read. Captions
are under `text`, `caption`, `captions` or `prompt`, with or without `_` and a language; a value may be a string, a list
of strings, or {language: either}. All captions of an image are collected, wherever they are found. Classes are under
`label`, `labels`, `class` or `fine_label`; other columns are named. File names are only looked up among the images that
were found, so none can lead out of the folder.
"""

import io
import json
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydiff.data.dataset import plural, some
from pydiff.printed import first_line, printable

METADATA = ("metadata.jsonl", "metadata.csv")
BESIDE = (".json", ".cls")  # besides .txt
LABEL = ("label", "labels", "class", "fine_label")
FILE_NAME = ("file_name", "filename", "file", "image")
TEXT = re.compile(r"(?:text|caption|prompt)s?(?:[_-]([a-z]{2}(?:[_-][a-z]{2,4})?))?", re.IGNORECASE)
LARGEST_TXT = 2**20  # bytes; a larger .txt is not a caption
CLASSES_FROM = "classes are taken from"  # how a note begins
LISTED = 5  # how many lines or names a note lists


class Caption(NamedTuple):
    """A caption and its language, "" if unknown."""

    text: str
    language: str = ""


class Captions:
    """What was found. `of`: {path of an image: its captions}. `classes`: {path: class name} from metadata files and
    files beside images. `skipped`: (path, reason). `notes`: sentences. root: the folder, if it is one.
    """

    def __init__(self, images: Iterable[str], root: object = None):
        self.root = os.path.abspath(root) if isinstance(root, os.PathLike) else None
        self.of: dict[str, list[Caption]] = {path: [] for path in images}
        self.classes: dict[str, str] = {}
        self.skipped: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self._composed = {unicodedata.normalize("NFC", path): path for path in self.of}  # macOS takes umlauts apart

    def add(self, path: str, captions: Iterable[Caption]):
        """Adds captions to an image, except those that it already has."""
        for text, language in captions:
            caption = Caption(clean(text), language)
            if caption.text and caption not in self.of[path]:
                self.of[path].append(caption)

    def image(self, folder: str, name: str) -> str | None:
        """The path of the image that `name`, relative to `folder`, refers to; None if there is none.

        Raises ValueError for a name that leads out of the folder.
        """
        for spelling in (name, name.replace("\\", "/")):
            if self.root is not None and posixpath.isabs(spelling) and spelling.startswith(self.root + "/"):
                spelling, folder = posixpath.relpath(spelling, self.root), ""
            path = posixpath.normpath(posixpath.join(folder, spelling))
            if path.startswith(("/", "../")) or path == "..":
                raise ValueError("leads out of the folder")
            if path := path if path in self.of else self._composed.get(unicodedata.normalize("NFC", path)):
                return path
        return None


def find_captions(root: Path, images: Sequence[str], texts: Sequence[str]) -> Captions | None:
    """The captions and classes of these images; None if no file holds any.

    images, texts: paths below root, of the images, and of all files that end in .txt or in a name of METADATA or
    BESIDE.
    """
    if not texts:
        return None
    found = Captions(images, root)
    for path in texts:
        if posixpath.basename(path).lower() in METADATA:
            _read_metadata(root, path, found)
    stems: dict[str, list[str]] = {}
    for path in images:
        stems.setdefault(posixpath.splitext(path)[0], []).append(path)
    for path in texts:
        if path.lower().endswith(BESIDE):
            _read_beside(root, path, stems, found)
    plain = [path for path in texts if path.lower().endswith(".txt")]
    lonely = [path for path in plain if not _read_txt(root, path, stems, found)]
    if lonely:
        names = some([printable(path) for path in lonely], ", ", LISTED)
        found.notes.append(f"{plural(len(lonely), '.txt file')} without an image of that name: {names}")
    return found if any(found.of.values()) or found.notes or found.skipped or found.classes else None


def columns(captions: Sequence[Sequence[Caption]], names: Sequence[str]) -> tuple[dict, list[str]]:
    """(the keywords `captions` and `languages` of a Dataset, notes on them) for N images with these names."""
    captions = [list(of_one) for of_one in captions]
    if not any(captions):
        return {}, []
    without = [printable(name) for name, of_one in zip(names, captions, strict=True) if not of_one]
    languages = sorted({language for of_one in captions for _, language in of_one} - {""})
    total = plural(sum(map(len, captions)), "caption")
    note = f"{total} for {plural(len(captions) - len(without), 'image')}"
    note += f", in {some(languages, ' and ', LISTED)}" if languages else ""
    note += f"; without one: {some(without, ', ', LISTED)}" if without else ""
    texts = tuple(tuple(text for text, _ in of_one) for of_one in captions)
    return {"captions": texts, "languages": tuple(tuple(lang for _, lang in of_one) for of_one in captions)}, [note]


def clean(text: str) -> str:
    """The text on one line, accented letters as one character each, without control characters and lone surrogates."""
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    return "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cs"))


def language_of(key: str) -> str | None:
    """The language in the name of a caption column, "" if it names none; None if the column holds no captions."""
    match = TEXT.fullmatch(key.strip())
    return None if match is None else (match[1] or "").lower().replace("_", "-")


def captions_in(value, language: str = "") -> Iterator[Caption]:
    """Captions from a string, a list of strings or {language: either}; None yields none. Else raises ValueError."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from captions_in(inner, clean(str(key)).lower())
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from captions_in(inner, language)
    elif isinstance(value, str):
        yield Caption(value, language)
    elif value is not None:
        raise ValueError(f"its text is {value!r:.40}, not a string")


def decode(data: bytes) -> tuple[str, str | None]:
    """(text, note or None): UTF-8 with or without a byte order mark, UTF-16 with one, else Windows-1252, with a note.

    Raises ValueError if the bytes are not text.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16"), None
    try:
        text, note = data.decode("utf-8-sig"), None
    except UnicodeDecodeError:
        text, note = data.decode("cp1252", "replace"), "is not UTF-8, read as Windows-1252"
    if "\0" in text:
        raise ValueError("not a text file")
    return text, note


def _read_txt(root: Path, path: str, stems: dict[str, list[str]], found: Captions) -> bool:
    """Adds the lines of a .txt as captions of the images of that name; False if there are none."""
    stem, language = posixpath.splitext(path)[0], ""
    if stem not in stems and (match := re.fullmatch(r"(.+)\.([a-z]{2}(?:-[A-Za-z]{2,4})?)", stem)):
        stem, language = match[1], match[2].lower()
    if stem not in stems:
        return False
    if text := _read_text(root, path, found, LARGEST_TXT):
        for image in stems[stem]:
            found.add(image, [Caption(line, language) for line in text.splitlines()])
    return True


def _read_beside(root: Path, path: str, stems: dict[str, list[str]], found: Captions):
    """Adds the captions and class in a .json or .cls to the images of that name."""
    images, text = stems.get(posixpath.splitext(path)[0], ()), _read_text(root, path, found, LARGEST_TXT)
    if path.lower().endswith(".cls"):
        facts = {LABEL[0]: " ".join(text.split()) or None}
    else:
        row = next((row for _, row in _json_rows(" ".join(text.split("\n")))), None)
        if not isinstance(row, dict):
            found.skipped.append((printable(path), "not a JSON object"))
            return
        facts = row
    label = _class_in(facts)
    try:
        texts = {key: language_of(key) for key in facts}
        captions = [c for key, lang in texts.items() if lang is not None for c in captions_in(facts[key], lang)]
    except ValueError as error:
        found.notes.append(f"{printable(path)}: {error}")
        captions = []
    for image in images:
        found.add(image, captions)
        if label is not None:
            found.classes[image] = label


def _class_in(row: dict) -> str | None:
    """The class that a row says, by name; None if it says none."""
    label = next((row[key] for key in LABEL if isinstance(row.get(key), int | str)), None)
    return None if label is None or not str(label).strip() else str(label).strip()


def _read_text(root: Path, path: str, found: Captions, largest: int | None = None) -> str:
    """The text of a file; "" and a line in `skipped` if it cannot be read."""
    try:
        file = root / path
        if not file.is_file():  # opening a pipe would block
            raise ValueError("not a file")
        if largest is not None and file.stat().st_size > largest:
            raise ValueError(f"{file.stat().st_size:,} bytes, too large for a caption")
        text, note = decode(file.read_bytes())
    except OSError as error:
        text, note = "", None
        found.skipped.append((printable(path), f"cannot be read ({error.strerror or first_line(error)})"))
    except ValueError as error:
        text, note = "", None
        reason = "damaged UTF-16" if isinstance(error, UnicodeDecodeError) else str(error)
        found.skipped.append((printable(path), reason))
    if note:
        found.notes.append(f"{printable(path)} {note}")
    return text


def _read_metadata(root: Path, path: str, found: Captions):
    """Adds the captions and classes in one metadata file; lines and columns that cannot be used are in a note."""
    rows = _json_rows if path.lower().endswith(".jsonl") else _csv_rows
    folder, problems, unused, classes, lines = posixpath.dirname(path), [], {}, 0, 0
    for line, row in rows(_read_text(root, path, found)):
        lines += 1
        try:
            if isinstance(row, Exception):
                raise row
            row = {_usual(key): value for key, value in row.items()}
            name = next((row[key] for key in FILE_NAME if key in row), None)
            if not isinstance(name, str) or not name:
                raise ValueError("no file_name")
            texts = {key: language_of(key) for key in row if isinstance(key, str)}
            captions = [c for key, lang in texts.items() if lang is not None for c in captions_in(row[key], lang)]
            unused |= dict.fromkeys(key for key, lang in texts.items() if lang is None and key not in FILE_NAME + LABEL)
            label = _class_in(row)
            odd = next((row[key] for key in LABEL if label is None and row.get(key) not in (None, "")), None)
            if odd is not None:
                problems.append(f"line {line}: its label is {odd!r:.40}, expected a whole number or a string")
            image = found.image(folder, name)
        except ValueError as error:
            problems.append(f"line {line}: {error}")
            continue
        if image is None:
            where = f"{printable(path)} line {line}"
            found.skipped.append((printable(posixpath.join(folder, name)), f"named in {where}, but no such image"))
        else:
            found.add(image, captions)
            if label is not None:
                found.classes[image], classes = label, classes + 1
    if classes:
        found.notes.append(f"{CLASSES_FROM} {printable(path)}")
    if unused:
        shown = some([printable(key) for key in unused], ", ", LISTED)
        found.notes.append(f"{printable(path)}: not used: {shown}")
    if not lines and all(where != printable(path) for where, _ in found.skipped):
        found.notes.append(f"{printable(path)} says nothing of any image")
    if problems:
        listed = some(problems, "; ", LISTED)
        found.notes.append(f"{printable(path)}: {plural(len(problems), 'line')} cannot be used ({listed})")


def _usual(key):
    """The name of a column in lower case, if it is one of those that are looked for."""
    return key.lower() if isinstance(key, str) and key.lower() in FILE_NAME + LABEL else key


def _json_rows(text: str) -> Iterator[tuple[int, dict | ValueError]]:
    for line, row in enumerate(text.split("\n"), 1):
        if row.strip():
            try:
                value = json.loads(row)
            except (ValueError, RecursionError):
                value = None
            yield line, value if isinstance(value, dict) else ValueError("not a JSON object")


def _csv_rows(text: str) -> Iterator[tuple[int, dict | ValueError]]:
    import csv

    header = text.split("\n", 1)[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        if text.strip() and not set(map(_usual, names)) & set(FILE_NAME):
            yield 1, ValueError(f"the columns are {printable(', '.join(names))[:80]}, expected file_name and text")
            return
        reader.fieldnames = names
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        yield reader.line_num, ValueError(str(error))

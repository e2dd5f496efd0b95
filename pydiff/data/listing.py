"""Which files below a folder, or in an archive, count as samples, and which of the others describe them.

"Folder" here includes archives, see archives.py: a folder needs only `name`, `paths()` and `root / path`, which can be
read. Made for a million files: no object per file except its path, and what depends on the folder is computed once.
"""

import os
from collections.abc import Set
from pathlib import Path
from typing import NamedTuple

from pydiff.data.captions import BESIDE, METADATA
from pydiff.data.image import SUFFIXES
from pydiff.data.unreadable import FOLDERS, THUMBNAIL, is_thumbnail, readable
from pydiff.printed import printable

DROPPINGS = ("thumbs.db", "desktop.ini")


class Found(NamedTuple):
    """Paths below a folder, in order. images. texts: files that may describe them (captions.py). skipped: the (path,
    reason) of folders that cannot be listed. others: all other files. thumbnails: how many were left out. empty:
    folders with nothing in them. again: links to folders that were read already.
    """

    images: list[str]
    texts: list[str]
    skipped: list[tuple[str, str]]
    others: list[str]
    thumbnails: int
    empty: list[str]
    again: list[str]


def find_files(root, suffixes: Set[str] = SUFFIXES) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """(files, texts, skipped) of `files_in`, for files with these suffixes."""
    return files_in(root, suffixes)[:3]


def files_in(root, suffixes: Set[str] = SUFFIXES) -> Found:
    """The files below `root`, a folder or an archive; images are those with these suffixes. Hidden files and folders of
    thumbnails are left out.

    Follows links to folders, but enters each folder once, so that a loop of links ends; what leads to one for a second
    time is named.
    """
    paths, skipped, empty, again = (*root.paths(), [], []) if hasattr(root, "paths") else _walk(root)
    suffixes = SUFFIXES | readable()[0] if suffixes is SUFFIXES else suffixes
    images, texts, beside, others, small, thumbnails = [], [], [], [], set(), 0
    folders = {"": (False, False)}  # path -> whether it is hidden, and whether one of thumbnails
    for path in paths:
        folder, _, name = path.rpartition("/")
        hidden, of_thumbnails = folders.get(folder) or folders.setdefault(folder, _kind(folder))
        if hidden or name.startswith("."):
            continue
        name = name.lower()
        dot = name.rfind(".")
        suffix = name[dot:] if dot > 0 else ""
        if of_thumbnails:
            thumbnails += suffix in suffixes
        elif suffix in suffixes:
            images.append(path)
            if name.endswith(THUMBNAIL, 0, dot):
                small.add(path)
        elif suffix == ".txt" or name in METADATA:
            texts.append(path)
        elif suffix in BESIDE:
            beside.append(path)
        elif name not in DROPPINGS:
            others.append(path)
    if small or beside:
        stems = {os.path.splitext(path)[0] for path in images}
        small = {path for path in small if is_thumbnail(path, stems)}
        images, thumbnails = [path for path in images if path not in small], thumbnails + len(small)
        for path in beside:
            (texts if os.path.splitext(path)[0] in stems else others).append(path)
    return Found(in_order(images), in_order(texts), skipped, others, thumbnails, in_order(empty), in_order(again))


def in_order(paths: list[str]) -> list[str]:
    """Sorted by folder, then by name: paths are compared one part after the other."""
    return sorted(paths, key=lambda path: path.replace("/", "\0"))  # NUL sorts before any character of a name


def _kind(folder: str) -> tuple[bool, bool]:
    """(whether the folder or one above it is hidden, whether one of them is for thumbnails)."""
    parts = folder.split("/")
    return any(part.startswith(".") for part in parts), any(part.lower() in FOLDERS for part in parts)


def _walk(root: Path) -> tuple[list[str], list[tuple[str, str]], list[str], list[str]]:
    """(paths of all files below a folder, (path, reason) of folders that cannot be listed, paths of empty folders,
    links to folders that were read already).
    """
    paths, skipped, empty, again, entered, waiting = [], [], [], [], {}, [""]
    while waiting:
        folder = waiting.pop()
        before, inner = f"{folder}/" if folder else "", []
        try:
            status = os.stat(root / folder)
            if (first := entered.get((status.st_dev, status.st_ino))) is not None:
                again.append(f"{folder} to {first or 'the folder itself'}")
                continue
            entered[status.st_dev, status.st_ino] = folder
            with os.scandir(root / folder) as entries:
                found = sorted((entry.name, _is_folder(entry)) for entry in entries)
        except OSError as error:
            skipped.append((printable(folder) or ".", f"folder cannot be listed ({error.strerror})"))
            continue
        for name, is_folder in found:
            if name.startswith(".") or name == "__MACOSX":  # hidden, or left by an archiver
                continue
            (inner if is_folder else paths).append(before + name)
        waiting += reversed(inner)  # popped from the end: first name first
        if folder and not found:
            empty.append(folder)
    return paths, skipped, empty, again


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False

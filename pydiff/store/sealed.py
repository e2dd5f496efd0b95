"""A sealed folder: files, and a seal (one more file) with the size and SHA-256 of each, and a checksum of itself.

It is written so that a crash, a kill or a full disk at any moment leaves either the old folder or the new one,
complete:

    1. `.partial` is created; each file is written and fsynced, the seal last; then `.partial` itself is fsynced.
    2. It is renamed to its final name.

A folder cannot be renamed onto one that holds files, so if the name is taken, step 2 becomes

    2a. rename `.partial` to `.NAME.pydiff-new`: from here on this is the current folder 2b. rename NAME, the old
    folder, to `.partial` 2c. rename `.NAME.pydiff-new` to NAME, and remove `.partial`

with an fsync of the parent after each rename. A reader prefers `.NAME.pydiff-new` if there is one (`resolve`). Anything
called `.partial` is garbage, which the next write removes. Only one process at a time may write in a parent folder. For
POSIX systems, where a folder can be fsynced.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pydiff.formats.files import CHUNK, RegularFile, disk, read_file
from pydiff.formats.safetensors import MAX_HEADER, CheckpointError, damaged, parse_json

VERSION = 1
Content = bytes | Iterable[bytes]  # of a file, whole or in pieces, so that it need not all be in memory


def write(target: Path, partial: Path, files: Iterable[tuple[str, Content]], seal: str, kind: str, info: dict) -> None:
    """Writes `files` and their seal as the folder `target`, replacing an existing one.

    files: (name, content); a name may include one subfolder, "unet/config.json". partial: the temporary name, in the
    same parent. seal: the seal's file name. kind, info: JSON stored in the seal. Raises CheckpointError, which names
    the path and the bytes, if the disk write fails; the previous folder is then still there.
    """
    make_folders(target.parent)
    remove(partial)
    if os.path.lexists(_pending(target)):
        _promote(target, partial)
    try:
        with disk(f"create {partial}"):
            os.mkdir(partial)
        entries, folders = {}, {}
        for name, content in files:
            for folder in reversed(Path(name).parents[:-1]):
                if folder not in folders:
                    folders[folder] = partial / folder
                    with disk(f"create {partial / folder}"):
                        os.mkdir(partial / folder)
            entries[name] = _write_file(partial / name, content)
        content = _seal(kind, info, entries)
        if len(content) > MAX_HEADER:
            raise ValueError(
                f"{seal} would have {len(content)} bytes, expected at most {MAX_HEADER}: store less in it."
            )
        _write_file(partial / seal, content)
        for folder in (*folders.values(), partial):
            _sync_folder(folder)
        _publish(partial, target)
    except BaseException:
        with contextlib.suppress(CheckpointError):  # frees disk space now; if this also fails, the next write does it
            remove(partial)
        raise


def read(path: Path, seal: str, kind: str, names: set[str] | None = None) -> tuple[dict, dict[str, np.ndarray]]:
    """(info, {name: (size,) uint8}) of a sealed folder, every byte of it checked.

    names: the files it must have, beside which others are allowed; None: exactly those in the seal.
    """
    info, entries = inspect(path, seal, kind)
    with disk(f"list {path}"):
        expected = set(os.listdir(path)) - {seal} if names is None else names
    for name in sorted(expected - set(entries)):
        raise damaged(path, f"the file {name!a} is not in its seal")
    for name in sorted(set(entries) - expected):
        raise damaged(path, f"the file {name!a} is missing")
    return info, {name: read_checked(path / name, entry) for name, entry in entries.items()}


def inspect(path: Path, seal: str, kind: str) -> tuple[dict, dict[str, dict]]:
    """(info, {name: its entry}) of a seal, whose own checksum is checked; the files that it names are not read."""
    raw = read_file(path / seal, limit=MAX_HEADER).tobytes()
    content = parse_json(raw, path / seal)
    if content.get("kind") != kind:
        raise CheckpointError(f"{path / seal} is for the kind {content.get('kind')!a:.40}, expected {kind!r}.")
    if content.get("version") != VERSION:
        found = content.get("version")
        raise CheckpointError(
            f"{path / seal} has version {found!a:.40}, expected {VERSION}: use the pydiff that wrote it."
        )
    info: Any = content.get("info")
    entries: Any = content.get("files")
    # This one comparison covers every bit of the seal, including its own checksum.
    if not _well_formed(info, entries) or _seal(kind, info, entries) != raw:
        raise damaged(path / seal, "it does not match its own checksum")
    return info, entries


def _sha256(data: Any = b""):
    """A SHA-256 object with these bytes, which can be updated; hashlib is imported only when needed."""
    import hashlib

    return hashlib.sha256(data)


def _seal(kind: str, info: dict, entries: Mapping[str, dict]) -> bytes:
    body = {"kind": kind, "version": VERSION, "info": info, "files": entries}
    digest = _sha256(json.dumps(body).encode()).hexdigest()
    return (json.dumps({**body, "sha256": digest}, indent=1) + "\n").encode()


def _well_formed(info: object, entries: object) -> bool:
    if not isinstance(info, dict) or not isinstance(entries, dict):
        return False
    return all(
        isinstance(e, dict) and set(e) == {"bytes", "sha256"} and type(e["bytes"]) is int for e in entries.values()
    )


def read_checked(path: Path, entry: dict) -> np.ndarray:
    """The bytes of a file, (size,) uint8. Raises CheckpointError unless they match its entry in the seal."""
    data = read_file(path, size=entry["bytes"])
    _compare(path, _sha256(data).hexdigest(), entry)
    return data


def check(file: RegularFile, entry: dict) -> None:
    """Raises CheckpointError unless the bytes of an open file match its entry in the seal; reads them in small
    pieces.
    """
    if file.size != entry["bytes"]:
        raise damaged(file.path, f"it has {file.size} bytes, expected {entry['bytes']}")
    digest = _sha256()
    for chunk in file.chunks():
        digest.update(chunk)
    _compare(file.path, digest.hexdigest(), entry)


def _compare(path: Path, found: str, entry: dict) -> None:
    if found != entry["sha256"]:
        raise damaged(path, f"its SHA-256 is {found}, expected {entry['sha256']}")


def resolve(target: Path) -> Path:
    """The actual path of the folder `target`: `.NAME.pydiff-new` if a replacement was interrupted, else `target`."""
    pending = _pending(target)
    return pending if os.path.lexists(pending) else target


def remove(path: Path) -> None:
    """Removes a file, or a folder with everything in it; does nothing if there is none."""
    with disk(f"remove {path}"):
        if not os.path.lexists(path):
            return
        if os.path.islink(path) or not os.path.isdir(path):
            os.unlink(path)
            return
        for name in sorted(os.listdir(path)):
            remove(path / name)
        os.rmdir(path)


def discard(path: Path, partial: Path) -> None:
    """Removes a folder such that it is never visible half removed under its name."""
    remove(partial)
    _rename(path, partial)
    remove(partial)


def make_folders(path: Path) -> None:
    """Creates a folder and its parents, durably."""
    with disk(f"create {path}"):
        if path.is_dir():
            return
        make_folders(path.parent)
        os.mkdir(path)
    _sync_folder(path.parent)


def path_of(descriptor: int) -> Path | None:
    """The path that an open folder has now, by what the system says; None if it does not say."""
    try:
        import fcntl

        if hasattr(fcntl, "F_GETPATH"):  # macOS
            return Path(os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")))
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    except (ImportError, OSError):
        return None


def _publish(partial: Path, target: Path) -> None:
    if os.path.lexists(target):
        _rename(partial, _pending(target))
        _promote(target, partial)
    else:
        _rename(partial, target)


def _promote(target: Path, partial: Path) -> None:
    """Gives `.NAME.pydiff-new` its final name: steps 2b and 2c, even if a crash came between them."""
    if os.path.lexists(target):
        _rename(target, partial)
    _rename(_pending(target), target)
    remove(partial)


def _pending(target: Path) -> Path:
    return target.with_name(f".{target.name}.pydiff-new")


def _rename(source: Path, target: Path) -> None:
    with disk(f"rename {source} to {target}"):
        os.rename(source, target)
    _sync_folder(target.parent)


def _write_file(path: Path, content: Content) -> dict:
    """Writes and fsyncs a new file; returns its entry for the seal."""
    digest, size = _sha256(), 0
    with disk(f"create {path}"):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        for piece in (content,) if isinstance(content, bytes) else content:
            rest = memoryview(piece)
            digest.update(rest)
            size += len(rest)
            with disk(f"write {size} bytes to {path}"):
                while rest:
                    rest = rest[os.write(descriptor, rest[:CHUNK]) :]
        with disk(f"write {size} bytes to {path}"):
            os.fsync(descriptor)
    finally:
        with disk(f"write {size} bytes to {path}"):
            os.close(descriptor)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _sync_folder(path: Path) -> None:
    """Makes the names in a folder durable: fsync of a file does not cover the directory entry that points to it."""
    with disk(f"sync {path}"):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

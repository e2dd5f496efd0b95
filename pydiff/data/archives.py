"""Archives of pictures, zip and tar: read in memory as if they were folders. Nothing is written, and no name is opened.

What a member would take is compared with the limit before it is unpacked; links, devices and encrypted members are
listed as skipped.
"""

from pathlib import Path
from types import SimpleNamespace

from pydiff.data.asked import Asked
from pydiff.data.dataset import Dataset, first_line, printable
from pydiff.data.limits import Limit

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MOST = 2_000_000  # members


class Held(bytes):
    """A member of an archive, with what is asked of a Path."""

    def is_file(self) -> bool:
        """Always."""
        return True

    def read_bytes(self) -> bytes:
        """Its contents."""
        return self

    def stat(self):
        """st_size: how long it is."""
        return SimpleNamespace(st_size=len(self))


class Archive:
    """The files of an archive by path, and the (path, reason) of what was skipped."""

    def __init__(self, path: Path, files: dict[str, Held], skipped: list[tuple[str, str]]):
        self.path, self.name, self._files, self._skipped = path, path.name, files, skipped

    def __str__(self):
        return str(self.path)

    def __truediv__(self, path: str) -> Held:
        return self._files[path]

    def paths(self) -> tuple[list[str], list[tuple[str, str]]]:
        """(all paths, what was skipped), as a folder gives them."""
        return list(self._files), list(self._skipped)


def is_archive(path: Path) -> bool:
    """Whether a file is called like an archive."""
    return path.name.lower().endswith(SUFFIXES)


def load_archive(path: Path, asked: Asked) -> Dataset:
    """The data in an archive of any kind that a folder can hold."""
    from pydiff.data.sources import load_tree

    return load_tree(open_archive(path, asked.limit), asked)


def open_archive(path: Path, limit: Limit) -> Archive:
    """What is in a .zip or .tar file. ValueError, in one sentence, for damaged, encrypted or too large ones."""
    files: dict[str, Held] = {}
    skipped: list[tuple[str, str]] = []
    room = _Room(limit, path)
    try:
        (_read_zip if path.name.lower().endswith(".zip") else _read_tar)(path, files, skipped, room)
    except _TooLarge as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # zipfile, tarfile, zlib, lzma and bz2 raise a dozen types for damaged files
        raise ValueError(f"{printable(str(path))} cannot be read ({first_line(error)}); fetch it again") from error
    if not files and skipped:
        name, reason = skipped[0]
        raise ValueError(f"{printable(str(path))} holds nothing that can be used (first: {name}: {reason}); unpack it")
    return Archive(path, files, skipped)


class _TooLarge(ValueError):
    """More than the limit allows."""


class _Room:
    """Memory that members take, counted before they are unpacked."""

    def __init__(self, limit: Limit, path: Path):
        self.limit, self.path, self.taken, self.members = limit, path, 0, 0
        self.packed = path.stat().st_size

    def take(self, size: int):
        """One member more, of so many bytes."""
        self.taken, self.members = self.taken + size, self.members + 1
        if self.members > MOST:
            raise _TooLarge(f"{printable(str(self.path))} has more than {MOST:,} members; unpack it, give the folder")
        self.passed(self.taken)

    def passed(self, size: int):
        """So many bytes in all."""
        try:
            self.limit.check_unfolding(size, self.packed, printable(str(self.path)))
        except ValueError as error:
            raise _TooLarge(f"{error}, or unpack it and give the folder") from None


def _proper(name: str) -> str | None:
    """The path of a member in our spelling; None for a name that leads out of the archive."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return None if ".." in parts or not parts or "\0" in name else "/".join(parts)


def _hold(files, skipped, name, read, size, room):
    path = _proper(name)
    if path is None:
        skipped.append((printable(name), "its name leads out of the archive"))
        return
    if path in files:
        skipped.append((printable(name), "there twice, the first is taken"))
        return
    room.take(size)
    data = read()
    if len(data) != size:
        raise ValueError(f"{name!a:.80} has {len(data):,} bytes, and {size:,} are promised")
    files[path] = Held(data)


def _read_zip(path, files, skipped, room):
    import zipfile

    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if info.flag_bits & 1:
                skipped.append((printable(info.filename), "encrypted"))
                continue

            def read(info=info):
                with archive.open(info) as stream:
                    return stream.read(info.file_size + 1)

            _hold(files, skipped, info.filename, read, info.file_size, room)


def _read_tar(path, files, skipped, room):
    import tarfile

    with (
        open(path, "rb") as raw,
        _unpacked(raw) as stream,
        tarfile.open(fileobj=_Counted(stream, room), mode="r|") as archive,  # pyright: ignore[reportCallIssue, reportArgumentType]
    ):
        for info in archive:
            if not info.isdir() and not info.isreg():
                skipped.append((printable(info.name), "no regular file in the archive"))
            elif info.isreg():
                member = archive.extractfile(info)
                _hold(files, skipped, info.name, lambda m=member, n=info.size: m.read(n + 1), info.size, room)
            archive.members = []  # or it would remember them all


def _unpacked(raw):
    """What is packed by gzip, bzip2 or xz, whatever the file is called."""
    import bz2
    import gzip
    import lzma

    magic = raw.read(6)
    raw.seek(0)
    for begins, opened in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if magic.startswith(begins):
            return opened(raw)
    return raw


class _Counted:
    """A stream that tarfile reads, and what came out of it so far: headers can claim gigabytes, too."""

    def __init__(self, stream, room):
        self._stream, self._room, self._count = stream, room, 0

    def read(self, size):
        data = self._stream.read(size)
        self._count += len(data)
        self._room.passed(self._count)
        return data

"""Archives, zip and tar, read as if they were folders. Nothing is written to disk, and no member's name is ever opened
as a path.

The size of a member is compared with the limit before it is unpacked; what cannot be used is listed as skipped.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from pydiff.data.asked import Asked
from pydiff.data.dataset import Dataset
from pydiff.data.limits import Limit, check_memory, check_system
from pydiff.data.listing import Found, files_in, in_order
from pydiff.data.members import BLOCK, CUT, Members, TarMembers, ZipMembers
from pydiff.printed import first_line, printable

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
SUFFIXES = (".zip", ".tar", *PACKED)
MOST = 2_000_000  # members


class Held(bytes):
    """The contents of a member of an archive, with the methods of Path that readers use."""

    def is_file(self) -> bool:
        """Always True: only regular files are members."""
        return True

    def read_bytes(self) -> bytes:
        """The contents of the member."""
        return self

    def stat(self):
        """An object with st_size, the length in bytes."""
        return SimpleNamespace(st_size=len(self))


class Archive:
    """An archive as a folder: its paths, and `/`, which reads a member. Raises ValueError or OSError if the archive is
    damaged, or unpacks to more than the limit.
    """

    def __init__(self, path: Path, members: Members, limit: Limit):
        self.path, self.name, self.members, self.limit = path, path.name, members, limit

    def __str__(self):
        return str(self.path)

    def __truediv__(self, path: str) -> Held:
        number = self.members.numbers[path]
        self.limit.check(self.members.sizes[number], printable(path))
        return Held(self.members.read(number))

    def paths(self) -> tuple[list[str], list[tuple[str, str]]]:
        """(all paths, the (path, reason) of what was skipped), as for a folder."""
        return list(self.members.numbers), list(self.members.skipped)

    def length(self, path: str) -> int:
        """Length of a member in bytes, unpacked."""
        return self.members.sizes[self.members.numbers[path]]


class Archives:
    """Several archives in a folder as one; the paths in each begin with the archive's name, `0.tar/a.png`."""

    def __init__(self, folder: Path, parts: dict[str, Archive]):
        self.folder, self.name, self.parts = folder, folder.name, parts

    def __str__(self):
        return str(self.folder)

    def __truediv__(self, path: str) -> Held:
        part, inside = self._part(path)
        return part / inside

    def paths(self) -> tuple[list[str], list[tuple[str, str]]]:
        """(the paths in all archives, the (path, reason) of what was skipped)."""
        paths, skipped = [], []
        for name, part in self.parts.items():
            inside, left = part.paths()
            paths += [f"{name}/{path}" for path in inside]
            skipped += [(f"{printable(name)}/{path}", reason) for path, reason in left]
        return paths, skipped

    def length(self, path: str) -> int:
        """Length of a member in bytes, unpacked."""
        part, inside = self._part(path)
        return part.length(inside)

    def inside(self, path: str) -> str:
        """The path of a member without the name of its archive, which is not a class."""
        return self._part(path)[1]

    def _part(self, path):
        at = path.find("/")
        while path[:at] not in self.parts:
            at = path.index("/", at + 1)
        return self.parts[path[:at]], path[at + 1 :]


def holds_archives(root) -> bool:
    """Whether a folder holds archives and no image files."""
    found = files_in(root) if isinstance(root, Path) else None
    return found is not None and not found.images and bool(archives_among(found))


def archives_among(found: Found) -> list[str]:
    """The paths of archives among the files found in a folder, in order."""
    return in_order([path for path in found.others if is_archive(path)])


def is_archive(path: str) -> bool:
    """Whether a path has the suffix of an archive."""
    return path.lower().endswith(SUFFIXES)


def load_archive(path: Path, asked: Asked) -> Dataset:
    """The data in an archive, of any kind that a folder can hold."""
    from pydiff.data.sources import load_tree

    return load_tree(open_archive(path, asked.limit), asked)


def load_archives(root: Path, asked: Asked) -> Dataset:
    """The images in all archives of a folder, as one data set."""
    from pydiff.data.folder import load_folder

    return load_folder(open_archives(root, archives_among(files_in(root)), asked.limit), asked)


def open_archives(root: Path, paths: Sequence[str], limit: Limit, whole: bool = True) -> Archives:
    """These archives below a folder as one Archives; see `open_archive`."""
    return Archives(root, {path: open_archive(root / path, limit, whole) for path in paths})


def open_archive(path: Path, limit: Limit, whole: bool = True) -> Archive:
    """The members of a .zip or .tar file. Raises ValueError if it is damaged, encrypted or too large.

    whole: whether all members will be in memory at once, and must fit; otherwise they are read one by one, which is not
    possible for a .tar that is compressed as a whole.
    """
    where = printable(str(path))
    try:
        packed = _packing(path)
        if packed and not whole:
            raise _Refused(f"{where} is packed as a whole and cannot be read piece by piece; unpack it to a .tar file")
        room = _Room(limit, path)
        plain = ZipMembers if _is_zip(path) else TarMembers
        members = PackedTar(path, packed, room) if packed else plain(path)
        if whole and not packed:
            for size in members.sizes:
                room.take(size)
    except _Refused as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # zipfile, tarfile, zlib, lzma and bz2 raise a dozen types for damaged files
        check_memory(error)
        check_system(error)
        raise ValueError(f"{where} cannot be read ({first_line(error)}); fetch it again") from error
    if not members.numbers and members.skipped:
        member, reason = members.skipped[0]
        raise ValueError(f"{where} holds nothing that can be used (first: {member}: {reason}); unpack it")
    return Archive(path, members, limit)


class _Refused(ValueError):
    """The archive is intact, but is not read."""


class _Room:
    """Memory that the members of an archive need, counted before they are unpacked."""

    def __init__(self, limit: Limit, path: Path):
        self.limit, self.path, self.taken, self.members = limit, path, 0, 0
        self.packed = path.stat().st_size

    def take(self, size: int):
        """Counts one more member of `size` bytes; raises _Refused above the limit."""
        self.taken, self.members = self.taken + size, self.members + 1
        if self.members > MOST:
            raise _Refused(f"{printable(str(self.path))} has more than {MOST:,} members; unpack it, give the folder")
        self.passed(self.taken)

    def passed(self, size: int):
        """Checks `size` bytes in total against the limit."""
        try:
            self.limit.check_unfolding(size, self.packed, printable(str(self.path)))
        except ValueError as error:
            raise _Refused(f"{error}, or unpack it and give the folder") from None


class PackedTar(Members):
    """The members of a .tar file that is compressed as a whole: all of them are unpacked at once, and kept."""

    def __init__(self, path, unpacked, room):
        import tarfile

        super().__init__(path)
        self.contents = []
        with (
            open(path, "rb") as raw,
            unpacked(raw) as stream,
            tarfile.open(fileobj=(counted := _Counted(stream, room)), mode="r|") as archive,  # pyright: ignore[reportCallIssue, reportArgumentType]
        ):
            for info in archive:
                if not info.isdir() and not info.isreg():
                    self.skipped.append((printable(info.name), "no regular file in the archive"))
                elif info.isreg() and self.add(info.name, info.size):
                    room.take(info.size)
                    data = archive.extractfile(info).read(info.size + 1)
                    if len(data) != info.size:
                        raise ValueError(f"{info.name!a:.80} has {len(data):,} bytes, and {info.size:,} are promised")
                    self.contents.append(data)
                archive.members = []  # or it would keep them all
            if not counted.ended:
                self.skipped.append((printable(path.name), CUT))

    def read(self, number):
        """The contents of a member."""
        return self.contents[number]


def _packing(path):
    """The function that opens a file compressed by gzip, bzip2 or xz, whatever its name; None for all others."""
    import bz2
    import gzip
    import lzma

    with open(path, "rb") as raw:
        magic = raw.read(6)
    opened = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))
    return next((open_ for begins, open_ in opened if magic.startswith(begins)), None)


def _is_zip(path) -> bool:
    """Whether a file is a .zip: by its first bytes, or by its name if these belong to no known format."""
    with open(path, "rb") as raw:
        begin = raw.read(512)
    return begin.startswith(b"PK") or (path.name.lower().endswith(".zip") and begin[257:262] != b"ustar")


class _Counted:
    """The unpacked stream that tarfile reads, with its length checked as it grows: headers can also claim gigabytes."""

    def __init__(self, stream, room):
        self._stream, self._room, self._count, self._last = stream, room, 0, b""

    def read(self, size):
        data = self._stream.read(size)
        self._count += len(data)
        self._room.passed(self._count)
        self._last = (self._last + data)[-BLOCK:]
        return data

    @property
    def ended(self):
        """Whether the last block that was read is the zeros at the end of an archive."""
        return len(self._last) == BLOCK and not any(self._last)

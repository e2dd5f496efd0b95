"""The files in a .zip or .tar: their names, their lengths and where each begins, so that any one can be read alone. A
million of them take little more memory than their names.

Names that lead out of the archive, further members of the same name, links, devices and encrypted members are listed as
skipped. No member's name is ever opened as a path.
"""

import io
import os
import struct
import tarfile
import threading
import weakref
import zipfile
import zlib
from array import array
from pathlib import Path

from pydiff.data.limits import check_memory
from pydiff.printed import first_line, printable

BLOCK = 512  # bytes; a .tar file consists of such blocks
CUT = "it ends without the mark of an end, so members may be missing"
END, DIRECTORY, MEMBER = struct.Struct("<4s4H2LH"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR64 = 20  # bytes between the two
FULL = (1 << 32) - 1  # stands for a number that does not fit, and is in the extra field after the name
ENCRYPTED, UTF8 = 1, 1 << 11  # flags
COMMENT = 1 << 16  # bytes that may follow the end of a .zip file


class Members:
    """The usable files of an archive. Subclasses find them, calling `add`, and read them.

    numbers: {path: number}, in the order of the archive. sizes: bytes of each. skipped: (path, reason).
    """

    def __init__(self, path: Path):
        self.path, self.numbers, self.sizes, self.skipped = path, {}, array("q"), []

    def add(self, name: str, size: int) -> bool:
        """Adds a member if its name is usable, with the next number. Returns whether it was added."""
        path = proper(name)
        if path is None:
            self.skipped.append((printable(name), "its name leads out of the archive"))
        elif path in self.numbers:
            self.skipped.append((printable(name), "there twice, the first is taken"))
        else:
            self.numbers[path] = len(self.sizes)
            self.sizes.append(size)
            return True
        return False

    def read(self, number: int) -> bytes:
        """The contents of a member. Raises OSError or ValueError if they cannot be read."""
        raise NotImplementedError


def proper(name: str) -> str | None:
    """The normalised path of a member; None for a name that leads out of the archive."""
    name = name.replace("\\", "/")
    if "//" in name or "./" in name or name.startswith("/") or name.endswith((".", "/")):
        parts = [part for part in name.split("/") if part not in ("", ".")]
        name = "" if ".." in parts else "/".join(parts)
    return None if not name or "\0" in name else name


class ZipMembers(Members):
    """The members of a .zip file, from the directory at its end. Raises ValueError or BadZipFile if there is none."""

    def __init__(self, path):
        super().__init__(path)
        self.file = _Pieces(path)
        self.packed, self.at, self.sums, self.methods = array("q"), array("q"), array("L"), array("B")
        directory, count, shift = self._directory()
        here = 0
        for _ in range(count):
            (magic, _, _, flags, method, _, _, crc, packed, size, n, extra, comment, _, _, _, at) = (
                DIRECTORY.unpack_from(directory, here)
            )
            if magic != b"PK\1\2":
                raise zipfile.BadZipFile("its directory is damaged")
            here += DIRECTORY.size
            name = directory[here : here + n].decode("utf-8" if flags & UTF8 else "cp437", "surrogateescape")
            if FULL in (size, packed, at):
                size, packed, at = _long(directory[here + n : here + n + extra], size, packed, at)
            here += n + extra + comment
            name = name.partition("\0")[0]
            if name.endswith("/"):
                continue
            if flags & ENCRYPTED:
                self.skipped.append((printable(name), "encrypted"))
            elif self.add(name, size):
                self.packed.append(packed)
                self.at.append(at + shift)
                self.sums.append(crc)
                self.methods.append(min(method, 255))

    def _directory(self):
        """(the directory's bytes, the number of entries, the shift to add to the offsets in it)."""
        length = self.file.length
        tail = self.file.read(max(0, length - COMMENT - END.size), min(length, COMMENT + END.size))
        found = tail.rfind(b"PK\5\6")
        if found < 0 or len(tail) - found < END.size:
            raise zipfile.BadZipFile("File is not a zip file")
        end = length - len(tail) + found
        _, disk, _, _, count, size, at, _ = END.unpack_from(tail, found)
        before = end - LOCATOR64 - END64.size
        if before >= 0 and (longer := self.file.read(before, END64.size)).startswith(b"PK\6\6"):
            _, _, _, _, _, _, _, count, size, at = END64.unpack(longer)
            end, disk = before, 0
        if disk or size + at > end:
            raise zipfile.BadZipFile("its directory is damaged, or it is one of several parts")
        return self.file.read(end - size, size), count, end - size - at

    def read(self, number):
        """The contents, unpacked and compared with their checksum."""
        at, packed, size = self.at[number], self.packed[number], self.sizes[number]
        magic, *_, name, extra = MEMBER.unpack(self.file.read(at, MEMBER.size))
        if magic != b"PK\3\4":
            raise ValueError("its header is damaged")
        info = zipfile.ZipInfo()
        info.compress_type, info.compress_size, info.file_size = self.methods[number], packed, size
        info.CRC = self.sums[number]
        try:
            data = self.file.read(at + MEMBER.size + name + extra, packed)
            with zipfile.ZipExtFile(io.BytesIO(data), "r", info) as stream:
                contents = stream.read(size + 1)
        except Exception as error:  # zipfile, zlib, bz2 and lzma raise half a dozen types of error
            check_memory(error)
            raise ValueError(first_line(error)) from error
        if len(contents) != size:
            raise ValueError(f"it has {len(contents):,} bytes, and {size:,} are promised")
        return contents


def _long(extra, *numbers):
    """The numbers of a member, with those too large for their fields taken from the ZIP64 extra field."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == 1:
            more = iter(struct.unpack_from(f"<{size // 8}Q", extra, 4))
            return tuple(next(more, number) if number == FULL else number for number in numbers)
        extra = extra[4 + size :]
    return numbers


class TarMembers(Members):
    """The members of an uncompressed .tar file, read from header to header. What follows a damaged header is lost, and
    listed; raises tarfile.TarError if even the first header is damaged.
    """

    def __init__(self, path):
        super().__init__(path)
        self.file, self.at = _Pieces(path), array("q")
        with open(path, "rb") as stream, tarfile.open(path, "r:") as archive:
            archive.fileobj.close()
            archive.fileobj, here = stream, 0
            while True:
                stream.seek(here)
                header = stream.read(BLOCK)
                plain = None if _unusual(archive) else _plain(header)
                if not header:
                    self.skipped.append((printable(path.name), CUT))
                if plain is None:
                    stream.seek(here)
                    try:
                        info = tarfile.TarInfo.fromtarfile(archive)
                    except (tarfile.EmptyHeaderError, tarfile.EOFHeaderError):  # pyright: ignore[reportAttributeAccessIssue]
                        break
                    except tarfile.HeaderError as error:
                        if here == 0:
                            raise tarfile.ReadError(first_line(error)) from error
                        last = next(reversed(self.numbers), "")
                        self.skipped.append((printable(path.name), f"damaged after {last!a}: {first_line(error)}"))
                        break
                    name, size, at = info.name, info.size, info.offset_data
                    here = archive.offset
                    if not info.isreg():
                        if not info.isdir():
                            self.skipped.append((printable(name), "no regular file in the archive"))
                        continue
                else:
                    (name, size), at = plain, here + BLOCK
                    here = at + -(-size // BLOCK) * BLOCK
                if at + size > self.file.length:
                    self.skipped.append((printable(name.removeprefix("./")), "the archive ends before it does"))
                    break
                if self.add(name, size):
                    self.at.append(at)

    def read(self, number):
        """The contents of a member."""
        return self.file.read(self.at[number], self.sizes[number])


def _unusual(archive):
    """Whether a global header, which applies to all members, contains more than comments."""
    return any(name in tarfile.PAX_FIELDS for name in archive.pax_headers)


def _plain(header):
    """(name, size) in the header of a regular file, if both are in it, which is almost always so; a fast path beside
    tarfile. None for any other header, which tarfile then parses.
    """
    if len(header) < BLOCK or header[156] not in b"0\0" or header[345]:
        return None
    name, size, stated = header[:100].split(b"\0", 1)[0], header[124:136], header[148:156]
    try:
        size, stated = int(size.strip(b" \0"), 8), int(stated.strip(b" \0"), 8)
    except ValueError:  # a large number in binary, or garbage
        return None
    # The checksum is the sum of the bytes, with its own taken as spaces; adler32's lower half is 1 + that sum mod
    # 65521.
    total = zlib.adler32(header[:148] + b" " * 8 + header[156:]) & 0xFFFF
    if total != (1 + stated) % 65521 or size < 0 or not name or name.endswith(b"/"):
        return None
    return name.decode("utf-8", "surrogateescape"), size


class _Pieces:
    """A file that several threads read in pieces, in any order. It stays open as long as this object exists."""

    def __init__(self, path):
        self.file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self.file)
        self.length, self.lock = os.fstat(self.file).st_size, threading.Lock()

    def read(self, at, size):
        """`size` bytes from offset `at`. Raises ValueError if the file ends before."""
        if not (size >= 0 and at >= 0 and at + size <= self.length):
            raise ValueError("the archive ends before it does")
        if hasattr(os, "pread"):
            data = os.pread(self.file, size, at)
        else:
            with self.lock:
                os.lseek(self.file, at, os.SEEK_SET)
                data = os.read(self.file, size)
        if len(data) != size:
            raise ValueError("the archive was cut off while it was read")
        return data

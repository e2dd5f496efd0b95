"""How much memory data may take. Every reader checks here before it allocates what a file claims to hold.

A small file can claim gigabytes: 3 GB of zeros compress to 3 MB. So there is one limit on what is unpacked, which the
user can raise; until then, nothing may expand to many times its own size either.
"""

import errno
from typing import NamedTuple

GIB = 1 << 30
LIMIT = 4.0  # GiB
SMALL = 64 << 20  # bytes that anything may expand to
RATIO = 200  # how many times its size anything larger may expand to; photographs and numbers stay below 20


class Limit(NamedTuple):
    """gib: GiB of memory that data may take. raised: whether the user has set it."""

    gib: float = LIMIT
    raised: bool = False

    def check(self, size: int, what: str):
        """Raises ValueError if this many bytes exceed the limit. what: the data's name in the message."""
        if size > self.gib * GIB:
            much = f"{size / GIB:,.1f}" if size >= GIB else f"{size / GIB:.2g}"
            raise ValueError(
                f"{what} would take {much} GiB of memory, above the limit of {self.gib:g} GiB; "
                f"raise it with limit={_enough(size)} (--limit {_enough(size)}) if there is room"
            )

    def check_unfolding(self, size: int, packed: int, what: str):
        """The same for data compressed to `packed` bytes, which may also be a decompression bomb."""
        self.check(size, what)
        if not self.raised and size > SMALL and size > RATIO * packed:
            raise ValueError(
                f"{what} would unfold from {packed:,} bytes to {size:,}, {size // max(packed, 1):,} times as many; "
                f"if it is what it seems, say limit={_enough(size)} (--limit {_enough(size)})"
            )


USUAL = Limit()


def check_memory(error: Exception):
    """Raises MemoryError if another library's exception reports a lack of memory: data that do not fit are not damaged,
    and must not be skipped as if they were.
    """
    told = str(error)
    if isinstance(error, MemoryError) or "out of memory" in told or told.startswith("Error -4 "):  # Pillow's, zlib's
        raise MemoryError(f"there is not enough memory ({told or type(error).__name__})") from error


def check_system(error: Exception):
    """Raises the system's error again where the file itself may be sound: it may not be read, or the disk, or the
    number of files that may be open, is at its end.
    """
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE):
        raise error


def _enough(size: int) -> int:
    """The smallest whole number of GiB that holds this many bytes, at least the default limit."""
    return max(int(LIMIT), -(-size // GIB))


def limit_of(gib) -> Limit:
    """The limit that a user sets, in GiB; None is the default. Raises ValueError for other values."""
    if gib is None:
        return Limit()
    if isinstance(gib, bool | str) or not hasattr(gib, "__float__"):
        raise ValueError(f"limit is {gib!r}, expected GiB of memory that the data may take; use for example limit=8")
    if not 0 < float(gib) < 1 << 40:
        raise ValueError(f"limit is {gib!r}, expected GiB of memory above 0; use for example limit=8")
    return Limit(float(gib), raised=True)

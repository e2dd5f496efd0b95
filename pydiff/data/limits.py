"""How much memory data may take. Every reader asks here before it makes room for what a file claims to hold.

A small file can claim gigabytes: 3 MB of zeros, packed, are 3 GB. So there is one limit for what is unpacked, which the
user can raise, and as long as nobody did, nothing may unfold to many times its own size either.
"""

from typing import NamedTuple

GIB = 1 << 30
LIMIT = 4.0  # GiB
SMALL = 64 << 20  # bytes that anything may unfold to
RATIO = 200  # how many times its size anything larger may unfold to; photographs and numbers stay below 20


class Limit(NamedTuple):
    """gib: of memory that data may take. raised: whether the user has said so."""

    gib: float = LIMIT
    raised: bool = False

    def check(self, size: int, what: str):
        """ValueError, in one sentence, where this many bytes are too many. what: of whom the message speaks."""
        if size > self.gib * GIB:
            much = f"{size / GIB:,.1f}" if size >= GIB else f"{size / GIB:.2g}"
            raise ValueError(
                f"{what} would take {much} GiB of memory, above the limit of {self.gib:g} GiB; "
                f"raise it with limit={_enough(size)} (--limit {_enough(size)}) if there is room"
            )

    def check_unfolding(self, size: int, packed: int, what: str):
        """The same for something packed into so many bytes, which may also be a bomb: tiny, and huge when unpacked."""
        self.check(size, what)
        if not self.raised and size > SMALL and size > RATIO * packed:
            raise ValueError(
                f"{what} would unfold from {packed:,} bytes to {size:,}, {size // max(packed, 1):,} times as many; "
                f"if it is what it seems, say limit={_enough(size)} (--limit {_enough(size)})"
            )


USUAL = Limit()


def check_memory(error: Exception):
    """Raises MemoryError where an exception of others says that there was none: what there is no room for is not
    damaged, and must not be missing in silence.
    """
    told = str(error)
    if isinstance(error, MemoryError) or "out of memory" in told or told.startswith("Error -4 "):  # Pillow's, zlib's
        raise MemoryError(f"there is not enough memory ({told or type(error).__name__})") from error


def _enough(size: int) -> int:
    """Whole GiB that hold so many bytes, and no less than the limit is anyway."""
    return max(int(LIMIT), -(-size // GIB))


def limit_of(gib) -> Limit:
    """The limit that a user asks for, in GiB; None is the usual one. ValueError for what is no such number."""
    if gib is None:
        return Limit()
    if isinstance(gib, bool | str) or not hasattr(gib, "__float__"):
        raise ValueError(f"limit is {gib!r}, expected GiB of memory that the data may take; use for example limit=8")
    if not 0 < float(gib) < 1 << 40:
        raise ValueError(f"limit is {gib!r}, expected GiB of memory above 0; use for example limit=8")
    return Limit(float(gib), raised=True)

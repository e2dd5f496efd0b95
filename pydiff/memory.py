"""How much memory this process can still use, given the machine, its control group and its own limits."""

import contextlib
import os
from pathlib import Path

GROUPS = (  # (limit, use) of control groups, version 2 and version 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def free() -> int | None:
    """Free memory in bytes; None if the system does not report it."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    for limit, use in GROUPS:
        with contextlib.suppress(OSError, ValueError):  # "max" is not a number
            found.append(int(Path(limit).read_text()) - int(Path(use).read_text()))
    with contextlib.suppress(OSError, ValueError, ImportError, IndexError):
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            found.append(limit - int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(found)) if found else None


def check(size: float, what: str, advice: str):
    """Raises ValueError if `size` bytes are not free. what: what needs them. advice: what would help."""
    there = free()
    if there is not None and size > there:
        raise ValueError(f"{what} would take {told(size)} of memory, and {told(there)} are free; {advice}")


LARGE = 100_000  # samples; only where more are asked for it is looked how much memory is free


def check_many(n: int, each: int, noun: str):
    """Raises ValueError if n samples, where that is a large number, take more memory than is free at so many bytes
    each.
    """
    if n > LARGE:
        check(int(n) * (each + 32), f"{n:,} {noun}s at once", "ask for fewer at a time")


def told(size: float) -> str:
    """A number of bytes in words: 1.2 GB."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    unit = units[0]
    return f"{size:.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"

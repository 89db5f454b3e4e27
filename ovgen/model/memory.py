"""How much memory there is to have."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = (  # limit and use of a container
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
_UNKNOWN = 4 << 30


def available_memory() -> int:
    """Bytes that this process can have without others' being swapped out: the system's, or what a
    container's limit leaves."""
    known = [_system(), *(_left(*paths) for paths in _CGROUPS)]
    return max(0, min((number for number in known if number is not None), default=_UNKNOWN))


def _system() -> int | None:
    with suppress(OSError, ValueError):
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(OSError, ValueError, AttributeError):  # macOS: half of what there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return None


def _left(limit: Path, used: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(limit.read_text()) - int(used.read_text())
    return None

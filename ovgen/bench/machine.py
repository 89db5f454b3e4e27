"""What the machine is that figures come from."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from ovgen.bench.worker import num_cores

_EXTENSIONS = ("avx2", "avx512_vnni", "avx512_bf16", "amx_tile", "asimddp", "i8mm", "sve")


def machine() -> dict[str, str | float | None]:
    """Processor, cores, memory in bytes, load and operating system; None for what nobody tells."""
    return {
        "processor": _processor(),
        "cores": num_cores(),
        "memory": _memory(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(terse=True),
    }


def _processor() -> str:
    """The processor's name and vector extensions, where Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    told = {key.strip(): value.strip() for key, value in facts.items()}
    flags = (told.get("flags") or told.get("Features") or "").split()
    found = [name for name in _EXTENSIONS if name in flags]
    name = told.get("model name") or platform.machine()
    return f"{name} ({', '.join(found)})" if found else name


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None

"""What is to be known of the processor, beyond what OpenVINO tells."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import openvino as ov

_CPU_INFO = Path("/proc/cpuinfo")
_SMT = Path("/sys/devices/system/cpu/smt/active")


def num_cpus() -> int:
    """Logical processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_smt() -> bool:
    """Whether several logical processors share a core, as far as the system tells."""
    return _first_line(_SMT, "1") is not None


def has_amx(core: ov.Core) -> bool:
    """Whether the CPU has matrix units for bfloat16 (AMX), and OpenVINO uses bfloat16 on it."""
    return _computes_bf16_by(core, "amx_bf16")


def has_bf16(core: ov.Core) -> bool:
    """Whether the CPU multiplies bfloat16 vectors, and OpenVINO uses them: it emulates them where
    the CPU does not, at the speed of float32."""
    return _computes_bf16_by(core, "avx512_bf16")


def _computes_bf16_by(core: ov.Core, flag: str) -> bool:
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return False
    flags = _first_line(_CPU_INFO, "flags")
    return flags is not None and flag in flags.split()


def _first_line(path: Path, start: str) -> str | None:
    """The first line of a file that begins so; of a long file no more is read than that."""
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(start):
                return line
    return None

"""What is read of the processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovgen.model import cpu

FLAGS = (
    "processor\t: 0\nflags\t\t: fpu avx512_other {}\n\n"
    "processor\t: 1\nflags\t\t: fpu amx_bf16 avx512_bf16\n"
)


class FakeCore:
    """Tells capabilities, as ov.Core does."""

    def __init__(self, *capabilities: str) -> None:
        self.capabilities = list(capabilities)

    def get_property(self, device: str, name: str) -> object:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return self.capabilities


@pytest.mark.parametrize(
    ("capabilities", "flags", "expected"),
    [
        (("FP32", "BF16"), FLAGS.format("amx_bf16 amx_tile"), True),
        (("FP32", "BF16"), FLAGS.format(""), False),
        (("FP32", "BF16"), FLAGS.format("amx_bf16_other"), False),
        (("FP32",), FLAGS.format("amx_bf16"), False),
        (("FP32", "BF16"), None, False),
    ],
)
def test_amx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capabilities, flags, expected):
    path = tmp_path / "cpuinfo"
    if flags is not None:
        path.write_text(flags)
    monkeypatch.setattr(cpu, "_CPU_INFO", path)
    assert cpu.has_amx(FakeCore(*capabilities)) is expected


@pytest.mark.parametrize(
    ("capabilities", "flags", "expected"),
    [
        (("FP32", "BF16"), FLAGS.format("avx512_vnni avx512_bf16"), True),
        (("FP32", "BF16"), FLAGS.format("avx512_vnni"), False),  # emulated
        (("FP32",), FLAGS.format("avx512_bf16"), False),
    ],
)
def test_bf16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capabilities, flags, expected):
    path = tmp_path / "cpuinfo"
    path.write_text(flags)
    monkeypatch.setattr(cpu, "_CPU_INFO", path)
    assert cpu.has_bf16(FakeCore(*capabilities)) is expected


@pytest.mark.parametrize(("content", "expected"), [("1\n", True), ("0\n", False), (None, False)])
def test_smt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content, expected):
    path = tmp_path / "active"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(cpu, "_SMT", path)
    assert cpu.has_smt() is expected


def test_processors(monkeypatch: pytest.MonkeyPatch):
    assert cpu.num_cpus() >= 1
    monkeypatch.delattr(cpu.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(cpu.os, "cpu_count", lambda: None)
    assert cpu.num_cpus() == 1

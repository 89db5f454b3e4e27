"""The picture, where matplotlib is there to draw it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from ovgen.bench.figures import MEMORY, THROUGHPUT, TPOT, TTFT, Figure, Samples
from ovgen.bench.plot import require_matplotlib, write_plot
from ovgen.errors import ConfigError, StorageError


def test_matplotlib_that_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'ovgen\[plot\]'"):
        require_matplotlib()


@pytest.fixture
def samples():
    pytest.importorskip("matplotlib")
    samples = Samples()
    for group, unit in ((TTFT, "s"), (TPOT, "s"), (THROUGHPUT, "tokens/s")):
        for label in ("32 tokens", "512 tokens"):
            for engine in ("ovgen", "genai"):
                samples.add(Figure(group, label, unit), engine, 1.5)
    samples.add(Figure(MEMORY, "loaded", "bytes"), "ovgen", 1e9)  # of one engine alone
    return samples


def test_png(samples, tmp_path):
    path = tmp_path / "a.png"
    write_plot(path, samples, ["ovgen", "genai"], "title")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_one_group(tmp_path):
    pytest.importorskip("matplotlib")
    samples = Samples()
    samples.add(Figure(TTFT, "32 tokens", "s"), "ovgen", 1.0)
    write_plot(tmp_path / "a.png", samples, ["ovgen"], "title")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_place_that_cannot_be_written(samples, tmp_path):
    with pytest.raises(StorageError, match="cannot write"):
        write_plot(tmp_path / "none" / "a.png", samples, ["ovgen"], "title")
    assert not Path(tmp_path / "none").exists()

"""Engines that are imagined: no model, and times that are known beforehand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ovgen.bench.engines import OWN, OWN_NAME, PEERS, Engine

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")


class Fakes:
    """Makes them, and knows what they were asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "log"

    def python(self, name: str, **behaviour: object) -> Path:
        """An interpreter that has the engine, for its caller; see fake_engine.py."""
        path = self._folder / f"python-{name}"
        text = FAKE_ENGINE.read_text()
        head, body = text.split("import json\n", 1)
        behaviour = {"name": name, "log": str(self._log), **behaviour}
        path.write_text(f"#!{sys.executable}\n{head}import json\nBEHAVIOUR = {behaviour!r}\n{body}")
        path.chmod(0o755)
        return path

    def engine(self, name: str, **behaviour: object) -> Engine:
        """An engine in such an interpreter."""
        kind = OWN if name == OWN_NAME else PEERS[name]
        python = str(self.python(name, **behaviour))
        return Engine(name, kind, python, "3.99", {"package": "1.2"})

    def log(self) -> list[str]:
        """What they were asked for, in order."""
        return self._log.read_text().splitlines() if self._log.exists() else []


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    folder = tmp_path / "fakes"
    folder.mkdir()
    return Fakes(folder)


@pytest.fixture
def fake(fakes: Fakes) -> Callable[..., Engine]:
    return fakes.engine

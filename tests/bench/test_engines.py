"""Where the engines are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ovgen.bench.engines import PEERS, environment, find_own, find_peer, rotated
from ovgen.cli import bench as command
from ovgen.errors import ConfigError


def test_the_command_knows_them():
    assert tuple(PEERS) == command.PEERS


@pytest.mark.parametrize("kind", PEERS.values())
def test_every_peer_has_a_worker(kind):
    folder = Path(command.__file__).parents[1] / "bench"
    assert (folder / f"{kind.worker}.py").is_file()


def test_own():
    own = find_own()
    assert (own.name, own.python) == ("ovgen", sys.executable)
    assert set(own.versions) == {"openvino", "numpy"}


def test_a_peer_in_an_interpreter_of_its_own(fakes):
    python = fakes.python("genai")
    peer = find_peer("genai", str(python))
    assert (peer.python, peer.python_version) == (str(python), "3.99")
    assert peer.versions == {"openvino-genai": "1.2", "openvino": "1.2"}


def test_a_peer_that_is_not_installed(fakes, monkeypatch):
    python = fakes.python("genai", installed=False)
    with pytest.raises(ConfigError) as caught:
        find_peer("genai", str(python))
    assert str(caught.value) == (
        f"genai is not installed in {python}: pip install openvino-genai, or name the interpreter "
        "of an environment that has it, --against genai=/path/to/python"
    )
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(
        ConfigError, match=r"llama\.cpp is not installed in .*pip install llama-cpp"
    ):
        find_peer("llama.cpp", None)


def test_what_is_no_interpreter(tmp_path):
    with pytest.raises(ConfigError, match="--against genai=/none/python: there is no such program"):
        find_peer("genai", "/none/python")
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho hello\n")
    broken.chmod(0o755)
    with pytest.raises(ConfigError, match="is no Python interpreter that works"):
        find_peer("genai", str(broken))


def test_environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/a")
    monkeypatch.setenv("HOME", "/b")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    own = environment(sys.executable, {"OVGEN_HOME": "/c"})
    assert (own["PYTHONPATH"], own["HOME"], own["OVGEN_HOME"]) == ("/a", "/b", "/c")
    peers = environment("/d/python")
    assert "PYTHONPATH" not in peers
    assert "PYTHONDONTWRITEBYTECODE" not in own | peers
    assert (peers["HOME"], peers["HF_HUB_OFFLINE"]) == ("/b", "1")


def test_each_engine_comes_first_in_turn():
    assert [rotated(["a", "b", "c"], round_) for round_ in range(4)] == [
        ["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"],
    ]  # fmt: skip

"""The engines that can be measured, and the interpreters that they are installed in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ovgen.errors import ConfigError

WORKER_MAIN = Path(__file__).with_name("worker_main.py")
OWN_NAME = "ovgen"
_PROBE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What is known of an engine before anyone looks whether it is there.

    Attributes:
        worker: its module in this package.
        module: what the worker imports.
        packages: those whose versions are told; the first is what pip installs.
        has_batches: whether it serves several requests at a time.
        is_openvino: whether it opens the IR on an OpenVINO device; otherwise the GGUF on the CPU.
    """

    worker: str
    module: str
    packages: tuple[str, ...]
    has_batches: bool
    is_openvino: bool = True


OWN = Kind("ovgen_worker", "openvino", ("openvino", "numpy"), has_batches=True)
PEERS = {
    "genai": Kind(
        "genai_worker", "openvino_genai", ("openvino-genai", "openvino"), has_batches=True
    ),
    "llama.cpp": Kind(
        "llama_cpp_worker", "llama_cpp", ("llama-cpp-python",), has_batches=False, is_openvino=False
    ),
    "optimum": Kind(
        "optimum_worker",
        "optimum.intel",
        ("optimum-intel", "optimum", "transformers", "torch", "openvino"),
        has_batches=False,
    ),
}


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine in an interpreter.

    Attributes:
        name: ovgen, or what ``--against`` calls it.
        kind: what it is.
        python: the interpreter.
        python_version: of that interpreter.
        versions: of its packages.
        properties: OpenVINO compile properties it is given.
    """

    name: str
    kind: Kind
    python: str
    python_version: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)


def find_own() -> Engine:
    """ovgen, in this interpreter."""
    engine = _find(OWN_NAME, OWN, sys.executable)
    assert engine is not None, "ovgen's own dependencies are installed"
    return engine


def find_peer(name: str, python: str | None) -> Engine:
    """A peer in an interpreter, or in this one.

    Raises:
        ConfigError: the interpreter does not run, or has no such peer.
    """
    kind = PEERS[name]
    path = sys.executable if python is None else shutil.which(os.path.expanduser(python))
    if path is None:
        raise ConfigError(
            f"--against {name}={python}: there is no such program; give a Python interpreter's path"
        )
    engine = _find(name, kind, path)
    if engine is None:
        raise ConfigError(
            f"{name} is not installed in {path}: pip install {kind.packages[0]}, or name the "
            f"interpreter of an environment that has it, --against {name}=/path/to/python"
        )
    return engine


def _find(name: str, kind: Kind, python: str) -> Engine | None:
    command = [python, str(WORKER_MAIN), "probe", kind.module, *kind.packages]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_SECONDS,
            env=environment(python),
        )
        found = json.loads(done.stdout)
        has_module, version = found["has_module"], found["python"]
        versions = found["versions"]
    except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired) as exc:
        raise ConfigError(f"{python} is no Python interpreter that works ({exc})") from exc
    return Engine(name, kind, python, version, versions) if has_module else None


def environment(python: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a worker: this one's, but for what speaks of this interpreter alone, and
    with bytecode kept, as that of installed packages is."""
    left_out = {"PYTHONDONTWRITEBYTECODE"}
    if python != sys.executable:
        left_out |= {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    kept = {key: value for key, value in os.environ.items() if key not in left_out}
    # Everything it needs is on this machine by now.
    return {**kept, "HF_HUB_OFFLINE": "1", **(more or {})}


def rotated(engines: Sequence[str], round_: int) -> list[str]:
    """The order of a round: each engine comes first in turn."""
    first = round_ % len(engines)
    return [*engines[first:], *engines[:first]]

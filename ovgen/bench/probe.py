"""What an interpreter has: run in it by `worker_main.py probe MODULE PACKAGE ...`.

Imports the standard library alone.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import sys


def main(arguments: list[str]) -> None:
    """Write one JSON object: whether the module is there, and the packages' versions."""
    module, *packages = arguments
    versions = {name: version(name) for name in packages}
    found = {
        "has_module": has_module(module),
        "python": platform.python_version(),
        "versions": {name: text for name, text in versions.items() if text is not None},
    }
    sys.stdout.write(json.dumps(found) + "\n")


def has_module(module: str) -> bool:
    """Whether a module could be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def version(package: str) -> str | None:
    """A package's version, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

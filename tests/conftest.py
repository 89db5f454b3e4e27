"""Fixtures that many tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovgen.export.exporter import export_model
from ovgen.hub.cache import home_folder
from ovgen.hub.resolve import resolve_model


@pytest.fixture(scope="session")
def downloads() -> Path:
    """The user's own OVGEN_HOME, for downloads only, so that each model comes once a machine."""
    return home_folder()


@pytest.fixture(scope="session")
def smollm2_gguf(downloads: Path) -> Path:
    """SmolLM2-135M-Instruct in Q4_1."""
    return resolve_model("smollm2-135m-instruct", home=downloads).path


@pytest.fixture(scope="session")
def gemma3_gguf(downloads: Path) -> Path:
    """gemma-3-270m in Q4_K_M."""
    return resolve_model("gemma-3-270m", home=downloads).path


@pytest.fixture(scope="session")
def smollm2_folder(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's IR as exported by default."""
    return export_model(smollm2_gguf, tmp_path_factory.mktemp("ir") / "smollm2")


@pytest.fixture(scope="session")
def smollm2_exact_folder(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's IR with the file's own values."""
    folder = tmp_path_factory.mktemp("ir") / "smollm2-exact"
    return export_model(smollm2_gguf, folder, weights="exact")


@pytest.fixture(autouse=True)
def ovgen_home(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Every test has a cache folder of its own."""
    request.getfixturevalue("downloads")  # read from the environment before it changes
    home = tmp_path_factory.mktemp("home")
    before = os.environ.get("OVGEN_HOME")
    os.environ["OVGEN_HOME"] = str(home)
    yield home
    if before is None:
        del os.environ["OVGEN_HOME"]
    else:
        os.environ["OVGEN_HOME"] = before


TINY_MODELS = Path(__file__).parent / "fixtures" / "tiny"

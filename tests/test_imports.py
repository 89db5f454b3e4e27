"""What `import ovgen` costs, and what it offers."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import ovgen

HEAVY = {
    "openvino",
    "numpy",
    "openvino_tokenizers",
    "huggingface_hub",
    "jinja2",
    "yaml",
    "tokenizers",
    "tqdm",
    "filelock",
}


def imported_by(statement: str) -> set[str]:
    """Top-level modules that a new interpreter has after a statement."""
    code = f"{statement}; import sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import ovgen; dir(ovgen)",
        "import ovgen; ovgen.__version__; ovgen.GenerationConfig(); ovgen.OvgenError",
        "from ovgen import EngineConfig, RequestOutput, StreamChunk",
        "from ovgen import PerplexityOutput, ScoreOutput, TokenLogprob",
        "import ovgen.engine.scheduler",
        "from ovgen.cli.main import make_parser; make_parser()",
    ],
)
def test_importing_brings_in_nothing_heavy(statement: str):
    assert imported_by(statement) & HEAVY == set()


def test_the_llm_needs_openvino_and_numpy_only():
    heavy = imported_by("from ovgen import LLM") & HEAVY
    assert heavy <= {"openvino", "numpy"}


@pytest.mark.parametrize(
    ("modules", "needed"),
    [
        ("gguf_checkpoint, ovgen.export.safetensors_checkpoint", {"numpy"}),
        ("exporter, ovgen.export.recompress", {"numpy", "openvino"}),
    ],
    ids=("readers", "all"),
)
def test_the_export_needs_numpy_and_openvino_only(modules: str, needed: set[str]):
    """And none of the libraries that the checkpoints' authors used."""
    others = {"torch", "transformers", "safetensors", "gguf", "peft", "nncf", "optimum"}
    assert imported_by(f"import ovgen.export.{modules}") & (HEAVY | others) == needed


@pytest.mark.parametrize("name", ovgen.__all__)
def test_public_names_resolve(name: str):
    value = getattr(ovgen, name)
    if isinstance(value, type):
        assert value.__name__ == name
        assert value.__module__.startswith("ovgen.")


def test_public_names_are_listed():
    assert dir(ovgen) == sorted(ovgen.__all__)
    assert len(set(ovgen.__all__)) == len(ovgen.__all__)


def test_every_public_error_is_listed():
    errors = importlib.import_module("ovgen.errors")
    kinds = {n for n, v in vars(errors).items() if isinstance(v, type) and not n.startswith("_")}
    assert kinds <= set(ovgen.__all__)


def test_other_names_do_not_exist():
    with pytest.raises(AttributeError, match="no attribute 'Engine'"):
        ovgen.Engine  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        from ovgen import NoSuchName  # type: ignore[attr-defined]  # noqa: F401


def test_star_import():
    names: dict[str, object] = {}
    exec("from ovgen import *", names)
    assert set(ovgen.__all__) <= set(names)


def test_the_catalog_is_found():
    from ovgen.hub.catalog import load_catalog

    assert "smollm2-135m-instruct" in load_catalog()

"""Imports point down only: cli, server -> llm -> engine -> model, decoding, text -> the configs.

Walks the syntax trees, so that imports inside functions count as well.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ovgen

PACKAGE = Path(ovgen.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
ARCHITECTURES = [path for path in FILES if path.match("architectures/[!_]*.py")]

FOUNDATION = {
    *("errors", "generation_checks", "generation_conflicts", "generation_file"),
    *("generation_config", "engine_config", "outputs"),
}
PURE_ENGINE = {
    *("engine/sequence.py", "engine/batch.py", "engine/block_manager.py", "engine/lockstep.py"),
    "engine/scheduler.py",
}
ENGINE_TYPES = {"engine.batch", "engine.sequence"}  # what the seam to the runner is made of
PEER_WORKERS = {f"bench/{name}_worker.py" for name in ("genai", "llama_cpp", "optimum")}

# Part of the package -> the parts of it that it may import. A file's own line wins.
ALLOWED = {
    "errors.py": set(),
    "generation_checks.py": {"errors"},
    "generation_conflicts.py": {"generation_checks"},
    "generation_file.py": {"errors", "generation_checks", "generation_conflicts"},
    "generation_config.py": {
        *("errors", "generation_checks", "generation_conflicts", "generation_file"),
    },
    "engine_config.py": {"errors"},
    "outputs.py": set(),
    "__init__.py": {"llm", "async_llm", "async_handle", "engine.handle", "session"} | FOUNDATION,
    "__main__.py": {"cli"},
    "llm.py": {"engine", "decoding", "model", "paging", "scoring", "session", "text"} | FOUNDATION,
    "session": {"session", "engine", "decoding", "model", "text"} | FOUNDATION,
    "paging.py": {"engine", "model", "errors"},
    "async_llm.py": {"llm", "async_handle", "engine", "decoding"} | FOUNDATION,
    "async_handle.py": {"engine", "outputs"},
    "scoring.py": {"errors", "text"},
    "engine": {"engine", "decoding", "text"} | FOUNDATION,
    "decoding": {"decoding"} | FOUNDATION,
    "model": {"model"} | ENGINE_TYPES | FOUNDATION,
    "model/resolve.py": {"model", "hub", "export"} | FOUNDATION,
    "text": {"text"} | FOUNDATION,
    "export": {"export", "text", "errors"},
    "hub": {"hub", "errors"},
    "bench": {"bench", "llm", "errors"},
    # What runs in a peer's interpreter, where ovgen's dependencies are missing.
    "bench/worker.py": set(),
    "bench/probe.py": set(),
    **{name: {"bench.worker"} for name in PEER_WORKERS},
    "model/profile_file.py": {"model.side_file", "hub.cache"} | FOUNDATION,
    "model/side_file.py": {"hub.cache", "errors"},
    "evaluation": {"evaluation", "llm", "text", "errors", "generation_config"},
    "tuning": {"tuning", "evaluation", "llm", "model", "engine_config", "errors"},
    "cli": {
        *("cli", "bench", "evaluation", "tuning", "llm", "model", "text", "hub", "export"),
        *FOUNDATION,
    },
    "server": {"server", "llm"} | FOUNDATION,
}

# Library -> where it may be imported: folders and files.
HOMES = {
    "openvino": ("model/", "export/", "text/openvino_tokenizer.py", "bench/genai_worker.py"),
    "tokenizers": ("text/", "export/tokenizer", "export/pre_tokenizers.py"),
    "openvino_tokenizers": ("text/openvino_tokenizer.py", "export/"),
    "huggingface_hub": ("hub/",),
    "jinja2": ("text/",),
    "yaml": ("hub/",),
    "filelock": ("hub/",),
    "tqdm": ("hub/", "cli/"),
    "matplotlib": ("bench/plot.py",),
    "openvino_genai": ("bench/genai_worker.py",),
    "llama_cpp": ("bench/llama_cpp_worker.py",),
    **dict.fromkeys(("optimum", "torch", "transformers"), ("bench/optimum_worker.py",)),
}
LAZY = {
    "huggingface_hub",
    "jinja2",
    "yaml",
    "openvino_tokenizers",
    "tokenizers",
    "tqdm",
    "filelock",
    "matplotlib",
}
# Made of such a library, and themselves imported where they are used.
WRAPPERS = {"export/tokenizer.py", "export/tokenizer_kinds.py", "text/template_sandbox.py"}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all the modules that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def top_level_imports(tree: ast.Module) -> set[str]:
    """Libraries imported as the module is, not inside a function and not for type checking."""
    return {
        name.split(".")[0]
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in imports(node)
    }


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path: Path):
    name = name_of(path)
    part = name.split("/")[0]
    allowed = ALLOWED[name] if name in ALLOWED else ALLOWED[part]
    for module in imports(parsed(path)):
        top, _, inner = module.partition(".")
        if top == "ovgen" and inner:
            is_allowed = inner.split(".")[0] in allowed or inner in allowed
            assert is_allowed, f"{name} must not import {module}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_libraries_stay_where_they_belong(path: Path):
    name = name_of(path)
    for module in imports(parsed(path)):
        top = module.split(".")[0]
        assert not (top in HOMES and not name.startswith(HOMES[top])), f"{name} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_heavy_libraries_are_imported_where_they_are_used(path: Path):
    if name_of(path) in WRAPPERS:
        return
    assert top_level_imports(parsed(path)) & LAZY == set()


@pytest.mark.parametrize("path", ARCHITECTURES, ids=name_of)
def test_an_architecture_is_a_short_file(path: Path):
    """What is long in one belongs into the shared blocks."""
    assert len(path.read_text(encoding="utf-8").splitlines()) < 150


@pytest.mark.parametrize("name", sorted(PURE_ENGINE))
def test_the_pure_engine_is_the_standard_library_and_itself(name: str):
    own = {"ovgen." + path.removesuffix(".py").replace("/", ".") for path in PURE_ENGINE}
    for module in imports(parsed(PACKAGE / name)):
        is_standard = module.split(".")[0] in sys.stdlib_module_names
        assert is_standard or module in own, f"{name} imports {module}"


def test_every_import_is_declared():
    """A library that is used is a dependency of the package, or of one of its extras."""
    used = {name.split(".")[0] for path in FILES for name in imports(parsed(path))}
    known = set(HOMES) | {"numpy", "ovgen"} | set(sys.stdlib_module_names)
    assert used <= known

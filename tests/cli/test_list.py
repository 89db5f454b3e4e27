"""`ovgen list`."""

from __future__ import annotations

import hashlib
import json

import pytest

from ovgen.hub.catalog import load_catalog


def test_table(cli):
    lines = cli("list").text().splitlines()
    assert lines[0].split() == ["ALIAS", "SIZE", "LICENCE", "CONTEXT", "CACHED", "TITLE"]
    catalog = load_catalog()
    assert [line.split()[0] for line in lines[1:]] == list(catalog)
    column = lines[0].index("TITLE")
    assert [line[column:] for line in lines[1:]] == [entry.title for entry in catalog.values()]
    assert lines[1].split()[1:6] == ["98", "MB", "Apache-2.0", "8192", "-"]


@pytest.fixture
def small_catalog(gguf_file, tmp_path, monkeypatch):
    digest = hashlib.sha256(gguf_file.read_bytes()).hexdigest()
    catalog = tmp_path / "models.yaml"
    catalog.write_text(
        "default: tiny\nmodels:\n  tiny:\n    title: Tiny\n    architecture: llama\n"
        f"    license: MIT\n    context_length: 128\n    sha256: {digest}\n"
        f"    size: {gguf_file.stat().st_size}\n    sources: ['file:{gguf_file}']\n"
    )
    monkeypatch.setattr("ovgen.hub.catalog.catalog_path", lambda: catalog)


@pytest.mark.usefixtures("small_catalog")
def test_what_was_pulled_is_cached(cli, gguf_file):
    (before,) = json.loads(cli("list", "--json").text())
    assert before == {
        "alias": "tiny",
        "title": "Tiny",
        "architecture": "llama",
        "size": gguf_file.stat().st_size,
        "license": "MIT",
        "context_length": 128,
        "sources": [f"file:{gguf_file}"],
        "cached": False,
        "default": True,
    }
    cli("pull", "tiny").text()
    (after,) = json.loads(cli("list", "--json").text())
    assert after == {**before, "cached": True}
    assert "  yes  " in cli("list").text()


def test_catalog_that_is_broken(fails, tmp_path, monkeypatch):
    (tmp_path / "models.yaml").write_text("default: [")
    monkeypatch.setattr("ovgen.hub.catalog.catalog_path", lambda: tmp_path / "models.yaml")
    assert "not valid YAML" in fails("list")

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ovgen.errors import ConfigError, StorageError
from ovgen.hub.catalog import catalog_path, load_catalog
from ovgen.hub.sources import JoinedSource

GOOD = {
    "title": "Tiny",
    "architecture": "llama",
    "license": "MIT",
    "context_length": 64,
    "sources": ["hf:org/repo"],
}
SHA = "a" * 64


def catalog_of(tmp_path: Path, entry: object, default: str = "tiny"):
    path = tmp_path / "models.yaml"
    path.write_text(yaml.safe_dump({"default": default, "models": {"tiny": entry}}))
    return load_catalog(path)


def test_the_real_catalog_is_valid():
    catalog = load_catalog()
    assert catalog.default == "smollm2-135m-instruct"
    default = catalog[catalog.default]
    assert default.size == 98362432
    assert default.context_length == 8192
    assert default.license == "Apache-2.0"
    assert len(catalog) >= 13
    assert all(entry.alias == alias for alias, entry in catalog.items())


def test_the_real_catalog_repeats_no_alias_and_no_source():
    aliases = re.findall(r"^  ([^\s#]+):$", catalog_path().read_text(), re.MULTILINE)
    assert sorted(aliases) == sorted(load_catalog())  # YAML itself keeps the last of two
    sources = [str(source) for entry in load_catalog().values() for source in entry.sources]
    assert len(sources) == len(set(sources))


def test_an_entry_may_have_parts(tmp_path):
    parts = {"file": "m.gguf", "parts": ["pypi:a==1/m.0", "pypi:b==1/m.1"]}
    entry = catalog_of(tmp_path, {**GOOD, "sha256": SHA, "size": 9, "sources": [parts]})["tiny"]
    assert isinstance(entry.sources[0], JoinedSource)
    assert entry.sources[0].file_name == "m.gguf"
    assert (entry.sha256, entry.size) == (SHA, 9)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"licence": "MIT"}, "unknown key 'licence'"),
        ({"title": ""}, "title must be text"),
        ({"title": 3}, "title must be text"),
        ({"context_length": 0}, "context_length must be a whole number above 0, got 0"),
        ({"context_length": True}, "got True"),
        ({"size": "98 MB"}, "size must be a whole number"),
        ({"sha256": SHA, "sources": ["hf:org/repo"]}, "hf:org/repo is a repository"),
        ({"sha256": "A" * 64, "sources": ["file:/x"]}, "64 lower-case hex digits"),
        ({"sources": []}, "at least one source"),
        ({"sources": "hf:org/repo"}, "must be a list"),
        ({"sources": ["http://x"]}, "'http://x' is not understood"),
        ({"sources": [{"parts": ["file:/a", "file:/b"]}]}, "file and parts"),
        ({"sources": [{"file": "x", "parts": "file:/a"}]}, "parts must be a list"),
        ({"sources": [3]}, "got 3"),
    ],
)
def test_a_slip_is_one_clear_line(tmp_path, change, says):
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        catalog_of(tmp_path, {**GOOD, **change})
    assert "'tiny'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(tmp_path):
    entry = {key: value for key, value in GOOD.items() if key != "license"}
    with pytest.raises(ConfigError, match="lacks license"):
        catalog_of(tmp_path, entry)


def test_an_entry_must_be_a_mapping_and_the_default_known(tmp_path):
    with pytest.raises(ConfigError, match="must be a mapping, got str"):
        catalog_of(tmp_path, "hf:org/repo")
    with pytest.raises(ConfigError, match="default 'other'"):
        catalog_of(tmp_path, GOOD, default="other")


@pytest.mark.parametrize("text", ["", "[]", "models: {}", "default: x\nmodels: []"])
def test_a_catalog_of_another_form_is_refused(tmp_path, text):
    path = tmp_path / "models.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="catalog"):
        load_catalog(path)


def test_a_catalog_runs_nothing(tmp_path):
    path = tmp_path / "models.yaml"
    path.write_text(f"default: !!python/object/apply:os.mkdir [{tmp_path}/ran]")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_catalog(path)
    assert not (tmp_path / "ran").exists()


def test_a_bad_alias_is_refused(tmp_path):
    path = tmp_path / "models.yaml"
    path.write_text(yaml.safe_dump({"default": "A/b", "models": {"A/b": GOOD}}))
    with pytest.raises(ConfigError, match="lower-case"):
        load_catalog(path)


def test_a_missing_catalog_says_what_to_do(tmp_path):
    with pytest.raises(StorageError, match="reinstall ovgen"):
        load_catalog(tmp_path / "none.yaml")

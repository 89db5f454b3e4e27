"""A folder's tokenizer, copied as it is; what could not be used is refused before a byte is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import small_tokenizers

from ovgen.errors import ModelFormatError, ModelNotFoundError, StorageError
from ovgen.export import tokenizer_files as module
from ovgen.export.tokenizer_files import copy_tokenizer

FILES = {
    "tokenizer_config.json": {"eos_token": "</s>", "chat_template": "{{ messages }}"},
    "special_tokens_map.json": {"eos_token": {"content": "</s>"}},
    "added_tokens.json": {"<tool>": 330},
    "generation_config.json": {"eos_token_id": 1},
    "chat_template.json": {"chat_template": "{{ messages }}"},
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    small_tokenizers.byte_level().save(str(folder / "tokenizer.json"))
    for name, content in FILES.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ rag }}")
    (folder / "merges.txt").write_text("a b")
    (folder / "README.md").write_text("no")
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_belongs_to_the_tokenizer_is_copied(source, target):
    copy_tokenizer(source, target)
    before, after = contents(source), contents(target)
    assert set(after) == set(before) - {"merges.txt", "README.md"}
    assert after == {name: before[name] for name in after}


def test_a_tokenizer_alone_is_enough(source, target):
    for path in source.rglob("*.js*"):
        if path.name != "tokenizer.json":
            path.unlink()
    for path in source.rglob("*.jinja"):
        path.unlink()
    copy_tokenizer(source, target)
    assert set(contents(target)) == {"tokenizer.json"}


def test_links_into_a_cache_become_files(source, target, tmp_path):
    blob = (source / "tokenizer.json").rename(tmp_path / "blob")
    blob.chmod(0o400)
    (source / "tokenizer.json").symlink_to(blob)
    copy_tokenizer(source, target)
    copied = target / "tokenizer.json"
    assert not copied.is_symlink()
    assert os.access(copied, os.W_OK)
    assert copied.read_bytes() == blob.read_bytes()


@pytest.mark.parametrize("name", [None, "tokenizer.model", "vocab.txt"])
def test_no_tokenizer_json(source, target, name):
    (source / "tokenizer.json").unlink()
    if name is not None:
        (source / name).write_text("")
    told = r"has no tokenizer\.json" if name is None else rf"has {name}, but no tokenizer\.json"
    with pytest.raises(ModelNotFoundError, match=rf"{told}; have transformers write one"):
        copy_tokenizer(source, target)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("tokenizer.json", "{", "not a usable tokenizer"),
        ("tokenizer.json", '{"model": {}}', "not a usable tokenizer"),
        ("tokenizer.json", b"\xff", "not UTF-8"),
        ("tokenizer_config.json", "[]", "must hold a JSON object"),
        ("special_tokens_map.json", "{", "not valid JSON"),
        ("added_tokens.json", "3", "must hold a JSON object"),
        ("generation_config.json", "{", "not valid JSON"),
        ("chat_template.jinja", b"\xff", "not UTF-8"),
        ("chat_template.json", '{"chat_template": 3}', "chat_template"),
    ],
)
def test_damaged_files(source, target, name, content, told):
    if name == "chat_template.json":
        (source / "chat_template.jinja").unlink()
    (source / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelFormatError, match=told) as error:
        copy_tokenizer(source, target)
    assert name in str(error.value)
    assert contents(target) == {}


def test_an_absurd_size(source, target, monkeypatch):
    monkeypatch.setattr(module, "_MAX_SIZE", 3 << 20)
    with (source / "generation_config.json").open("wb") as file:
        file.truncate(4 << 20)
    with pytest.raises(ModelFormatError, match=r"generation_config\.json: 4 MB, which no such"):
        copy_tokenizer(source, target)


def test_a_folder_that_cannot_be_written(source, tmp_path):
    with pytest.raises(StorageError, match="cannot be written"):
        copy_tokenizer(source, tmp_path / "absent" / "absent")

"""Mapped files and JSON files: what cannot be read, and pages that are given back."""

import mmap
from pathlib import Path

import pytest

from ovgen.errors import ModelFormatError, ModelNotFoundError, StorageError
from ovgen.export import mapped_file
from ovgen.export.mapped_file import (
    close_mapping,
    map_file,
    parse_json_object,
    read_json_object,
    release_pages,
)


def map_as_gguf(path: Path) -> mmap.mmap:
    return map_file(path, "a GGUF file")


@pytest.mark.parametrize("read", [map_as_gguf, read_json_object])
def test_files_that_cannot_be_read(tmp_path, read):
    path = tmp_path / "file"
    with pytest.raises(ModelNotFoundError, match="no such file"):
        read(path)
    path.symlink_to(path)  # unlike permissions, a loop stops root as well
    with pytest.raises(StorageError, match=r"file: cannot be read \(Too many levels"):
        read(path)
    with pytest.raises(ModelFormatError, match="is a folder, expected a"):
        read(tmp_path)


def test_pages_that_were_given_back_are_read_again(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 10_000)
    mapping = map_file(path, "a GGUF file")
    view = memoryview(mapping)
    assert bytes(view[3:6]) == b"abc"
    release_pages(mapping)
    assert bytes(view[3:6]) == b"abc"
    close_mapping(mapping)  # a view is held, which lives on
    assert bytes(view[3:6]) == b"abc"
    view.release()
    close_mapping(mapping)
    assert mapping.closed


def test_json_that_is_too_long(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, {"b": null}]}')
    assert read_json_object(path) == {"a": [1, {"b": None}]}
    monkeypatch.setattr(mapped_file, "_MAX_JSON", 10)
    with pytest.raises(ModelFormatError, match="23 bytes of JSON, the most is 10"):
        read_json_object(path)


@pytest.mark.parametrize("text", [b'{"a": {"b": 1, "b": 2}}', b'{"a": 1, "c": 2, "a": 3}'])
def test_keys_that_appear_twice(text):
    with pytest.raises(ModelFormatError, match=r"the header is not valid JSON: .*appears twice"):
        parse_json_object(text, "the header")

from __future__ import annotations

from pathlib import Path

import pytest

from ovgen.errors import ConfigError
from ovgen.hub.sources import (
    FileSource,
    HubSource,
    JoinedSource,
    PyPISource,
    is_repo_id,
    join_sources,
    parse_source,
)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf:org/repo", HubSource("org/repo")),
        ("hf:org/repo-1.5_b@v1.0", HubSource("org/repo-1.5_b", "v1.0")),
        ("hf:org/repo/a.gguf", HubSource("org/repo", None, "a.gguf")),
        ("hf:org/repo@abc/sub/a.gguf", HubSource("org/repo", "abc", "sub/a.gguf")),
        ("pypi:a-b==1.0.post1/a_b/x.gguf", PyPISource("a-b", "1.0.post1", "a_b/x.gguf")),
        ("file:/tmp/x.gguf", FileSource(Path("/tmp/x.gguf"))),
        ("file:///tmp/x.gguf", FileSource(Path("/tmp/x.gguf"))),
    ],
)
def test_a_source_is_read_and_written_back(text, source):
    assert parse_source(text) == source
    assert parse_source(str(source)) == source


def test_parts_are_joined_in_order_under_the_name_without_the_part():
    joined = parse_source("pypi:a==1/d/m.gguf.part00 + pypi:b==1/d/m.gguf.part01")
    assert isinstance(joined, JoinedSource)
    assert joined.file_name == "m.gguf"
    assert [part.file_name for part in joined.parts] == ["m.gguf.part00", "m.gguf.part01"]
    assert parse_source(str(joined)) == joined


@pytest.mark.parametrize(
    "text",
    [
        "",
        "file:",
        "repo",
        "hf:repo",
        "hf:-org/repo",
        "hf:org/repo/../secret",
        "hf:org/repo/a//b",
        "hf:org/repo@../x",
        "pypi:name/file",
        "pypi:name==1.0",
        "pypi:--index-url=http://x==1.0/file",
        "pypi:name==--pre/file",
        "pypi:name==1.0/../file",
        "pypi:name==1.0/.hidden",
        "pypi:name==1.0/a\\b",
        "http://example.com/model.gguf",
        "pypi:a==1/x.part0 + hf:org/repo/x.part1",
    ],
)
def test_anything_else_is_refused_by_name(text):
    with pytest.raises(ConfigError) as caught:
        parse_source(text)
    assert "\n" not in str(caught.value)


def test_a_joined_source_needs_parts_and_a_plain_name():
    with pytest.raises(ConfigError, match="at least 2"):
        join_sources(["file:/a"], "x.gguf")
    with pytest.raises(ConfigError, match="plain name"):
        join_sources(["file:/a", "file:/b"], "../x.gguf")


def test_repo_ids():
    assert is_repo_id("org/name-1.5_b")
    assert not is_repo_id("name")
    assert not is_repo_id("org/name/file")
    assert not is_repo_id("./name")
    assert not is_repo_id("örg/name")

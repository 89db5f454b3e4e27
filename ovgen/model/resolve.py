"""From a model argument to an IR folder, downloaded and exported where that is still to be done."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ovgen.errors import ConfigError
from ovgen.model.loader import MODEL_NAME

EXPORT_VERSION = 3  # a higher one has models exported again


def resolve_folder(
    model: str | os.PathLike[str],
    *,
    weights: str = "auto",
    offline: bool | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """The IR folder of a model.

    Args:
        model: an alias, an IR folder, a ``.gguf`` file, a folder that transformers saved, or a
            Hugging Face repository id.
        weights: the format in which it is exported, if it is no IR yet.
        offline: never reach for the network; None: as the environment says.
        progress: called with a line about each stage of an export.

    Raises:
        ConfigError: ``weights`` for a model that is exported already, or an unknown format.
        ModelError, DownloadError, StorageError: see `ovgen.errors`.
    """
    folder = Path(model)
    if not _is_ir_folder(model):
        from ovgen.hub.resolve import resolve_model

        resolved = resolve_model(model, offline=offline)
        if resolved.kind != "ir":
            return exported_folder(resolved.path, weights, progress)
        folder = resolved.path
    if weights != "auto":
        raise ConfigError(f"weights={weights!r} has no effect on {model}: it is exported already")
    return folder


def _is_ir_folder(model: str | os.PathLike[str]) -> bool:
    try:
        return os.fspath(model) != "" and (Path(model) / MODEL_NAME).is_file()
    except (OSError, ValueError):  # a name too long for the system, or with a NUL in it
        return False


def compiled_cache_folder() -> Path:
    """Where compiled models are kept."""
    from ovgen.hub.cache import compiled_folder, home_folder

    return compiled_folder(home_folder())


def exported_folder(
    source: Path, weights: str, progress: Callable[[str], None] | None = None
) -> Path:
    """The IR of a GGUF file or a checkpoint's folder in the cache.

    Processes that start together export once.
    """
    from ovgen.hub.cache import home_folder, locked, model_cache_folder

    home = home_folder()
    folder = model_cache_folder(home, source, f"{weights}-{EXPORT_VERSION}")
    if (folder / MODEL_NAME).is_file():
        return folder
    from ovgen.export.exporter import export_model

    with locked(home, folder.name):
        if not (folder / MODEL_NAME).is_file():
            export_model(source, folder, weights=weights, progress=progress)
    return folder

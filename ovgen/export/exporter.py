"""From a GGUF file to an IR folder with the files that optimum-intel writes, all or nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openvino as ov

from ovgen.errors import ConfigError, StorageError
from ovgen.export.architectures import build_model, check_architecture
from ovgen.export.gguf import GGUFFile, open_gguf
from ovgen.export.weight_reader import WeightReader
from ovgen.export.weights import check_weights

MODEL_XML = "openvino_model.xml"
Progress = Callable[[str], None]


def export_gguf(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    weights: str = "auto",
    progress: Progress | None = None,
) -> Path:
    """Write a GGUF file as a stateful OpenVINO IR folder and return the folder.

    The folder appears when it is complete, or not at all.

    Args:
        source: a GGUF file.
        folder: must not exist, or be empty.
        weights: ``auto`` (the fastest form that stays faithful), ``exact`` (the file's values),
            ``int8`` or ``f16``.
        progress: called with a line about each stage.

    Raises:
        ConfigError: unknown ``weights``, or a folder that holds something.
        ModelError: the file is missing, damaged or of an unsupported kind.
        StorageError: the disk is full or may not be written.
    """
    check_weights(weights)
    target = Path(folder)
    with open_gguf(source) as gguf:
        check_architecture(gguf)
        with new_folder(target) as partial:
            _write(gguf, partial, weights, progress or (lambda line: None))
    return target


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder on the target's disk whose files become the target's at the end, or go away.

    A target that exists stays the folder that it is: it may be a mount, or the current one.
    """
    exists = target.exists()
    if exists and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"{target} exists and is not an empty folder; give another, or remove it")
    # Named before it is made: an interrupt in between must not leave it behind.
    partial = (target if exists else target.parent) / f".{target.name}.{os.urandom(8).hex()}"
    try:
        partial.mkdir(parents=True)
        yield partial
        if exists:
            # The graph comes last: without it nothing takes the folder for a model.
            for path in sorted(partial.iterdir(), key=lambda path: path.name == MODEL_XML):
                path.rename(target / path.name)
        else:
            partial.rename(target)
    except OSError as exc:
        raise StorageError(f"{target} cannot be written: {exc.strerror or exc}") from exc
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(gguf: GGUFFile, folder: Path, weights: str, progress: Progress) -> None:
    from ovgen.export.openvino_tokenizer import export_openvino_tokenizer
    from ovgen.export.tokenizer import export_tokenizer

    progress("tokenizer")
    tokens = export_tokenizer(gguf, folder)
    progress("weights")
    config, model = build_model(gguf, WeightReader(gguf, weights))
    ids = {
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": _one_or_list(tokens.eos_token_ids),
        "pad_token_id": tokens.pad_token_id,
    }
    ids = {key: value for key, value in ids.items() if value is not None}
    write_json(folder / "config.json", {**config.to_dict(), **ids})
    progress("graph")
    save_model(model, folder / MODEL_XML)
    del model
    progress("tokenizer graphs")
    export_openvino_tokenizer(folder)


def _one_or_list(ids: tuple[int, ...]) -> int | list[int] | None:
    if len(ids) == 1:
        return ids[0]
    return list(ids) or None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, indented."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_model(model: ov.Model, path: Path) -> None:
    """Save an IR, and read it back: OpenVINO does not notice a full disk.

    Raises:
        StorageError: it could not be written whole.
    """
    try:
        ov.save_model(model, path, compress_to_fp16=False)
        ov.Core().read_model(path)
    except RuntimeError as exc:
        free = shutil.disk_usage(path.parent).free >> 20
        raise StorageError(
            f"{path} was not written whole: {_first_line(exc)}; its disk has {free} MB free, "
            "free some space or take another one"
        ) from exc


def _first_line(exc: BaseException) -> str:
    return next((line.strip() for line in str(exc).splitlines() if line.strip()), "unknown error")

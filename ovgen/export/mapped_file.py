"""Files mapped for reading, and JSON files that others wrote: what every reader begins with."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import Any

from ovgen.errors import ModelFormatError, ModelNotFoundError, StorageError

_MAX_JSON = 100_000_000  # bytes


def map_file(path: Path, kind: str) -> mmap.mmap:
    """Map a file for reading; `kind` is what it ought to be, as "a GGUF file".

    Raises ModelNotFoundError, StorageError (not readable) and ModelFormatError (a folder, empty).
    """
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as exc:
        raise ModelNotFoundError(f"{path}: no such file") from exc
    except IsADirectoryError as exc:
        raise ModelFormatError(f"{path}: is a folder, expected {kind}") from exc
    except OSError as exc:
        raise StorageError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    except ValueError as exc:  # mmap refuses an empty file
        raise ModelFormatError(f"{path}: the file is empty, expected {kind}") from exc


def release_pages(mapping: mmap.mmap) -> None:
    """Let the system drop what was read from memory; it is read again where it is needed.

    A mapped file counts as used memory, so an exporter that has read all of it would seem to hold
    it twice.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def close_mapping(mapping: mmap.mmap) -> None:
    """Let go of a mapping; views that are still held keep it alive until they go."""
    try:
        mapping.close()
    except BufferError:
        return


def parse_json_object(text: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `text`; `what` begins the error message.

    Raises ModelFormatError: no JSON, no object, not UTF-8, or a key that appears twice.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys)
    except RecursionError as exc:
        raise ModelFormatError(f"{what} is not usable JSON: it is nested too deeply") from exc
    except ValueError as exc:  # also what is not UTF-8, and integers of thousands of digits
        raise ModelFormatError(f"{what} is not valid JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise ModelFormatError(f"{what} is not a JSON object but {type(value).__name__}")
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object that is a file's content.

    Raises ModelNotFoundError, StorageError (not readable) and ModelFormatError, which see.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MAX_JSON:
                raise ModelFormatError(f"{path}: {size} bytes of JSON, the most is {_MAX_JSON}")
            text = file.read(size)
    except FileNotFoundError as exc:
        raise ModelNotFoundError(f"{path}: no such file") from exc
    except IsADirectoryError as exc:
        raise ModelFormatError(f"{path}: is a folder, expected a JSON file") from exc
    except OSError as exc:
        raise StorageError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    return parse_json_object(text, f"{path}: the content")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r:.80} appears twice")
            seen.add(key)
    return found

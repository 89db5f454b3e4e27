"""Files that the user names in an option, to be read or written."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovgen.errors import ConfigError, StorageError


def read_text(flag: str, path: Path, characters: int | None = None) -> str:
    """The text of a UTF-8 file, or its beginning.

    Raises:
        ConfigError: it cannot be read, or is no such text.
    """
    limit = -1 if characters is None else 4 * characters
    try:
        with path.open("rb") as file:
            data = file.read(limit)
        # Where the end was cut off, the last character may be.
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        text = decoder.decode(data, final=len(data) != limit)
    except OSError as exc:
        raise ConfigError(f"{flag} {path} cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(
            f"{flag} {path} is not UTF-8 (byte {exc.start}); convert it, as with iconv"
        ) from exc
    return text.replace("\r\n", "\n").replace("\r", "\n")[:characters]


def check_output(path: Path) -> None:
    """StorageError for a file that could not be written, before time is spent on its content."""
    if path.is_dir() or not path.parent.is_dir():
        raise StorageError(f"cannot write {path}: it must be a file in a folder that exists")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object; StorageError where that is not possible."""
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as exc:
        raise StorageError(f"cannot write {path}: {exc.strerror or exc}") from exc

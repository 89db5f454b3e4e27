"""A mapped reader for GGUF files (versions 2 and 3, little endian).

The header is parsed into Python values when the file is opened; the tensors stay views over the
mapping.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ovgen.errors import ClosedError, ModelFormatError
from ovgen.export.gguf_header import GGUFTensor, HeaderParser, MetadataValue
from ovgen.export.gguf_split import Part, split_of
from ovgen.export.gguf_types import GGMLType
from ovgen.export.mapped_file import close_mapping, map_file, release_pages

__all__ = ["GGMLType", "GGUFFile", "GGUFTensor", "MetadataValue", "open_gguf"]


class GGUFFile:
    """An open GGUF file: `metadata` (key to value) and `tensors` (name to tensor).

    Any part of a split file opens all of them; the metadata is the first one's. Metadata scalars
    are Python values, arrays of strings lists, other arrays numpy arrays.
    Raises ModelNotFoundError (also for a part), StorageError (not readable), ModelFormatError
    (damaged, or parts that do not belong together) and UnsupportedModelError (a version, byte
    order or tensor type that ovgen does not read).
    """

    metadata: dict[str, MetadataValue]
    _tensors: dict[str, GGUFTensor]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._mappings: list[mmap.mmap] = []
        self._is_closed = False
        try:
            part = self._open_part(self.path)
            split = split_of(self.path, part.metadata)
            if split is not None:
                part = split.join(
                    part if name == self.path.name else self._open_part(self.path.with_name(name))
                    for name in split.part_names(self.path)
                )
            self.version: int = part.version
            self.metadata, self._tensors = part.metadata, part.tensors
        except BaseException:
            self.close()
            raise

    @property
    def tensors(self) -> dict[str, GGUFTensor]:
        """The tensors by name. Raises ClosedError after `close`."""
        if self._is_closed:
            raise ClosedError(f"{self.path}: the GGUF file is closed; open it again")
        return self._tensors

    @property
    def architecture(self) -> str:
        """`general.architecture`, as "llama"."""
        return self.get_str("general.architecture")

    def release_pages(self) -> None:
        """Let the system drop what was read from memory; it is read again where it is needed."""
        for mapping in self._mappings:
            release_pages(mapping)

    def close(self) -> None:
        """Let go of the mappings; views that are still held keep theirs alive until they go."""
        self._is_closed = True
        mappings, self._mappings = self._mappings, []
        self._tensors = {}
        for mapping in mappings:
            close_mapping(mapping)

    def _open_part(self, path: Path) -> Part:
        mapping = map_file(path, "a GGUF file")
        self._mappings.append(mapping)
        parser = HeaderParser(path, mapping)
        version = parser.version()
        return Part(path, version, *parser.contents())

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Typed metadata. A missing key without a default, a value of another type or one out of its
    # range raises ModelFormatError with the name of the key.

    def get_int(
        self,
        key: str,
        *,
        default: int | None = None,
        min: int | None = None,
        max: int | None = None,
    ) -> int:
        """The integer at `key`, held to `min` and `max` inclusive."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self._wrong(key, value, "an integer")
        self._check_range(key, value, min, max)
        return value

    def get_float(
        self,
        key: str,
        *,
        default: float | None = None,
        min: float | None = None,
        max: float | None = None,
    ) -> float:
        """The finite number at `key`, held to `min` and `max` inclusive."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            self._wrong(key, value, "a finite number")
        self._check_range(key, value, min, max)
        return float(value)

    def get_bool(self, key: str, *, default: bool | None = None) -> bool:
        """The boolean at `key`."""
        value = self._get(key, default)
        return value if isinstance(value, bool) else self._wrong(key, value, "a boolean")

    def get_str(self, key: str, *, default: str | None = None) -> str:
        """The string at `key`."""
        value = self._get(key, default)
        return value if isinstance(value, str) else self._wrong(key, value, "a string")

    def get_strings(self, key: str) -> list[str]:
        """The array of strings at `key`."""
        value = self._get(key, None)
        return value if isinstance(value, list) else self._wrong(key, value, "an array of strings")

    def get_numbers(self, key: str) -> npt.NDArray[Any]:
        """The array of numbers at `key`."""
        value = self._get(key, None)
        if not isinstance(value, np.ndarray):
            self._wrong(key, value, "an array of numbers")
        return value

    def _get(self, key: str, default: MetadataValue | None) -> MetadataValue:
        value = self.metadata.get(key, default)
        if value is None:
            raise ModelFormatError(f"{self.path}: the metadata has no {key!r}")
        return value

    def _wrong(self, key: str, value: MetadataValue, expected: str) -> NoReturn:
        shown = repr(value) if isinstance(value, bool | int | float | str) else "an array"
        raise ModelFormatError(f"{self.path}: {key!r} is {shown:.80}, expected {expected}")

    def _check_range(self, key: str, value: float, low: float | None, high: float | None) -> None:
        if (low is not None and value < low) or (high is not None and value > high):
            allowed = f"{'' if low is None else low}..{'' if high is None else high}"
            raise ModelFormatError(
                f"{self.path}: {key!r} is {value}, the allowed range is {allowed}"
            )


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Open a GGUF file; use it as a context manager, or close it."""
    return GGUFFile(path)

"""A mapped reader for safetensors files: eight bytes of length, a JSON header, the tensors' bytes.

Nothing in the file is trusted: every size is held against the file's before it is used. The format
is described at https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ovgen.errors import ClosedError, ModelFormatError, UnsupportedModelError
from ovgen.export.float_formats import ITEM_SIZES
from ovgen.export.mapped_file import close_mapping, map_file, parse_json_object, release_pages

_LENGTH_BYTES = 8
_MAX_HEADER = 100_000_000  # bytes, as the format says
_MAX_AXES = 8
_MAX_DIM = 2**40
_FIELDS = ("dtype", "shape", "data_offsets")


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """One tensor of a file; `data` is a read-only view over the mapping."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # as the header has it: F32, BF16, F8_E4M3, I32
    data: npt.NDArray[np.uint8]  # [product of the leading axes, bytes of the last axis]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file."""
        return self.data.nbytes


class SafetensorsFile:
    """An open safetensors file: `metadata` (strings) and `tensors` (name to tensor).

    Raises ModelNotFoundError, StorageError (not readable), ModelFormatError (damaged) and
    UnsupportedModelError (a dtype that ovgen does not read).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._mapping: mmap.mmap | None = map_file(self.path, "a safetensors file")
        try:
            header = _Header(self.path, self._mapping)
            self.metadata: dict[str, str] = header.metadata()
            self._tensors = header.tensors()
        except BaseException:
            self._tensors = {}
            self.close()
            raise

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """The tensors by name. Raises ClosedError after `close`."""
        if self._mapping is None:
            raise ClosedError(f"{self.path}: the safetensors file is closed; open it again")
        return self._tensors

    def release_pages(self) -> None:
        """Let the system drop what was read from memory."""
        if self._mapping is not None:
            release_pages(self._mapping)

    def close(self) -> None:
        """Let go of the mapping; views that are still held keep it alive until they go."""
        mapping, self._mapping = self._mapping, None
        self._tensors = {}
        if mapping is not None:
            close_mapping(mapping)

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Header:
    """The parsed header, and the checks of what it says."""

    def __init__(self, path: Path, mapping: mmap.mmap) -> None:
        self.path = path
        self.buffer = mapping
        size = len(mapping)
        if size < _LENGTH_BYTES:
            self.fail(f"truncated: {size} bytes, the length of the header alone takes 8")
        length = int.from_bytes(mapping[:_LENGTH_BYTES], "little")
        if length > _MAX_HEADER:
            self.fail(f"a header of {length} bytes, the most is {_MAX_HEADER}")
        self.start = _LENGTH_BYTES + length  # of the tensors' bytes
        if self.start > size:
            self.fail(f"truncated: a header of {length} bytes, the file has {size}")
        self.data_size = size - self.start
        text = mapping[_LENGTH_BYTES : self.start]
        if text[:1] != b"{":
            self.fail(f"the header begins with {text[:4]!r}, expected b'{{'")
        self.entries = parse_json_object(text, f"{path}: the safetensors header")
        self.strings = self.entries.pop("__metadata__", {})

    def fail(self, problem: str) -> NoReturn:
        raise ModelFormatError(f"{self.path}: {problem}; the safetensors file is damaged")

    def metadata(self) -> dict[str, str]:
        """The strings that the writer left; `format` is "pt" for torch's."""
        found = self.strings
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            self.fail("'__metadata__' is not an object of strings")
        return found

    def tensors(self) -> dict[str, StoredTensor]:
        """The views of all tensors, which must fill the rest of the file without a gap."""
        tensors: dict[str, StoredTensor] = {}
        spans: list[tuple[int, int, str]] = []
        for name, entry in self.entries.items():
            what = f"tensor {name!r:.80}"
            begin, end = self._offsets(entry, what)
            tensors[name] = self._tensor(name, entry, begin, end)
            spans.append((begin, end, what))
        self._check_spans(spans)
        return tensors

    def _offsets(self, entry: Any, what: str) -> tuple[int, int]:
        if not isinstance(entry, dict):
            self.fail(f"the entry of {what} is not an object")
        for field in _FIELDS:
            if field not in entry:
                self.fail(f"the entry of {what} has no {field!r}")
        offsets = entry["data_offsets"]
        if not _are_counts(offsets) or len(offsets) != 2:
            self.fail(f"{what} has data_offsets {offsets!r:.80}, expected two counts of bytes")
        begin, end = offsets
        if not begin < end <= self.data_size:
            self.fail(
                f"{what} is at bytes {begin!r:.40} to {end!r:.40} of {self.data_size}, "
                "which are out of order, empty or beyond the end"
            )
        return begin, end

    def _tensor(self, name: str, entry: Mapping[str, Any], begin: int, end: int) -> StoredTensor:
        what = f"tensor {name!r:.80}"
        shape, dtype = entry["shape"], entry["dtype"]
        if not _are_counts(shape) or len(shape) > _MAX_AXES or max(shape, default=1) > _MAX_DIM:
            self.fail(f"{what} has shape {shape!r:.80}, expected up to {_MAX_AXES} counts")
        if not isinstance(dtype, str):
            self.fail(f"{what} has dtype {dtype!r:.80}, expected a string")
        item_size = ITEM_SIZES.get(dtype)
        if item_size is None:
            raise UnsupportedModelError(
                f"{self.path}: {what} is of dtype {dtype!r:.40}; "
                f"supported dtypes: {', '.join(ITEM_SIZES)}"
            )
        nbytes = math.prod(shape) * item_size
        if nbytes != end - begin:
            self.fail(
                f"{what} of dtype {dtype} and shape {shape} takes {nbytes} bytes, "
                f"its data_offsets span {end - begin}"
            )
        row_bytes = (shape[-1] if shape else 1) * item_size
        data = np.frombuffer(self.buffer, np.uint8, nbytes, self.start + begin)
        return StoredTensor(name, tuple(shape), dtype, data.reshape(-1, row_bytes))

    def _check_spans(self, spans: list[tuple[int, int, str]]) -> None:
        position = 0
        for begin, end, what in sorted(spans):
            if begin != position:
                problem = "overlaps the one before it" if begin < position else "follows a gap"
                self.fail(f"{what} {problem}: it begins at byte {begin}, expected {position}")
            position = end
        if position != self.data_size:
            self.fail(f"the tensors take {position} bytes, {self.data_size} follow the header")


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value
    )

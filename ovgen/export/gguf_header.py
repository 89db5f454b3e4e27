"""The parser of a GGUF header: metadata and the table of tensors, out of a mapped file.

Nothing in the file is trusted: every count and offset is held against the file's size before
anything is allocated for it.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ovgen.errors import ModelFormatError, UnsupportedModelError
from ovgen.export.gguf_types import BLOCK_LAYOUTS, UNREAD_TYPES, GGMLType

MetadataValue = bool | int | float | str | list[str] | npt.NDArray[Any]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMS = 4
_DEFAULT_ALIGNMENT = 32
_MAX_NAME = 65535  # bytes of a key or a tensor name
_MIN_KV_BYTES = 8 + 4 + 1  # length of the key, type, value
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # length of the name, n_dims, one dim, type, offset

_BOOL, _STRING, _ARRAY = 7, 8, 9
# The numbers of the format by their type: struct's letters, which are numpy's too.
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRUCTS = {letter: struct.Struct("<" + letter) for letter in _SCALARS.values()}


@dataclass(frozen=True, slots=True, eq=False)
class GGUFTensor:
    """One tensor of the file; `data` is a read-only view over the mapping."""

    name: str
    shape: tuple[int, ...]  # numpy's order: the last axis is contiguous
    type: GGMLType
    data: npt.NDArray[np.uint8]  # [product of the leading axes, bytes of one row]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file."""
        return self.data.nbytes


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    name: str
    shape: tuple[int, ...]
    type: GGMLType
    offset: int


class HeaderParser:
    """A cursor over the mapping; each method reads one thing and moves on."""

    def __init__(self, path: Path, mapping: mmap.mmap) -> None:
        self.path = path
        self.buffer = mapping
        self.size = len(mapping)
        self.offset = 0

    def fail(self, problem: str) -> NoReturn:
        raise ModelFormatError(f"{self.path}: {problem}; the GGUF file is damaged")

    def need(self, count: int, what: str) -> None:
        """Fail unless `count` more bytes are there."""
        left = self.size - self.offset
        if count > left:
            self.fail(f"truncated: {what} needs {count} bytes at {self.offset}, {left} are left")

    def version(self) -> int:
        """Read the magic and the version."""
        magic = self.buffer[:4]
        if magic != _MAGIC:
            raise ModelFormatError(
                f"{self.path}: not a GGUF file: it begins with {magic!r}, expected {_MAGIC!r}"
            )
        self.offset = 4
        version = self.integer("I", "the version")
        if version not in _VERSIONS:
            if version & 0xFFFF == 0 and version:
                raise UnsupportedModelError(
                    f"{self.path}: a big-endian GGUF file; ovgen reads little-endian ones"
                )
            raise UnsupportedModelError(
                f"{self.path}: GGUF version {version}; ovgen reads versions 2 and 3"
            )
        return version

    def contents(self) -> tuple[dict[str, MetadataValue], dict[str, GGUFTensor]]:
        """Read the metadata and the tensor table that follow the version."""
        num_tensors = self.integer("Q", "the tensor count")
        num_kv = self.integer("Q", "the metadata count")
        self.need(
            num_kv * _MIN_KV_BYTES + num_tensors * _MIN_TENSOR_BYTES,
            f"a header of {num_kv} metadata keys and {num_tensors} tensors",
        )
        metadata: dict[str, MetadataValue] = {}
        for _ in range(num_kv):
            key = self.string("a metadata key", _MAX_NAME)
            if key in metadata:
                self.fail(f"metadata key {key!r:.80} appears twice")
            metadata[key] = self.value(key)
        infos = [self.tensor_info() for _ in range(num_tensors)]
        return metadata, self.tensors(infos, self.alignment(metadata))

    def number(self, letter: str, what: str) -> int | float:
        """Read one number of the type that `letter` names in struct."""
        code = _STRUCTS[letter]
        self.need(code.size, what)
        (value,) = code.unpack_from(self.buffer, self.offset)
        self.offset += code.size
        number: int | float = value
        return number

    def integer(self, letter: str, what: str) -> int:
        """Read one integer."""
        return int(self.number(letter, what))

    def string(self, what: str, limit: int | None = None) -> str:
        """Read one length-prefixed UTF-8 string."""
        length = self.integer("Q", f"the length of {what}")
        self.need(length, what)
        if limit is not None and length > limit:
            self.fail(f"{what} of {length} bytes, the most is {limit}")
        start, self.offset = self.offset, self.offset + length
        try:
            return str(self.buffer[start : self.offset], "utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} at {start} is not valid UTF-8")

    def value(self, key: str) -> MetadataValue:
        """Read a metadata value: its type, then itself."""
        what = f"metadata key {key!r:.80}"
        kind = self.integer("I", f"the type of {what}")
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self.array(what)
        if kind not in _SCALARS:
            self.fail(f"{what} is of unknown type {kind}")
        number = self.number(_SCALARS[kind], what)
        if kind == _BOOL:
            if number not in (0, 1):
                self.fail(f"{what} is a boolean with the value {number}")
            return bool(number)
        return number

    def array(self, what: str) -> MetadataValue:
        """Read an array: the type of its items, their count, the items."""
        kind = self.integer("I", f"the item type of {what}")
        length = self.integer("Q", f"the array length of {what}")
        if kind == _STRING:
            return self.strings(length, what)
        if kind == _ARRAY:
            self.fail(f"{what} is an array of arrays")
        if kind not in _SCALARS:
            self.fail(f"{what} is an array of unknown type {kind}")
        dtype = np.dtype("<" + _SCALARS[kind])
        self.need(length * dtype.itemsize, what)
        items: npt.NDArray[Any] = np.frombuffer(self.buffer, dtype, length, self.offset).copy()
        self.offset += length * dtype.itemsize
        return items != 0 if kind == _BOOL else items

    def strings(self, length: int, what: str) -> list[str]:
        """Read `length` strings; one tight loop, for vocabularies have 262,144."""
        self.need(length * 8, what)
        buffer, offset, size = self.buffer, self.offset, self.size
        unpack = _STRUCTS["Q"].unpack_from
        items: list[str] = []
        try:
            for _ in range(length):
                start = offset + 8
                offset = start + unpack(buffer, offset)[0]
                if offset > size:
                    self.fail(f"truncated: item {len(items)} of {what} ends beyond the file")
                items.append(str(buffer[start:offset], "utf-8"))
        except struct.error:
            self.fail(f"truncated: item {len(items)} of {what} begins beyond the file")
        except UnicodeDecodeError:
            self.fail(f"item {len(items)} of {what} is not valid UTF-8")
        self.offset = offset
        return items

    def alignment(self, metadata: dict[str, MetadataValue]) -> int:
        """The alignment of the tensor data."""
        value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail("'general.alignment' is not an integer")
        if value <= 0 or value & (value - 1):
            self.fail(f"'general.alignment' is {value}, expected a power of two")
        return value

    def tensor_info(self) -> _TensorInfo:
        """Read one entry of the tensor table."""
        name = self.string("a tensor name", _MAX_NAME)
        what = f"tensor {name!r:.80}"
        num_dims = self.integer("I", f"the dimension count of {what}")
        if not 1 <= num_dims <= _MAX_DIMS:
            self.fail(f"{what} has {num_dims} dimensions, expected 1 to {_MAX_DIMS}")
        dims = [self.integer("Q", f"the dimensions of {what}") for _ in range(num_dims)]
        if 0 in dims:
            self.fail(f"{what} has a dimension of 0 in {dims}")
        kind = self.integer("I", f"the type of {what}")
        offset = self.integer("Q", f"the offset of {what}")
        return _TensorInfo(name, tuple(reversed(dims)), self.tensor_type(kind, what), offset)

    def tensor_type(self, kind: int, what: str) -> GGMLType:
        """ggml's number of a type, held against those that are read."""
        try:
            return GGMLType(kind)
        except ValueError as exc:
            supported = ", ".join(item.name for item in GGMLType)
            raise UnsupportedModelError(
                f"{self.path}: {what} is of type {kind} ({UNREAD_TYPES.get(kind, 'unknown')}); "
                f"supported types: {supported}"
            ) from exc

    def tensors(self, infos: list[_TensorInfo], alignment: int) -> dict[str, GGUFTensor]:
        """The views of all tensors; their data begins at the next aligned byte."""
        base = -(-self.offset // alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        for info in infos:
            if info.name in tensors:
                self.fail(f"tensor {info.name!r:.80} appears twice")
            tensors[info.name] = self._tensor(info, base, alignment)
        return tensors

    def _tensor(self, info: _TensorInfo, base: int, alignment: int) -> GGUFTensor:
        what = f"tensor {info.name!r:.80}"
        if info.offset % alignment:
            self.fail(f"{what} is at offset {info.offset}, not a multiple of {alignment}")
        *leading, cols = info.shape
        layout = BLOCK_LAYOUTS[info.type]
        if cols % layout.size:
            self.fail(f"{what} has rows of {cols} values, not a multiple of {layout.size}")
        rows = 1
        for dim in leading:
            rows *= dim
        row_bytes = cols // layout.size * layout.nbytes
        start = base + info.offset
        if start + rows * row_bytes > self.size:
            self.fail(
                f"truncated: {what} needs {rows * row_bytes} bytes at {start}, "
                f"the file has {self.size}"
            )
        data = np.frombuffer(self.buffer, np.uint8, rows * row_bytes, start)
        return GGUFTensor(info.name, info.shape, info.type, data.reshape(rows, row_bytes))

"""Weight compression: from the file's tensors to the matrices that a graph holds.

A tensor is read in row chunks, so that no more than a chunk is ever held as float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ovgen.errors import ConfigError, ModelFormatError
from ovgen.export.gguf import GGMLType, GGUFTensor
from ovgen.export.gguf_quants import codes, dequantize

WEIGHTS = ("auto", "exact", "int8", "f16")
Floats = npt.NDArray[np.float32] | npt.NDArray[np.float16]

# Below this many parameters a matmul costs more in overhead than in memory traffic, so that one
# int8 matmul beats 4-bit codes with a second matmul for the offsets.
SMALL_MODEL_PARAMETERS = 500_000_000
INT8_GROUP = 64
_CHUNK_VALUES = 4 << 20

_FOUR_BIT = (GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q4_K)
_EIGHT_BIT_GRID = (GGMLType.Q8_0, GGMLType.Q5_0)  # symmetric codes in groups of 32
_DENSE = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)


@dataclass(frozen=True, slots=True)
class DenseMatrix:
    """A matrix of floats.

    Attributes:
        values: [rows, cols] float32 or float16.
    """

    values: Floats


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix on an integer grid: ``w = scales * codes + offsets``, group by group.

    Attributes:
        codes: [rows, cols] int8, or [rows, cols / 2] uint8 with two 4-bit codes in two's
            complement to a byte, the first in the low half.
        scales: [rows, cols / group].
        offsets: [rows, cols / group], or None on a symmetric grid.
        group: neighbours along a row that share a scale.
        bits: 8 or 4.
    """

    codes: npt.NDArray[np.int8] | npt.NDArray[np.uint8]
    scales: Floats
    offsets: Floats | None
    group: int
    bits: Literal[4, 8]

    @property
    def cols(self) -> int:
        """Columns of the matrix."""
        return int(self.scales.shape[1]) * self.group


Matrix = DenseMatrix | QuantizedMatrix


@dataclass(frozen=True, slots=True)
class Format:
    """How a tensor is stored in the graph.

    Attributes:
        kind: ``dense``, ``codes`` (the file's own integer grid) or ``int8`` (rounded to a grid of
            our own).
        dtype: of dense values, or of scales and offsets.
    """

    kind: Literal["dense", "codes", "int8"]
    dtype: type[np.float32] | type[np.float16]


def check_weights(weights: str) -> None:
    """Raise ConfigError unless this is one of the weight formats."""
    if weights not in WEIGHTS:
        raise ConfigError(f"weights must be one of {', '.join(WEIGHTS)}, not {weights!r}")


def choose_format(
    ggml_type: GGMLType, weights: str, *, num_parameters: int, is_table: bool
) -> Format:
    """The format of one tensor.

    ``auto`` takes the fastest form that stays faithful: 8-bit and symmetric 4-bit codes as they
    are, asymmetric 4-bit codes with their offsets, everything else as int8; small models take
    int8 throughout. A table is one whose rows are looked up as well as multiplied: it takes no
    4-bit codes and no offsets, which a lookup would undo for the whole table at once.
    """
    asymmetric = ggml_type in (GGMLType.Q4_1, GGMLType.Q5_1, GGMLType.Q4_K, GGMLType.Q5_K)
    if weights == "f16":
        return Format("dense", np.float16)
    if weights == "exact":
        if ggml_type in _DENSE or (is_table and asymmetric):
            is_half = ggml_type == GGMLType.F16
            return Format("dense", np.float16 if is_half else np.float32)
        return Format("codes", np.float32)
    if ggml_type in _EIGHT_BIT_GRID:
        return Format("codes", np.float16)
    is_small = num_parameters < SMALL_MODEL_PARAMETERS
    if weights == "auto" and ggml_type in _FOUR_BIT and not is_small and not is_table:
        return Format("codes", np.float16)
    return Format("int8", np.float16)


def read_matrix(
    tensors: Sequence[GGUFTensor],
    fmt: Format,
    *,
    interleaved: Sequence[int] | None = None,
    int8_group: int = INT8_GROUP,
) -> Matrix:
    """One matrix of the rows of several tensors, which share columns and (for codes) a type.

    Args:
        tensors: each [rows, cols].
        fmt: how to store it.
        interleaved: for each tensor the number of heads whose rows GGUF interleaves for its rotary
            embedding, 0 for none.
        int8_group: neighbours that share a scale where values are rounded to int8.

    Raises:
        ModelFormatError: a scale or a value is not finite.
    """
    parts = [
        unpermute(tensor.data, heads) if heads else tensor.data
        for tensor, heads in zip(tensors, interleaved or [0] * len(tensors), strict=True)
    ]
    if fmt.kind == "dense":
        return _dense(tensors, parts, fmt.dtype)
    if fmt.kind == "int8":
        return _int8(tensors, parts, fmt.dtype, int8_group)
    return _codes(tensors, parts, fmt.dtype)


def unpermute(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Each head's even rows before its odd ones, as the rotate-half form of RoPE wants them.

    Args:
        rows: [heads * head_dim, ...], as GGUF interleaves them.
    """
    halves = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.asarray(halves.swapaxes(1, 2).reshape(rows.shape))


def _chunks(
    tensors: Sequence[GGUFTensor], parts: Sequence[npt.NDArray[np.uint8]]
) -> Iterator[tuple[GGUFTensor, npt.NDArray[np.uint8], slice]]:
    """Row chunks of all parts, each with its place in the joined matrix."""
    start = 0
    for tensor, data in zip(tensors, parts, strict=True):
        step = max(1, _CHUNK_VALUES // tensor.shape[1])
        for row in range(0, len(data), step):
            chunk = data[row : row + step]
            yield tensor, chunk, slice(start + row, start + row + len(chunk))
        start += len(data)


def _shape(tensors: Sequence[GGUFTensor]) -> tuple[int, int]:
    return sum(tensor.shape[0] for tensor in tensors), tensors[0].shape[1]


def _dense(
    tensors: Sequence[GGUFTensor], parts: Sequence[npt.NDArray[np.uint8]], dtype: type[Any]
) -> DenseMatrix:
    values = np.empty(_shape(tensors), dtype)
    for tensor, data, rows in _chunks(tensors, parts):
        values[rows] = finite(tensor, dequantize(data, tensor.type), dtype)
    return DenseMatrix(values)


def _int8(
    tensors: Sequence[GGUFTensor],
    parts: Sequence[npt.NDArray[np.uint8]],
    dtype: type[Any],
    wanted_group: int,
) -> QuantizedMatrix:
    """Round to the nearest of 255 steps a group, symmetric around zero."""
    num_rows, cols = _shape(tensors)
    group = next((size for size in (wanted_group, 32) if cols % size == 0), cols)
    quants = np.empty((num_rows, cols), np.int8)
    scales = np.empty((num_rows, cols // group), dtype)
    for tensor, data, rows in _chunks(tensors, parts):
        values = finite(tensor, dequantize(data, tensor.type), np.float32)
        grouped = values.reshape(len(values), -1, group)
        # The codes are rounded to the grid of the scale as stored. Its smallest value keeps a
        # group of zeros from dividing by zero.
        step = np.maximum(np.abs(grouped).max(axis=2) / 127, np.finfo(dtype).smallest_subnormal)
        scales[rows] = finite(tensor, step, dtype)
        grid = grouped / scales[rows, :, None].astype(np.float32)
        quants[rows] = np.clip(np.rint(grid), -127, 127).reshape(values.shape)
    return QuantizedMatrix(quants, scales, None, group, 8)


def _codes(
    tensors: Sequence[GGUFTensor], parts: Sequence[npt.NDArray[np.uint8]], dtype: type[Any]
) -> QuantizedMatrix:
    """Keep the file's codes, made signed: ``s*q + o`` is ``s*(q - 8) + (o + 8*s)``."""
    num_rows, cols = _shape(tensors)
    first = codes(parts[0][:1], tensors[0].type)
    assert first is not None, "only quantized types have codes"
    group, bits = first.group, 4 if first.bits == 4 else 8
    quants = np.empty((num_rows, cols * bits // 8), np.uint8 if bits == 4 else np.int8)
    scales = np.empty((num_rows, cols // group), dtype)
    offsets = None if first.offsets is None else np.empty_like(scales)
    centre = 0 if offsets is None else 1 << (first.bits - 1)
    for tensor, data, rows in _chunks(tensors, parts):
        grid = codes(data, tensor.type)
        assert grid is not None, "one matrix has one type"
        signed = (grid.codes.astype(np.int16) - centre).astype(np.int8)
        quants[rows] = _pack_nibbles(signed) if bits == 4 else signed
        scales[rows] = finite(tensor, grid.scales, dtype)
        if offsets is not None and grid.offsets is not None:
            offsets[rows] = finite(tensor, grid.offsets + centre * grid.scales, dtype)
    return QuantizedMatrix(quants, scales, offsets, group, 4 if bits == 4 else 8)


def _pack_nibbles(values: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    nibbles = values.view(np.uint8) & np.uint8(0xF)
    return np.asarray(nibbles[:, 0::2] | (nibbles[:, 1::2] << 4), np.uint8)


def finite(tensor: GGUFTensor, values: npt.NDArray[Any], dtype: type[Any]) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):
        cast = values.astype(dtype, copy=False)
    if not np.isfinite(cast).all():
        raise ModelFormatError(
            f"tensor {tensor.name!r} holds a value that is not finite in {np.dtype(dtype)}; "
            "the file is damaged, or needs weights='exact'"
        )
    return cast

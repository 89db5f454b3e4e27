"""From a checkpoint's tensors to the matrices of a graph, through row chunks.

No more than a chunk for each thread is held as float32: what is finished is in the store's file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import openvino as ov

from ovgen.errors import ModelFormatError
from ovgen.export import quantize
from ovgen.export.checkpoint import Floats, Tensor
from ovgen.export.matrices import DenseMatrix, Format, Matrix, QuantizedMatrix, SquaredError
from ovgen.export.quantize import Groups
from ovgen.export.weight_store import Slot, WeightStore

_CHUNK_VALUES = 1 << 18  # a megabyte of float32, which stays in a core's cache
_MAX_THREADS = 8
_RELEASE_VALUES = 1 << 24
_FLOATS = {"f32": ov.Type.f32, "f16": ov.Type.f16, "bf16": ov.Type.bf16}
_CODES = {
    "int8_sym": ov.Type.i8,
    "int8_asym": ov.Type.u8,
    "int4_sym": ov.Type.i4,
    "int4_asym": ov.Type.u4,
    "nf4": ov.Type.nf4,
}


@dataclass(frozen=True, slots=True)
class MatrixRequest:
    """A matrix to be made of the rows of several tensors, which share columns and a format.

    Attributes:
        tensors: each [rows, cols], or of more axes.
        fmt: how to store it.
        experts: matrices of equal size that lie behind each other, for one batched matmul; None for
            one matrix.
        importance: [cols], how much a column's squared error counts; None for all alike.
        release: called now and then, to let go of pages that were read.
    """

    tensors: Sequence[Tensor]
    fmt: Format
    experts: int | None = None
    importance: Floats | None = None
    release: Callable[[], None] = field(default=lambda: None)

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, cols) or (experts, rows, cols)."""
        rows, cols = sum(map(num_rows, self.tensors)), self.tensors[0].shape[-1]
        return (rows, cols) if self.experts is None else (self.experts, rows // self.experts, cols)


def num_rows(tensor: Tensor) -> int:
    """All axes but the last."""
    return int(np.prod(tensor.shape[:-1], dtype=np.int64))


def read_matrix(request: MatrixRequest, store: WeightStore) -> tuple[Matrix, list[SquaredError]]:
    """Read, round and store a matrix; gives its nodes and, for each tensor, the error.

    Raises:
        ModelFormatError: a scale or a value is not finite.
    """
    fmt, shape = request.fmt, list(request.shape)
    if fmt.kind == "dense":
        name, dtype = request.tensors[0].name, _FLOATS[fmt.dtype]
        slot = store.reserve(
            name, dtype, shape, row_axes=len(shape) - 1, as_stored=fmt.dtype != "f32"
        )
        return DenseMatrix(slot.node), _run(request, lambda *chunk: _dense(fmt, slot, *chunk))
    slots = _Slots.reserve(request, store)
    if fmt.kind == "codes":
        errors = _run(request, lambda *chunk: _keep(fmt, slots, *chunk))
    else:
        errors = _run(request, lambda *chunk: _round(request, slots, *chunk))
    return slots.matrix(request), errors


@dataclass(frozen=True, slots=True)
class _Slots:
    """The constants of one quantized matrix."""

    codes: Slot
    scales: Slot
    zero_points: Slot | None
    offsets: Slot | None

    @classmethod
    def reserve(cls, request: MatrixRequest, store: WeightStore) -> _Slots:
        fmt, (*rows, cols) = request.fmt, request.shape
        codes, has_offsets, has_zero_points = _layout(fmt)
        groups = cols // fmt.row_group
        axes = rows if groups == 1 else [*rows, groups]

        def slot(what: str, dtype: ov.Type, shape: list[int]) -> Slot:
            name = f"{request.tensors[0].name}/{what}"
            return store.reserve(name, dtype, shape, row_axes=len(rows))

        floats = _FLOATS[fmt.dtype]
        return cls(
            slot("codes", codes, [*axes, fmt.row_group]),
            slot("scales", floats, [*axes, 1]),
            slot("zero_points", ov.Type.u8, [*axes, 1]) if has_zero_points else None,
            slot("offsets", floats, [*rows, groups]) if has_offsets else None,
        )

    def write(self, row: int, rows: int, groups: Groups) -> None:
        """Store rounded groups, which are those of so many rows from this row on."""
        codes = groups.codes.reshape(rows, -1)
        if self.codes.row_bytes < codes.shape[1]:
            codes = quantize.pack_nibbles(codes)
        self.codes.write(row, codes)
        self.scales.write(row, groups.scales.reshape(rows, -1))
        if self.zero_points is not None and groups.zero_points is not None:
            self.zero_points.write(row, groups.zero_points.reshape(rows, -1))
        if self.offsets is not None and groups.offsets is not None:
            self.offsets.write(row, groups.offsets.reshape(rows, -1))

    def matrix(self, request: MatrixRequest) -> QuantizedMatrix:
        """The nodes."""
        return QuantizedMatrix(
            self.codes.node,
            self.scales.node,
            None if self.zero_points is None else self.zero_points.node,
            None if self.offsets is None else self.offsets.node,
            request.shape,
            request.fmt.row_group,
            request.tensors[0].column_order if request.fmt.kind == "codes" else None,
        )


def _layout(fmt: Format) -> tuple[ov.Type, bool, bool]:
    """The type of the codes, and whether there are offsets and zero points."""
    grid = fmt.grid
    if grid is None:
        return _CODES[fmt.kind], False, fmt.kind in ("int8_asym", "int4_asym")
    if grid.has_zero_points:
        return ov.Type.u4 if grid.bits <= 4 else ov.Type.u8, False, True
    return ov.Type.i4 if grid.bits <= 4 else ov.Type.i8, grid.has_offsets, False


_Job: TypeAlias = Callable[[Tensor, slice, int], SquaredError]


def _run(request: MatrixRequest, job: _Job) -> list[SquaredError]:
    """Do a job for each chunk of rows of each tensor, on all cores; the error of each tensor."""
    total, unreleased = [SquaredError() for _ in request.tensors], 0
    chunks = list(_chunks(request.tensors))
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as pool:
        errors = pool.map(lambda chunk: job(request.tensors[chunk[0]], *chunk[1:]), chunks)
        for chunk, error in zip(chunks, errors, strict=True):
            total[chunk[0]].add(error)
            unreleased += _CHUNK_VALUES
            if unreleased >= _RELEASE_VALUES:
                request.release()
                unreleased = 0
    request.release()
    return total


def _chunks(tensors: Sequence[Tensor]) -> Iterator[tuple[int, slice, int]]:
    """Row chunks of all tensors: its number, its rows, and the first's row in the joined matrix."""
    start = 0
    for number, tensor in enumerate(tensors):
        rows = num_rows(tensor)
        step = max(1, _CHUNK_VALUES // tensor.shape[-1])
        for row in range(0, rows, step):
            yield number, slice(row, min(row + step, rows)), start + row
        start += rows


def _dense(fmt: Format, slot: Slot, tensor: Tensor, rows: slice, start: int) -> SquaredError:
    values = finite(tensor, tensor.values(rows), np.float32)
    if fmt.dtype == "bf16":
        stored = to_bfloat16(values)
        slot.write(start, stored)
        return _error((stored.astype(np.uint32) << 16).view(np.float32), values)
    cast = finite(tensor, values, fmt.scale_type)
    slot.write(start, cast)
    return _error(cast.astype(np.float32, copy=False), values)


def _round(
    request: MatrixRequest, slots: _Slots, tensor: Tensor, rows: slice, start: int
) -> SquaredError:
    fmt = request.fmt
    values = finite(tensor, tensor.values(rows), np.float32)
    flat = values.reshape(-1, fmt.group)
    importance = None
    if request.importance is not None:
        importance = np.broadcast_to(request.importance, values.shape).reshape(flat.shape)
    with np.errstate(all="ignore"):  # scales that are not finite are found in the next line
        groups = _GRIDS[fmt.kind](flat, fmt, importance)
    _check(tensor, groups)
    slots.write(start, len(values), groups)
    return _error(groups.values(nf4=fmt.kind == "nf4"), flat)


_Grid: TypeAlias = Callable[[Floats, Format, "Floats | None"], Groups]
_GRIDS: dict[str, _Grid] = {
    "int8_sym": lambda groups, fmt, _: quantize.symmetric8(groups, fmt.scale_type),
    "int8_asym": lambda groups, fmt, _: quantize.asymmetric8(groups, fmt.scale_type),
    "int4_sym": lambda groups, fmt, importance: quantize.symmetric4(
        groups, fmt.scale_type, search=fmt.search, importance=importance
    ),
    "int4_asym": lambda groups, fmt, importance: quantize.asymmetric4(
        groups, fmt.scale_type, search=fmt.search, importance=importance
    ),
    "nf4": lambda groups, fmt, importance: quantize.nf4(
        groups, fmt.scale_type, search=fmt.search, importance=importance
    ),
}


def _keep(fmt: Format, slots: _Slots, tensor: Tensor, rows: slice, start: int) -> SquaredError:
    """Keep the file's codes, with whole zero points or made signed: ``s*q + o`` is
    ``s*(q - 8) + (o + 8*s)``."""
    grid, found = fmt.grid, tensor.codes(rows)
    assert grid is not None, "codes are those of a grid"
    codes, offsets, zero_points = found.codes, found.offsets, None
    if offsets is not None and grid.has_zero_points:
        with np.errstate(all="ignore"):
            zero_points = np.nan_to_num(np.rint(-offsets / found.scales)).astype(np.uint8)
        zero_points, offsets = zero_points.reshape(-1), None
    elif offsets is not None:
        centre = 1 << (grid.bits - 1)
        codes = (codes.astype(np.int16) - centre).astype(np.int8)
        offsets = (offsets + np.float32(centre) * found.scales).reshape(-1)
    exact = Groups(codes.reshape(-1, grid.group), found.scales.reshape(-1), offsets, zero_points)
    kept = Groups(
        exact.codes,
        _stored(exact.scales, fmt),
        None if offsets is None else _stored(offsets, fmt),
        zero_points,
    )
    _check(tensor, kept)
    slots.write(start, len(codes), kept)
    if fmt.dtype == "f32":
        return SquaredError()
    return _error(kept.values(), exact.values())


def _stored(values: Floats, fmt: Format) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):
        return values.astype(fmt.scale_type)


def _error(stored: Floats, values: Floats) -> SquaredError:
    difference = (stored - values).reshape(-1)
    flat = values.reshape(-1)
    with np.errstate(over="ignore"):
        return SquaredError(float(difference @ difference), float(flat @ flat))


def _check(tensor: Tensor, groups: Groups) -> None:
    finite(tensor, groups.scales, groups.scales.dtype.type)
    if groups.offsets is not None:
        finite(tensor, groups.offsets, groups.offsets.dtype.type)


def to_bfloat16(values: Floats) -> npt.NDArray[np.uint16]:
    """The upper halves of float32 values, rounded to nearest even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def finite(tensor: Tensor, values: npt.NDArray[Any], dtype: type[Any]) -> npt.NDArray[Any]:
    """The values in another type.

    Raises:
        ModelFormatError: one is not finite there.
    """
    with np.errstate(over="ignore"):
        cast = values.astype(dtype, copy=False)
    if not np.isfinite(cast).all():
        raise ModelFormatError(
            f"tensor {tensor.name!r} holds a value that is not finite in {np.dtype(dtype)}; "
            "the file is damaged, or needs weights='exact'"
        )
    return cast

"""Matrices of weights as a graph holds them, and the formats that they may have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ovgen.export.checkpoint import Grid
from ovgen.export.quantize import ScaleType

Kind: TypeAlias = Literal["dense", "codes", "int8_sym", "int8_asym", "int4_sym", "int4_asym", "nf4"]
FloatType: TypeAlias = Literal["f32", "f16", "bf16"]


@dataclass(frozen=True, slots=True)
class Format:
    """How a matrix is stored in the graph; tensors of equal formats can share one.

    Attributes:
        kind: ``dense``, ``codes`` (the file's own integer grid) or the grid to round to.
        dtype: of dense values, or of scales and offsets (not bf16).
        group: neighbours that share a scale, for a grid to round to; 0 otherwise.
        grid: the file's own, for ``codes``.
        search: whether the scales are searched for (4 bits).
    """

    kind: Kind
    dtype: FloatType
    group: int = 0
    grid: Grid | None = None
    search: bool = False

    @property
    def row_group(self) -> int:
        """Neighbours that share a scale, on either grid."""
        return self.group if self.grid is None else self.grid.group

    @property
    def scale_type(self) -> ScaleType:
        """Of scales and offsets."""
        return np.float32 if self.dtype == "f32" else np.float16


@dataclass(frozen=True, slots=True)
class DenseMatrix:
    """A matrix of floats.

    Attributes:
        values: [rows, cols] float32, float16 or bfloat16.
    """

    values: Any


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix on a grid: ``w = scales * (codes - zero_points) + offsets``, group by group.

    Codes, scales and zero points are nodes [rows, groups, group or 1], or [rows, cols or 1] where a
    row is one group; offsets are [rows, groups]. Matrices of experts have one more axis before.

    Attributes:
        codes: i8, u8, i4 or nf4.
        scales: f16 or f32.
        zero_points: u8, or None.
        offsets: like the scales, or None.
        shape: (rows, cols) or (experts, rows, cols).
        group: neighbours along a row that share a scale.
        column_order: the columns come in this order, None for their own.
    """

    codes: Any
    scales: Any
    zero_points: Any | None
    offsets: Any | None
    shape: tuple[int, ...]
    group: int
    column_order: npt.NDArray[np.intp] | None = None

    @property
    def cols(self) -> int:
        """Columns."""
        return self.shape[-1]


Matrix: TypeAlias = DenseMatrix | QuantizedMatrix


@dataclass(slots=True)
class SquaredError:
    """What compression changed: the squares of all errors and of all values, summed up."""

    error: float = 0.0
    value: float = 0.0

    @property
    def relative_rms(self) -> float:
        """The root of the mean squared error over that of the values."""
        return float(np.sqrt(self.error / self.value)) if self.value else 0.0

    def add(self, other: SquaredError) -> None:
        """Count another's in."""
        self.error += other.error
        self.value += other.value

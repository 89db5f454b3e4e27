"""Tensors in memory, as checkpoints give them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ovgen.export.checkpoint import Codes, Floats, Grid, Rows, Tensor


@dataclass(eq=False)
class ArrayTensor:
    """Floats."""

    name: str
    array: Floats
    dtype: str = "F32"
    grid: Grid | None = None
    column_order: npt.NDArray[np.intp] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def values(self, rows: Rows) -> Floats:
        return self.array.reshape(-1, self.shape[-1])[rows]

    def codes(self, rows: Rows) -> Codes:
        raise NotImplementedError


class GridTensor(ArrayTensor):
    """Random codes on a grid; `columns` makes them come in another order than the values."""

    def __init__(
        self, name: str, shape: tuple[int, int], grid: Grid, *, seed: int = 0, shuffle: bool = False
    ) -> None:
        rng = np.random.default_rng(seed)
        rows, cols = shape
        low, high = (0, 1 << grid.bits) if grid.has_offsets else (
            -(1 << (grid.bits - 1)), 1 << (grid.bits - 1)
        )  # fmt: skip
        kind = np.uint8 if grid.has_offsets else np.int8
        codes = rng.integers(low, high, shape).astype(kind)
        scales = rng.uniform(0.01, 0.02, (rows, cols // grid.group)).astype(np.float16)
        zero_points = rng.integers(0, high, scales.shape)
        offsets = -scales.astype(np.float32) * zero_points.astype(np.float32)
        if not grid.has_zero_points:
            offsets = offsets.astype(np.float16)
        self._codes = Codes(
            codes, scales.astype(np.float32), offsets.astype(np.float32) if low == 0 else None
        )
        grouped = codes.reshape(rows, -1, grid.group) * scales.astype(np.float32)[..., None]
        if self._codes.offsets is not None:
            grouped = grouped + self._codes.offsets[..., None]
        values = grouped.reshape(shape).astype(np.float32)
        order = rng.permutation(cols) if shuffle else None
        if order is not None:
            values = values[:, np.argsort(order)]
        super().__init__(name, values, "TEST", grid, order)

    def codes(self, rows: Rows) -> Codes:
        codes, offsets = self._codes, self._codes.offsets
        return Codes(
            codes.codes[rows], codes.scales[rows], None if offsets is None else offsets[rows]
        )


@dataclass
class ArrayCheckpoint:
    """Tensors by name."""

    tensors: dict[str, Tensor]
    path: Path = Path("model")
    config: dict[str, Any] = field(default_factory=dict)
    released: int = 0

    @classmethod
    def of(cls, *tensors: Tensor) -> ArrayCheckpoint:
        return cls({tensor.name: tensor for tensor in tensors})

    def release_pages(self) -> None:
        self.released += 1

    def close(self) -> None:
        pass

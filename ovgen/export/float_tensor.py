"""Tensors that are stored as numbers of their own, not as codes with shared scales."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import numpy.typing as npt

from ovgen.export.checkpoint import Codes, Floats, Grid, Rows
from ovgen.export.float_formats import to_float32
from ovgen.export.safetensors import StoredTensor


class FloatTensor:
    """A tensor of a safetensors file; see `ovgen.export.checkpoint.Tensor`."""

    __slots__ = ("_stored",)

    def __init__(self, stored: StoredTensor) -> None:
        self._stored = stored

    @property
    def name(self) -> str:
        """As the file has it."""
        return self._stored.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Outermost axis first."""
        return self._stored.shape

    @property
    def dtype(self) -> str:
        """safetensors' name of it, ``BF16``."""
        return self._stored.dtype

    @property
    def grid(self) -> Grid | None:
        """None: it has no codes."""
        return None

    @property
    def column_order(self) -> npt.NDArray[np.intp] | None:
        """None: it has no groups."""
        return None

    def values(self, rows: Rows) -> Floats:
        """Rows as float32 [rows, cols]; of an F32 tensor a view where `rows` is a slice."""
        return to_float32(self._stored.data[rows], self._stored.dtype)

    def codes(self, rows: Rows) -> Codes:
        """Not to be called: `grid` is None."""
        no_codes(self.name)


def no_codes(name: str) -> NoReturn:
    """What `Tensor.codes` does where `grid` is None."""
    raise TypeError(f"tensor {name!r} has no grid and thus no codes")

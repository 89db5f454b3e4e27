"""Tensors seen another way, still read some rows at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ovgen.export.checkpoint import Codes, Floats, Grid, Rows, Tensor
from ovgen.export.float_tensor import no_codes

_BLOCK_ROWS = 256  # of a transposed matrix, held as float32 at a time


@dataclass(frozen=True, slots=True, eq=False)
class TensorView:
    """Another tensor under a name of its own; the base of the views here."""

    tensor: Tensor
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Outermost axis first."""
        return self.tensor.shape

    @property
    def dtype(self) -> str:
        """How the other is stored."""
        return self.tensor.dtype

    @property
    def grid(self) -> Grid | None:
        """The other's."""
        return self.tensor.grid

    @property
    def column_order(self) -> npt.NDArray[np.intp] | None:
        """The other's."""
        return self.tensor.column_order

    def values(self, rows: Rows) -> Floats:
        """Rows as float32 [rows, cols]."""
        return self.tensor.values(rows)

    def codes(self, rows: Rows) -> Codes:
        """Rows on the grid."""
        return self.tensor.codes(rows)


@dataclass(frozen=True, slots=True, eq=False)
class OrderedTensor(TensorView):
    """A tensor with its rows in another order: row i is the other's row ``order[i]``.

    A tensor of one axis is reordered along that.
    """

    order: npt.NDArray[np.intp]

    def values(self, rows: Rows) -> Floats:
        """Rows as float32 [rows, cols]."""
        if len(self.tensor.shape) == 1:
            return self.tensor.values(rows)[:, self.order]
        return self.tensor.values(self.order[rows])

    def codes(self, rows: Rows) -> Codes:
        """Rows on the grid."""
        return self.tensor.codes(self.order[rows])


@dataclass(frozen=True, slots=True, eq=False)
class SlicedTensor(TensorView):
    """Some neighbouring rows of a tensor, as a matrix; of one axis, some of its values."""

    first: int
    num_rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        """[rows, cols], or [size]."""
        cols = self.tensor.shape[1:]
        return (self.num_rows, cols[-1]) if cols else (self.num_rows,)

    def values(self, rows: Rows) -> Floats:
        """Rows as float32 [rows, cols]."""
        if len(self.tensor.shape) == 1:
            return self.tensor.values(rows)[:, self.first : self.first + self.num_rows]
        return self.tensor.values(self._rows(rows))

    def codes(self, rows: Rows) -> Codes:
        """Rows on the grid."""
        return self.tensor.codes(self._rows(rows))

    def _rows(self, rows: Rows) -> Rows:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.num_rows)
            return slice(self.first + start, self.first + stop, step)
        return rows + self.first


@dataclass(frozen=True, slots=True, eq=False)
class AlternatingColumns(TensorView):
    """The columns of two matrices of floats in turns; ``tensor`` has the even ones."""

    odd: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """[..., 2 * cols]."""
        *leading, cols = self.tensor.shape
        return (*leading, 2 * cols)

    @property
    def grid(self) -> Grid | None:
        """None: it is small, and of floats."""
        return None

    def values(self, rows: Rows) -> Floats:
        """Rows as float32 [rows, cols]."""
        both = np.stack([self.tensor.values(rows), self.odd.values(rows)], axis=-1)
        return both.reshape(len(both), -1)


@dataclass(frozen=True, slots=True, eq=False)
class AlternatingTensor(TensorView):
    """The rows of two tensors [..., rows, cols] in turns, along their last axis but one.

    Both are stored alike. The name is of the result, ``tensor`` has its even rows.
    """

    odd: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """[..., 2 * rows, cols]."""
        *leading, rows, cols = self.tensor.shape
        return (*leading, 2 * rows, cols)

    def values(self, rows: Rows) -> Floats:
        """Rows as float32 [rows, cols]."""
        wanted = self._wanted(rows)
        found = np.empty((len(wanted), self.tensor.shape[-1]), np.float32)
        for parity, tensor in enumerate((self.tensor, self.odd)):
            here = wanted % 2 == parity
            if here.any():
                found[here] = tensor.values(wanted[here] // 2)
        return found

    def codes(self, rows: Rows) -> Codes:
        """Rows on the grid."""
        wanted = self._wanted(rows)
        halves = [wanted % 2 == parity for parity in (0, 1)]
        parts = [
            tensor.codes(wanted[half] // 2)
            for tensor, half in zip((self.tensor, self.odd), halves, strict=True)
            if half.any()
        ]
        back = np.argsort(np.concatenate([np.flatnonzero(half) for half in halves]))
        offsets = [part.offsets for part in parts if part.offsets is not None]
        return Codes(
            np.concatenate([part.codes for part in parts])[back],
            np.concatenate([part.scales for part in parts])[back],
            np.concatenate(offsets)[back] if offsets else None,
        )

    def _wanted(self, rows: Rows) -> npt.NDArray[np.intp]:
        return np.arange(int(np.prod(self.shape[:-1], dtype=np.int64)))[rows]


@dataclass(frozen=True, slots=True, eq=False)
class ShiftedTensor(TensorView):
    """A tensor of floats with a number added to every value."""

    shift: float

    def values(self, rows: Rows) -> Floats:
        """Rows as float32 [rows, cols]."""
        return np.asarray(self.tensor.values(rows) + np.float32(self.shift), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class TransposedTensor(TensorView):
    """Matrices of floats with their axes exchanged, as GPT-2 stores its own.

    Each call reads the columns it needs from all rows of the other. Axes before the last two count
    several matrices.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Outermost axis first."""
        *leading, rows, cols = self.tensor.shape
        return (*leading, cols, rows)

    @property
    def grid(self) -> Grid | None:
        """None: groups along a column are none along a row."""
        return None

    def values(self, rows: Rows) -> Floats:
        """Rows as float32 [rows, cols]."""
        *leading, height, width = self.tensor.shape
        wanted = np.arange(int(np.prod(leading, dtype=np.int64)) * width)[rows]
        found = np.empty((len(wanted), height), np.float32)
        matrices = wanted // width
        for number in np.unique(matrices):
            here = matrices == number
            found[here] = self._columns(number * height, wanted[here] % width)
        return found

    def codes(self, rows: Rows) -> Codes:
        """Not to be called: `grid` is None."""
        no_codes(self.name)

    def _columns(self, start: int, columns: npt.NDArray[np.intp]) -> Floats:
        """Columns of the matrix that starts in this row, as rows."""
        stop = start + self.tensor.shape[-2]
        blocks = (
            slice(first, min(first + _BLOCK_ROWS, stop))
            for first in range(start, stop, _BLOCK_ROWS)
        )
        return np.concatenate([self.tensor.values(block)[:, columns].T for block in blocks], axis=1)


def parts_first(groups: int, repeats: int, head_dim: int) -> npt.NDArray[np.intp]:
    """The order of rows in which a fused projection's queries come first, then keys, then values.

    Args:
        groups: of the matrix's rows, each with its queries, a key and a value.
        repeats: query heads of a group.
        head_dim: rows of a head.
    """
    rows = np.arange(groups * (repeats + 2) * head_dim).reshape(groups, repeats + 2, head_dim)
    parts = (rows[:, :repeats], rows[:, repeats], rows[:, repeats + 1])
    return np.concatenate([part.reshape(-1) for part in parts])


def halves_first(heads: int, head_dim: int, rotary_dim: int | None = None) -> npt.NDArray[np.intp]:
    """The order of rows in which each head's even features come before its odd ones.

    So neighbours, which some models and GGUF's llama rotate with each other, come to lie half a
    head apart, where `graph.rotate` wants them. Attention's products do not change by it.

    Args:
        heads: heads in the matrix [heads * head_dim, ...].
        rotary_dim: the features of a head that are reordered, the first ones; None for all.
    """
    dim = head_dim if rotary_dim is None else rotary_dim
    one = np.concatenate([np.arange(0, dim, 2), np.arange(1, dim, 2), np.arange(dim, head_dim)])
    return np.asarray((np.arange(heads)[:, None] * head_dim + one).reshape(-1), np.intp)

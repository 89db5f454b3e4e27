"""Matrices of small integer codes whose groups along a row share a scale and a zero point.

What is common to the layouts of GPTQ, AWQ and compressed-tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ovgen.export.checkpoint import Codes, Floats, Grid, Rows
from ovgen.export.float_formats import ITEM_SIZES, to_float32
from ovgen.export.float_tensor import no_codes
from ovgen.export.safetensors import StoredTensor

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]

_CHECKED_ROWS = 4096  # of zero points, at a time


class GroupedTensor(ABC):
    """A weight [out, in] with the value ``scale * (code - zero point)``.

    Where scales are halves, that is ``scale * code + offset`` to the last bit, as a half times a
    small integer is exact; float32 scales with offsets round once more. See
    `ovgen.export.checkpoint.Tensor`.

    Args:
        name: of the weight.
        shape: [out, in].
        bits: of a code.
        num_groups: that a row has.
        column_groups: [in], the group that each column belongs to; None where groups are
            neighbours of the same size.
    """

    kind: str

    def __init__(
        self,
        name: str,
        shape: tuple[int, int],
        bits: int,
        num_groups: int,
        column_groups: npt.NDArray[np.intp] | None = None,
    ) -> None:
        self._name = name
        self._shape = shape
        self._bits = bits
        self._num_groups = num_groups
        group, rest = divmod(shape[1], num_groups)
        assert column_groups is not None or rest == 0
        self._are_equal = rest == 0
        self._column_groups = None
        neighbours = np.arange(shape[1]) // max(group, 1)
        if column_groups is not None and not np.array_equal(column_groups, neighbours):
            self._column_groups = column_groups
            sizes = np.bincount(column_groups, minlength=num_groups)
            self._are_equal = rest == 0 and bool((sizes == group).all())

    @property
    def name(self) -> str:
        """Of the weight, ``model.layers.0.mlp.up_proj.weight``."""
        return self._name

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in]."""
        return self._shape

    @property
    def dtype(self) -> str:
        """As ``GPTQ 4 bit``."""
        return f"{self.kind} {self._bits} bit"

    @property
    def grid(self) -> Grid | None:
        """None where groups are not of the same size."""
        if not self._are_equal:
            return None
        group = self._shape[1] // self._num_groups
        has_zero_points = not self._is_symmetric
        return Grid(self._bits, group, has_zero_points, has_zero_points=has_zero_points)

    @cached_property
    def column_order(self) -> npt.NDArray[np.intp] | None:
        """The columns group by group, where groups are equal but no neighbours."""
        if self._column_groups is None or not self._are_equal:
            return None
        return np.argsort(self._column_groups, kind="stable")

    def values(self, rows: Rows) -> Floats:
        """Rows as float32 [rows, in], in the columns' own order."""
        values = self._quants(rows).astype(np.float32)
        zeros, scales = self._zeros(rows).astype(np.float32), self._scales(rows)
        with np.errstate(all="ignore"):
            if self._column_groups is None:
                grouped = values.reshape(*scales.shape, -1)
                grouped -= zeros[..., None]
                grouped *= scales[..., None]
            else:
                values -= zeros[:, self._column_groups]
                values *= scales[:, self._column_groups]
        return values

    def codes(self, rows: Rows) -> Codes:
        """Rows on the grid, with their columns in `column_order`."""
        if not self._are_equal:
            no_codes(self._name)
        quants = self._quants(rows)
        if self.column_order is not None:
            quants = quants[:, self.column_order]
        scales = self._scales(rows)
        if self._is_symmetric:
            return Codes((quants - np.uint8(self._middle)).view(np.int8), scales, None)
        with np.errstate(all="ignore"):
            return Codes(quants, scales, -scales * self._zeros(rows).astype(np.float32))

    @abstractmethod
    def _quants(self, rows: Rows) -> Bytes:
        """The codes [rows, in], as stored."""

    @abstractmethod
    def _zeros(self, rows: Rows) -> Bytes:
        """The zero points [rows, groups]."""

    @abstractmethod
    def _scales(self, rows: Rows) -> Floats:
        """The scales [rows, groups]."""

    @property
    def _middle(self) -> int:
        return 1 << (self._bits - 1)

    @cached_property
    def _is_symmetric(self) -> bool:
        """Whether every zero point is in the middle of the codes."""
        starts = range(0, self._shape[0], _CHECKED_ROWS)
        return all(
            bool((self._zeros(slice(start, start + _CHECKED_ROWS)) == self._middle).all())
            for start in starts
        )


def words(stored: StoredTensor) -> Words:
    """The packed words [rows, cols] of an I32 matrix."""
    return stored.data.view(np.dtype("<u4"))


def scales_of_columns(stored: StoredTensor, columns: Rows) -> Floats:
    """Some columns of scales [groups, out], as [columns, groups]."""
    groups, out = stored.shape
    items = stored.data.reshape(groups, out, ITEM_SIZES[stored.dtype])[:, columns]
    return np.ascontiguousarray(to_float32(items.reshape(groups, -1), stored.dtype).T)


def unpack(packed: Words, bits: int) -> Bytes:
    """The codes of 2, 3, 4 or 8 bits in `packed` [rows, words], lowest bits first.

    Three-bit codes run on over the borders of words: their words come in threes.
    """
    octets = packed.astype(np.dtype("<u4"), copy=False).view(np.uint8)
    rows = len(octets)
    if bits == 8:
        return octets
    if bits == 3:
        flags = np.unpackbits(octets, axis=1, bitorder="little").reshape(rows, -1, 3)
        return np.packbits(flags, axis=2, bitorder="little").reshape(rows, -1)
    codes = np.empty((*octets.shape, 8 // bits), np.uint8)
    for place in range(8 // bits):
        codes[..., place] = octets >> (bits * place)
    codes &= np.uint8((1 << bits) - 1)
    return codes.reshape(rows, -1)


def unpack_columns(
    packed: Words, bits: int, columns: npt.NDArray[np.intp], *, added: int = 0
) -> Bytes:
    """The codes [rows, columns] of some columns of `packed` [rows, words].

    ``added``: to each word before it is unpacked, without regard to overflow.
    """
    # Whole runs of words, which are of three where codes cross their borders.
    run_words = 3 if bits == 3 else 1
    run = run_words * 32 // bits
    first, last = int(columns.min()) // run, int(columns.max()) // run + 1
    block = np.ascontiguousarray(packed[:, first * run_words : last * run_words])
    return unpack(block + np.uint32(added), bits)[:, columns - first * run]

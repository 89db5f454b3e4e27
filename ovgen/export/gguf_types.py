"""GGML's tensor types and the records that their blocks are stored in.

A row of a quantized tensor is a run of blocks, each a small record of scales and packed codes, as
the structs of ggml-common.h have them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np


class GGMLType(IntEnum):
    """The tensor types that ovgen reads, with ggml's numbers."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ4_NL = 20
    IQ4_XS = 23
    BF16 = 30
    MXFP4 = 39


# Named for the error message only.
UNREAD_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S",
    22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """How many values one block holds, and the record that holds them."""

    size: int
    record: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of one block."""
        return self.record.itemsize


_D = ("d", "<f2")
_M = ("m", "<f2")
_DMIN = ("dmin", "<f2")


def _block(size: int, *fields: tuple[str, str] | tuple[str, str, int]) -> BlockLayout:
    return BlockLayout(size, np.dtype([*fields]))


BLOCK_LAYOUTS: dict[GGMLType, BlockLayout] = {
    GGMLType.F32: BlockLayout(1, np.dtype("<f4")),
    GGMLType.F16: BlockLayout(1, np.dtype("<f2")),
    GGMLType.BF16: BlockLayout(1, np.dtype("<u2")),
    GGMLType.Q4_0: _block(32, _D, ("qs", "u1", 16)),
    GGMLType.Q4_1: _block(32, _D, _M, ("qs", "u1", 16)),
    GGMLType.Q5_0: _block(32, _D, ("qh", "u1", 4), ("qs", "u1", 16)),
    GGMLType.Q5_1: _block(32, _D, _M, ("qh", "u1", 4), ("qs", "u1", 16)),
    GGMLType.Q8_0: _block(32, _D, ("qs", "i1", 32)),
    GGMLType.Q2_K: _block(256, ("scales", "u1", 16), ("qs", "u1", 64), _D, _DMIN),
    GGMLType.Q3_K: _block(256, ("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), _D),
    GGMLType.Q4_K: _block(256, _D, _DMIN, ("scales", "u1", 12), ("qs", "u1", 128)),
    GGMLType.Q5_K: _block(
        256, _D, _DMIN, ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)
    ),
    GGMLType.Q6_K: _block(256, ("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), _D),
    GGMLType.IQ4_NL: _block(32, _D, ("qs", "u1", 16)),
    GGMLType.IQ4_XS: _block(256, _D, ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)),
    GGMLType.MXFP4: _block(32, ("e", "u1"), ("qs", "u1", 16)),
}

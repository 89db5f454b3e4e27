"""GGML's block formats in numpy: the float values of a tensor and the integer grid they sit on.

A row of a quantized tensor is a run of blocks, each a small record of scales and packed codes.
The record layouts follow the structs of ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class GGMLType(IntEnum):
    """The tensor types that ovgen reads, with ggml's numbers."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    BF16 = 30


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """How many values one block holds, and the record that holds them."""

    size: int
    record: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of one block."""
        return self.record.itemsize


_HALF = "<f2"
BLOCK_LAYOUTS: dict[GGMLType, BlockLayout] = {
    GGMLType.F32: BlockLayout(1, np.dtype("<f4")),
    GGMLType.F16: BlockLayout(1, np.dtype(_HALF)),
    GGMLType.BF16: BlockLayout(1, np.dtype("<u2")),
    GGMLType.Q4_0: BlockLayout(32, np.dtype([("d", _HALF), ("qs", "u1", 16)])),
    GGMLType.Q4_1: BlockLayout(32, np.dtype([("d", _HALF), ("m", _HALF), ("qs", "u1", 16)])),
    GGMLType.Q5_0: BlockLayout(32, np.dtype([("d", _HALF), ("qh", "u1", 4), ("qs", "u1", 16)])),
    GGMLType.Q5_1: BlockLayout(
        32, np.dtype([("d", _HALF), ("m", _HALF), ("qh", "u1", 4), ("qs", "u1", 16)])
    ),
    GGMLType.Q8_0: BlockLayout(32, np.dtype([("d", _HALF), ("qs", "i1", 32)])),
    GGMLType.Q4_K: BlockLayout(
        256, np.dtype([("d", _HALF), ("dmin", _HALF), ("scales", "u1", 12), ("qs", "u1", 128)])
    ),
    GGMLType.Q5_K: BlockLayout(
        256,
        np.dtype(
            [
                ("d", _HALF),
                ("dmin", _HALF),
                ("scales", "u1", 12),
                ("qh", "u1", 32),
                ("qs", "u1", 128),
            ]
        ),
    ),
    GGMLType.Q6_K: BlockLayout(
        256,
        np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", _HALF)]),
    ),
}


@dataclass(frozen=True, slots=True)
class QuantCodes:
    """A tensor on the file's own integer grid: ``w = scales * codes + offsets``, group by group.

    The expression in float32 gives ggml's value bit for bit. Scales and offsets are as the file
    has them, also where they are not finite.
    """

    codes: npt.NDArray[np.int8] | npt.NDArray[np.uint8]  # [rows, cols]; int8 when symmetric
    scales: Floats  # [rows, cols / group]
    offsets: Floats | None  # [rows, cols / group]; None when symmetric
    group: int
    bits: int

    def dequantize(self) -> Floats:
        """The values as float32, [rows, cols]."""
        rows, cols = self.codes.shape
        with np.errstate(all="ignore"):
            values = self.codes.reshape(rows, -1, self.group).astype(np.float32)
            values *= self.scales[..., None]
            if self.offsets is not None:
                values += self.offsets[..., None]
        return values.reshape(rows, cols)


def dequantize(data: Bytes, ggml_type: GGMLType) -> Floats:
    """The float32 values [rows, cols] of `data` [rows, bytes per row]; of F32 data a view."""
    if ggml_type == GGMLType.F32:
        return data.view(np.dtype("<f4"))
    if ggml_type == GGMLType.F16:
        return data.view(np.dtype(_HALF)).astype(np.float32)
    if ggml_type == GGMLType.BF16:
        return (data.view(np.dtype("<u2")).astype(np.uint32) << 16).view(np.float32)
    grid = codes(data, ggml_type)
    assert grid is not None
    return grid.dequantize()


def codes(data: Bytes, ggml_type: GGMLType) -> QuantCodes | None:
    """The integer grid of `data` [rows, bytes per row]; None for a float type."""
    unpack = _UNPACKERS.get(ggml_type)
    if unpack is None:
        return None
    return unpack(data.view(BLOCK_LAYOUTS[ggml_type].record))


# The unpackers take blocks [rows, blocks per row] of their type's record.
_Blocks = npt.NDArray[Any]


def _q4_0(blocks: _Blocks) -> QuantCodes:
    return _symmetric(_halves(blocks["qs"]), _f32(blocks["d"]), bits=4)


def _q4_1(blocks: _Blocks) -> QuantCodes:
    return _affine(_halves(blocks["qs"]), _f32(blocks["d"]), _f32(blocks["m"]), bits=4)


def _q5_0(blocks: _Blocks) -> QuantCodes:
    return _symmetric(_halves(blocks["qs"], blocks["qh"]), _f32(blocks["d"]), bits=5)


def _q5_1(blocks: _Blocks) -> QuantCodes:
    quants = _halves(blocks["qs"], blocks["qh"])
    return _affine(quants, _f32(blocks["d"]), _f32(blocks["m"]), bits=5)


def _q8_0(blocks: _Blocks) -> QuantCodes:
    rows = blocks.shape[0]
    quants = np.ascontiguousarray(blocks["qs"]).reshape(rows, -1)
    return QuantCodes(quants, _f32(blocks["d"]), None, group=32, bits=8)


def _q4_k(blocks: _Blocks) -> QuantCodes:
    scales, offsets = _k_scales(blocks)
    return _affine(_k_nibbles(blocks["qs"], 32), scales, offsets, bits=4)


def _q5_k(blocks: _Blocks) -> QuantCodes:
    scales, offsets = _k_scales(blocks)
    quants = _k_nibbles(blocks["qs"], 32)  # [rows, blocks, 8, 32]
    group = np.arange(8, dtype=np.uint8)[:, None]  # bit g of qh[j] belongs to value j of group g
    quants |= ((blocks["qh"][..., None, :] >> group) & 1) << 4
    return _affine(quants, scales, offsets, bits=5)


def _q6_k(blocks: _Blocks) -> QuantCodes:
    rows = blocks.shape[0]
    quants = _k_nibbles(blocks["ql"], 64).reshape(*blocks.shape, 2, 4, 32)
    high = blocks["qh"].reshape(*blocks.shape, 2, 1, 32)
    pair = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    quants |= ((high >> pair) & 3) << 4
    with np.errstate(all="ignore"):
        scales = _f32(blocks["d"])[..., None] * blocks["scales"].astype(np.float32)
    return _symmetric(quants, scales.reshape(rows, -1), bits=6)


_UNPACKERS: dict[GGMLType, Callable[[_Blocks], QuantCodes]] = {
    GGMLType.Q4_0: _q4_0,
    GGMLType.Q4_1: _q4_1,
    GGMLType.Q5_0: _q5_0,
    GGMLType.Q5_1: _q5_1,
    GGMLType.Q8_0: _q8_0,
    GGMLType.Q4_K: _q4_k,
    GGMLType.Q5_K: _q5_k,
    GGMLType.Q6_K: _q6_k,
}


def _f32(field: npt.NDArray[Any]) -> Floats:
    return field.astype(np.float32)


def _halves(qs: Bytes, qh: Bytes | None = None) -> Bytes:
    """[..., 32] codes: value j is in the low half of qs[j], value j + 16 in its high half."""
    quants = np.concatenate((qs & 15, qs >> 4), axis=-1)
    if qh is not None:  # the fifth bit of value j is bit j of the 32-bit word
        quants |= np.unpackbits(qh, axis=-1, bitorder="little") << 4
    return quants


def _k_nibbles(qs: Bytes, run: int) -> Bytes:
    """[..., 256 / run, run] codes: each run of bytes holds one run of values in its low halves
    and the next one in its high halves."""
    runs = qs.reshape(*qs.shape[:-1], -1, run)
    pairs = np.stack((runs & 15, runs >> 4), axis=-2)
    return pairs.reshape(*qs.shape[:-1], -1, run)


def _k_scales(blocks: _Blocks) -> tuple[Floats, Floats]:
    """The scales and offsets [rows, groups] of K blocks: eight 6-bit pairs in twelve bytes.

    The first four pairs are the low six bits of bytes 0-3 (scales) and 4-7 (minima); the last four
    have their low bits in the halves of bytes 8-11 and their high bits atop the first eight bytes.
    """
    rows = blocks.shape[0]
    packed = blocks["scales"]
    first, second, third = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate((first & 63, (third & 15) | ((first >> 2) & 48)), axis=-1)
    minima = np.concatenate((second & 63, (third >> 4) | ((second >> 2) & 48)), axis=-1)
    with np.errstate(all="ignore"):
        d = _f32(blocks["d"])[..., None] * scales.astype(np.float32)
        m = _f32(blocks["dmin"])[..., None] * minima.astype(np.float32)
    return d.reshape(rows, -1), -m.reshape(rows, -1)


def _symmetric(quants: Bytes, scales: Floats, bits: int) -> QuantCodes:
    """Codes stored with a bias of half their range, without offsets."""
    signed = quants.reshape(scales.shape[0], -1).view(np.int8)
    signed -= np.int8(1 << (bits - 1))
    return QuantCodes(signed, scales, None, signed.shape[1] // scales.shape[1], bits)


def _affine(quants: Bytes, scales: Floats, offsets: Floats, bits: int) -> QuantCodes:
    flat = quants.reshape(scales.shape[0], -1)
    return QuantCodes(flat, scales, offsets, flat.shape[1] // scales.shape[1], bits)

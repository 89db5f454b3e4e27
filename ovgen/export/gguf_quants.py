"""GGML's block formats in numpy: the float values of a tensor and the integer grid they sit on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ovgen.export.gguf_types import BLOCK_LAYOUTS, GGMLType

__all__ = ["BLOCK_LAYOUTS", "GGMLType", "QuantCodes", "codes", "dequantize"]

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# The sixteen values of the types whose codes are places in a table.
_IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
_MXFP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


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
        return data.view(np.dtype("<f2")).astype(np.float32)
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


def _q2_k(blocks: _Blocks) -> QuantCodes:
    rows = blocks.shape[0]
    packed = blocks["scales"]  # a scale in the low half, a minimum in the high one
    with np.errstate(all="ignore"):
        d = _f32(blocks["d"])[..., None] * (packed & 15).astype(np.float32)
        m = _f32(blocks["dmin"])[..., None] * (packed >> 4).astype(np.float32)
    return _affine(_k_pairs(blocks["qs"]), d.reshape(rows, -1), -m.reshape(rows, -1), bits=2)


def _q3_k(blocks: _Blocks) -> QuantCodes:
    rows = blocks.shape[0]
    quants = _k_pairs(blocks["qs"])  # [rows, blocks, 8, 32]
    run = np.arange(8, dtype=np.uint8)[:, None]  # bit r of hmask[j] belongs to value j of run r
    quants |= ((blocks["hmask"][..., None, :] >> run) & 1) << 2
    # Sixteen scales of six bits: the low four in the halves of eight bytes, the others in pairs.
    low, high = blocks["scales"][..., :8], blocks["scales"][..., None, 8:]
    pair = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    upper = ((high >> pair) & 3).reshape(*blocks.shape, 16)
    factors = np.concatenate((low & 15, low >> 4), axis=-1) | upper << 4
    return _symmetric(quants, _signed_scales(blocks, factors).reshape(rows, -1), bits=3)


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


def _iq4_nl(blocks: _Blocks) -> QuantCodes:
    return _from_table(_IQ4_VALUES, _halves(blocks["qs"]), _f32(blocks["d"]))


def _iq4_xs(blocks: _Blocks) -> QuantCodes:
    rows = blocks.shape[0]
    low = np.stack((blocks["scales_l"] & 15, blocks["scales_l"] >> 4), axis=-1)
    pair = np.arange(0, 16, 2, dtype=np.uint16)
    high = ((blocks["scales_h"][..., None] >> pair) & 3).astype(np.uint8)
    scales = _signed_scales(blocks, low.reshape(high.shape) | high << 4)
    quants = _halves(blocks["qs"].reshape(*blocks.shape, 8, 16))
    return _from_table(_IQ4_VALUES, quants, scales.reshape(rows, -1))


def _mxfp4(blocks: _Blocks) -> QuantCodes:
    # The scale is a power of two, halved because the table's values are doubled.
    scales = np.ldexp(np.float32(1), blocks["e"].astype(np.int32) - 128)
    return _from_table(_MXFP4_VALUES, _halves(blocks["qs"]), scales)


_UNPACKERS: dict[GGMLType, Callable[[_Blocks], QuantCodes]] = {
    GGMLType.Q4_0: _q4_0,
    GGMLType.Q4_1: _q4_1,
    GGMLType.Q5_0: _q5_0,
    GGMLType.Q5_1: _q5_1,
    GGMLType.Q8_0: _q8_0,
    GGMLType.Q2_K: _q2_k,
    GGMLType.Q3_K: _q3_k,
    GGMLType.Q4_K: _q4_k,
    GGMLType.Q5_K: _q5_k,
    GGMLType.Q6_K: _q6_k,
    GGMLType.IQ4_NL: _iq4_nl,
    GGMLType.IQ4_XS: _iq4_xs,
    GGMLType.MXFP4: _mxfp4,
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


def _k_pairs(qs: Bytes) -> Bytes:
    """[..., 8, 32] codes of two bits: 32 bytes hold four runs of values, lowest bits first."""
    runs = qs.reshape(*qs.shape[:-1], 2, 1, 32)
    pair = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    quants: Bytes = (runs >> pair) & np.uint8(3)
    return quants.reshape(*qs.shape[:-1], 8, 32)


def _signed_scales(blocks: _Blocks, factors: Bytes) -> Floats:
    """``d`` times six-bit factors [rows, blocks, groups] whose zero is 32."""
    with np.errstate(all="ignore"):
        scales: Floats = _f32(blocks["d"])[..., None] * (factors.view(np.int8) - np.int8(32))
    return scales


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


def _from_table(values: npt.NDArray[np.int8], quants: Bytes, scales: Floats) -> QuantCodes:
    """Codes that are the table's values: eight bits, though stored in four."""
    codes = values[quants].reshape(scales.shape[0], -1)
    return QuantCodes(codes, scales, None, codes.shape[1] // scales.shape[1], bits=8)

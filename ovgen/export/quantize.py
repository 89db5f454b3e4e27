"""Rounding to integer grids and to NF4, group by group, with a search for the best scales.

Functions take groups [num_groups, group] of float32 and, where scales are searched for, how much
each value's squared error counts (importance [num_groups, group]). Where that is not known it is
``|w| + rms``: the smallest plain error shrinks the large weights, which at the same size does more
harm (SmolLM2 in int4_sym: mean KL 0.38 by it, 0.35 without a search, 0.32 so).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ovgen.export.checkpoint import Floats

ScaleType: TypeAlias = type[np.float16] | type[np.float32]

# The range that the codes span, as a share of the values' own: the search takes one of these.
_SHRINKS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72)
_TINY = np.float32(1e-30)

# Dettmers et al., "QLoRA", 2023: quantiles of the normal distribution.
NF4_LEVELS = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
_NF4_BORDERS = np.append((NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / 2, np.float32(np.inf))
# The code at the start of each cell of [-1, 1]; no cell holds two borders.
_NF4_CELLS = 256
_NF4_TABLE = np.searchsorted(_NF4_BORDERS, np.linspace(-1, 1, _NF4_CELLS + 1)).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Groups:
    """Rounded groups: ``scales * codes``, with offsets ``scales * codes + offsets``, with zero
    points ``scales * (codes - zero_points)``; the codes of NF4 stand for its levels.

    Attributes:
        codes: [num_groups, group] int8 or uint8.
        scales: [num_groups] float16 or float32.
        offsets: [num_groups] like the scales, or None.
        zero_points: [num_groups] uint8, or None.
    """

    codes: npt.NDArray[Any]
    scales: npt.NDArray[Any]
    offsets: npt.NDArray[Any] | None = None
    zero_points: npt.NDArray[np.uint8] | None = None

    def values(self, *, nf4: bool = False) -> Floats:
        """What the graph computes with, [num_groups, group]."""
        values = NF4_LEVELS[self.codes] if nf4 else self.codes.astype(np.float32)
        if self.zero_points is not None:
            values -= self.zero_points[:, None]
        values *= self.scales[:, None].astype(np.float32)
        if self.offsets is not None:
            values += self.offsets[:, None].astype(np.float32)
        return values


def symmetric8(groups: Floats, dtype: ScaleType) -> Groups:
    """The nearest of 255 steps, equally many on both sides of zero."""
    scales = _stored(np.abs(groups).max(axis=1) / 127, dtype)
    codes = _over(groups, scales)
    np.rint(codes, out=codes)
    np.clip(codes, -127, 127, out=codes)
    return Groups(codes.astype(np.int8), scales)


def asymmetric8(groups: Floats, dtype: ScaleType) -> Groups:
    """256 steps from the smallest value to the largest, zero being one of them."""
    low = np.minimum(groups.min(axis=1), 0)
    scales = _stored((np.maximum(groups.max(axis=1), 0) - low) / 255, dtype)
    zero_points = np.clip(np.rint(-low / scales.astype(np.float32)), 0, 255)
    codes = _over(groups, scales)
    np.rint(codes, out=codes)
    codes += zero_points[:, None]
    np.clip(codes, 0, 255, out=codes)
    return Groups(codes.astype(np.uint8), scales, None, zero_points.astype(np.uint8))


def symmetric4(
    groups: Floats, dtype: ScaleType, *, search: bool, importance: Floats | None = None
) -> Groups:
    """Codes -8..7 and a scale of either sign, which puts -8 where the largest value is.

    For each of several spans the search takes the codes and then the scale that fits them best,
    ``sum(w q) / sum(q q)``; the one that leaves the smallest squared error wins.
    """
    low, high = groups.min(axis=1), groups.max(axis=1)
    best = _not_zero(np.where(-low >= high, low, high) / np.float32(-8))
    if search:
        ratios, counts = _over(groups, best), _counts(groups, importance)
        best_gain = np.full(len(best), -1, np.float32)
        codes = np.empty_like(ratios)
        for shrink in _SHRINKS:
            np.multiply(ratios, np.float32(1 / shrink), out=codes)
            _to_codes(codes)
            scales, gain = _fit(codes, groups, counts)
            best = np.where(gain > best_gain, scales, best)
            best_gain = np.maximum(gain, best_gain)
    stored = _stored(best, dtype)
    codes = _over(groups, stored)
    _to_codes(codes)
    return Groups(codes.astype(np.int8), stored)


def asymmetric4(
    groups: Floats, dtype: ScaleType, *, search: bool, importance: Floats | None = None
) -> Groups:
    """Codes 0..15, a scale and a zero point, which is one of the codes.

    The search is that of `symmetric4`, with the zero point of each span.
    """
    low, high = np.minimum(groups.min(axis=1), 0), np.maximum(groups.max(axis=1), 0)
    best = span = _not_zero((high - low) / np.float32(15))
    centre = (low + high) / 2
    zeros = best_zeros = _zero_points(centre, span)
    if search:
        counts, best_gain = _counts(groups, importance), np.full(len(span), -1, np.float32)
        codes, ratios = np.empty_like(groups), _over(groups, span)
        for shrink in _SHRINKS:
            zeros = _zero_points(centre, span * np.float32(shrink))
            np.multiply(ratios, np.float32(1 / shrink), out=codes)
            _to_codes_about(codes, zeros)
            scales, gain = _fit(codes, groups, counts)
            better = gain > best_gain
            best, best_zeros = np.where(better, scales, best), np.where(better, zeros, best_zeros)
            best_gain = np.maximum(gain, best_gain)
    stored = _stored(best, dtype)
    codes = _over(groups, stored)
    _to_codes_about(codes, best_zeros)
    codes += best_zeros[:, None]
    return Groups(codes.astype(np.uint8), stored, None, best_zeros.astype(np.uint8))


def nf4(
    groups: Floats, dtype: ScaleType, *, search: bool, importance: Floats | None = None
) -> Groups:
    """The nearest of the sixteen levels; the search is that of `symmetric4`."""
    best = span = _not_zero(np.abs(groups).max(axis=1))
    if search:
        counts, best_gain = _counts(groups, importance), np.full(len(span), -1, np.float32)
        for shrink in _SHRINKS[::2]:
            levels = NF4_LEVELS[_nf4_codes(groups, span * np.float32(shrink))]
            scales, gain = _fit(levels, groups, counts)
            best = np.where(gain > best_gain, scales, best)
            best_gain = np.maximum(gain, best_gain)
    stored = _stored(best, dtype)
    return Groups(_nf4_codes(groups, stored), stored)


def pack_nibbles(codes: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Two 4-bit codes to a byte, the first in the low half: [rows, cols] -> [rows, cols / 2]."""
    nibbles = codes.view(np.uint8) & np.uint8(0xF)
    return np.asarray(nibbles[:, 0::2] | (nibbles[:, 1::2] << 4), np.uint8)


def _counts(groups: Floats, importance: Floats | None) -> Floats:
    """How much each value's squared error counts."""
    if importance is not None:
        return importance
    rms = np.sqrt(_dot(groups, groups) / groups.shape[1])
    return np.asarray(np.abs(groups) + rms[:, None], np.float32)


def _fit(codes: Floats, groups: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """The best scales for these codes, and how much of the squared error they take away."""
    counted = counts * codes
    product = _dot(counted, groups)
    scales = product / np.maximum(_dot(counted, codes), _TINY)
    return np.asarray(scales, np.float32), scales * product


def _dot(left: Floats, right: Floats) -> Floats:
    return np.asarray(np.einsum("ij,ij->i", left, right), np.float32)


def _to_codes(values: Floats) -> None:
    np.rint(values, out=values)
    np.clip(values, -8, 7, out=values)


def _zero_points(centre: Floats, span: Floats) -> Floats:
    """Those of 16 steps, ``span`` apart, that have the centre in their middle."""
    return np.asarray(np.clip(np.rint(np.float32(7.5) - centre / span), 0, 15), np.float32)


def _to_codes_about(values: Floats, zeros: Floats) -> None:
    """Round to codes 0..15 less their zero points."""
    np.rint(values, out=values)
    np.maximum(values, -zeros[:, None], out=values)
    np.minimum(values, np.float32(15) - zeros[:, None], out=values)


def _nf4_codes(groups: Floats, scales: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    values = _over(groups, scales)
    np.clip(values, -1, 1, out=values)
    codes = _NF4_TABLE[((values + 1) * np.float32(_NF4_CELLS // 2)).astype(np.int32)]
    codes += values > _NF4_BORDERS[codes]
    return np.asarray(codes, np.uint8)


def _over(groups: Floats, scales: npt.NDArray[Any]) -> Floats:
    return np.asarray(groups / scales[:, None].astype(np.float32), np.float32)


def _not_zero(scales: Floats) -> Floats:
    # A group of zeros must not divide by zero.
    return np.asarray(np.where(scales == 0, _TINY, scales), np.float32)


def _cast(values: Floats, dtype: ScaleType) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def _stored(scales: Floats, dtype: ScaleType) -> npt.NDArray[Any]:
    """Scales as they are stored, none of them zero; codes are rounded to the grid of these."""
    stored = _cast(scales, dtype)
    stored[stored == 0] = np.finfo(dtype).smallest_subnormal
    return stored

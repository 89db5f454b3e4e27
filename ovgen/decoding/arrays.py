"""What every strategy needs of a row of logits, without sorting the vocabulary."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

TokenIds: TypeAlias = npt.NDArray[np.int64]
Logits: TypeAlias = npt.NDArray[np.float32]
Indices: TypeAlias = npt.NDArray[np.intp]

_NUM_SLICES = 64


def log_sum_exp(row: Logits, out: Logits | None = None) -> float:
    """``log(sum(exp(row)))`` of a row with a finite maximum; ``out`` is overwritten."""
    highest = row.max()
    weights = np.subtract(row, highest, out=out)
    return float(highest) + math.log(float(np.exp(weights, out=weights).sum()))


def top_indices(row: Logits, k: int) -> Indices:
    """Indices of the k highest values, best first; of equal values the first come first.

    Values below the k-th highest of all slice maxima cannot be among the k highest, so all but a
    few are left out by one comparison.
    """
    size = len(row)
    is_all = k >= size
    candidates = np.arange(size) if is_all else np.flatnonzero(row >= _lower_bound(row, k))
    values = row[candidates]
    if len(candidates) > 4 * k:
        kth = np.partition(values, len(values) - k)[len(values) - k]
        candidates = candidates[values >= kth]
        values = row[candidates]
    return candidates[np.argsort(-values, kind="stable")[:k]]


def highest(row: Logits, k: int) -> Indices:
    """Indices, ascending, of the k highest values and of all that equal the last of them; of all
    values where one is no number, which is for those to find who compute with them."""
    if k >= len(row):
        return np.arange(len(row))
    (candidates,) = (row >= _lower_bound(row, k)).nonzero()
    if not len(candidates):
        return np.arange(len(row))
    values = row[candidates]
    return candidates[values >= np.partition(values, len(values) - k)[len(values) - k]]


def _lower_bound(row: Logits, k: int) -> np.float32:
    """A value that at least k of the row's reach; not a number where any of them is none."""
    width = len(row) // _NUM_SLICES
    if width >= 2 * k:
        # Slices across the row, for numpy takes maxima over the first axis a vector at a time.
        sliced, rest = np.split(row, [width * _NUM_SLICES])
        row = sliced.reshape(_NUM_SLICES, width).max(axis=0)
        if np.isnan(rest).any():
            return np.float32(np.nan)
    kth = len(row) - k
    highest_values = np.partition(row, kth)[kth:]  # with what is no number, if anything
    return np.float32(np.nan) if np.isnan(highest_values.max()) else highest_values[0]

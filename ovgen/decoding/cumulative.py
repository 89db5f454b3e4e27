"""Drawing from weights by their running sum."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ovgen.decoding.arrays import Logits

BLOCK = 256  # about the square root of a vocabulary: as many sums as weights are looked at

Bounds: TypeAlias = npt.NDArray[np.float64]


def block_sums(weights: Logits, out: Logits) -> None:
    """The sums [rows, blocks] of weights [rows, n], BLOCK at a time, the last block shorter."""
    num_rows, size = weights.shape
    num_whole = size // BLOCK
    whole = weights[:, : num_whole * BLOCK].reshape(num_rows, num_whole, BLOCK)
    np.einsum("ijk->ij", whole, out=out[:, :num_whole])  # twice as fast as add.reduce
    if num_whole * BLOCK < size:
        np.add.reduce(weights[:, num_whole * BLOCK :], axis=1, out=out[:, num_whole])


class CumulativeWeights:
    """The running sum of weights, by blocks: over a whole vocabulary it would take longer than
    everything else about a token.

    Args:
        weights: [n] float32, not negative, with a positive sum; not copied.

    Attributes:
        total: the sum of the weights.
    """

    __slots__ = ("_bounds", "_weights", "total")

    def __init__(self, weights: Logits) -> None:
        self._weights = weights
        sums = np.empty((1, -(-len(weights) // BLOCK)), np.float32)
        block_sums(weights[None], sums)
        self._bounds: Bounds = np.add.accumulate(sums[0], dtype=np.float64)
        self.total = float(self._bounds[-1])

    def index_at(self, uniform: float) -> int:
        """The first index at which the running sum exceeds the share ``uniform`` in [0, 1).

        First the block is found, then the index by what is left of the share inside of it: below
        1, however it is rounded, so that the index has a weight.
        """
        bounds = self._bounds
        target = uniform * self.total
        block = int(bounds.searchsorted(target, side="right"))
        before = float(bounds[block - 1]) if block else 0.0
        left = (target - before) / (float(bounds[block]) - before)
        start = block * BLOCK
        inner = np.add.accumulate(self._weights[start : start + BLOCK], dtype=np.float64)
        return start + int(inner.searchsorted(left * float(inner[-1]), side="right"))

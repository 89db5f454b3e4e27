"""Drawing from weights by their running sum."""

from __future__ import annotations

import numpy as np

from ovgen.decoding.arrays import Logits

_BLOCK = 512


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
        whole = len(weights) // _BLOCK * _BLOCK
        sums = np.add.reduce(weights[:whole].reshape(-1, _BLOCK), axis=1)
        if whole < len(weights):
            sums = np.append(sums, np.add.reduce(weights[whole:]))
        self._bounds = np.add.accumulate(sums, dtype=np.float64)
        self.total = float(self._bounds[-1])

    def index_at(self, uniform: float) -> int:
        """The first index at which the running sum exceeds the share ``uniform`` in [0, 1)."""
        bounds = self._bounds
        target = uniform * self.total
        block = min(int(bounds.searchsorted(target, side="right")), len(bounds) - 1)
        before = float(bounds[block - 1]) if block else 0.0
        start = block * _BLOCK
        part = self._weights[start : start + _BLOCK]
        inside = int(
            np.add.accumulate(part, dtype=np.float64).searchsorted(target - before, "right")
        )
        if inside < len(part):
            return start + inside
        # The target is the block's end, by rounding: the last up to there that has any weight.
        return int(np.flatnonzero(self._weights[: start + _BLOCK])[-1])

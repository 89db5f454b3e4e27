"""The weights of whole rows by blocks: most draws need their sums, and then one block's weights."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ovgen.decoding.arrays import Indices, Logits
from ovgen.decoding.candidates import SAFE, Workspace
from ovgen.decoding.cumulative import BLOCK, Bounds, block_sums
from ovgen.decoding.row_threads import RowThreads

_PART = 1 << 18  # logits computed at once: their weights, 1 MB, stay in a core's cache


class BlockWeights:
    """`candidates.weights_of` and `CumulativeWeights` of many rows, the same bit for bit.

    Args:
        logits: [rows, vocab] float32.
        temperatures: [rows] float32.
        workspace: of the engine.
        threads: share the rows.

    Attributes:
        sums: [rows, blocks] float32, of each block of weights.
        bounds: [rows, blocks] float64, their running sums.
        rows: [n] those that have a finite maximum.
    """

    def __init__(
        self,
        logits: Logits,
        temperatures: npt.NDArray[np.float32],
        workspace: Workspace,
        threads: RowThreads,
    ) -> None:
        num_rows, size = logits.shape
        self._logits = logits
        self._factors: Logits = np.divide(1, temperatures, dtype=np.float32)[:, None]
        self._limits = (SAFE * temperatures)[:, None]
        self._offsets: Logits = np.zeros((num_rows, 1), np.float32)  # taken off the logits
        self._has_offsets = False  # any thread may find that there are
        self._workspace = workspace
        self.sums = np.empty((num_rows, -(-size // BLOCK)), np.float32)
        self._rows_of_part = max(1, _PART // size)
        threads.run(self._compute, -(-num_rows // self._rows_of_part))
        self.bounds: Bounds = np.add.accumulate(self.sums, axis=1, dtype=np.float64)
        totals = self.bounds[:, -1].tolist()
        self.rows = np.array([row for row, total in enumerate(totals) if 0 < total < math.inf], int)

    def of_blocks(self, rows: Indices | np.intp, blocks: Indices) -> Logits:
        """The weights [n, BLOCK] of blocks [n] of rows, or of one row; 0 beyond the vocabulary."""
        num_rows, size = self._logits.shape
        num_whole = size // BLOCK
        stop = num_whole * BLOCK
        whole = self._logits[:, :stop].reshape(num_rows, num_whole, BLOCK)
        if stop == size:
            found = whole[rows, blocks]
        else:
            rows = np.broadcast_to(rows, blocks.shape)
            found = np.full((len(blocks), BLOCK), -np.inf, np.float32)
            is_rest = blocks == num_whole
            found[~is_rest] = whole[rows[~is_rest], blocks[~is_rest]]
            found[is_rest, : size - stop] = self._logits[rows[is_rest], stop:]
        if self._has_offsets:
            found -= self._offsets[rows]
        return _exp(found, self._factors[rows], found)

    def _compute(self, part: int) -> None:
        here = slice(part * self._rows_of_part, (part + 1) * self._rows_of_part)
        logits = self._logits[here]
        out = self._workspace.row("part", self._rows_of_part * logits.shape[1])
        out = out[: logits.size].reshape(logits.shape)
        highest = np.maximum.reduce(logits, axis=1, keepdims=True)
        is_safe = abs(highest) <= self._limits[here]
        if not is_safe.all():
            self._has_offsets = True
            # One that is no number leaves a total that is none.
            self._offsets[here] = np.where(is_safe | ~np.isfinite(highest), 0, highest)
            logits = np.subtract(logits, self._offsets[here], out=out)
        block_sums(_exp(logits, self._factors[here], out), self.sums[here])


def _exp(logits: Logits, factors: Logits, out: Logits) -> Logits:
    return np.exp(np.multiply(logits, factors, out=out), out=out)

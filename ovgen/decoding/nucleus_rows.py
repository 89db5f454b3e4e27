"""Sampling from all tokens or by top-p, many rows at once: what `nucleus.draw` gives for each.

A call of numpy costs some microseconds, more than what it computes of one row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ovgen.decoding import nucleus
from ovgen.decoding.arrays import Indices, Logits
from ovgen.decoding.block_weights import BlockWeights
from ovgen.decoding.candidates import Mask, Workspace
from ovgen.decoding.cumulative import BLOCK, Bounds
from ovgen.decoding.nucleus import Nucleus
from ovgen.decoding.random import States, uniforms_of
from ovgen.decoding.row_threads import RowThreads


def draw(
    logits: Logits,
    nuclei: Sequence[Nucleus],
    states: States,
    workspace: Workspace,
    threads: RowThreads,
) -> list[int | None]:
    """`nucleus.draw` for each row; None, too, where the logits are no numbers.

    Args:
        logits: [rows, vocab] float32.
        nuclei: of each row.
        states: [rows] uint64, of the rows' draws.
        workspace: of the engine.
        threads: share the rows.
    """
    settings = np.array(nuclei)
    weights = BlockWeights(logits, settings[:, 0].astype(np.float32), workspace, threads)
    token_ids: list[int | None] = [None] * len(logits)
    rows = weights.rows
    for number in range(nucleus.TRIES):
        if not len(rows):
            break
        found, shares = _pick(weights, rows, uniforms_of(states[rows], number))
        are_inside = _are_likely(weights, rows, shares, settings[rows, 1])
        for place in (~are_inside).nonzero()[0]:
            row = rows[place]
            p = float(settings[row, 1])
            are_inside[place] = _is_inside(weights, row, found[place], shares[place], p, workspace)
        kept = zip(rows[are_inside].tolist(), found[are_inside].tolist(), strict=True)
        for row, token_id in kept:
            token_ids[row] = token_id
        rows = rows[~are_inside]
    return token_ids


def _pick(weights: BlockWeights, rows: Indices, uniforms: Bounds) -> tuple[Indices, Logits]:
    """`CumulativeWeights.index_at` for rows [n], and the weights there."""
    bounds = weights.bounds if len(rows) == len(weights.bounds) else weights.bounds[rows]
    each = np.arange(len(rows))
    targets = uniforms * bounds[:, -1]
    blocks = (bounds > targets[:, None]).argmax(axis=1)
    before = np.where(blocks > 0, bounds[each, blocks - 1], 0.0)
    left = (targets - before) / (bounds[each, blocks] - before)
    found = weights.of_blocks(rows, blocks)
    inner = np.add.accumulate(found, axis=1, dtype=np.float64)
    places = (inner > (left * inner[:, -1])[:, None]).argmax(axis=1)
    return blocks * BLOCK + places, found[each, places]


def _are_likely(weights: BlockWeights, rows: Indices, shares: Logits, p: Bounds) -> Mask:
    """Whether tokens [n] of rows [n] are in the nucleus as is plain to see; ``shares`` [n] are
    their weights."""
    wanted = (1 - p) * weights.bounds[rows, -1] * 1.00001
    result: Mask = shares > wanted  # all the others together do not reach p
    (rest,) = (~result).nonzero()
    if len(rest):
        # Nor do they where the blocks that weigh less than the token, and so does all in them, do.
        sums = weights.sums[rows[rest]]
        less = np.einsum("ij,ij->i", sums, sums < shares[rest, None])
        result[rest] = less > wanted[rest] * 1.00001
    return result


def _is_inside(
    weights: BlockWeights,
    row: np.intp,
    token_id: np.intp,
    share: np.float32,
    p: float,
    workspace: Workspace,
) -> bool:
    """`nucleus.is_inside` of a row's token, which needs no blocks but those that weigh more."""
    (blocks,) = (weights.sums[row] > share * np.float32(0.9999)).nonzero()  # sums are rounded
    found = weights.of_blocks(row, blocks).ravel()
    index = int(blocks.searchsorted(token_id // BLOCK)) * BLOCK + int(token_id) % BLOCK
    total = float(weights.bounds[row, -1])
    return nucleus.is_inside(index, found, total, p, workspace.mask(len(found)))

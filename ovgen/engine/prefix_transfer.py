"""What the prefix cache has of given tokens: taken out to be kept, and put in again.

Nothing is pinned between two calls. Whoever moves a long prefix does so in parts, each of which
finds its blocks anew; what was evicted meanwhile is missing then, and no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ovgen.engine.block_manager import BlockManager
from ovgen.engine.sequence import Sequence


class BlockStore(Protocol):
    """The content of a runner's blocks."""

    @property
    def layout(self) -> Mapping[str, Any]:
        """Says what the bytes of a block mean, ``block_bytes`` how many they are."""

    def read(self, blocks: Tokens[int]) -> npt.NDArray[np.uint8]:
        """The content of blocks, [len(blocks), block_bytes]."""

    def write(self, blocks: Tokens[int], content: npt.NDArray[np.uint8]) -> None:
        """Set the content of blocks to what `read` gave."""


@dataclass(frozen=True, slots=True)
class PrefixPart:
    """Some consecutive full blocks of some tokens.

    Attributes:
        layout: of the content; another one's is of no use.
        content: [blocks, block_bytes] uint8.
    """

    layout: Mapping[str, Any]
    content: npt.NDArray[np.uint8]


class PrefixTransfer:
    """Moves blocks between a prefix cache and its caller.

    Args:
        blocks: knows which block holds what.
        store: has what is in them.
        ids: gives sequences their ids.
    """

    def __init__(self, blocks: BlockManager, store: BlockStore, ids: Iterator[int]) -> None:
        self._blocks = blocks
        self._store = store
        self._ids = ids

    def export(
        self, token_ids: tuple[int, ...], start: int, max_bytes: int, salt: bytes
    ) -> PrefixPart:
        """The full blocks from number ``start`` on, one or as many as ``max_bytes`` hold; those
        before the first that is missing."""
        size, layout = self._blocks.block_size, self._store.layout
        count = max(1, max_bytes // layout["block_bytes"])
        limit = min((start + count) * size, len(token_ids))
        sequence = Sequence(next(self._ids), token_ids)
        try:
            self._blocks.match(sequence, limit, salt)
            return PrefixPart(layout, self._store.read(sequence.block_table[start:]))
        finally:
            self._blocks.free(sequence)

    def adopt(self, token_ids: tuple[int, ...], start: int, part: PrefixPart, salt: bytes) -> int:
        """Let others find blocks with this content, which begins with block number ``start``.

        Those that are there already stay as they are; where too few are free for the others, the
        first are taken.

        Returns:
            How many of the full blocks of these tokens are there now, from the first on.
        """
        if part.layout != self._store.layout:
            return 0
        size = self._blocks.block_size
        end = min(start + len(part.content), len(token_ids) // size)
        sequence = Sequence(next(self._ids), token_ids)
        try:
            known = self._blocks.match(sequence, end * size, salt) // size
            new = min(end - known, self._blocks.num_free)
            if known < start or new <= 0:  # nobody would find what comes after a gap
                return known
            sequence.num_computed_tokens = known * size
            self._blocks.reserve(sequence, new * size)
            first = known - start
            self._store.write(sequence.block_table[known:], part.content[first : first + new])
            sequence.num_computed_tokens += new * size
            self._blocks.commit(sequence)
            return known + new
        finally:
            self._blocks.free(sequence)

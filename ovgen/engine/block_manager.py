"""Which blocks of the KV cache belong to which sequence, and what is known to be in them.

Blocks are numbers here; their tensors are the runner's. A block that nobody uses any more keeps its
content until it is needed for something else, so that the next prompt with the same beginning finds
it (Kwon et al., "PagedAttention", 2023; the prefix cache by chained hashes is vLLM's).
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b
from itertools import takewhile

from ovgen.engine.sequence import Sequence

BlockCopy = tuple[int, int]  # from, to

_DIGEST_SIZE = 16


class BlockManager:
    """Hands out the blocks of one KV cache, which is of one model.

    A sequence's ``block_table`` is written here and nowhere else. Blocks are shared by counting
    their users; one that is shared is never written to, but copied first.

    Args:
        num_blocks: blocks in the cache.
        block_size: tokens in a block.
        has_prefix_cache: whether blocks are found again by what is in them.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        has_prefix_cache: bool = True,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._has_prefix_cache = has_prefix_cache
        self._ref_counts: list[int]
        # Blocks without users, the next to be taken first: those without content that were used
        # before, for their memory is there; then those never used; then the longest unused.
        self._free: OrderedDict[int, None]
        self._digests: list[bytes | None]  # by block: of its content
        self._cached: dict[bytes, int] = {}  # the block with a content
        self._chains: dict[int, list[bytes]] = {}  # by seq_id: digests of its full blocks
        # Blocks of ended sequences that are not full: by the digest of what is before, their
        # tokens; and by block, that digest.
        self._tails: dict[bytes, dict[int, tuple[int, ...]]] = {}
        self._before_tail: dict[int, bytes] = {}
        self.reset()

    @property
    def num_free(self) -> int:
        """Blocks that can be had, those of the prefix cache included."""
        return len(self._free)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-num_tokens // self.block_size)

    def match(self, sequence: Sequence, limit: int, salt: bytes = b"") -> int:
        """Give a sequence without blocks those that hold the beginning of its tokens.

        Args:
            sequence: nothing of which is computed.
            limit: most tokens to take over.
            salt: sequences share blocks only with those of the same.

        Returns:
            How many tokens are in the cache, a multiple of the block size.
        """
        assert not sequence.block_table, "nothing of it is computed"
        root = blake2b(salt, digest_size=_DIGEST_SIZE, person=b"root")
        self._chains[sequence.seq_id] = chain = [root.digest()]
        if not self._has_prefix_cache:
            return 0
        for place in range(limit // self.block_size):
            digest = self._digest(sequence, place, chain[-1])
            block = self._cached.get(digest)
            if block is None:
                break
            chain.append(digest)
            self._take(block)
            sequence.block_table.append(block)
        return len(sequence.block_table) * self.block_size

    def take_tail(self, sequence: Sequence, limit: int) -> int:
        """After `match`: go on with a block that an ended sequence has left unfilled, where its
        tokens begin as those to come. Nobody else finds it then, so nothing has to be copied.

        Returns:
            How many more tokens are in the cache.
        """
        start = len(sequence.block_table) * self.block_size
        tails = self._tails.get(self._chains[sequence.seq_id][-1])
        if not tails or limit <= start:
            return 0
        tokens = sequence.token_ids(start, min(limit, start + self.block_size))
        lengths = {block: _num_common(tail, tokens) for block, tail in tails.items()}
        block = max(lengths, key=lengths.__getitem__)
        if not lengths[block]:
            return 0
        self._forget(block)
        self._take(block)
        sequence.block_table.append(block)
        return lengths[block]

    def reserve(self, sequence: Sequence, num_tokens: int) -> list[BlockCopy] | None:
        """Have blocks for ``num_tokens`` more than are computed, none of them another's too.

        Returns:
            Blocks to copy before they are written to, or None where too few are free.
        """
        table = sequence.block_table
        first = sequence.num_computed_tokens // self.block_size
        is_shared = first < len(table) and self._ref_counts[table[first]] > 1
        wanted = self.num_blocks_for(sequence.num_computed_tokens + num_tokens) - len(table)
        if max(0, wanted) + is_shared > len(self._free):
            return None
        copies = []
        if is_shared:
            copies.append((table[first], self._new()))
            self._release(table[first])
            table[first] = copies[0][1]
        for _ in range(wanted):
            table.append(self._new())
        return copies

    def commit(self, sequence: Sequence) -> None:
        """Let others find the blocks that a step has filled."""
        num_full = sequence.num_computed_tokens // self.block_size
        chain = self._chains.get(sequence.seq_id)
        if chain is None or not self._has_prefix_cache:
            return
        for place in range(len(chain) - 1, num_full):
            digest = self._digest(sequence, place, chain[-1])
            chain.append(digest)
            block = sequence.block_table[place]
            if digest not in self._cached and self._digests[block] is None:
                self._cached[digest] = block
                self._digests[block] = digest

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let a sequence share what is computed of another."""
        num_used = self.num_blocks_for(parent.num_computed_tokens)
        child.block_table = parent.block_table[:num_used]
        for block in child.block_table:
            self._ref_counts[block] += 1
        if parent.seq_id in self._chains:
            self._chains[child.seq_id] = self._chains[parent.seq_id].copy()

    def free(self, sequence: Sequence, *, keeps_tail: bool = False) -> None:
        """Take a sequence's blocks back.

        Args:
            sequence: it has none any more then.
            keeps_tail: whether its last block may be found though it is not full, see `take_tail`;
                all that is computed of it is in there.
        """
        if keeps_tail:
            self._keep_tail(sequence)
        # The last ones first, for a beginning is of use without its end; and in place, for a copy
        # of the sequence has the same table.
        while sequence.block_table:
            self._release(sequence.block_table.pop())
        self._chains.pop(sequence.seq_id, None)

    def reset(self) -> None:
        """Take all blocks back and forget what is in them; the tables are the caller's to empty."""
        self._ref_counts = [0] * self.num_blocks
        self._free = OrderedDict.fromkeys(range(self.num_blocks))
        self._digests = [None] * self.num_blocks
        self._cached.clear()
        self._chains.clear()
        self._tails.clear()
        self._before_tail.clear()

    def _keep_tail(self, sequence: Sequence) -> None:
        """Let what a sequence has in a block that is not full be found by its tokens."""
        num_full, rest = divmod(sequence.num_computed_tokens, self.block_size)
        chain = self._chains.get(sequence.seq_id, [])
        if not (rest and self._has_prefix_cache and len(chain) == num_full + 1):
            return
        block = sequence.block_table[num_full]
        if self._ref_counts[block] == 1:
            computed = sequence.num_computed_tokens
            tokens = sequence.token_ids(computed - rest, computed)
            self._tails.setdefault(chain[-1], {})[block] = tuple(tokens)
            self._before_tail[block] = chain[-1]

    def _digest(self, sequence: Sequence, place: int, before: bytes) -> bytes:
        start = place * self.block_size
        tokens = array("q", sequence.token_ids(start, start + self.block_size))
        content = blake2b(tokens.tobytes(), digest_size=_DIGEST_SIZE)
        content.update(before)
        return content.digest()

    def _new(self) -> int:
        """A block of one's own, with anything in it."""
        block, _ = self._free.popitem(last=False)
        self._forget(block)
        self._ref_counts[block] = 1
        return block

    def _take(self, block: int) -> None:
        if self._ref_counts[block] == 0:
            del self._free[block]
        self._ref_counts[block] += 1

    def _release(self, block: int) -> None:
        self._ref_counts[block] -= 1
        if self._ref_counts[block] == 0:
            self._free[block] = None
            if self._digests[block] is None and block not in self._before_tail:
                self._free.move_to_end(block, last=False)

    def _forget(self, block: int) -> None:
        digest = self._digests[block]
        if digest is not None:
            del self._cached[digest]
            self._digests[block] = None
        before = self._before_tail.pop(block, None)
        if before is not None:
            del self._tails[before][block]
            if not self._tails[before]:
                del self._tails[before]


def _num_common(tail: Iterable[int], tokens: Iterable[int]) -> int:
    """How many tokens are the same from the beginning."""
    pairs = zip(tail, tokens, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

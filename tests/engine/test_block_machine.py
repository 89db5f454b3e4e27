"""The block manager against a naive model, in any order of operations."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ovgen.engine.block_manager import BlockManager
from ovgen.engine.sequence import Sequence

IDS = itertools.count()


def snapshot(blocks: BlockManager) -> tuple:
    """All that it knows."""
    return (
        blocks._ref_counts.copy(),
        list(blocks._free),
        blocks._digests.copy(),
        blocks._cached.copy(),
        {seq_id: chain.copy() for seq_id, chain in blocks._chains.items()},
    )


class Machine(RuleBasedStateMachine):
    """Any order of operations; ``contents`` is what a device would hold."""

    @initialize(
        num_blocks=st.integers(1, 12), block_size=st.integers(1, 4), has_cache=st.booleans()
    )
    def begin(self, num_blocks: int, block_size: int, has_cache: bool):
        self.size, self.has_cache = block_size, has_cache
        self.blocks = BlockManager(num_blocks, block_size, has_prefix_cache=has_cache)
        self.contents: list[list[object]] = [[None] * block_size for _ in range(num_blocks)]
        self.salts: dict[Sequence, bytes] = {}  # of the sequences there are
        # By block: the salt and all tokens to its end, where it may be found.
        self.known: dict[int, tuple[bytes, tuple[int, ...]]] = {}
        self.freed_at = dict.fromkeys(range(num_blocks), 0)
        self.now = itertools.count(1)

    def one(self, data: st.DataObject) -> Sequence:
        return data.draw(st.sampled_from(list(self.salts)))

    def key(self, sequence: Sequence, place: int) -> tuple[bytes, tuple[int, ...]]:
        return self.salts[sequence], tuple(sequence.token_ids(0, (place + 1) * self.size))

    def users(self) -> Counter[int]:
        return Counter(block for sequence in self.salts for block in sequence.block_table)

    @precondition(lambda self: len(self.salts) < 6)
    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14),
        salt=st.sampled_from([b"", b"a"]),
        data=st.data(),
    )
    def arrive(self, tokens: list[int], salt: bytes, data: st.DataObject):
        split = data.draw(st.integers(1, len(tokens)))
        sequence = Sequence(next(IDS), tuple(tokens[:split]), tokens[split:])
        self.salts[sequence] = salt
        limit = data.draw(st.integers(-1, len(tokens)))
        wanted = 0
        for place in range(limit // self.size):
            if self.key(sequence, place) not in self.known.values():
                break
            wanted += self.size
        sequence.num_computed_tokens = self.blocks.match(sequence, limit, salt)
        assert sequence.num_computed_tokens == wanted == len(sequence.block_table) * self.size

    @precondition(lambda self: self.salts)
    @rule(data=st.data(), count=st.integers(1, 9))
    def grow(self, data: st.DataObject, count: int):
        self.one(data).output_token_ids += data.draw(
            st.lists(st.integers(0, 1), min_size=count, max_size=count)
        )

    @precondition(lambda self: self.salts)
    @rule(data=st.data(), count=st.integers(1, 20), is_run=st.booleans())
    def reserve(self, data: st.DataObject, count: int, is_run: bool):
        sequence = self.one(data)
        start = sequence.num_computed_tokens
        end = min(start + count, sequence.num_tokens)
        if start == end:
            return
        before, before_table = snapshot(self.blocks), sequence.block_table.copy()
        users = self.users()
        first, last = start // self.size, -(-end // self.size)
        needed = max(0, last - len(before_table))
        needed += first < len(before_table) and users[before_table[first]] > 1
        copies = self.blocks.reserve(sequence, end - start)
        if copies is None:
            assert needed > len(self.contents) - len(users), "there were enough"
            assert (snapshot(self.blocks), sequence.block_table) == (before, before_table)
            return
        taken = [block for block in sequence.block_table if block not in before_table]
        assert len(taken) == needed
        assert not users.keys() & set(taken), "none is in use"
        assert len(sequence.block_table) == max(last, len(before_table))
        self.check_order(taken)
        for source, target in copies:
            assert (source, target) == (before_table[first], sequence.block_table[first])
            self.contents[target] = self.contents[source].copy()
        users = self.users()
        assert all(users[block] == 1 for block in sequence.block_table[first:last]), "its own"
        if is_run:
            self.run_step(sequence, start, end)

    def check_order(self, taken: list[int]) -> None:
        """Those without content first, then the longest unused."""
        left = [block for block in self.freed_at if not self.users()[block]]
        for block in taken:
            if block in self.known:
                assert all(other in self.known for other in left)
                assert all(self.freed_at[block] < self.freed_at[other] for other in left)
                del self.known[block]

    def run_step(self, sequence: Sequence, start: int, end: int) -> None:
        for place in range(start, end):
            slot = self.salts[sequence], tuple(sequence.token_ids(0, place + 1))
            self.contents[sequence.block_table[place // self.size]][place % self.size] = slot
        sequence.num_computed_tokens = end
        self.blocks.commit(sequence)
        for place in range(start // self.size, end // self.size) if self.has_cache else ():
            if self.key(sequence, place) not in self.known.values():
                self.known[sequence.block_table[place]] = self.key(sequence, place)

    @precondition(lambda self: 0 < len(self.salts) < 6)
    @rule(data=st.data())
    def fork(self, data: st.DataObject):
        parent = self.one(data)
        child = parent.fork(IDS)
        self.blocks.fork(parent, child)
        self.salts[child] = self.salts[parent]

    @precondition(lambda self: self.salts)
    @rule(data=st.data())
    def free(self, data: st.DataObject):
        sequence = self.one(data)
        table = sequence.block_table.copy()
        self.blocks.free(sequence)
        assert sequence.block_table == []
        del self.salts[sequence]
        for block in reversed(table):
            if not self.users()[block]:
                self.freed_at[block] = next(self.now)

    @rule()
    def reset(self):
        self.blocks.reset()
        self.known.clear()
        for sequence in self.salts:
            sequence.num_computed_tokens, sequence.block_table = 0, []
        self.salts.clear()

    @invariant()
    def every_block_has_as_many_users_as_tables_hold_it(self):
        users = self.users()
        everything = range(len(self.contents))
        assert self.blocks._ref_counts == [users[block] for block in everything]
        assert set(self.blocks._free) == {block for block in everything if not users[block]}
        assert self.blocks.num_free == len(self.contents) - len(users)
        assert self.blocks._chains.keys() == {sequence.seq_id for sequence in self.salts}

    @invariant()
    def every_sequence_reads_what_was_computed_of_it(self):
        for sequence, salt in self.salts.items():
            slots = [s for block in sequence.block_table for s in self.contents[block]]
            for place in range(sequence.num_computed_tokens):
                assert slots[place] == (salt, tuple(sequence.token_ids(0, place + 1)))

    @invariant()
    def what_may_be_found_is_there(self):
        assert set(self.blocks._cached.values()) == self.known.keys()
        for block, (salt, tokens) in self.known.items():
            assert self.contents[block][-1] == (salt, tokens)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)

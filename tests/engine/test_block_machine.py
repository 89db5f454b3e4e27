"""The block manager against a naive model, in any order of operations."""

from __future__ import annotations

import itertools
from collections import Counter
from random import Random

import pytest

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
        {before: tails.copy() for before, tails in blocks._tails.items()},
        blocks._before_tail.copy(),
    )


class Machine:
    """Any order of operations; ``contents`` is what a device would hold."""

    def __init__(self, random: Random) -> None:
        num_blocks, self.size = random.choice([3, 8, 12, 20]), random.randint(1, 4)
        self.random = random
        self.has_cache = random.random() < 0.8
        self.blocks = BlockManager(num_blocks, self.size, has_prefix_cache=self.has_cache)
        self.contents: list[list[object]] = [[None] * self.size for _ in range(num_blocks)]
        self.salts: dict[Sequence, bytes] = {}  # of the sequences there are
        # By block: the salt and all tokens to its end, where it may be found.
        self.known: dict[int, tuple[bytes, tuple[int, ...]]] = {}
        # The same of ended sequences' blocks that are not full, to where they are filled.
        self.tails: dict[int, tuple[bytes, tuple[int, ...]]] = {}
        self.freed_at = dict.fromkeys(range(num_blocks), 0)
        self.now = itertools.count(1)
        self.counts: Counter[str] = Counter()  # of what happened

    def act(self) -> None:
        names = ["arrive", "step", "step", "step", "fork", "free", "free", "reset"]
        name = self.random.choices(names, [4, 8, 8, 8, 5, 4, 2, 0.2])[0]
        if name == "arrive" or not self.salts:
            self.arrive()
        else:
            getattr(self, name)(self.random.choice(list(self.salts)))
        self.check_users()
        self.check_contents()

    def key(self, sequence: Sequence, place: int) -> tuple[bytes, tuple[int, ...]]:
        return self.salts[sequence], tuple(sequence.token_ids(0, (place + 1) * self.size))

    def users(self) -> Counter[int]:
        return Counter(block for sequence in self.salts for block in sequence.block_table)

    def arrive(self) -> None:
        salt = self.random.choice([b"", b"", b"a"])
        stem = self.random.choice([(1, 0, 1, 1, 0, 0, 1, 1), (0,) * 8])[: self.random.randint(0, 8)]
        if self.tails and self.random.random() < 0.5:  # what came before, and more
            salt, stem = self.random.choice(list(self.tails.values()))
        tokens = [*stem, *self.random.choices([0, 1], k=self.random.randint(1, 3))]
        split = self.random.randint(1, len(tokens))
        sequence = Sequence(next(IDS), tuple(tokens[:split]), tokens[split:])
        self.salts[sequence] = salt
        limit = self.random.randint(-1, len(tokens))
        wanted = 0
        for place in range(limit // self.size):
            if self.key(sequence, place) not in self.known.values():
                break
            wanted += self.size
        sequence.num_computed_tokens = self.blocks.match(sequence, limit, salt)
        assert sequence.num_computed_tokens == wanted == len(sequence.block_table) * self.size
        self.counts["hits"] += wanted > 0
        self.take_tail(sequence, limit)

    def take_tail(self, sequence: Sequence, limit: int) -> None:
        """The longest that begins alike is the sequence's own then."""
        start = sequence.num_computed_tokens
        lengths = {block: self.num_alike(sequence, block) for block in self.tails}
        wanted = max([0, *(min(length, limit - start) for length in lengths.values())])
        found = self.blocks.take_tail(sequence, limit)
        assert found == wanted
        sequence.num_computed_tokens += found
        if found:
            block = sequence.block_table[-1]
            assert not self.users()[block] or self.users()[block] == 1
            assert min(lengths[block], limit - start) == wanted
            del self.tails[block]
            self.counts["tails"] += 1

    def num_alike(self, sequence: Sequence, block: int) -> int:
        """Tokens of a tail with which a sequence can go on."""
        start = sequence.num_computed_tokens
        salt, tokens = self.tails[block]
        own = tuple(sequence.token_ids(0, sequence.num_tokens))
        if salt != self.salts[sequence] or len(tokens) // self.size * self.size != start:
            return 0
        if tokens[:start] != own[:start]:
            return 0
        length = start
        while length < min(len(tokens), len(own)) and tokens[length] == own[length]:
            length += 1
        return length - start

    def step(self, sequence: Sequence) -> None:
        start = sequence.num_computed_tokens
        end = start + self.random.randint(1, 5)
        while sequence.num_tokens < end:
            sequence.output_token_ids.append(self.random.randint(0, 1))
        before, before_table = snapshot(self.blocks), sequence.block_table.copy()
        users = self.users()
        first, last = start // self.size, -(-end // self.size)
        needed = max(0, last - len(before_table))
        needed += first < len(before_table) and users[before_table[first]] > 1
        copies = self.blocks.reserve(sequence, end - start)
        self.counts["full" if copies is None else "copies" if copies else "steps"] += 1
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
        if self.random.random() < 0.8:
            self.run_step(sequence, start, end)

    def check_order(self, taken: list[int]) -> None:
        """Those without content first, then the longest unused."""
        left = [block for block in self.freed_at if not self.users()[block]]
        for block in taken:
            contents = self.known.keys() | self.tails.keys()
            if block in contents:
                assert all(other in contents for other in left)
                assert all(self.freed_at[block] < self.freed_at[other] for other in left)
                self.known.pop(block, None)
                self.tails.pop(block, None)
                self.counts["evictions"] += 1

    def run_step(self, sequence: Sequence, start: int, end: int) -> None:
        for place in range(start, end):
            slot = self.salts[sequence], tuple(sequence.token_ids(0, place + 1))
            self.contents[sequence.block_table[place // self.size]][place % self.size] = slot
        sequence.num_computed_tokens = end
        self.blocks.commit(sequence)
        for place in range(start // self.size, end // self.size) if self.has_cache else ():
            if self.key(sequence, place) not in self.known.values():
                self.known[sequence.block_table[place]] = self.key(sequence, place)

    def fork(self, parent: Sequence) -> None:
        child = parent.fork(IDS)
        self.blocks.fork(parent, child)
        self.salts[child] = self.salts[parent]

    def free(self, sequence: Sequence) -> None:
        table = sequence.block_table.copy()
        num_full, rest = divmod(sequence.num_computed_tokens, self.size)
        keeps_tail = self.random.random() < 0.7
        if keeps_tail and rest and self.has_cache and self.users()[table[num_full]] == 1:
            tokens = tuple(sequence.token_ids(0, sequence.num_computed_tokens))
            self.tails[table[num_full]] = self.salts[sequence], tokens
        self.blocks.free(sequence, keeps_tail=keeps_tail)
        assert sequence.block_table == []
        del self.salts[sequence]
        for block in reversed(table):
            if not self.users()[block]:
                self.freed_at[block] = next(self.now)

    def reset(self, _: Sequence) -> None:
        self.blocks.reset()
        self.known.clear()
        self.tails.clear()
        self.salts.clear()

    def check_users(self) -> None:
        """Every block has as many users as there are tables that hold it."""
        users = self.users()
        everything = range(len(self.contents))
        assert self.blocks._ref_counts == [users[block] for block in everything]
        assert set(self.blocks._free) == {block for block in everything if not users[block]}
        assert self.blocks.num_free == len(self.contents) - len(users)
        assert self.blocks._chains.keys() == {sequence.seq_id for sequence in self.salts}

    def check_contents(self) -> None:
        """Sequences read what was computed of them, and whatever may be found is there."""
        for sequence, salt in self.salts.items():
            slots = [s for block in sequence.block_table for s in self.contents[block]]
            for place in range(sequence.num_computed_tokens):
                assert slots[place] == (salt, tuple(sequence.token_ids(0, place + 1)))
        assert set(self.blocks._cached.values()) == self.known.keys()
        for block, content in self.known.items():
            assert self.contents[block][-1] == content
        assert self.blocks._before_tail.keys() == self.tails.keys()
        for block, (salt, tokens) in self.tails.items():
            assert self.contents[block][len(tokens) % self.size - 1] == (salt, tokens)


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_operations(seed: int):
    random = Random(seed)
    counts: Counter[str] = Counter()
    for _ in range(15):
        machine = Machine(random)
        for _ in range(120):
            machine.act()
        counts += machine.counts
    names = ("hits", "tails", "copies", "steps", "full", "evictions")
    assert min(counts[name] for name in names) > 0

"""The block manager: which blocks are whose, and what is found again."""

from __future__ import annotations

import itertools
from copy import deepcopy

import pytest

from ovgen.engine.block_manager import BlockManager
from ovgen.engine.sequence import Sequence

IDS = itertools.count()


def make_sequence(*tokens: int, prompt: int | None = None) -> Sequence:
    """Of these tokens; ``prompt``: how many of them are the prompt's, if not all."""
    return Sequence(next(IDS), tokens[:prompt], [] if prompt is None else list(tokens[prompt:]))


def compute(blocks: BlockManager, sequence: Sequence, count: int) -> list[tuple[int, int]]:
    """As the engine does it: reserve, run, commit."""
    copies = blocks.reserve(sequence, count)
    assert copies is not None
    sequence.num_computed_tokens += count
    blocks.commit(sequence)
    return copies


def computed(blocks: BlockManager, *tokens: int, salt: bytes = b"", **parts: int) -> Sequence:
    """A sequence all of whose tokens are in the cache."""
    sequence = make_sequence(*tokens, **parts)
    sequence.num_computed_tokens = blocks.match(sequence, len(tokens), salt)
    compute(blocks, sequence, len(tokens) - sequence.num_computed_tokens)
    return sequence


def num_found(blocks: BlockManager, *tokens: int) -> int:
    """How much of these tokens is in the cache; asking changes nothing."""
    return deepcopy(blocks).match(make_sequence(*tokens), len(tokens))


def snapshot(blocks: BlockManager) -> tuple:
    return (
        blocks._ref_counts.copy(),
        list(blocks._free),
        blocks._digests.copy(),
        blocks._cached.copy(),
        {seq_id: chain.copy() for seq_id, chain in blocks._chains.items()},
    )


def test_nothing_is_used_at_first():
    blocks = BlockManager(5, 4)
    assert blocks.num_free == 5
    assert blocks.match(make_sequence(*range(20)), 20) == 0
    assert blocks.num_free == 5


@pytest.mark.parametrize(("num_tokens", "wanted"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_blocks_for_tokens(num_tokens: int, wanted: int):
    assert BlockManager(5, 4).num_blocks_for(num_tokens) == wanted


def test_a_table_grows_by_what_is_needed():
    blocks = BlockManager(5, 4)
    sequence = make_sequence(*range(20))
    assert compute(blocks, sequence, 3) == []
    assert (len(sequence.block_table), blocks.num_free) == (1, 4)
    assert compute(blocks, sequence, 1) == []
    assert len(sequence.block_table) == 1
    assert compute(blocks, sequence, 16) == []
    assert sorted(sequence.block_table) == list(range(5))
    blocks.free(sequence)
    assert (sequence.block_table, blocks.num_free) == ([], 5)


def test_what_was_reserved_and_not_used_is_not_reserved_again():
    blocks = BlockManager(5, 4)
    sequence = make_sequence(*range(20))
    blocks.reserve(sequence, 9)
    before = sequence.block_table.copy()
    assert blocks.reserve(sequence, 4) == blocks.reserve(sequence, 12) == []
    assert sequence.block_table == before


def test_a_reserve_that_fails_changes_nothing():
    blocks = BlockManager(3, 4)
    first = computed(blocks, *range(5))
    second = make_sequence(*range(20, 30))
    blocks.match(second, 9)
    before = snapshot(blocks)
    assert blocks.reserve(second, 5) is None
    assert snapshot(blocks) == before
    assert second.block_table == []
    child = make_sequence(*range(5), 6, 7, 8, 9)
    blocks.fork(first, child)
    child.num_computed_tokens = 5
    before, table = snapshot(blocks), child.block_table.copy()
    assert blocks.reserve(child, 4) is None, "one to copy, one more"
    assert (snapshot(blocks), child.block_table) == (before, table)
    assert blocks.reserve(child, 3) == [(first.block_table[1], child.block_table[1])]


def test_a_fork_is_copied_before_it_is_written_and_only_then():
    blocks = BlockManager(9, 4)
    parent = computed(blocks, *range(6))
    children = [parent.fork(IDS) for _ in range(2)]
    for child in children:
        blocks.fork(parent, child)
        assert child.block_table == parent.block_table
    assert blocks._ref_counts[:2] == [3, 3]
    assert blocks.num_free == 7
    old = parent.block_table[1]
    for child in children:
        child.output_token_ids.append(7)
        assert compute(blocks, child, 1) == [(old, child.block_table[1])]
    assert compute(blocks, parent, 1) == [], "the last one has it to itself"
    assert len({s.block_table[1] for s in (parent, *children)}) == 3
    assert {s.block_table[0] for s in (parent, *children)} == {parent.block_table[0]}


def test_a_fork_at_the_end_of_a_block_copies_nothing():
    blocks = BlockManager(9, 4)
    parent = computed(blocks, *range(8))
    child = parent.fork(IDS)
    blocks.fork(parent, child)
    child.output_token_ids += range(4)
    assert compute(blocks, child, 4) == []
    assert child.block_table[:2] == parent.block_table


def test_a_fork_has_nothing_of_what_is_reserved_only():
    blocks = BlockManager(9, 4)
    parent = computed(blocks, *range(6))
    blocks.reserve(parent, 9)
    child = parent.fork(IDS)
    blocks.fork(parent, child)
    assert child.block_table == parent.block_table[:2]


def test_freeing_twice_is_no_harm_nor_is_freeing_a_copy():
    blocks = BlockManager(3, 4)
    sequence = computed(blocks, *range(6))
    copy = make_sequence(*range(6))
    copy.block_table = sequence.block_table  # as dataclasses.replace does
    for each in (sequence, sequence, copy):
        blocks.free(each)
    assert blocks._ref_counts == [0] * 3
    assert sorted(blocks._free) == [0, 1, 2]


@pytest.mark.parametrize("limit", range(14))
def test_a_match_is_limited(limit: int):
    blocks = BlockManager(9, 4)
    first = computed(blocks, *range(12))
    second = make_sequence(*range(12))
    assert blocks.match(second, limit) == limit // 4 * 4
    assert second.block_table == first.block_table[: limit // 4]


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [
        ((0, 1, 2, 3, 4, 5, 6, 7, 8), 8),
        ((0, 1, 2, 3, 4, 5, 6, 9, 8), 4),
        ((4, 5, 6, 7, 0, 1, 2, 3), 0),
        ((0, 1, 2), 0),
        ((9, 9, 9, 9, 4, 5, 6, 7), 0),
    ],
)
def test_only_what_begins_alike_is_found(tokens: tuple[int, ...], wanted: int):
    blocks = BlockManager(9, 4)
    blocks.free(computed(blocks, *range(10)))
    assert blocks.match(make_sequence(*tokens), len(tokens)) == wanted


def test_output_is_found_as_a_prompt_and_the_other_way_round():
    blocks = BlockManager(9, 4)
    blocks.free(computed(blocks, *range(9), prompt=3))
    assert blocks.match(make_sequence(*range(9)), 8) == 8
    assert blocks.match(make_sequence(*range(9), prompt=6), 8) == 8


def test_what_is_not_full_or_not_computed_is_not_found():
    blocks = BlockManager(9, 4)
    sequence = make_sequence(*range(12))
    blocks.reserve(sequence, 12)
    assert blocks.match(make_sequence(*range(12)), 12) == 0
    blocks.match(sequence := make_sequence(*range(12)), 0)
    compute(blocks, sequence, 7)
    assert blocks.match(make_sequence(*range(12)), 12) == 4


def test_salts_do_not_share():
    blocks = BlockManager(9, 4)
    blocks.free(computed(blocks, *range(8), salt=b"a"))
    assert blocks.match(make_sequence(*range(8)), 8, b"") == 0
    assert blocks.match(make_sequence(*range(8)), 8, b"b") == 0
    assert blocks.match(make_sequence(*range(8)), 8, b"a") == 8


def test_forks_and_their_parent_are_found():
    blocks = BlockManager(9, 2)
    parent = computed(blocks, 1, 2, 3)
    child = parent.fork(IDS)
    blocks.fork(parent, child)
    parent.output_token_ids.append(4)
    child.output_token_ids.append(5)
    compute(blocks, child, 1)
    compute(blocks, parent, 1)
    assert blocks.match(make_sequence(1, 2, 3, 4), 4) == 4
    assert blocks.match(make_sequence(1, 2, 3, 5), 4) == 4


def test_without_a_prefix_cache_nothing_is_found():
    blocks = BlockManager(9, 4, has_prefix_cache=False)
    blocks.free(computed(blocks, *range(8)))
    assert blocks.match(make_sequence(*range(8)), 8) == 0
    assert blocks._cached == {}


def test_the_longest_unused_goes_first_and_its_end_before_its_beginning():
    blocks = BlockManager(6, 2)
    first, second, third = (computed(blocks, *range(n, n + 4)) for n in (0, 10, 20))
    for sequence in (second, first, third):
        blocks.free(sequence)
    lengths = []
    for number in range(6):
        computed(blocks, 90 + number, 91)
        lengths.append([num_found(blocks, *range(n, n + 4)) for n in (0, 10, 20)])
    assert lengths == [[4, 2, 4], [4, 0, 4], [2, 0, 4], [0, 0, 4], [0, 0, 2], [0, 0, 0]]


def test_what_holds_nothing_goes_before_what_may_be_found():
    blocks = BlockManager(6, 2)
    known, empty = computed(blocks, 1, 2), make_sequence(3)
    blocks.reserve(empty, 1)
    used = empty.block_table[0]
    blocks.free(known)
    blocks.free(empty)
    sequence = make_sequence(*range(10, 20))
    blocks.reserve(sequence, 10)
    assert sequence.block_table[0] == used, "its memory is there"
    assert num_found(blocks, 1, 2) == 2
    blocks.reserve(make_sequence(0), 1)
    assert num_found(blocks, 1, 2) == 0


@pytest.mark.parametrize(
    ("tokens", "limit", "num_more"),
    [
        ((1, 2, 3, 4, 5, 6, 7, 8), 7, 2),
        ((1, 2, 3, 4, 5, 9, 7), 6, 1),
        ((1, 2, 3, 4, 5, 6, 7), 5, 1),
        ((1, 2, 3, 4, 9, 6, 7), 6, 0),
        ((1, 2, 3, 4, 5), 4, 0),
    ],
)
def test_a_block_that_is_not_full_is_taken_by_who_goes_on_with_it(
    tokens: tuple[int, ...], limit: int, num_more: int
):
    blocks = BlockManager(9, 4)
    first = computed(blocks, 1, 2, 3, 4, 5, 6)
    tail = first.block_table[1]
    early, other, late = (make_sequence(*tokens) for _ in range(3))
    assert blocks.match(early, limit) == 4
    assert blocks.take_tail(early, limit) == 0, "it is in use"
    blocks.free(first, keeps_tail=True)
    assert blocks.match(other, limit) == 4
    assert blocks.take_tail(other, limit) == num_more
    assert other.block_table[1:] == ([tail] if num_more else [])
    assert blocks.match(late, limit) == 4
    assert blocks.take_tail(late, limit) == 0


def test_a_block_that_is_not_full_goes_when_its_memory_is_needed():
    blocks = BlockManager(2, 4)
    blocks.free(computed(blocks, 1, 2, 3, 4, 5, 6), keeps_tail=True)
    blocks.reserve(make_sequence(9), 1)
    other = make_sequence(1, 2, 3, 4, 5, 6, 7)
    assert blocks.match(other, 6) == 4
    assert blocks.take_tail(other, 6) == 0


def test_a_hit_is_used_again_and_not_given_to_others():
    blocks = BlockManager(3, 2)
    blocks.free(computed(blocks, 1, 2))
    blocks.free(computed(blocks, 3, 4))
    sequence = make_sequence(1, 2, 9)
    assert blocks.match(sequence, 2) == 2
    blocks.free(other := computed(blocks, 5, 6, 7, 8))
    assert blocks.reserve(make_sequence(*range(6)), 6) is None
    blocks.free(sequence)
    assert num_found(blocks, 1, 2, 9) == 2
    assert not other.block_table


def test_reset():
    blocks = BlockManager(5, 4)
    fresh = snapshot(blocks)
    computed(blocks, *range(17))
    blocks.reset()
    assert snapshot(blocks) == fresh

"""Sequences and requests."""

from __future__ import annotations

import itertools

from ovgen.engine.sequence import Request, Sequence


def test_token_ids_cut_anywhere_out_of_prompt_and_output():
    sequence = Sequence(0, (10, 11, 12), [13, 14])
    everything = [10, 11, 12, 13, 14]
    assert sequence.num_tokens == 5
    for start, stop in itertools.combinations(range(6), 2):
        assert list(sequence.token_ids(start, stop)) == everything[start:stop]


def test_a_request_is_finished_with_the_last_of_its_sequences():
    sequences = [Sequence(0, (1,)), Sequence(1, (1,))]
    request = Request(0, (1,), 5, frozenset(), None, sequences)
    assert not request.is_finished
    sequences[0].finish_reason = "stop"
    assert not request.is_finished
    sequences[1].finish_reason = "length"
    assert request.is_finished


def test_equal_looking_sequences_are_different_ones():
    assert Sequence(0, (1,)) != Sequence(0, (1,))


def test_a_fork_shares_what_is_computed_and_goes_its_own_way():
    class State:
        def fork(self):
            return "a copy"

    parent = Sequence(0, (1, 2), [3], 2, index=4, score=-1.5, mu=2.0, logprobs=["of 3"])
    parent.state = State()
    parent.negative = Sequence(1, (9,), parent.output_token_ids, 1)
    fork = parent.fork(itertools.count(7))
    assert (fork.seq_id, fork.parent_id) == (7, 0)
    assert (fork.negative.seq_id, fork.negative.parent_id) == (8, 1)
    assert (fork.num_computed_tokens, fork.negative.num_computed_tokens) == (2, 1)
    assert (fork.index, fork.score, fork.mu, fork.state) == (4, -1.5, 2.0, "a copy")
    fork.output_token_ids.append(5)
    fork.logprobs.append("of 5")
    assert (parent.output_token_ids, parent.logprobs) == ([3], ["of 3"])
    assert list(fork.negative.token_ids(0, 3)) == [9, 3, 5]
    assert list(parent.negative.token_ids(0, 3)) == [9, 3]
    assert fork.rows == (fork, fork.negative)


def test_scores_need_nothing_after_the_last_token():
    sequence = Sequence(0, (1, 2, 3))
    generating = Request(0, (1, 2, 3), 5, frozenset(), None, [sequence])
    scoring = Request(1, (1, 2, 3), 0, frozenset(), None, [sequence])
    assert generating.num_wanted_tokens(sequence) == 3
    assert scoring.num_wanted_tokens(sequence) == 2

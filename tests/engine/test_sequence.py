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

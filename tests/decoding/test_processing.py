"""Which processors an option adds, in which order, and what the user's own ones may do."""

from __future__ import annotations

import numpy as np
import pytest

from ovgen.decoding.processing import Processing
from ovgen.generation_config import GenerationConfig

VOCAB = 12


def processing(user_processors=(), first_token_ids=(), num_prompt_tokens=3, **options):
    return Processing(
        GenerationConfig(**options).resolve(),
        num_prompt_tokens=num_prompt_tokens,
        ending_ids=(2,),
        max_output_tokens=5,
        first_token_ids=first_token_ids,
        user_processors=user_processors,
    )


def apply(chain: Processing, token_ids: list[int], logits=None, streaming=()) -> np.ndarray:
    logits = np.zeros(VOCAB, np.float32) if logits is None else np.array(logits, np.float32)
    return chain.apply(np.array(token_ids, np.int64), logits, streaming)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "temperature": 0.5, "top_p": 0.5},
        {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
        {"no_repeat_ngram_size": 0, "dry_multiplier": 0.0, "min_new_tokens": 0, "min_length": 0},
        {"num_beams": 4},
        {"guidance_scale": 1.0},
    ],
)
def test_neutral_options_add_nothing(options):
    assert processing(**options).is_neutral


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.1},
        {"presence_penalty": -0.5},
        {"frequency_penalty": 0.5},
        {"dry_multiplier": 0.8},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[5]]},
        {"min_new_tokens": 1, "eos_token_id": 2},
        {"min_length": 1, "eos_token_id": 2},
        {"forced_bos_token_id": 4},
        {"forced_eos_token_id": 2, "max_new_tokens": 5},
        {"exponential_decay_length_penalty": (1, 1.1), "eos_token_id": 2},
        {"suppress_tokens": [5]},
        {"begin_suppress_tokens": [5]},
        {"logit_bias": {5: 1.0}},
        {"sequence_bias": {(5, 6): 1.0}},
    ],
)
def test_each_option_adds_a_processor(options):
    assert not processing(**options).is_neutral


def test_presence_and_frequency_come_after_the_repetition_penalty():
    """Before it, their subtraction would be scaled too: (4 - 1) / 2 in place of 4 / 2 - 1."""
    chain = processing(repetition_penalty=2.0, presence_penalty=1.0)
    logits = apply(chain, [1, 1, 1, 7], [0, 4, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0])
    assert (logits[1], logits[7]) == (2, 1)  # the prompt's token is not penalized by presence


def test_biases_come_before_the_penalties():
    chain = processing(repetition_penalty=2.0, logit_bias={1: 4.0}, sequence_bias={(1,): 2.0})
    assert apply(chain, [1, 5, 6])[1] == 3


def test_diversity_stands_between_the_biases_and_the_rest():
    chain = processing(repetition_penalty=2.0, logit_bias={1: 6.0})
    seen = []

    def diversity(logits: np.ndarray) -> None:
        seen.append(logits[1])
        logits[1] -= 2

    logits = np.zeros(VOCAB, np.float32)
    result = chain.apply(np.array([1, 5, 6]), logits, (), diversity)
    assert seen == [6]
    assert result[1] == 2


def test_healing_forbids_all_but_the_extensions_of_the_first_token_only():
    chain = processing(first_token_ids=(9, 4))
    first = apply(chain, [1, 5, 6], np.arange(VOCAB))
    assert np.flatnonzero(np.isfinite(first)).tolist() == [4, 9]
    assert (first[4], first[9]) == (4, 9)
    assert np.isfinite(apply(chain, [1, 5, 6, 9])).all()


def test_user_processors_see_what_the_others_made_and_may_give_anything_like_an_array():
    seen = []

    def first(token_ids, logits):
        seen.append((token_ids.tolist(), float(logits[5])))
        logits[6] = 3
        return logits

    def second(token_ids, logits):
        return [float(value) + 1 for value in logits]

    chain = processing(user_processors=(first, second), suppress_tokens=[5])
    logits = apply(chain, [1, 5, 6])
    assert seen == [([1, 5, 6], -np.inf)]
    assert (logits[6], logits[7]) == (4, 1)
    assert logits.dtype == np.float32


@pytest.mark.parametrize("result", [None, 5, [1, 2], np.zeros((1, VOCAB))])
def test_a_result_of_the_wrong_shape_is_refused(result):
    chain = processing(user_processors=(lambda token_ids, logits: result,))
    with pytest.raises(ValueError, match=r"shape \(12,\)"):
        apply(chain, [1])


class Counter:
    """Forbids as many of the first tokens as it has seen, and gives one state a sequence."""

    def __init__(self, seen: int = 0) -> None:
        self.seen = seen

    def start(self) -> Counter:
        return Counter()

    def accept(self, token_ids: np.ndarray) -> None:
        self.seen += len(token_ids)

    def process(self, logits: np.ndarray) -> np.ndarray:
        logits[: self.seen] = -np.inf
        return logits

    def fork(self) -> Counter:
        return Counter(self.seen)


def test_streaming_processors_are_started_for_each_sequence():
    factory = Counter(99)
    chain = processing(user_processors=(factory,))
    assert not chain.is_neutral
    (state,) = chain.start()
    assert (state.seen, factory.seen) == (0, 99)
    state.accept(np.array([1, 2]))
    assert np.isfinite(apply(chain, [1, 2], streaming=(state,))).sum() == VOCAB - 2


def test_decay_leaves_forbidden_what_is_forbidden():
    """transformers makes NaN of it, and the ending token the next one."""
    chain = processing(eos_token_id=2, min_new_tokens=4, exponential_decay_length_penalty=(0, 2.0))
    logits = np.full(VOCAB, -1, np.float32)
    assert apply(chain, [1, 5, 6, 7], logits)[2] == -np.inf
    assert apply(chain, [1, 5, 6, 7, 7, 7, 7], logits)[2] == 14

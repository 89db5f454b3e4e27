"""Prompts and options that become requests, and those that are refused."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import (
    CONTEXT,
    EOS,
    VOCAB_SIZE,
    FakeRunner,
    FakeTokenizer,
    Served,
    random_script,
    spelling_script,
)

from ovgen.engine.output_processor import Arrival
from ovgen.engine.request_builder import Prompt
from ovgen.errors import ConfigError, RequestError, UnsupportedModelError
from ovgen.generation_config import GenerationConfig

GUIDED = {"guidance_scale": 1.5}


def prepare(prompt, engine=None, **options):
    if not isinstance(prompt, Prompt):
        prompt = Prompt(prompt)
    engine = engine or Served().engine
    return engine.prepare(prompt, GenerationConfig(**options), Arrival(0.0, 0.0))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, 54),
        ({"max_new_tokens": 5}, 5),
        ({"max_new_tokens": 54}, 54),
        ({"max_length": 15}, 5),
        ({"max_length": 64}, 54),
    ],
)
def test_most_tokens(options, wanted: int):
    assert prepare(range(10), **options).max_output_tokens == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 55}, r"max_new_tokens is 55.* room for 54"),
        ({"max_length": 65}, r"max_length is 65.* room for 54"),
        ({"max_length": 10}, r"max_length is 10, but the prompt alone has 10 tokens"),
    ],
)
def test_more_tokens_than_there_is_room_for(options, message: str):
    with pytest.raises(ConfigError, match=message):
        prepare(range(10), **options)


def test_a_longer_negative_prompt_takes_room_as_well():
    guided = Prompt(range(10), [7] * 30)
    assert prepare(guided, **GUIDED).max_output_tokens == CONTEXT - 30
    assert prepare(guided).max_output_tokens == CONTEXT - 10
    with pytest.raises(ConfigError, match="after a prompt of 30 tokens"):
        prepare(guided, max_new_tokens=40, **GUIDED)


def test_the_negative_prompt_is_the_last_token_by_default():
    [sequence] = prepare([4, 5, 6], **GUIDED).sequences
    assert sequence.negative.prompt_token_ids == (6,)
    assert sequence.negative.output_token_ids is sequence.output_token_ids
    [sequence] = prepare(Prompt([4, 5, 6], [8, 9]), **GUIDED).sequences
    assert sequence.negative.prompt_token_ids == (8, 9)


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.0}])
def test_without_guidance_there_is_no_negative(options):
    [sequence] = prepare(Prompt([4, 5, 6], [8, 9]), **options).sequences
    assert sequence.rows == (sequence,)


@pytest.mark.parametrize(
    ("negative", "message"),
    [([], "empty"), ([VOCAB_SIZE], "token id 128"), ([1] * CONTEXT, "64 tokens"), (["a"], "whole")],
)
def test_negative_prompts_that_cannot_be_served(negative, message: str):
    with pytest.raises(RequestError, match=message):
        prepare(Prompt([4], negative), **GUIDED)


def test_guidance_that_the_runner_cannot_do_is_refused_at_once():
    served = Served()
    served.runner.has_padding = False
    for negative in (None, [1, 2, 3]):
        with pytest.raises(UnsupportedModelError, match="guidance"):
            prepare(Prompt([4, 5], negative), served.engine, **GUIDED)
    assert prepare(Prompt([4, 5], [1, 2]), served.engine, **GUIDED)
    assert prepare(Prompt([4, 5], [1]), served.engine)


def test_endings():
    options = {"eos_token_id": [EOS, 5, 400], "stop_token_ids": [9, 500]}
    assert prepare([1], **options).ending_ids == {EOS, 5, 9}
    assert prepare([1], ignore_eos=True, stop_token_ids=[9]).ending_ids == {9}
    assert prepare([1]).ending_ids == frozenset()


def test_the_deadline_counts_from_the_arrival():
    config = GenerationConfig(max_time=2.5)
    request = Served().engine.prepare(Prompt([1]), config, Arrival(100.0, 0.0))
    assert request.deadline == 102.5
    assert prepare([1]).deadline is None


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_seeds(seed: int):
    assert prepare([1], do_sample=True, seed=seed).seed == seed
    assert prepare([1]).seed is None
    assert prepare([1], num_beams=2).seed is None
    seeds = {prepare([1], do_sample=True).seed for _ in range(20)}
    assert len(seeds) == 20


@pytest.mark.parametrize(
    "options",
    [
        {"logit_bias": {VOCAB_SIZE: 1.0}},
        {"sequence_bias": [[[1, VOCAB_SIZE], 1.0]]},
        {"bad_words_ids": [[1], [2, VOCAB_SIZE]]},
        {"suppress_tokens": [VOCAB_SIZE]},
        {"begin_suppress_tokens": [1, VOCAB_SIZE]},
        {"forced_bos_token_id": VOCAB_SIZE},
        {"forced_eos_token_id": [VOCAB_SIZE], "max_new_tokens": 5},
        {"logprobs": VOCAB_SIZE + 1},
        {"prompt_logprobs": VOCAB_SIZE + 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_beyond_the_vocabulary(options):
    with pytest.raises(ConfigError, match=next(iter(options))) as caught:
        prepare([1], **options)
    assert "\n" not in str(caught.value)


def test_as_many_alternatives_as_there_are_tokens():
    served = Served(FakeRunner(random_script(VOCAB_SIZE)))
    output = served.generate([1, 2], logprobs=VOCAB_SIZE, prompt_logprobs=0, max_new_tokens=1)
    assert len(output.outputs[0].logprobs[0].top) == VOCAB_SIZE
    assert output.prompt_logprobs[1].top == ()


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True, "seed": 1}])
def test_healing_restricts_the_first_token_and_hides_what_it_repeats(options):
    # The prompt was "ab", its last token is taken back: the output begins with "bc" or "bd".
    script = random_script(120, 5)
    first_token_ids = [ord("b"), ord("B")]
    served = Served(FakeRunner(script))
    output = served.generate(
        Prompt([ord("a")], first_token_ids=first_token_ids),
        num_hidden_characters=1,
        max_new_tokens=4,
        eos_token_id=(),
        **options,
    )
    assert output.token_ids[0] in first_token_ids
    assert output.text == FakeTokenizer().decode(output.token_ids[1:])
    if not options:
        row = script((ord("a"),))
        assert output.token_ids[0] == max(first_token_ids, key=lambda token: row[token])
        wanted = [int(script((97, *output.token_ids[:n])).argmax()) for n in (1, 2, 3)]
        assert list(output.token_ids[1:]) == wanted


@pytest.mark.parametrize("beams", [1, 2])
def test_hidden_characters_are_not_searched_for_stop_strings(beams: int):
    served = Served(FakeRunner(spelling_script("bbc")))
    options = {"num_hidden_characters": 2, "stop_strings": ["b", "c"], "num_beams": beams}
    output = served.generate(Prompt([1]), **options)
    assert (output.text, output.outputs[0].stop_reason) == ("", "c")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 2, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3},
    ],
)
def test_echo_is_put_before_every_output(options):
    served = Served(FakeRunner(random_script(100, 3)))
    request = served.add([65, 66], echo="AB", max_new_tokens=4, eos_token_id=(), **options)
    output = served.finish(request)
    for completion in output.outputs:
        assert completion.text == "AB" + FakeTokenizer().decode(completion.token_ids)
    chunks = served.chunks[request.request_id]
    for index in {chunk.index for chunk in chunks}:
        first = next(chunk for chunk in chunks if chunk.index == index)
        assert first.text.startswith("AB")


def test_stop_strings_are_not_searched_for_in_an_echo():
    served = Served(FakeRunner(spelling_script("xyz")))
    output = served.generate([1], echo="STOP", stop_strings=["STOP", "y"])
    assert (output.text, output.outputs[0].stop_reason) == ("STOPx", "y")


def test_scores_are_checked_as_prompts_are():
    engine = Served().engine
    assert engine.prepare_scores([range(CONTEXT)], [1])  # nothing new needs room
    for texts in ([[]], [[1], [VOCAB_SIZE]], [range(CONTEXT + 1)], [[True]]):
        with pytest.raises(RequestError):
            engine.prepare_scores(texts, [1] * len(texts))


def test_numpy_prompts():
    request = prepare(np.array([4, 5], np.int32))
    assert request.prompt_token_ids == (4, 5)
    assert all(type(token) is int for token in request.prompt_token_ids)

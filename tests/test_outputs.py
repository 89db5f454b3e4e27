"""Outputs: shortcuts and figures derived from the times."""

from __future__ import annotations

import math

import pytest

from ovgen import CompletionOutput, RequestMetrics, RequestOutput, StreamChunk
from ovgen.outputs import PerplexityOutput, ScoreOutput, TokenLogprob


def metrics(**changes) -> RequestMetrics:
    values = {
        "num_prompt_tokens": 30,
        "num_output_tokens": 4,
        "ttft": 0.7,
        "itl": (0.1, 0.2, 0.3),
        "load_time": 1.0,
        "tokenization_time": 0.1,
        "detokenization_time": 0.01,
    }
    return RequestMetrics(**(values | changes))


def test_rates():
    figures = metrics()
    assert figures.tpot == pytest.approx(0.2)
    assert figures.prefill_tokens_per_s == pytest.approx(30 / 0.6)
    assert figures.decode_tokens_per_s == pytest.approx(5)


def test_rates_of_a_single_token():
    figures = metrics(num_output_tokens=1, itl=())
    assert (figures.tpot, figures.decode_tokens_per_s) == (0.0, 0.0)


def test_rates_of_no_token():
    figures = metrics(num_output_tokens=0, ttft=0.0, itl=())
    assert (figures.tpot, figures.prefill_tokens_per_s, figures.decode_tokens_per_s) == (0, 0, 0)


def test_the_first_output_is_at_hand():
    outputs = (CompletionOutput("best", (1, 2), "stop", 2), CompletionOutput("b", (3,), "length"))
    output = RequestOutput((9,), outputs, metrics())
    assert (output.text, output.token_ids) == ("best", (1, 2))
    assert outputs[1].score is outputs[1].logprobs is outputs[1].stop_reason is None


def test_a_chunk_prints_as_its_text():
    assert f"{StreamChunk('abc', (1,))}" == "abc"


def test_times_of_every_token_stay_out_of_the_repr():
    assert "itl" not in repr(metrics())


def test_a_cumulative_logprob_only_where_there_are_some():
    logprobs = (TokenLogprob(1, -0.5, 1), TokenLogprob(2, -2.0, 7))
    output = CompletionOutput("ab", (1, 2), "length", logprobs=logprobs)
    assert output.cumulative_logprob == -2.5
    assert CompletionOutput("ab", (1, 2), "length").cumulative_logprob is None


def test_the_logprob_of_a_scored_text():
    assert ScoreOutput((1, 2), (-0.5, -2.0)).logprob == -2.5


def test_perplexity():
    assert PerplexityOutput(4.0, 2).perplexity == pytest.approx(math.exp(2))
    assert PerplexityOutput(1e6, 2).perplexity == math.inf

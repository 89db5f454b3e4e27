"""Outputs: shortcuts and figures derived from the times."""

from __future__ import annotations

import pytest

from ovgen import CompletionOutput, RequestMetrics, RequestOutput, StreamChunk


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

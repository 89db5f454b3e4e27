"""The output processor: chunks, whole outputs and metrics."""

from __future__ import annotations

import pytest
from fakes import EOS, FakeTokenizer

from ovgen.engine.output_processor import Arrival, OutputProcessor
from ovgen.engine.sequence import Request, Sequence
from ovgen.generation_config import GenerationConfig


def begin(**options):
    processor = OutputProcessor(FakeTokenizer(), load_time=7.0)
    sequence = Sequence(1, (5, 6))
    request = Request(0, (5, 6), 100, frozenset({EOS}), None, [sequence])
    processor.add(request, GenerationConfig(**options), Arrival(10.0, 0.25))
    return processor, request, sequence


def grow(processor: OutputProcessor, request: Request, text: str, now: float = 0.0):
    [sequence] = request.sequences
    sequence.output_token_ids += [ord(char) for char in text]
    return processor.advance(request, sequence, now)


def test_chunks_join_to_the_text():
    processor, request, sequence = begin()
    chunks = [grow(processor, request, text)[0] for text in ("ab", "c", "", "de")]
    assert "".join(chunk.text for chunk in chunks) == "abcde"
    assert [chunk.token_ids for chunk in chunks] == [(97, 98), (99,), (), (100, 101)]
    assert all(chunk.output is None for chunk in chunks)
    sequence.finish_reason = "length"
    output = processor.finish(request)
    assert output.text == "abcde"
    assert output.token_ids == (97, 98, 99, 100, 101)
    assert output.prompt_token_ids == (5, 6)
    assert output.outputs[0].finish_reason == "length"


@pytest.mark.parametrize(("skip", "text"), [(True, "ab"), (False, "ab<eos>")])
def test_the_ending_token_has_text_only_where_special_tokens_have(skip: bool, text: str):
    processor, request, sequence = begin(skip_special_tokens=skip)
    sequence.finish_reason, sequence.stop_reason = "stop", EOS
    grow(processor, request, "ab\0")
    output = processor.finish(request)
    assert output.text == text
    assert output.token_ids == (97, 98, EOS)


def test_an_ordinary_token_that_ends_has_no_text_either():
    processor, request, sequence = begin()
    sequence.finish_reason, sequence.stop_reason = "stop", ord(".")
    grow(processor, request, "ab.")
    assert processor.finish(request).text == "ab"


def test_nothing_of_a_stop_string_gets_out():
    processor, request, sequence = begin(stop_strings="END")
    pieces = []
    for char in "abEENDxyz":
        chunk, matched = grow(processor, request, char)
        pieces.append(chunk.text)
        if matched is not None:
            break
    assert matched == "END"
    assert pieces == ["a", "b", "", "E", "", ""]
    sequence.finish_reason, sequence.stop_reason = "stop", matched
    sequence.output_token_ids.append(ord("x"))  # of a step that came after: not of the output
    output = processor.finish(request)
    assert output.text == "abE"
    assert output.token_ids == tuple(map(ord, "abEEND"))


def test_include_the_stop_string():
    processor, request, _ = begin(stop_strings="END", include_stop_str_in_output=True)
    chunk, matched = grow(processor, request, "abENDxyz")
    assert (chunk.text, matched) == ("abEND", "END")


def test_text_held_for_a_stop_string_comes_out_at_the_end():
    processor, request, sequence = begin(stop_strings="END")
    assert grow(processor, request, "abEN")[0].text == "ab"
    sequence.finish_reason = "length"
    assert grow(processor, request, "")[0].text == "EN"


def test_metrics():
    processor, request, sequence = begin()
    for now, text in ((12.0, "a"), (12.5, "b"), (13.5, "c")):
        grow(processor, request, text, now)
    sequence.finish_reason = "length"
    metrics = processor.finish(request).metrics
    assert metrics.ttft == 2.0
    assert metrics.itl == (0.5, 1.0)
    assert metrics.tpot == 0.75
    assert metrics.num_prompt_tokens == 2
    assert metrics.num_output_tokens == 3
    assert metrics.load_time == 7.0
    assert metrics.tokenization_time == 0.25
    assert metrics.detokenization_time > 0
    assert metrics.prefill_tokens_per_s == pytest.approx(2 / 1.75)
    assert metrics.decode_tokens_per_s == pytest.approx(1 / 0.75)


def test_a_request_that_ended_before_its_first_token():
    processor, request, sequence = begin()
    sequence.finish_reason = "length"
    processor.advance(request, sequence, 12.0)
    output = processor.finish(request)
    assert (output.text, output.token_ids) == ("", ())
    assert (output.metrics.ttft, output.metrics.itl) == (0.0, ())


def test_behind_are_those_that_grew_or_ended_unseen():
    processor, request, sequence = begin()
    assert processor.behind() == []
    sequence.output_token_ids.append(97)
    assert processor.behind() == [(request, sequence)]
    processor.advance(request, sequence, 0.0)
    assert processor.behind() == []
    sequence.finish_reason = "abort"
    assert processor.behind() == [(request, sequence)]


def test_nothing_is_kept_of_what_finished_or_was_dropped():
    processor, request, sequence = begin()
    assert processor.is_known(request)
    sequence.finish_reason = "length"
    processor.finish(request)
    assert not processor.is_known(request)
    processor.add(request, GenerationConfig(), Arrival(0.0, 0.0))
    processor.drop(request)
    processor.drop(request)
    assert not processor.is_known(request)
    assert [len(v) for v in vars(processor).values() if isinstance(v, dict)] == [0]

"""The output processor: chunks, whole outputs and metrics."""

from __future__ import annotations

import pytest
from fakes import EOS, FakeTokenizer

from ovgen.engine.output_processor import Arrival, OutputProcessor
from ovgen.engine.sequence import Request, Sequence
from ovgen.generation_config import GenerationConfig
from ovgen.outputs import StreamChunk


def begin(**options):
    processor = OutputProcessor(FakeTokenizer(), load_time=7.0)
    sequence = Sequence(1, (5, 6))
    request = Request(0, (5, 6), 100, frozenset({EOS}), None, [sequence])
    processor.add(request, GenerationConfig(**options), Arrival(10.0, 0.25))
    return processor, request, sequence


def grow(processor: OutputProcessor, request: Request, text: str, now: float = 0.0):
    """The chunk and the stop string that some more text brings."""
    [sequence] = request.sequences
    sequence.output_token_ids += [ord(char) for char in text]
    [chunk], stopped = processor.advance(request, now)
    assert chunk.index == 0
    if stopped:
        [(owner, matched)] = stopped
        assert owner is sequence
        return chunk, matched
    return chunk, None


def test_chunks_join_to_the_text():
    processor, request, sequence = begin()
    chunks = [grow(processor, request, text)[0] for text in ("ab", "c", "de")]
    assert "".join(chunk.text for chunk in chunks) == "abcde"
    assert [chunk.token_ids for chunk in chunks] == [(97, 98), (99,), (100, 101)]
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


def test_nothing_new_gives_no_chunk():
    processor, request, sequence = begin()
    assert processor.advance(request, 0.0) == ([], [])
    grow(processor, request, "ab")
    assert processor.advance(request, 0.0) == ([], [])
    sequence.finish_reason = "length"
    grow(processor, request, "")
    assert processor.advance(request, 0.0) == ([], [])  # and nothing after the end


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
    assert processor.advance(request, 12.0) == ([StreamChunk("", ())], [])
    output = processor.finish(request)
    assert (output.text, output.token_ids) == ("", ())
    assert (output.metrics.ttft, output.metrics.itl) == (0.0, ())


def test_behind_are_those_that_grew_or_ended_unseen():
    processor, request, sequence = begin()
    assert processor.behind() == []
    sequence.output_token_ids.append(97)
    assert processor.behind() == [request]
    processor.advance(request, 0.0)
    assert processor.behind() == []
    sequence.finish_reason = "abort"
    assert processor.behind() == [request]


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


def begin_several(count: int, **options):
    processor = OutputProcessor(FakeTokenizer(), load_time=0.0)
    sequences = [Sequence(n, (5,), index=n) for n in range(count)]
    request = Request(0, (5,), 100, frozenset({EOS}), None, sequences)
    processor.add(request, GenerationConfig(**options), Arrival(0.0, 0.0))
    return processor, request


def test_samples_have_texts_of_their_own():
    processor, request = begin_several(3, stop_strings="XY")
    for sequence, text in zip(request.sequences, ("abX", "aXY", "c"), strict=True):
        sequence.output_token_ids += map(ord, text)
    request.sequences[2].finish_reason = "length"
    chunks, stopped = processor.advance(request, 1.0)
    assert [(chunk.index, chunk.text) for chunk in chunks] == [(0, "ab"), (1, "a"), (2, "c")]
    assert stopped == [(request.sequences[1], "XY")]
    request.sequences[1].finish_reason, request.sequences[1].stop_reason = "stop", "XY"
    request.sequences[0].output_token_ids.append(ord("Z"))
    chunks, stopped = processor.advance(request, 2.0)
    assert [(chunk.index, chunk.text) for chunk in chunks] == [(0, "XZ")]
    assert stopped == []
    request.sequences[0].finish_reason = "length"
    request.sequences.reverse()  # outputs come in the order of their indices
    output = processor.finish(request)
    assert [completion.text for completion in output.outputs] == ["abXZ", "a", "c"]


def test_a_stop_string_is_told_again_until_its_sequence_has_ended():
    processor, request, sequence = begin(stop_strings="END")
    assert grow(processor, request, "aEND")[1] == "END"
    # A step that broke off here: one more token is chosen, which may even be the end.
    sequence.output_token_ids.append(EOS)
    sequence.finish_reason, sequence.stop_reason = "stop", EOS
    assert processor.advance(request, 0.0) == ([], [(sequence, "END")])
    sequence.stop_reason = "END"
    output = processor.finish(request)
    assert (output.text, output.token_ids) == ("a", tuple(map(ord, "aEND")))


def test_a_step_that_breaks_off_in_the_text_is_done_again(monkeypatch: pytest.MonkeyPatch):
    processor, request, _ = begin()
    grow(processor, request, "ab")
    with monkeypatch.context() as patch:
        patch.setattr(FakeTokenizer, "decode", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            grow(processor, request, "c")
    assert processor.behind() == [request]
    assert grow(processor, request, "d")[0].text == "cd"


def test_beams_stream_what_is_certain_and_then_the_best():
    processor, request = begin_several(2, logprobs=0)
    request.is_beam_search = True
    first, second = request.sequences
    for sequence, text in ((first, "abc"), (second, "abd")):
        sequence.output_token_ids += map(ord, text)
        sequence.logprobs += text
    [chunk], stopped = processor.advance(request, 1.0)
    assert (chunk.text, chunk.token_ids, chunk.logprobs) == ("ab", (97, 98), ("a", "b"))
    assert stopped == []
    assert processor.advance(request, 2.0) == ([], [])
    first.finish_reason = second.finish_reason = "length"
    first.score, second.score = -2.0, -1.0
    request.sequences.reverse()
    [chunk], _ = processor.advance(request, 3.0)
    assert (chunk.text, chunk.index, chunk.logprobs) == ("d", 0, ("d",))
    output = processor.finish(request)
    assert [(o.text, o.score) for o in output.outputs] == [("abd", -1.0), ("abc", -2.0)]
    assert output.outputs[1].logprobs == ("a", "b", "c")
    assert output.metrics.ttft == 1.0
    assert output.metrics.itl == (0.0, 2.0)
    assert output.metrics.num_output_tokens == 6


@pytest.mark.parametrize("hidden", [0, 2])
def test_echo_and_hidden_characters(hidden: int):
    processor = OutputProcessor(FakeTokenizer(), load_time=0.0)
    sequence = Sequence(1, (5, 6))
    request = Request(0, (5, 6), 100, frozenset(), None, [sequence])
    arrival = Arrival(0.0, 0.0, "prompt ", hidden)
    processor.add(request, GenerationConfig(), arrival)
    texts = [grow(processor, request, text)[0].text for text in ("a", "bc", "d")]
    assert texts == (["prompt a", "bc", "d"] if hidden == 0 else ["prompt ", "c", "d"])
    sequence.finish_reason = "abort"
    assert processor.finish(request).text == "".join(texts)

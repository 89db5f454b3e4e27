"""Beam search over a fake runner, against a search written out in plain Python."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from engine.beam_by_hand import PROMPT, best_of_all, log_probabilities, search_by_hand
from fakes import CONTEXT, FakeRunner, Served, random_script, spelling_script
from hypothesis import given, settings
from hypothesis import strategies as st

from ovgen.engine.output_processor import _common_beginning
from ovgen.engine.sequence import Sequence as TokenSequence
from ovgen.errors import RequestError

SCRIPT = random_script(16, scale=1.5)


def found(served: Served, beams: int, **options):
    options = {"num_return_sequences": beams, "max_new_tokens": 6} | options
    output = served.generate(PROMPT, num_beams=beams, **options)
    served.assert_empty()
    return output.outputs


def check(outputs, wanted) -> None:
    assert [output.token_ids for output in outputs] == [tokens for _, tokens in wanted]
    scores = [output.score for output in outputs]
    assert scores == pytest.approx([score for score, _ in wanted], rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("seed", range(4))
def test_as_many_beams_as_there_are_sequences_find_the_best(length_penalty: float, seed: int):
    script = random_script(4, seed, scale=2.0)
    served = Served(FakeRunner(script))
    outputs = found(
        served, 64, max_new_tokens=3, length_penalty=length_penalty, early_stopping="never"
    )
    wanted = best_of_all(script, most=3, length_penalty=length_penalty)
    # All those that can be: 1 + 3 that ended early, and 36 of three tokens.
    assert len(outputs) == len(wanted) == 40
    check(outputs, wanted)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 1000),
    size=st.integers(3, 9),
    beams=st.integers(2, 5),
    most=st.integers(1, 7),
    length_penalty=st.sampled_from([1.0, 0.0, 2.0, -0.5]),
    early_stopping=st.sampled_from([False, True, "never"]),
    endings=st.sampled_from([(0,), (0, 2), (), (1, 2, 0)]),
    bonus=st.sampled_from([0.0, 1.0, 3.0]),
    token_budget=st.integers(1, 5),
)
def test_beams_by_hand(
    seed, size, beams, most, length_penalty, early_stopping, endings, bonus, token_budget
):
    plain = random_script(size, seed, scale=1.5)

    def script(tokens):
        row = plain(tokens).copy()
        row[list(endings)] += bonus  # so that most candidates, or few, are at their end
        return row

    rules = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    served = Served(FakeRunner(script), token_budget=token_budget)
    outputs = found(served, beams, max_new_tokens=most, eos_token_id=endings, **rules)
    check(outputs, search_by_hand(script, beams=beams, most=most, endings=endings, **rules))
    for output in outputs:
        has_ended = output.token_ids[-1] in endings
        assert output.finish_reason == ("stop" if has_ended else "length")
        assert output.stop_reason == (output.token_ids[-1] if has_ended else None)


def test_beams_share_one_prefill():
    served = Served(FakeRunner(SCRIPT), token_budget=2)
    found(served, 4, eos_token_id=(), max_new_tokens=5)
    assert served.runner.num_computed == len(PROMPT) + 4 * 4
    assert [len(batch) for batch in served.runner.batches] == [1, 1, 4, 4, 4, 4]


def test_the_best_alone_is_given_by_default():
    served = Served(FakeRunner(SCRIPT))
    output = served.generate(PROMPT, num_beams=3, max_new_tokens=6)
    check(output.outputs, search_by_hand(SCRIPT, beams=3, most=6)[:1])


def test_the_end_of_the_context_ends_the_beams():
    outputs = found(Served(FakeRunner(SCRIPT)), 2, max_new_tokens=None, eos_token_id=())
    assert [len(output.token_ids) for output in outputs] == [CONTEXT - len(PROMPT)] * 2
    assert outputs[0].finish_reason == "length"


def test_the_fewest_tokens_and_several_endings():
    script = random_script(4, scale=0.5)
    served = Served(FakeRunner(script))
    options = {"eos_token_id": (0, 2), "max_new_tokens": 8}
    assert min(len(output.token_ids) for output in found(served, 3, **options)) < 5
    outputs = found(served, 3, min_new_tokens=5, **options)
    assert all(not {0, 2} & set(output.token_ids[:5]) for output in outputs)
    assert all(len(output.token_ids) > 5 for output in outputs)


def test_log_probabilities_follow_their_beam():
    served = Served(FakeRunner(SCRIPT))
    request = served.add(PROMPT, num_beams=4, num_return_sequences=3, max_new_tokens=6, logprobs=2)
    output = served.finish(request)
    for completion in output.outputs:
        tokens = PROMPT
        for item, token_id in zip(completion.logprobs, completion.token_ids, strict=True):
            row = log_probabilities(SCRIPT, tokens)
            assert (item.token_id, len(item.top)) == (token_id, 2)
            assert item.logprob == pytest.approx(row[token_id], abs=1e-5)
            tokens += (token_id,)
        length = len(completion.token_ids)
        assert completion.score == pytest.approx(completion.cumulative_logprob / length, abs=1e-5)
    chunks = served.chunks[request.request_id]
    assert sum((chunk.logprobs for chunk in chunks), ()) == output.outputs[0].logprobs


def agreeing_script(tokens: tuple[int, ...]) -> np.ndarray:
    """Beams differ now and then, and after that only in their scores until they are dropped."""
    row = SCRIPT(tokens).copy()
    row[tokens[-1] % 15 + 1] += 4
    return row


def test_what_is_certain_is_streamed_and_never_taken_back():
    served = Served(FakeRunner(agreeing_script))
    request = served.add(PROMPT, num_beams=3, max_new_tokens=30, eos_token_id=())
    seen: list[int] = []
    for _ in range(1000):
        served.step()
        chunks = served.chunks[request.request_id]
        seen.append(sum(len(chunk.token_ids) for chunk in chunks))
        if served.output(request):
            break
    output = served.finish(request)  # which checks that the chunks join to the best output
    assert len(output.token_ids) == 30
    assert seen == sorted(seen)
    assert 0 < seen[15] < seen[25] < 30, "something came before the end"


@pytest.mark.parametrize(
    ("running", "finished", "wanted"),
    [
        ([[1, 2, 3]], [], [1, 2, 3]),
        ([[1, 2, 3], [1, 2, 4]], [], [1, 2]),
        ([[1, 2, 3], [2, 2, 3]], [], []),
        ([[1, 2, 3], [1, 2, 4]], [([1, 3], -1.0)], [1]),
        ([[1, 2, 3], [1, 2, 4]], [([3], -2.0), ([1, 2], -1.0), ([4], -3.0)], [1, 2]),
        ([[1, 2, 3]], [([1, 2, 0], -1.0)], [1, 2]),
    ],
)
def test_the_common_beginning(running, finished, wanted):
    beams = [TokenSequence(0, PROMPT, tokens) for tokens in running]
    hypotheses = [
        TokenSequence(0, PROMPT, tokens, finish_reason="stop", score=score)
        for tokens, score in finished
    ]
    assert _common_beginning(beams + hypotheses, 0) == wanted
    for start in range(len(wanted) + 1):
        assert _common_beginning(beams + hypotheses, start) == wanted


@pytest.mark.parametrize("include", [False, True])
def test_hypotheses_end_at_stop_strings(include: bool):
    served = Served(FakeRunner(SCRIPT))
    options = {"max_new_tokens": 8, "eos_token_id": ()}
    outputs = found(
        served,
        4,
        stop_strings=["\x05", "\x03\x08", "\x0b"],
        include_stop_str_in_output=include,
        **options,
    )
    stops = [output for output in outputs if output.stop_reason is not None]
    assert stops
    for output in outputs:
        text = "".join(map(chr, output.token_ids))
        if output.stop_reason is None:
            assert (output.finish_reason, output.text) == ("length", text)
            assert not any(stop in text for stop in ("\x05", "\x03\x08", "\x0b"))
        else:
            assert output.finish_reason == "stop"
            assert text.endswith(output.stop_reason)
            assert output.text == (text if include else text.removesuffix(output.stop_reason))


def test_a_stop_string_of_one_token_ends_as_that_token_does():
    # But a stop string counts for no more candidates, so enough beams are needed.
    served = Served(FakeRunner(random_script(6, scale=2.0)))
    by_token = found(served, 3, eos_token_id=(), stop_token_ids=(4,))
    by_text = found(served, 3, eos_token_id=(), stop_strings=["\x04"])
    assert [output.token_ids for output in by_text] == [output.token_ids for output in by_token]
    assert [output.score for output in by_text] == [output.score for output in by_token]
    assert "\x04" in {output.stop_reason for output in by_text}


def test_beams_that_all_end_at_a_stop_string_in_their_middle():
    script = spelling_script("one STOP two")
    output = Served(FakeRunner(script)).generate([1], num_beams=2, stop_strings="STOP")
    assert output.text == "one "
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", "STOP")
    assert output.token_ids == tuple(b"one STOP")


def test_groups_of_beams_differ():
    served = Served(FakeRunner(SCRIPT))
    options = {"eos_token_id": (), "num_beam_groups": 3, "max_new_tokens": 5}
    alike = found(served, 3, diversity_penalty=1e-6, **options)
    assert len({output.token_ids for output in alike}) == 1
    firsts = [output.token_ids[0] for output in found(served, 3, diversity_penalty=50.0, **options)]
    assert len(set(firsts)) == 3
    best = np.argsort(-SCRIPT(PROMPT))[:3]
    assert set(firsts) == set(best.tolist())


def test_drawn_beams_follow_their_seed():
    served = Served(FakeRunner(SCRIPT))
    drawn = {"do_sample": True, "eos_token_id": ()}
    first, again = (found(served, 3, seed=1, **drawn) for _ in range(2))
    assert first == again
    assert len({found(served, 3, seed=seed, **drawn)[0].token_ids for seed in range(8)}) > 4
    nearly_none = found(served, 3, seed=1, temperature=1e-3, max_new_tokens=1, **drawn)
    check(nearly_none, search_by_hand_of_one_token(3, temperature=1e-3))


def search_by_hand_of_one_token(beams: int, temperature: float):
    row = np.array(log_probabilities(SCRIPT, PROMPT)) / temperature
    best = np.argsort(-row)[:beams]
    return [(row[token], (token,)) for token in best.tolist()]


def test_processors_see_log_probabilities():
    seen = []

    def see(token_ids, logits):
        seen.append((tuple(token_ids.tolist()), logits.copy()))
        return logits

    found(Served(FakeRunner(SCRIPT)), 2, processors=[see], max_new_tokens=2, eos_token_id=())
    assert [len(tokens) for tokens, _ in seen] == [3, 4, 4]
    for tokens, row in seen:
        np.testing.assert_allclose(row[:16], log_probabilities(SCRIPT, tokens), atol=1e-5)


def forbid_after(length: int, only: int | None = None):
    def forbid(token_ids, logits):
        if len(token_ids) >= length and (only is None or only == token_ids[len(PROMPT)]):
            logits[:] = -np.inf
        return logits

    return forbid


DRAWN = {"do_sample": True, "seed": 3}
GROUPS = {"num_beam_groups": 2, "diversity_penalty": 10.0}


@pytest.mark.parametrize("options", [{}, DRAWN, DRAWN | {"top_k": 4, "top_p": 0.9}, GROUPS])
@pytest.mark.parametrize("length", [3, 5])
def test_no_token_is_left(options, length: int):
    served = Served(FakeRunner(SCRIPT))
    request = served.add(
        PROMPT, num_beams=4, eos_token_id=(), processors=[forbid_after(length)], **options
    )
    with pytest.raises(RequestError, match="no token is left"):
        served.finish(request)
    served.assert_empty()


@pytest.mark.parametrize("options", [{}, DRAWN, DRAWN | {"top_k": 4, "top_p": 0.9}, GROUPS])
def test_a_beam_at_a_dead_end_is_dropped(options):
    first = [output.token_ids[0] for output in found(Served(FakeRunner(SCRIPT)), 4, **options)]
    processors = [forbid_after(5, only=first[0])]
    outputs = found(
        Served(FakeRunner(SCRIPT)), 4, processors=processors, eos_token_id=(), **options
    )
    assert outputs
    assert all(output.token_ids[0] != first[0] for output in outputs)
    assert all(len(output.token_ids) == 6 for output in outputs)


def test_every_beam_ends_where_no_token_is_left_but_the_end():
    def only_the_end(token_ids, logits):
        if len(token_ids) == 5:
            logits[1:] = -np.inf
        return logits

    outputs = found(Served(FakeRunner(SCRIPT)), 3, processors=[only_the_end])
    assert {output.finish_reason for output in outputs} == {"stop"}
    assert max(len(output.token_ids) for output in outputs) == 3


@pytest.mark.parametrize("strategy", [{}, DRAWN, GROUPS], ids=["plain", "drawn", "groups"])
def test_beams_in_a_batch_of_others(strategy):
    prompts = [tuple(range(1, 2 + number)) for number in range(16)]
    options = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 7} | strategy
    served = Served(FakeRunner(SCRIPT))
    alone = [served.generate(prompt, **options).outputs for prompt in prompts]
    runner = FakeRunner(SCRIPT, max_running_requests=16)
    served = Served(runner, token_budget=50)
    requests = [served.add(prompt, **options) for prompt in prompts]
    for request, wanted in itertools.zip_longest(requests, alone):
        outputs = served.finish(request).outputs
        assert [o.token_ids for o in outputs] == [o.token_ids for o in wanted]
        assert all(math.isclose(o.score, w.score) for o, w in zip(outputs, wanted, strict=True))
    assert max(len({row[0] for row in batch}) for batch in runner.batches) > 8
    served.assert_empty()

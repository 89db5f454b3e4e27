"""The engine over a fake runner: the whole way from requests to chunks, errors included."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence

import pytest
from fakes import (
    CONTEXT,
    EOS,
    FakeRunner,
    Served,
    continuation,
    interrupt_at_line,
    mixing_script,
    spelling_script,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ovgen.engine.output_processor import Arrival
from ovgen.engine.request_builder import Prompt
from ovgen.engine.sequence import Request
from ovgen.errors import ConfigError, RequestError
from ovgen.generation_config import GenerationConfig


def test_greedy_follows_the_logits():
    output = Served().generate([5, 6, 7], max_new_tokens=9)
    assert list(output.token_ids) == continuation([5, 6, 7], 9)
    assert output.prompt_token_ids == (5, 6, 7)
    assert output.outputs[0].finish_reason == "length"
    assert output.outputs[0].stop_reason is None


def test_a_chunk_a_token():
    served = Served()
    request = served.add([5], max_new_tokens=6)
    served.finish(request)
    assert [len(chunk.token_ids) for chunk in served.chunks[request.request_id]] == [1] * 6


def test_a_step_is_computed_while_the_one_before_is_put_out():
    served = Served()
    request = served.add([5], max_new_tokens=6)
    served.step()
    assert len(served.chunks[request.request_id]) == 1
    assert len(served.runner.batches) == 2


def test_nothing_is_computed_beyond_the_known_end():
    served = Served()
    served.generate([5], max_new_tokens=6)
    assert len(served.runner.batches) == 6
    served.step()
    assert len(served.runner.batches) == 6


def test_eos():
    served = Served(FakeRunner(spelling_script("hello")))
    output = served.generate([1])
    assert output.text == "hello"
    assert output.token_ids == (*b"hello", EOS)
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", EOS)
    assert len(served.runner.batches) == 6  # EOS is seen before the next step begins
    served.assert_empty()


def test_several_eos_ids():
    served = Served(FakeRunner(spelling_script("hello, you")))
    output = served.generate([1], eos_token_id=[EOS, ord(","), ord("y")])
    assert (output.text, output.outputs[0].stop_reason) == ("hello", ord(","))


def test_ignore_eos():
    served = Served(FakeRunner(spelling_script("hi")))
    output = served.generate([1], eos_token_id=None, ignore_eos=True, max_new_tokens=5)
    assert output.token_ids == (*b"hi", EOS, EOS, EOS)
    assert output.outputs[0].finish_reason == "length"


def test_the_end_of_the_context():
    output = Served().generate(range(10))
    assert len(output.token_ids) == CONTEXT - 10
    assert output.outputs[0].finish_reason == "length"


@pytest.mark.parametrize("include", [False, True])
def test_stop_strings(include: bool):
    served = Served(FakeRunner(spelling_script("one STOP two", "next")))
    request = served.add(
        [1], stop_strings=["STOP", "zzz"], include_stop_str_in_output=include, max_new_tokens=50
    )
    output = served.finish(request)
    assert output.text == ("one STOP" if include else "one ")
    assert output.token_ids == tuple(b"one STOP")
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", "STOP")
    # The overlapped step was begun already; what it brings is thrown away.
    assert len(served.runner.batches) == 9
    assert served.generate([2]).text == "next"
    served.assert_empty()


def test_a_stop_string_completed_by_the_last_allowed_token():
    served = Served(FakeRunner(spelling_script("one STOP")))
    output = served.generate([1], stop_strings="STOP", max_new_tokens=8)
    assert output.text == "one "
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", "STOP")


def test_a_stop_string_cut_off_by_the_end_is_text():
    served = Served(FakeRunner(spelling_script("one STO")))
    assert served.generate([1], stop_strings="STOP").text == "one STO"


@pytest.mark.parametrize("token_budget", [1, 2, 3, 7, 19, 20, 21])
def test_chunks_of_any_size_give_the_same_tokens(token_budget: int):
    served = Served(token_budget=token_budget)
    prompt = list(range(20))
    assert list(served.generate(prompt, max_new_tokens=5).token_ids) == continuation(prompt, 5)
    sizes = [len(tokens) for [(_, _, tokens)] in served.runner.batches]
    assert max(sizes) <= token_budget
    assert sum(sizes) == 20 + 4


def test_max_time():
    class SlowRunner(FakeRunner):
        def wait(self, timeout):
            time.sleep(0.002)
            return super().wait(timeout)

    output = Served(SlowRunner()).generate([1], max_time=0.02)
    assert 1 <= len(output.token_ids) <= 10
    assert output.outputs[0].finish_reason == "length"


def test_max_time_runs_out_in_the_queue():
    served = Served()
    first = served.add([1], max_new_tokens=50)
    second = served.add([2], max_time=1e-6)
    output = served.finish(second)
    assert (output.token_ids, output.outputs[0].finish_reason) == ((), "length")
    assert not served.chunks[first.request_id][-1].output
    assert list(served.finish(first).token_ids) == continuation([1], 50)


def test_abort_before_the_start():
    served = Served()
    first, second, third = (served.add([number], max_new_tokens=4) for number in (1, 2, 3))
    served.engine.abort(second)
    served.finish(third)
    assert served.chunks[first.request_id][-1].output
    assert served.chunks[second.request_id] == []
    assert all(batch[0][0] != second.request_id for batch in served.runner.batches)
    served.assert_empty()


def test_abort_in_the_middle_of_a_prompt():
    served = Served(token_budget=4)
    request = served.add(range(20))
    served.step()
    served.step()
    served.engine.abort(request)
    assert list(served.generate([9], max_new_tokens=3).token_ids) == continuation([9], 3)
    assert served.chunks[request.request_id] == []
    served.assert_empty()


def test_abort_in_flight_stops_the_work():
    served = Served()
    request = served.add([1])
    served.step()
    served.engine.abort(request)
    under_way = len(served.runner.batches)
    served.run(3)
    assert len(served.runner.batches) == under_way
    assert len(served.chunks[request.request_id]) == 1
    served.assert_empty()


def test_abort_of_what_has_ended_or_was_never_added():
    served = Served()
    request = served.add([1], max_new_tokens=2)
    served.finish(request)
    served.engine.abort(request)
    served.engine.abort(request)
    assert request.sequences[0].finish_reason == "length"
    served.engine.abort(served.engine.prepare(Prompt([1]), GenerationConfig(), Arrival(0.0, 0.0)))
    served.assert_empty()


def test_queued_requests_are_served_in_order():
    served = Served()
    requests = [served.add([number], max_new_tokens=number + 1) for number in range(1, 5)]
    served.finish(requests[-1])
    for number, request in enumerate(requests, start=1):
        assert list(served.finish(request).token_ids) == continuation([number], number + 1)
    order = [batch[0][0] for batch in served.runner.batches]
    assert order == sorted(order)
    served.assert_empty()


def test_a_runner_of_many_requests_gives_the_same():
    served = Served(FakeRunner(max_running_requests=3), token_budget=5)
    prompts = [list(range(length)) for length in (1, 9, 4, 17, 2)]
    requests = [served.add(prompt, max_new_tokens=8) for prompt in prompts]
    for prompt, request in zip(prompts, requests, strict=True):
        assert list(served.finish(request).token_ids) == continuation(prompt, 8)
    assert max(len(batch) for batch in served.runner.batches) == 3
    served.assert_empty()


@pytest.mark.parametrize("where", ["start_errors", "wait_errors"])
@pytest.mark.parametrize("number", range(10))
def test_after_an_error_of_the_runner_every_request_gives_the_same_tokens(where: str, number: int):
    served = Served(FakeRunner(**{where: {number: RuntimeError("device lost")}}), token_budget=4)
    requests = {prompt: served.add(range(prompt), max_new_tokens=4) for prompt in (10, 3)}
    with pytest.raises(RuntimeError, match="device lost"):
        served.run(20)
    served.engine.recover()
    for prompt, request in requests.items():
        assert list(served.finish(request).token_ids) == continuation(range(prompt), 4)
    assert served.runner.num_resets == 1
    served.assert_empty()


def test_an_error_as_the_next_request_starts_does_not_cost_the_one_before_its_end():
    served = Served(FakeRunner(start_errors={2: RuntimeError("out of memory")}))
    first, second = (served.add([number], max_new_tokens=2) for number in (1, 2))
    served.step()
    with pytest.raises(RuntimeError):
        served.step()
    served.engine.recover()
    served.engine.abort(second)
    assert list(served.finish(first).token_ids) == continuation([1], 2)
    served.assert_empty()


def test_abort_of_what_ended_in_a_step_that_broke_off():
    served = Served(FakeRunner(start_errors={2: RuntimeError("out of memory")}))
    first, second = (served.add([number], max_new_tokens=2) for number in (1, 2))
    served.step()
    with pytest.raises(RuntimeError):
        served.step()
    served.engine.recover()
    served.engine.abort(first)
    assert list(served.finish(second).token_ids) == continuation([2], 2)
    assert not any(chunk.output for chunk in served.chunks[first.request_id])
    served.assert_empty()


def test_an_interrupt_at_any_line_of_a_step_leaves_an_engine_that_serves():
    """A Ctrl-C in the thread that drives must not hang or mislead the others.

    At worst, in the microseconds in which an output is handed over, it is lost and known to be.
    """
    num_lost = 0
    for number in itertools.count(1):
        served = Served(FakeRunner(spelling_script("ab", "cdefgh")))
        requests = [served.add([1], stop_strings="z"), served.add([2], stop_strings="g")]
        before = sys.gettrace()
        sys.settrace(interrupt_at_line(number))
        try:
            served.run(5)
        except KeyboardInterrupt:
            sys.settrace(before)
            served.engine.recover()
        else:
            break
        finally:
            sys.settrace(before)
        outputs = []
        for request in requests:
            served.run(20)
            assert not served.engine.is_known(request)
            outputs.append(served.chunks[request.request_id][-1].output)
        wanted = [(*b"ab", EOS), tuple(b"cdefg")]
        assert all(o is None or o.token_ids == w for o, w in zip(outputs, wanted, strict=True))
        num_lost += outputs.count(None)
        assert served.generate([1]).text == "ab"
        served.assert_empty()
    assert number > 300
    assert num_lost < number / 50


def test_recovering_twice_or_without_need():
    served = Served()
    request = served.add([1], max_new_tokens=6)
    served.step()
    served.engine.recover()
    served.engine.recover()
    assert list(served.finish(request).token_ids) == continuation([1], 6)


def test_metrics():
    output = Served().generate([1, 2, 3], max_new_tokens=7)
    metrics = output.metrics
    assert (metrics.num_prompt_tokens, metrics.num_output_tokens) == (3, 7)
    assert metrics.ttft > 0
    assert len(metrics.itl) == 6
    assert all(latency > 0 for latency in metrics.itl)
    assert metrics.detokenization_time > 0


def test_close():
    served = Served()
    served.add([1])
    served.step()
    served.engine.close()
    assert served.runner.is_closed


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt is empty"),
        (list(range(CONTEXT)), "64 tokens"),
        ([1, 128], "token id 128"),
        ([1, -1], "token id -1"),
        ([1, 2**70], f"token id {2**70}"),
        ([1, 2.0], "whole numbers"),
        ([1, True], "whole numbers"),
        ([1, None], "whole numbers"),
        ([[1]], "whole numbers"),
        (["a"], "whole numbers"),
        ("abc", "string or a list"),
        (b"abc", "string or a list"),
        (5, "string or a list"),
        (None, "string or a list"),
    ],
)
def test_prompts_that_cannot_be_served(prompt: object, message: str):
    with pytest.raises(RequestError, match=message) as caught:
        Served().engine.prepare(Prompt(prompt), GenerationConfig(), Arrival(0.0, 0.0))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_more_new_tokens_than_the_context_has_room_for():
    engine, prompt, arrival = Served().engine, Prompt([1] * 60), Arrival(0.0, 0.0)
    assert engine.prepare(prompt, GenerationConfig(max_new_tokens=4), arrival)
    with pytest.raises(ConfigError, match=r"max_new_tokens is 5.*room for 4"):
        engine.prepare(prompt, GenerationConfig(max_new_tokens=5), arrival)


def ending_script(token_ids: tuple[int, ...]) -> int:
    """As mixing_script, with EOS now and then."""
    token_id = mixing_script(token_ids)
    return EOS if token_id % 11 == 0 else token_id


def expected(prompt: Sequence[int], most: int) -> list[int]:
    tokens = continuation(prompt, most, ending_script)
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens


ARRIVALS = st.tuples(
    st.integers(0, 20),  # before which step it arrives
    st.lists(st.integers(0, 127), min_size=1, max_size=30),
    st.integers(1, 30),  # max_new_tokens
    st.none() | st.integers(0, 60),  # before which step it is aborted
)


@settings(max_examples=150, deadline=None)
@given(
    arrivals=st.lists(ARRIVALS, min_size=1, max_size=6),
    token_budget=st.integers(1, 40),
    max_running_requests=st.integers(1, 3),
    broken_steps=st.sets(st.integers(0, 40), max_size=3),
)
def test_whatever_comes_every_request_ends_and_nothing_stays(
    arrivals, token_budget, max_running_requests, broken_steps
):
    errors = {step: RuntimeError("broken") for step in broken_steps}
    runner = FakeRunner(ending_script, max_running_requests=max_running_requests)
    runner._start_errors, runner._wait_errors = dict(errors), dict(errors)
    served = Served(runner, token_budget=token_budget)
    requests: dict[int, Request] = {}
    aborted = set()
    for step in range(2000):
        for index, (when, prompt, most, abort_at) in enumerate(arrivals):
            if when == step:
                requests[index] = served.add(prompt, max_new_tokens=most)
            if index in requests and abort_at == step:
                served.engine.abort(requests[index])
                aborted.add(index)
        try:
            served.step()
        except RuntimeError:
            served.engine.recover()
        if step > 60 and not served.engine._scheduler.has_unfinished:
            break
    served.step()  # what an abort left under way
    assert len(requests) == len(arrivals)
    for index, (_, prompt, most, _) in enumerate(arrivals):
        mail = served.chunks[requests[index].request_id]
        token_ids = [token_id for chunk in mail for token_id in chunk.token_ids]
        wanted = expected(prompt, most)
        if mail and mail[-1].output:
            assert token_ids == wanted == list(mail[-1].output.token_ids)
        else:
            assert index in aborted
            assert token_ids == wanted[: len(token_ids)]
    served.assert_empty()

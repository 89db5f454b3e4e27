"""One engine for many threads: streams, their errors, and how they are stopped."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes import CONTEXT, EOS, VOCAB_SIZE, FakeRunner, FakeTokenizer, continuation, random_script

from ovgen.engine.engine import Engine
from ovgen.engine.output_processor import Arrival, OutputProcessor
from ovgen.engine.request_builder import Prompt
from ovgen.engine.service import EngineService, TokenStream
from ovgen.errors import ClosedError, DeviceError, OvgenError, RequestError
from ovgen.generation_config import GenerationConfig


class SlowRunner(FakeRunner):
    """Gives every logits only after the whole slice of a wait, until it is let go."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.is_held = threading.Event()
        self.may_go_on = threading.Event()

    def wait(self, timeout):
        self.is_held.set()
        if not self.may_go_on.wait(timeout):
            return None
        return super().wait(timeout)


def make_service(runner: FakeRunner | None = None) -> EngineService:
    return EngineService(
        Engine(
            runner or FakeRunner(),
            OutputProcessor(FakeTokenizer(), load_time=0.0),
            context_length=CONTEXT,
            vocab_size=VOCAB_SIZE,
            token_budget=8,
        )
    )


def submit(service: EngineService, prompt=(5, 6), *, processors=(), **options) -> TokenStream:
    config = GenerationConfig(**({"eos_token_id": EOS, "max_new_tokens": 6} | options))
    arrival = Arrival(time.perf_counter(), 0.0)
    request = service.open().prepare(Prompt(prompt, user_processors=processors), config, arrival)
    return service.submit(request, config, arrival)


def read(stream: TokenStream, tokens: list[int]) -> None:
    for chunk in stream:
        tokens += chunk.token_ids


def fail_at(length: int):
    def process(token_ids, logits):
        if len(token_ids) == length:
            raise ZeroDivisionError
        return logits

    return process


def assert_empty(service: EngineService) -> None:
    """After another request, which takes up what was abandoned, nothing is left but of itself."""
    assert submit(service).result().token_ids == tuple(continuation([5, 6], 6))
    assert len(service._mailboxes) == len(service._abandoned) == 1
    engine = service._engine
    assert not engine._scheduler.has_unfinished
    assert not engine._output_processor._unfinished
    assert engine._updated == engine._failed == []


def test_chunks_and_result():
    service = make_service()
    chunks = list(submit(service))
    assert [token for chunk in chunks for token in chunk.token_ids] == continuation([5, 6], 6)
    assert chunks[-1].output.text == "".join(map(str, chunks))
    stream = submit(service)
    first = next(stream)
    assert stream.result().token_ids[:1] == first.token_ids
    with pytest.raises(ClosedError, match="over"):
        stream.result()
    assert_empty(service)


def test_nothing_is_computed_before_a_stream_is_read():
    runner = FakeRunner()
    service = make_service(runner)
    stream = submit(service)
    assert runner.num_starts == 0
    next(stream)
    assert runner.num_starts == 2


def test_samples_of_one_stream():
    service = make_service(FakeRunner(random_script(30)))
    stream = submit(service, do_sample=True, seed=4, num_return_sequences=3)
    tokens: dict[int, tuple[int, ...]] = {}
    for chunk in stream:
        tokens[chunk.index] = tokens.get(chunk.index, ()) + chunk.token_ids
    again = submit(service, do_sample=True, seed=4, num_return_sequences=3).result()
    assert tokens == {n: output.token_ids for n, output in enumerate(again.outputs)}


def test_closing_stops_the_work():
    service = make_service()
    with submit(service) as stream:
        next(stream)
    assert list(stream) == []
    with pytest.raises(ClosedError):
        stream.result()
    assert_empty(service)


def test_abort_gives_what_there_is():
    service = make_service()
    stream = submit(service)
    seen = next(stream).token_ids + next(stream).token_ids
    stream.abort()
    output = stream.result()
    assert output.outputs[0].finish_reason == "abort"
    assert output.token_ids[: len(seen)] == seen
    assert len(output.token_ids) <= len(seen) + 1
    stream.abort()  # of what is over: nothing happens
    assert_empty(service)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"num_return_sequences": 2}])
def test_abort_before_anything_was_read(options):
    if "num_return_sequences" in options:
        options = options | {"do_sample": True}
    service = make_service()
    stream = submit(service, range(30), **options)
    stream.abort()
    output = stream.result()
    assert (output.token_ids, output.outputs[0].finish_reason) == ((), "abort")
    assert_empty(service)


def test_abort_from_another_thread_while_the_device_computes():
    runner = SlowRunner()
    service = make_service(runner)
    stream = submit(service)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(stream.result)
        assert runner.is_held.wait(10)
        started = time.perf_counter()
        stream.abort()
        output = result.result(10)
        assert time.perf_counter() - started < 2  # the device never answers
    assert output.outputs[0].finish_reason == "abort"
    assert runner.num_waits == 0
    runner.may_go_on.set()
    assert_empty(service)


def test_a_deadline_while_the_device_computes():
    runner = SlowRunner()
    service = make_service(runner)
    output = submit(service, max_time=0.01).result()
    assert (output.token_ids, output.outputs[0].finish_reason) == ((), "length")
    runner.may_go_on.set()
    assert_empty(service)


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 2}])
def test_a_failing_processor_does_not_harm_who_is_served_beside_it(strategy):
    service = make_service(FakeRunner(max_running_requests=2))
    wanted = submit(service, **strategy).result().token_ids
    good = submit(service, **strategy)
    next(good)
    failing = submit(service, processors=[fail_at(5)], **strategy)
    with pytest.raises(RequestError, match="ZeroDivisionError"):
        list(failing)  # drives both
    assert list(failing) == []
    assert good.result().token_ids == wanted
    assert_empty(service)


def test_a_failing_processor_does_not_harm_who_drives():
    service = make_service(FakeRunner(max_running_requests=2))
    failing = submit(service, processors=[fail_at(5)])
    got = list(next(failing).token_ids)
    assert submit(service).result().token_ids == tuple(continuation([5, 6], 6))
    with pytest.raises(RequestError, match="ZeroDivisionError"):
        read(failing, got)
    assert got == continuation([5, 6], 3)
    assert_empty(service)


def test_an_error_comes_to_its_own_thread():
    service = make_service(FakeRunner(max_running_requests=4))

    def ask(number: int):
        processors = [fail_at(5)] if number % 3 == 0 else []
        try:
            return submit(service, processors=processors).result().token_ids
        except RequestError as exc:
            return type(exc.__cause__)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(60)))
    tokens = tuple(continuation([5, 6], 6))
    assert answers == [ZeroDivisionError if n % 3 == 0 else tokens for n in range(60)]
    assert_empty(service)


@pytest.mark.parametrize("where", ["start_errors", "wait_errors"])
def test_a_device_error_is_raised_once_and_the_others_go_on(where: str):
    runner = FakeRunner(**{where: {3: DeviceError("lost")}})
    service = make_service(runner)
    good, unlucky = submit(service), submit(service)
    got = list(next(good).token_ids)
    with pytest.raises(DeviceError):
        list(unlucky)
    for chunk in good:
        got += chunk.token_ids
    assert got == continuation([5, 6], 6)
    assert runner.num_resets == 1
    assert_empty(service)


def test_an_output_that_an_interrupt_has_lost_is_told(monkeypatch: pytest.MonkeyPatch):
    service = make_service(FakeRunner(max_running_requests=2))
    lost, driving = submit(service, max_new_tokens=2), submit(service)
    next(lost)
    step = Engine.step

    def interrupted(engine):
        step(engine)  # what it gives comes to nobody
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(driving)
    monkeypatch.undo()
    with pytest.raises(OvgenError, match="another thread was interrupted"):
        next(lost)
    assert_empty(service)


def test_streams_that_are_dropped_leave_nothing():
    service = make_service()
    for _ in range(5):
        stream = submit(service)
        next(stream)
        del stream
    unread = submit(service)
    del unread
    gc.collect()
    assert_empty(service)


def test_closed():
    runner = FakeRunner()
    service = make_service(runner)
    half_read, unread = submit(service), submit(service)
    next(half_read)
    service.close()
    service.close()
    assert runner.is_closed
    for use in (service.open, lambda: next(half_read), lambda: next(unread)):
        with pytest.raises(ClosedError, match="closed"):
            use()


@pytest.mark.parametrize("use", ["submit", "read", "close"])
def test_a_processor_that_uses_its_own_llm_is_told(use: str):
    """Its step would wait for itself."""
    service = make_service(FakeRunner(max_running_requests=2))
    other = submit(service, (7, 8))
    next(other)

    def processor(token_ids, logits):
        if use == "submit":
            submit(service).result()
        elif use == "read":
            other.result()
        else:
            service.close()
        return logits

    with pytest.raises(RequestError, match="must not use the LLM that it serves"):
        submit(service, processors=[processor]).result()
    service.close()

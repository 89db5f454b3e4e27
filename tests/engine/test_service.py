"""One engine thread for many callers: handles, streams, their errors, and how they are stopped."""

from __future__ import annotations

import _thread
import gc
import random
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from fakes import CONTEXT, EOS, VOCAB_SIZE, FakeRunner, FakeTokenizer, continuation, random_script

from ovgen.engine.engine import Engine
from ovgen.engine.handle import GenerationHandle, TokenStream
from ovgen.engine.mailbox import Submission
from ovgen.engine.output_processor import Arrival, OutputProcessor
from ovgen.engine.request_builder import Prompt
from ovgen.engine.service import EngineService
from ovgen.errors import ClosedError, DeviceError, RequestError
from ovgen.generation_config import GenerationConfig

PATIENCE = 20.0  # seconds to what comes at once


class SlowRunner(FakeRunner):
    """Gives logits only where a step is allowed, after the whole slice of a wait otherwise."""

    def __init__(self, num_allowed: int = 0, **options) -> None:
        super().__init__(**options)
        self.is_held = threading.Event()  # a wait has found that it must wait
        self._allowed = threading.Semaphore(num_allowed)
        self._is_free = False

    def wait(self, timeout):
        if not self._is_free and not self._allowed.acquire(blocking=False):
            self.is_held.set()
            if not self._allowed.acquire(timeout=timeout):
                return None
        return super().wait(timeout)

    def allow(self, num_steps: int) -> None:
        self.is_held.clear()
        self._allowed.release(num_steps)

    def let_go(self) -> None:
        self._is_free = True


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


@pytest.fixture
def serve():
    """Makes services, and closes them after the test."""
    services = []

    def make(runner: FakeRunner | None = None) -> EngineService:
        services.append(make_service(runner))
        return services[-1]

    yield make
    for service in services:
        service.close()


def prepare(service: EngineService, prompt=(5, 6), *, processors=(), **options) -> Submission:
    config = GenerationConfig(**({"eos_token_id": EOS, "max_new_tokens": 6} | options))
    arrival = Arrival(time.perf_counter(), 0.0)
    request = service.open().prepare(Prompt(prompt, user_processors=processors), config, arrival)
    return Submission(request, config, arrival)


def submit(service: EngineService, *args, has_stream=False, **options) -> GenerationHandle:
    (handle,) = service.submit([prepare(service, *args, **options)], has_stream=has_stream)
    return handle


def stream(service: EngineService, *args, **options) -> TokenStream:
    return submit(service, *args, has_stream=True, **options).stream()


def read(chunks: TokenStream, tokens: list[int]) -> list[int]:
    for chunk in chunks:
        tokens += chunk.token_ids
    return tokens


def fail_at(length: int, error: type[BaseException] = ZeroDivisionError):
    def process(token_ids, logits):
        if len(token_ids) == length:
            raise error
        return logits

    return process


def eventually(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


def is_empty(service: EngineService) -> bool:
    engine, loop = service._engine, service._loop
    assert engine is not None
    return (
        not loop._mailboxes
        and not engine.has_unfinished
        and not engine._output_processor._unfinished
        and loop.inbox.empty()
    )


def assert_empty(service: EngineService) -> None:
    """It serves another request as ever, and nothing is left."""
    assert submit(service).result().token_ids == tuple(continuation([5, 6], 6))
    eventually(lambda: is_empty(service))


@pytest.fixture
def interrupt_soon():
    """Has a KeyboardInterrupt come in the main thread, by nothing but its flag for signals."""
    timers = []

    def start(seconds: float = 0.1) -> None:
        timers.append(threading.Timer(seconds, _thread.interrupt_main))
        timers[-1].start()

    yield start
    for timer in timers:
        timer.join()


# --- handles and streams


def test_chunks_and_result(serve):
    service = serve()
    chunks = list(stream(service))
    assert [token for chunk in chunks for token in chunk.token_ids] == continuation([5, 6], 6)
    assert chunks[-1].output.text == "".join(map(str, chunks))
    half_read = stream(service)
    first = next(half_read)
    output = half_read.result()
    assert output.token_ids[:1] == first.token_ids
    assert half_read.result() is output  # as often as you like
    assert list(half_read) == []  # the other chunks are passed over
    assert_empty(service)


def test_a_request_is_served_whether_or_not_it_is_read(serve):
    runner = SlowRunner()
    service = serve(runner)
    handle = submit(service)
    assert runner.is_held.wait(PATIENCE)
    assert not handle.done
    runner.let_go()
    eventually(lambda: handle.done)
    assert read(handle.stream(), []) == continuation([5, 6], 6)
    assert list(handle.stream()) == []  # each chunk is given once
    assert handle.result().token_ids == tuple(continuation([5, 6], 6))
    assert_empty(service)


def test_a_handles_stream_may_be_left(serve):
    service = serve()
    handle = submit(service)
    for chunk in handle.stream():
        got = list(chunk.token_ids)
        break
    assert read(handle.stream(), got) == continuation([5, 6], 6)
    assert handle.result().token_ids == tuple(got)


def test_the_thread_begins_with_the_first_request(serve):
    service = serve()
    assert not service._thread.is_alive()
    ids = {submit(service).request_id, submit(service).request_id}
    assert len(ids) == 2
    assert service._thread.is_alive()
    assert service._thread.daemon


def test_a_result_in_time(serve):
    runner = SlowRunner()
    service = serve(runner)
    handle = submit(service)
    for timeout in (0, 0.01):
        with pytest.raises(TimeoutError, match="goes on"):
            handle.result(timeout)
    with ThreadPoolExecutor(1) as pool, pytest.raises(TimeoutError):
        pool.submit(handle.result, 0.01).result()
    assert handle.mailbox.waiters == {}
    runner.let_go()
    assert len(handle.result(PATIENCE).token_ids) == 6


def test_samples_of_one_stream(serve):
    service = serve(FakeRunner(random_script(30)))
    chunks = stream(service, do_sample=True, seed=4, num_return_sequences=3)
    tokens: dict[int, tuple[int, ...]] = {}
    for chunk in chunks:
        tokens[chunk.index] = tokens.get(chunk.index, ()) + chunk.token_ids
    again = submit(service, do_sample=True, seed=4, num_return_sequences=3).result()
    assert tokens == {n: output.token_ids for n, output in enumerate(again.outputs)}


def test_two_readers_of_one_stream_share_its_chunks(serve):
    runner = SlowRunner()
    service = serve(runner)
    chunks = stream(service, max_new_tokens=50)
    with ThreadPoolExecutor(2) as pool:
        parts = [pool.submit(read, chunks, []) for _ in range(2)]
        assert runner.is_held.wait(PATIENCE)
        runner.let_go()
        got = [token for part in parts for token in part.result(PATIENCE)]
    assert sorted(got) == sorted(continuation([5, 6], 50))


def test_who_waits_for_the_output_sleeps_until_the_end(serve):
    runner = SlowRunner()
    service = serve(runner)
    handle = submit(service, has_stream=True)
    calls = []
    handle.mailbox.waiters[-1] = lambda: calls.append(("end", handle.done))
    handle.mailbox.readers[-1] = lambda: calls.append(("chunk", handle.done))
    runner.let_go()
    eventually(lambda: len(calls) == 2)
    assert calls == [("chunk", False), ("end", True)]


def test_chunks_are_made_from_when_somebody_reads(serve):
    service = serve()
    read_from_the_start = submit(service, has_stream=True)
    read_at_the_end = submit(service)
    whole = read_at_the_end.result()
    (chunk,) = read_at_the_end.stream()
    assert (chunk.token_ids, chunk.text, chunk.output) == (whole.token_ids, whole.text, whole)
    assert [len(chunk.token_ids) for chunk in read_from_the_start.stream()] == [1] * 6


def test_text_that_nobody_reads_as_it_comes_is_made_at_the_end(serve):
    service = serve()
    (handle,) = service.submit([prepare(service)])
    assert len(handle.result().token_ids) == 6
    assert [chunk.token_ids for chunk in handle.mailbox.chunks] == [handle.result().token_ids]
    assert len(handle.result().metrics.itl) == 5


def test_a_stream_that_begins_late_has_what_was_before_in_its_first_chunk(serve):
    runner = SlowRunner()
    service = serve(runner)
    (handle,) = service.submit([prepare(service)])
    runner.allow(3)
    eventually(lambda: runner.num_waits >= 3 and runner.is_held.is_set())
    stream = handle.stream()
    runner.let_go()
    chunks = list(stream)
    assert len(chunks[0].token_ids) > 1
    assert "".join(chunk.text for chunk in chunks) == handle.result().text
    assert [i for chunk in chunks for i in chunk.token_ids] == list(handle.result().token_ids)


# --- batches


def request_ids(batch) -> list[int]:
    return [request_id for request_id, _, _ in batch]


def test_what_comes_in_a_step_is_in_the_next_batch(serve):
    runner = SlowRunner(max_running_requests=2)
    service = serve(runner)
    first = submit(service)
    assert runner.is_held.wait(PATIENCE)
    second = submit(service)
    runner.allow(1)
    eventually(lambda: len(runner.batches) == 2)
    assert request_ids(runner.batches[0]) == [first.request_id]
    assert request_ids(runner.batches[1]) == [first.request_id, second.request_id]
    runner.let_go()
    assert first.result().token_ids == second.result().token_ids
    assert_empty(service)


def test_what_is_submitted_together_is_served_together(serve):
    runner = FakeRunner(max_running_requests=3)
    service = serve(runner)
    handles = service.submit([prepare(service) for _ in range(3)])
    for handle in handles:
        assert handle.result().token_ids == tuple(continuation([5, 6], 6))
    assert request_ids(runner.batches[0]) == [handle.request_id for handle in handles]
    assert service.submit([]) == []


def test_nothing_but_close_waits_for_the_device(serve):
    may_start = threading.Event()

    class Stuck(FakeRunner):
        def start(self, batch):
            assert may_start.wait(PATIENCE)  # a call that does not come back, nor lets look up
            super().start(batch)

    service = serve(Stuck())
    first = submit(service)
    time.sleep(0.05)
    began = time.perf_counter()
    others = [submit(service) for _ in range(10)]
    others[0].abort()
    others[1].close()
    next_to_last = others[8].stream()
    next_to_last.close()
    del others[2]
    assert time.perf_counter() - began < 1
    may_start.set()
    assert first.result().token_ids == tuple(continuation([5, 6], 6))
    assert others[0].result().outputs[0].finish_reason == "abort"
    assert_empty(service)


def test_tasks_are_done_between_two_steps(serve):
    runner = SlowRunner()
    service = serve(runner)
    seen = []
    service.call(lambda engine: seen.append(engine is service._engine))
    handle = submit(service)
    assert runner.is_held.wait(PATIENCE)
    assert seen == [True]
    service.call(lambda engine: seen.append([frame.name for frame in traceback.extract_stack()]))
    runner.allow(1)
    eventually(lambda: len(seen) == 2)
    assert "run" in seen[1]
    assert "step" not in seen[1]
    service.call(lambda engine: 1 // 0)
    runner.let_go()
    with pytest.raises(ZeroDivisionError):
        handle.result()
    assert_empty(service)


# --- stopping


def test_closing_stops_the_work(serve):
    runner = SlowRunner(2)
    service = serve(runner)
    with stream(service) as chunks:
        next(chunks)
        assert runner.is_held.wait(PATIENCE)
    assert list(chunks) == []
    with pytest.raises(ClosedError):
        chunks.result()
    eventually(lambda: is_empty(service))
    assert (runner.num_starts, runner.num_resets) == (3, 1)  # not even the step was waited for
    runner.let_go()
    assert_empty(service)


def test_closing_what_another_thread_waits_for(serve):
    runner = SlowRunner()
    service = serve(runner)
    handle = submit(service)
    with ThreadPoolExecutor(2) as pool:
        result, chunks = pool.submit(handle.result), pool.submit(list, handle.stream())
        eventually(lambda: handle.mailbox.waiters and handle.mailbox.readers)
        handle.close()
        with pytest.raises(ClosedError, match="closed"):
            result.result(PATIENCE)
        assert chunks.result(PATIENCE) == []
    runner.let_go()
    assert_empty(service)


def test_abort_gives_what_there_is(serve):
    runner = SlowRunner(2)
    service = serve(runner)
    chunks = stream(service)
    seen = next(chunks).token_ids + next(chunks).token_ids
    chunks.abort()
    output = chunks.result()
    assert output.outputs[0].finish_reason == "abort"
    assert output.token_ids == seen
    chunks.abort()  # of what is over: nothing happens
    runner.let_go()
    assert_empty(service)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"num_return_sequences": 2}])
def test_abort_before_anything_was_computed(serve, options):
    if "num_return_sequences" in options:
        options = options | {"do_sample": True}
    runner = SlowRunner()
    service = serve(runner)
    handle = submit(service, range(30), **options)
    handle.abort()
    output = handle.result()
    assert (output.token_ids, output.outputs[0].finish_reason) == ((), "abort")
    runner.let_go()
    assert_empty(service)


def test_abort_from_another_thread_while_the_device_computes(serve):
    runner = SlowRunner()
    service = serve(runner)
    chunks = stream(service)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(chunks.result)
        assert runner.is_held.wait(PATIENCE)
        started = time.perf_counter()
        chunks.abort()
        output = result.result(PATIENCE)
        assert time.perf_counter() - started < 2  # the device never answers
    assert output.outputs[0].finish_reason == "abort"
    assert runner.num_waits == 0
    runner.let_go()
    assert_empty(service)


def test_a_deadline_while_the_device_computes(serve):
    runner = SlowRunner()
    service = serve(runner)
    output = submit(service, max_time=0.01).result()
    assert (output.token_ids, output.outputs[0].finish_reason) == ((), "length")
    runner.let_go()
    assert_empty(service)


def test_what_is_dropped_leaves_nothing(serve):
    runner = SlowRunner()
    service = serve(runner)
    for _ in range(5):
        runner.allow(1)
        chunks = stream(service)
        next(chunks)
        del chunks
        eventually(lambda: is_empty(service))
    unread = stream(service)
    del unread
    submit(service)
    handles = [submit(service)]
    thread = threading.Thread(target=handles.clear)
    thread.start()
    thread.join()
    eventually(lambda: is_empty(service))
    assert runner.num_waits == 5
    runner.let_go()
    assert_empty(service)


def test_what_is_dropped_in_the_garbage_collector_leaves_nothing(serve):
    runner = SlowRunner()
    service = serve(runner)
    cycle = [submit(service)]
    cycle.append(cycle)
    del cycle
    assert runner.is_held.wait(PATIENCE)
    gc.collect()
    eventually(lambda: is_empty(service))
    runner.let_go()
    assert_empty(service)


# --- interrupts


def test_an_interrupt_of_a_result(serve, interrupt_soon):
    runner = SlowRunner(2, max_running_requests=2)
    service = serve(runner)
    handle, other = submit(service), stream(service)
    interrupt_soon()
    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        handle.result()
    assert time.perf_counter() - began < 2
    output = handle.result()  # it was aborted, and nothing of it is lost
    assert output.outputs[0].finish_reason == "abort"
    assert list(output.token_ids) == continuation([5, 6], 2)
    runner.let_go()
    assert read(other, []) == continuation([5, 6], 6)
    assert_empty(service)


def test_an_interrupt_of_a_stream(serve, interrupt_soon):
    runner = SlowRunner(2, max_running_requests=2)
    service = serve(runner)
    chunks, other = stream(service), stream(service)
    got: list[int] = []
    interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        read(chunks, got)
    assert got == continuation([5, 6], 2)
    (last,) = chunks
    assert list(last.output.token_ids) == got
    assert last.output.outputs[0].finish_reason == "abort"
    runner.let_go()
    assert read(other, []) == continuation([5, 6], 6)
    assert_empty(service)


def test_an_interrupt_of_close(serve, interrupt_soon):
    may_end = threading.Event()

    class Stuck(FakeRunner):
        def close(self):
            may_end.wait(PATIENCE)
            super().close()

    runner = Stuck()
    service = serve(runner)
    submit(service).result()
    interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        service.close()
    with pytest.raises(ClosedError):
        service.open()
    may_end.set()
    service.close()
    assert runner.is_closed


@pytest.mark.parametrize("what", ["result", "next"])
def test_an_interrupt_anywhere_in_a_wait_holds_nobody_up(serve, what: str):
    """At each line of the waiting thread in turn: the engine goes on, and the output comes."""
    service = serve()

    def interrupt_at(number: int):
        lines = 0

        def trace(frame, event, _):
            nonlocal lines
            if not frame.f_code.co_filename.endswith(("handle.py", "mailbox.py")):
                return None
            if event == "line":
                lines += 1
                if lines == number:
                    raise KeyboardInterrupt
            return trace

        return trace

    for number in range(1, 60):
        handle = submit(service, max_new_tokens=40)
        before = sys.gettrace()
        sys.settrace(interrupt_at(number))
        try:
            if what == "result":
                handle.result()
            else:
                next(handle.stream())
        except KeyboardInterrupt:
            sys.settrace(before)
            output = handle.result(PATIENCE)
            assert list(output.token_ids) == continuation([5, 6], 40)[: len(output.token_ids)]
        else:
            break
        finally:
            sys.settrace(before)
    assert number > 5
    assert_empty(service)


# --- errors


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 2}])
def test_a_failing_processor_does_not_harm_who_is_served_beside_it(serve, strategy):
    runner = SlowRunner(100, max_running_requests=2)
    service = serve(runner)
    wanted = submit(service, **strategy).result().token_ids
    good, failing = service.submit(
        [prepare(service, **strategy), prepare(service, processors=[fail_at(5)], **strategy)]
    )
    chunks = failing.stream()
    with pytest.raises(RequestError, match="ZeroDivisionError"):
        list(chunks)
    assert list(chunks) == []
    assert good.result().token_ids == wanted
    runner.let_go()
    assert_empty(service)


def test_an_error_comes_after_the_chunks_before_it_and_stays(serve):
    service = serve(FakeRunner(max_running_requests=2))
    handle = submit(service, processors=[fail_at(5)], has_stream=True)
    got: list[int] = []
    with pytest.raises(RequestError, match="ZeroDivisionError"):
        read(handle.stream(), got)
    assert got == continuation([5, 6], 3)
    errors = []
    for _ in range(2):
        with pytest.raises(RequestError) as caught:
            handle.result()
        errors.append(caught.value)
    # Each is one of its own: raised in two threads, they would have one traceback.
    assert errors[0] is not errors[1]
    assert [type(error.__cause__) for error in errors] == [ZeroDivisionError] * 2
    assert_empty(service)


def test_an_error_does_not_keep_its_handle(serve):
    service = serve()
    handle = submit(service, processors=[fail_at(3)])
    with suppress(RequestError):
        handle.result()
    gone = weakref.ref(handle)
    gc.disable()
    try:
        del handle
        assert gone() is None
    finally:
        gc.enable()


def test_an_error_comes_to_its_own_thread(serve):
    service = serve(FakeRunner(max_running_requests=4))

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


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_processor_that_raises_what_is_no_exception(serve, error: type[BaseException]):
    service = serve()
    with pytest.raises(error):
        submit(service, processors=[fail_at(4, error)]).result()
    assert_empty(service)


@pytest.mark.parametrize("where", ["start_errors", "wait_errors"])
def test_a_device_error_comes_to_those_in_the_batch(serve, where: str):
    runner = SlowRunner(max_running_requests=2, **{where: {3: DeviceError("lost")}})
    service = serve(runner)
    *unlucky, good = service.submit([prepare(service) for _ in range(3)])
    streams = [handle.stream() for handle in unlucky]
    runner.let_go()
    for stream in streams:
        got: list[int] = []
        with pytest.raises(DeviceError, match="lost"):
            read(stream, got)
        assert got == continuation([5, 6], len(got))
        assert len(got) >= 2
    assert read(good.stream(), []) == continuation([5, 6], 6)
    assert runner.num_resets == 1
    assert_empty(service)


def test_a_device_that_stays_broken(serve):
    class Broken(FakeRunner):
        is_broken = True

        def start(self, batch):
            if self.is_broken:
                raise DeviceError("lost")
            super().start(batch)

        def reset(self):
            if self.is_broken:
                raise DeviceError("and not to be reset")
            super().reset()

    runner = Broken()
    service = serve(runner)
    for handle in service.submit([prepare(service) for _ in range(3)]):
        with pytest.raises(DeviceError, match="lost"):
            handle.result(PATIENCE)
    runner.is_broken = False
    assert_empty(service)


def test_a_text_that_cannot_be_made_ends_its_request(serve, monkeypatch: pytest.MonkeyPatch):
    service = serve()
    with monkeypatch.context() as patch:
        patch.setattr(FakeTokenizer, "decode", lambda *args, **options: 1 // 0)
        for handle in service.submit([prepare(service) for _ in range(3)]):
            with pytest.raises(ZeroDivisionError):
                handle.result(PATIENCE)
    assert_empty(service)


def test_a_request_that_cannot_be_added(serve, monkeypatch: pytest.MonkeyPatch):
    runner = SlowRunner()
    service = serve(runner)
    other = submit(service)
    assert runner.is_held.wait(PATIENCE)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "add_request", lambda *args: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            submit(service).result()
    runner.let_go()
    assert other.result().token_ids == tuple(continuation([5, 6], 6))
    assert_empty(service)


@pytest.mark.parametrize("use", ["submit", "read", "result", "close"])
def test_a_processor_that_uses_its_own_llm_is_told(serve, use: str):
    """Its step would wait for itself."""
    service = serve(FakeRunner(max_running_requests=2))
    other = submit(service, (7, 8))

    def processor(token_ids, logits):
        if use == "submit":
            submit(service)
        elif use == "read":
            next(other.stream())
        elif use == "result":
            other.result()
        else:
            service.close()
        return logits

    with pytest.raises(RequestError, match="must not use the LLM that it serves"):
        submit(service, processors=[processor]).result()
    other.result()
    assert_empty(service)


# --- the end


def test_closed():
    runner = SlowRunner(2)
    service = make_service(runner)
    half_read, unread, waiting = stream(service), stream(service), submit(service)
    done = submit(service, max_time=0.0001)
    tokens = list(next(half_read).token_ids)
    eventually(lambda: done.done)
    prepared = prepare(service)
    service.close()
    service.close()
    assert runner.is_closed
    assert not service._thread.is_alive()
    for use in (
        service.open,
        lambda: service.submit([prepared]),
        lambda: read(half_read, tokens),
        lambda: next(unread),
        waiting.result,
    ):
        with pytest.raises(ClosedError, match="closed"):
            use()
    assert tokens == continuation([5, 6], 2)  # those that were there came first
    assert list(half_read) == []
    assert done.result().token_ids == ()
    waiting.close()
    waiting.abort()


def test_closed_before_anything_was_asked():
    runner = FakeRunner()
    service = make_service(runner)
    service.close()
    assert runner.is_closed
    service.close()
    with pytest.raises(ClosedError):
        service.open()


def test_a_later_thread_is_not_taken_for_the_engines():
    """A thread's ident is free again when it has ended."""
    service = make_service()
    submit(service).result()
    service.close()
    for _ in range(20):
        thread = threading.Thread(target=service.close)
        thread.start()
        if thread.ident == service._thread.ident:
            break
        thread.join()
    thread.join()  # an error in it would fail the test


def test_close_does_not_wait_for_a_device_that_never_answers():
    runner = SlowRunner()
    service = make_service(runner)
    handle = submit(service)
    assert runner.is_held.wait(PATIENCE)
    service.close()
    assert (runner.num_starts, runner.num_waits) == (1, 0)
    with pytest.raises(ClosedError):
        handle.result()


def test_close_begins_no_further_step():
    class Closing(FakeRunner):
        def wait(self, timeout):
            closing.start()
            eventually(lambda: not service._loop.inbox.empty())
            return super().wait(timeout)

    runner = Closing()
    service = make_service(runner)
    closing = threading.Thread(target=service.close)
    handle = submit(service)
    with pytest.raises(ClosedError):
        handle.result()
    closing.join()
    assert runner.num_starts == 1


def test_close_from_many_threads():
    runner = FakeRunner(max_running_requests=4)
    service = make_service(runner)

    def ask(number: int) -> int:
        count = 0
        with suppress(ClosedError):
            while True:
                handle = submit(service, (number + 1,))
                assert handle.result(PATIENCE).token_ids == tuple(continuation([number + 1], 6))
                count += 1
        return count

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, number) for number in range(4)]
        time.sleep(0.05)
        closing = [pool.submit(service.close) for _ in range(4)]
        for future in closing:
            future.result(PATIENCE)
            assert runner.is_closed
        assert sum(future.result(PATIENCE) for future in asking) > 0


@pytest.mark.parametrize("state", ["unused", "idle", "busy"])
def test_a_service_without_references_goes(state: str):
    runner = SlowRunner()
    service = make_service(runner)
    thread, gone = service._thread, weakref.ref(service)
    engine = weakref.ref(service._engine)
    if state == "idle":
        runner.let_go()
        submit(service).result()
    elif state == "busy":
        handle = submit(service)
        assert runner.is_held.wait(PATIENCE)
        del handle
    gc.disable()
    try:
        del service
        assert gone() is None
        if state != "unused":
            thread.join(PATIENCE)
            assert runner.is_closed
        assert not thread.is_alive()
        del thread
        assert engine() is None
    finally:
        gc.enable()


def test_a_handle_keeps_its_service():
    runner = SlowRunner()
    service = make_service(runner)
    handle, thread = submit(service), service._thread
    del service
    gc.collect()
    runner.let_go()
    assert handle.result().token_ids == tuple(continuation([5, 6], 6))
    del handle
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_nothing_of_a_request_is_kept_while_the_engine_rests(serve):
    service = serve()
    handle = submit(service)
    handle.result()
    gone = [weakref.ref(handle), weakref.ref(handle.mailbox)]
    del handle
    eventually(lambda: all(reference() is None for reference in gone))


# --- everything at once


def test_many_threads_do_as_they_like(serve):
    service = serve(FakeRunner(max_running_requests=5))
    wanted = {first: continuation([first], 30) for first in range(1, 9)}

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(25):
            first = rng.randrange(1, 9)
            handle = submit(service, (first,), max_new_tokens=30)
            way = rng.randrange(6)
            if way == 0:
                assert list(handle.result(PATIENCE).token_ids) == wanted[first]
            elif way == 1:
                assert read(handle.stream(), []) == wanted[first]
            elif way == 2:
                got = [*next(handle.stream()).token_ids]
                handle.abort()
                got = read(handle.stream(), got)
                assert got == wanted[first][: len(got)]
                assert list(handle.result(PATIENCE).token_ids) == got
            elif way == 3:
                handle.close()
            elif way == 4:
                next(handle.stream())
            del handle

    with ThreadPoolExecutor(12) as pool:
        for future in [pool.submit(work, seed) for seed in range(12)]:
            future.result(60)
    assert_empty(service)

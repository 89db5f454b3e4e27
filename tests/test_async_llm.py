"""The LLM for asyncio: tasks, generators, cancellation, and any number of event loops."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import shutil
import threading
import time
from collections.abc import AsyncGenerator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ovgen import (
    LLM,
    AsyncLLM,
    ClosedError,
    ConfigError,
    DeviceError,
    GenerationConfig,
    ModelNotFoundError,
    RequestError,
    TemplateError,
)
from ovgen.async_handle import EventLoops

LLAMA = Path(__file__).parent / "fixtures" / "tiny" / "llama"
RECORD = json.loads((Path(__file__).parent / "data" / "tiny_models.json").read_text())["llama"]
PROMPTS, TOKENS = RECORD["prompts"], RECORD["tokens"]
PATIENCE = 20.0


@pytest.fixture(scope="module", params=["stateful", "paged"])
def shared(request: pytest.FixtureRequest) -> AsyncLLM:
    return AsyncLLM(LLAMA, precision="exact", attention_backend=request.param)


@pytest.fixture
def llm(shared: AsyncLLM):
    """One for all the tests that leave it as it was, which is checked here."""
    yield shared
    output = shared.llm.generate(PROMPTS[0], max_new_tokens=24)
    assert list(output.token_ids) == TOKENS[0]
    end = time.monotonic() + PATIENCE
    while not is_empty(shared):
        assert time.monotonic() < end, "something is left"
        time.sleep(0.001)


def is_empty(llm: AsyncLLM) -> bool:
    engine, loop = llm.llm._service._engine, llm.llm._service._loop
    return not loop._mailboxes and loop.inbox.empty() and not engine.has_unfinished


async def stopped(llm: AsyncLLM, began: float) -> None:
    """Wait for the work to end, which would take 2 s by itself."""
    while not is_empty(llm):
        await asyncio.sleep(0.001)
    assert time.perf_counter() - began < 1.5


def slow(token_ids, logits):
    time.sleep(0.01)
    return logits


SLOW = {"max_new_tokens": 200, "logits_processors": [slow]}


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, PATIENCE))


async def read(chunks: AsyncGenerator) -> list[int]:
    return [token_id async for chunk in chunks for token_id in chunk.token_ids]


# --- what comes


def test_generate(llm: AsyncLLM):
    output = run(llm.generate(PROMPTS[0], GenerationConfig(max_new_tokens=24), temperature=1.0))
    assert list(output.token_ids) == TOKENS[0]
    assert output.text == llm.llm.tokenizer.decode(output.token_ids)


def test_many_at_once_without_a_thread_for_each(llm: AsyncLLM):
    before = threading.active_count()

    async def main() -> None:
        tasks = [
            asyncio.create_task(llm.generate(PROMPTS[n % 3], max_new_tokens=24)) for n in range(30)
        ]
        streams = [
            asyncio.create_task(read(llm.stream(PROMPTS[n % 3], max_new_tokens=24)))
            for n in range(30)
        ]
        await asyncio.sleep(0.01)
        assert threading.active_count() <= before + 1  # the engine's, if this is the first request
        for n, (task, stream) in enumerate(zip(tasks, streams, strict=True)):
            assert list((await task).token_ids) == await stream == TOKENS[n % 3]

    run(main())


def test_stream(llm: AsyncLLM):
    async def main() -> list:
        return [chunk async for chunk in llm.stream("the harbour", max_new_tokens=9)]

    chunks = run(main())
    whole = chunks[-1].output
    assert all(chunk.output is None for chunk in chunks[:-1])
    assert "".join(map(str, chunks)) == whole.text
    assert whole.token_ids == llm.llm.generate("the harbour", max_new_tokens=9).token_ids


def test_submit(llm: AsyncLLM):
    async def main() -> None:
        handle = await llm.submit(PROMPTS[0], max_new_tokens=24)
        other = await llm.submit(PROMPTS[1], max_new_tokens=24)
        assert handle.request_id != other.request_id
        while not handle.done:  # though nobody awaits it
            await asyncio.sleep(0.001)
        assert await read(handle.stream()) == TOKENS[0]
        assert await read(handle.stream()) == []  # each chunk is given once
        assert list((await handle.result()).token_ids) == TOKENS[0]
        assert await handle.result() is await handle.result()
        async for chunk in other.stream():
            got = list(chunk.token_ids)
            break  # which leaves the request alone
        assert got + await read(other.stream()) == TOKENS[1]

    run(main())


def test_abort_and_close(llm: AsyncLLM):
    async def main() -> None:
        handle = await llm.submit(PROMPTS[0], **SLOW)
        first = await anext(handle.stream())
        began = time.perf_counter()
        handle.abort()
        output = await handle.result()
        assert output.outputs[0].finish_reason == "abort"
        assert output.token_ids[: len(first.token_ids)] == first.token_ids
        closed = await llm.submit(PROMPTS[0], **SLOW)
        waiting = asyncio.create_task(closed.result())
        await asyncio.sleep(0.02)
        closed.close()
        with pytest.raises(ClosedError, match="closed"):
            await waiting
        assert [chunk async for chunk in closed.stream()] == []
        await stopped(llm, began)

    run(main())


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "llama"
    shutil.copytree(LLAMA, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{{ mark }}{% endfor %}"
        "{% if tools %}[{{ tools | length }}]{% endif %}"
        "{% if add_generation_prompt %}me: {% endif %}"
    )
    return folder


def test_chat(chat_folder: Path):
    messages = [{"role": "user", "content": "the sea"}]
    options = {"tools": [{"name": "f"}], "template_args": {"mark": "!"}, "max_new_tokens": 4}

    async def main() -> None:
        async with await AsyncLLM.load(chat_folder) as llm:
            output = await llm.chat(messages, **options)
            assert output.prompt_token_ids == tuple(
                llm.llm.tokenizer.encode("the sea![1]me: ", add_special_tokens=False)
            )
            chunks = [chunk async for chunk in llm.stream_chat(messages, **options)]
            assert chunks[-1].output.token_ids == output.token_ids
            shorter = await llm.chat(messages, add_generation_prompt=False, max_new_tokens=1)
            assert len(shorter.prompt_token_ids) < len(output.prompt_token_ids)

    run(main())


def test_a_chat_without_a_template(llm: AsyncLLM):
    messages = [{"role": "user", "content": "hello"}]
    with pytest.raises(TemplateError, match="no chat template"):
        run(llm.chat(messages))
    with pytest.raises(TemplateError, match="no chat template"):
        run(read(llm.stream_chat(messages)))


# --- what is stopped


@pytest.mark.parametrize("way", ["generate", "stream", "handle", "handle's stream"])
def test_cancellation_stops_the_work(llm: AsyncLLM, way: str):
    async def ask() -> None:
        if way == "generate":
            await llm.generate(PROMPTS[0], **SLOW)
        elif way == "stream":
            await read(llm.stream(PROMPTS[0], **SLOW))
        else:
            handle = await llm.submit(PROMPTS[0], **SLOW)
            kept.append(handle)
            await (handle.result() if way == "handle" else read(handle.stream()))

    async def main() -> None:
        began = time.perf_counter()
        task = asyncio.create_task(ask())
        other = asyncio.create_task(llm.generate(PROMPTS[1], max_new_tokens=24))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert list((await other).token_ids) == TOKENS[1]
        await stopped(llm, began)
        for handle in kept:  # aborted, and what there is can still be asked for
            output = await handle.result()
            assert output.outputs[0].finish_reason == "abort"
            assert list(output.token_ids) == TOKENS[0][: len(output.token_ids)]

    kept: list = []
    run(main())


def test_a_shielded_result_goes_on(llm: AsyncLLM):
    async def main() -> None:
        handle = await llm.submit(PROMPTS[0], max_new_tokens=24, logits_processors=[slow])
        result = asyncio.create_task(handle.result())
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(result), 0.03)
        assert list((await result).token_ids) == TOKENS[0]

    run(main())


@pytest.mark.parametrize("way", ["break", "aclose", "aclosing", "timeout", "drop"])
def test_leaving_a_stream_stops_the_work(llm: AsyncLLM, way: str):
    async def main() -> None:
        began = time.perf_counter()
        chunks = llm.stream(PROMPTS[0], **SLOW)
        if way == "break":
            async for _ in llm.stream(PROMPTS[0], **SLOW):
                break
        elif way == "aclose":
            await anext(chunks)
            await chunks.aclose()
            assert await read(chunks) == []
        elif way == "aclosing":
            async with aclosing(chunks):
                await anext(chunks)
        elif way == "timeout":
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(read(chunks), 0.05)
        else:
            await anext(chunks)
            del chunks
        await stopped(llm, began)

    run(main())


def test_what_is_dropped_stops(llm: AsyncLLM):
    async def main() -> None:
        began = time.perf_counter()
        await llm.submit(PROMPTS[0], **SLOW)
        llm.stream(PROMPTS[0], **SLOW)  # which has not even begun
        gc.collect()
        await stopped(llm, began)

    run(main())


def test_the_end_of_a_loop_stops_its_work(llm: AsyncLLM):
    async def main() -> None:
        tasks.append(asyncio.create_task(llm.generate(PROMPTS[0], **SLOW)))
        await asyncio.sleep(0.03)

    tasks: list[asyncio.Task] = []
    began = time.perf_counter()
    run(main())
    assert tasks[0].cancelled()
    run(stopped(llm, began))


def test_a_loop_that_is_closed_over_what_it_waits_for(llm: AsyncLLM):
    """The engine has nobody to wake then, and goes on."""
    loop = asyncio.new_event_loop()
    handle = loop.run_until_complete(llm.submit(PROMPTS[0], max_new_tokens=40))
    errors: list[dict] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    task = loop.create_task(handle.result())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    while not handle.done:
        time.sleep(0.001)
    assert run(handle.result()).token_ids[:24] == tuple(TOKENS[0])
    assert not task.done()
    del task, loop
    gc.collect()
    assert all("destroyed" in context["message"] for context in errors)


# --- event loops


def test_an_event_loop_goes_on_meanwhile(llm: AsyncLLM):
    async def main() -> None:
        options = {"max_new_tokens": 20, "logits_processors": [slow]}
        task = asyncio.create_task(llm.generate(PROMPTS[0], **options))
        ticks = 0
        while not task.done():
            await asyncio.sleep(0.005)
            ticks += 1
        assert ticks > 5
        assert list((await task).token_ids) == TOKENS[0][:20]

    run(main())


def test_several_event_loops(llm: AsyncLLM):
    def ask(number: int) -> list[list[int]]:
        async def main() -> list[list[int]]:
            return await asyncio.gather(
                *(read(llm.stream(PROMPTS[number % 3], max_new_tokens=24)) for _ in range(4))
            )

        return run(main())

    with ThreadPoolExecutor(4) as pool:
        for number, answers in enumerate(pool.map(ask, range(12))):
            assert answers == [TOKENS[number % 3]] * 4
    assert ask(1) == [TOKENS[1]] * 4
    assert len(llm._loops._known) == 1  # the last one: those that are closed are forgotten


def test_a_handle_in_another_event_loop(llm: AsyncLLM):
    handle = run(llm.submit(PROMPTS[0], max_new_tokens=24))
    assert run(read(handle.stream())) == TOKENS[0]
    assert list(run(handle.result()).token_ids) == TOKENS[0]


def test_one_call_wakes_all_who_wait_in_a_loop():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        calls = []
        original = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args: calls.append(original(*args))
        loops = EventLoops()
        for _ in range(2):
            futures = [loop.create_future() for _ in range(64)]
            futures[7].cancel()
            for future in futures:
                loops.of(loop).wake(future)
            await asyncio.wait(futures)
        assert len(calls) == 2

    run(main())


@pytest.mark.parametrize(
    ("prompt", "is_elsewhere"), [("sea", False), ([5] * 9, False), ("harbour " * 900, True)]
)
def test_long_prompts_are_encoded_outside_the_event_loop(
    llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch, prompt: object, is_elsewhere: bool
):
    threads = []
    encode = llm.llm._prompts.encode

    def recorded(*args, **options):
        threads.append(threading.current_thread())
        return encode(*args, **options)

    monkeypatch.setattr(llm.llm._prompts, "encode", recorded)
    if is_elsewhere:
        with pytest.raises(RequestError, match="context"):
            run(llm.generate(prompt, max_new_tokens=1))
    else:
        run(llm.generate(prompt, max_new_tokens=1))
    assert [thread is not threading.main_thread() for thread in threads] == [is_elsewhere]


# --- errors


@pytest.mark.parametrize("prompt", ["", [], [4, 320], ["one", "two"], None, 5])
def test_prompts_that_cannot_be_served(llm: AsyncLLM, prompt: object):
    for ask in (llm.generate, llm.submit, lambda prompt: read(llm.stream(prompt))):
        with pytest.raises(RequestError):
            run(ask(prompt))


def test_wrong_options_are_told_by_the_call_itself(llm: AsyncLLM):
    with pytest.raises(ConfigError, match="max_new_token"):
        llm.stream("harbour", max_new_token=1)
    with pytest.raises(ConfigError, match="max_new_token"):
        llm.stream_chat([], max_new_token=1)
    for ask in (llm.generate, llm.submit, llm.chat):
        with pytest.raises(ConfigError, match="max_new_token"):
            run(ask("harbour", max_new_token=1))


def test_an_error_of_one_request_is_its_own(llm: AsyncLLM):
    def fail(token_ids, logits):
        if len(token_ids) == len(PROMPTS[0]) + 2:
            raise ZeroDivisionError
        return logits

    async def main() -> None:
        async def get() -> None:
            async for chunk in llm.stream(PROMPTS[0], logits_processors=[fail]):
                got.extend(chunk.token_ids)

        got: list[int] = []
        failing = [
            asyncio.create_task(llm.generate(PROMPTS[0], logits_processors=[fail])),
            asyncio.create_task(get()),
        ]
        assert list((await llm.generate(PROMPTS[1], max_new_tokens=24)).token_ids) == TOKENS[1]
        for task in failing:
            with pytest.raises(RequestError, match="ZeroDivisionError"):
                await task
        assert got == TOKENS[0][:2]

    run(main())


# --- loading and closing


def test_it_takes_the_arguments_of_the_llm():
    wanted = list(inspect.signature(LLM).parameters.values())
    assert list(inspect.signature(AsyncLLM).parameters.values()) == wanted
    assert list(inspect.signature(AsyncLLM.load).parameters.values()) == wanted
    with pytest.raises(ModelNotFoundError):
        AsyncLLM("/no/such/folder")
    with pytest.raises(ConfigError, match="precision"):
        run(AsyncLLM.load(LLAMA, precision="fast"))


def test_an_event_loop_goes_on_while_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch):
    may_load = threading.Event()

    def held(self, *args, **options) -> None:
        assert may_load.wait(PATIENCE)
        raise DeviceError("none")

    async def main() -> None:
        loading = asyncio.create_task(AsyncLLM.load(LLAMA))
        await asyncio.sleep(0.01)
        may_load.set()
        with pytest.raises(DeviceError, match="none"):
            await loading

    monkeypatch.setattr(LLM, "__init__", held)
    run(main())


def test_closed():
    async def main() -> None:
        async with await AsyncLLM.load(LLAMA) as llm:
            handle = await llm.submit(PROMPTS[0], **SLOW)
            waiting = asyncio.create_task(handle.result())
            reading = asyncio.create_task(read(handle.stream()))
            await asyncio.sleep(0.03)
        assert not llm.llm._service._thread.is_alive()
        await llm.aclose()
        for use in (waiting, reading, llm.generate(PROMPTS[0]), read(llm.stream(PROMPTS[0]))):
            with pytest.raises(ClosedError, match="closed"):
                await use

    run(main())


def test_a_logits_processor_that_uses_the_llm_is_told(llm: AsyncLLM):
    def use(token_ids, logits):
        run(llm.generate(PROMPTS[1], max_new_tokens=1))
        return logits

    with pytest.raises(RequestError, match="must not use the LLM"):
        run(partial(llm.generate, PROMPTS[0], logits_processors=[use])())

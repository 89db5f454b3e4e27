"""The LLM over a tiny model: prompts, streams, threads, interrupts, closing."""

from __future__ import annotations

import _thread
import gc
import json
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ovgen import (
    LLM,
    ClosedError,
    ConfigError,
    DeviceError,
    GenerationConfig,
    GenerationHandle,
    ModelFormatError,
    ModelNotFoundError,
    QueueFullError,
    RequestError,
    TemplateError,
)

LLAMA = Path(__file__).parent / "fixtures" / "tiny" / "llama"
QWEN2 = LLAMA.parent / "qwen2"
RECORD = json.loads((Path(__file__).parent / "data" / "tiny_models.json").read_text())["llama"]
PROMPT = RECORD["prompts"][0]
TOKENS = RECORD["tokens"][0]


@pytest.fixture(scope="module", params=["stateful", "paged"])
def shared(request: pytest.FixtureRequest) -> LLM:
    return LLM(LLAMA, precision="exact", attention_backend=request.param)


@pytest.fixture
def llm(shared: LLM):
    """One LLM for all the tests that leave it as it was, which is checked here."""
    yield shared
    assert list(shared.generate(PROMPT, max_new_tokens=24).token_ids) == TOKENS
    eventually(lambda: is_empty(shared))


def eventually(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


def is_empty(llm: LLM) -> bool:
    """Whether nothing is left of any request."""
    engine, loop = llm._service._engine, llm._service._loop
    return (
        not loop._mailboxes
        and loop.inbox.empty()
        and not engine.has_unfinished
        and not engine._output_processor._unfinished
    )


def slow(token_ids, logits):
    """A logits processor that makes a request take as long as anybody needs to stop it."""
    time.sleep(0.01)
    return logits


@pytest.fixture
def num_starts(monkeypatch: pytest.MonkeyPatch):
    """Counts the steps that are begun on the device."""
    starts = []
    start = ov.InferRequest.start_async

    def counted(*args, **kwargs):
        starts.append(1)
        return start(*args, **kwargs)

    monkeypatch.setattr(ov.InferRequest, "start_async", counted)
    return lambda: len(starts)


def test_token_ids(llm: LLM):
    output = llm.generate(PROMPT, max_new_tokens=24)
    assert list(output.token_ids) == TOKENS
    assert list(output.prompt_token_ids) == PROMPT
    assert output.outputs[0].finish_reason == "length"


def test_text(llm: LLM):
    output = llm.generate("The harbour", max_new_tokens=10)
    assert list(output.prompt_token_ids) == llm.tokenizer.encode("The harbour")
    assert output.text == llm.tokenizer.decode(output.token_ids)
    assert output.token_ids == llm.generate(output.prompt_token_ids, max_new_tokens=10).token_ids


@pytest.mark.parametrize(
    "prompt", [tuple(PROMPT), list(np.array(PROMPT)), list(np.array(PROMPT, np.int32)), range(4, 9)]
)
def test_forms_of_token_ids(llm: LLM, prompt):
    output = llm.generate(prompt, max_new_tokens=1)
    assert output.prompt_token_ids == tuple(int(token) for token in prompt)
    assert all(type(token) is int for token in output.prompt_token_ids)


def test_a_list_of_prompts(llm: LLM):
    outputs = llm.generate([*RECORD["prompts"], "harbour"], max_new_tokens=24)
    assert [list(output.token_ids) for output in outputs[:-1]] == RECORD["tokens"]
    assert outputs[-1].token_ids == llm.generate("harbour", max_new_tokens=24).token_ids


def test_a_list_of_one_prompt_gives_a_list(llm: LLM):
    assert len(llm.generate([PROMPT], max_new_tokens=2)) == 1
    assert len(llm.generate(["harbour"], max_new_tokens=2)) == 1


def test_config_and_options(llm: LLM):
    config = GenerationConfig(max_new_tokens=3)
    assert list(llm.generate(PROMPT, config).token_ids) == TOKENS[:3]
    assert list(llm.generate(PROMPT, config, max_new_tokens=5).token_ids) == TOKENS[:5]
    assert config.max_new_tokens == 3


def test_eos_of_the_model_and_of_the_request(llm: LLM, tmp_path: Path):
    assert llm.generation_config.eos_ids == (2,)
    output = llm.generate(PROMPT, max_new_tokens=24, eos_token_id=[TOKENS[7], TOKENS[5]])
    assert list(output.token_ids) == TOKENS[:6]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", TOKENS[5])
    folder = shutil.copytree(LLAMA, tmp_path / "llama")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, TOKENS[3]]}))
    with LLM(folder, precision="exact") as other:
        assert list(other.generate(PROMPT, max_new_tokens=24).token_ids) == TOKENS[:4]
        ignoring = other.generate(PROMPT, max_new_tokens=24, ignore_eos=True)
        assert list(ignoring.token_ids) == TOKENS


def test_stop_strings_over_a_real_tokenizer(llm: LLM):
    text = llm.generate(PROMPT, max_new_tokens=24).text
    stop = text[4:6]
    output = llm.generate(PROMPT, max_new_tokens=24, stop_strings=stop)
    assert output.text == text[: text.index(stop)]
    assert output.outputs[0].stop_reason == stop
    assert list(output.token_ids) == TOKENS[: len(output.token_ids)]
    assert stop in llm.tokenizer.decode(output.token_ids)
    assert stop not in llm.tokenizer.decode(output.token_ids[:-1])


def test_stream(llm: LLM):
    chunks = list(llm.stream(PROMPT, max_new_tokens=24))
    assert [token_id for chunk in chunks for token_id in chunk.token_ids] == TOKENS
    whole = chunks[-1].output
    assert whole is not None
    assert "".join(map(str, chunks)) == whole.text == llm.generate(PROMPT, max_new_tokens=24).text
    assert all(chunk.output is None for chunk in chunks[:-1])


def test_closing_a_stream_stops_the_work(llm: LLM, num_starts):
    stream = llm.stream(PROMPT, max_new_tokens=200, logits_processors=[slow])
    next(stream)
    stream.close()
    eventually(lambda: is_empty(llm))
    before = num_starts()
    assert before < 100
    assert list(llm.generate(PROMPT, max_new_tokens=3).token_ids) == TOKENS[:3]
    assert num_starts() == before + 3
    assert list(stream) == []


def test_breaking_out_of_a_stream_stops_the_work(llm: LLM, num_starts):
    for _ in llm.stream(PROMPT, max_new_tokens=200, logits_processors=[slow]):
        break
    eventually(lambda: is_empty(llm))
    assert num_starts() < 100


def test_submit(llm: LLM, num_starts):
    handles = [llm.submit(prompt, max_new_tokens=24) for prompt in RECORD["prompts"]]
    assert [list(handle.result().token_ids) for handle in handles] == RECORD["tokens"]
    handle = llm.submit(PROMPT, GenerationConfig(max_new_tokens=24), temperature=1.0)
    got = [token_id for chunk in handle.stream() for token_id in chunk.token_ids]
    assert got == TOKENS == list(handle.result().token_ids)
    assert handle.done
    assert handle.request_id not in [other.request_id for other in handles]


def test_a_request_is_served_in_the_background(llm: LLM):
    handle = llm.submit(PROMPT, max_new_tokens=24)
    eventually(lambda: handle.done)  # though nobody reads
    assert list(handle.result(0).token_ids) == TOKENS


def test_aborting_and_dropping_what_was_submitted(llm: LLM, num_starts):
    handle = llm.submit(PROMPT, max_new_tokens=200, logits_processors=[slow])
    next(handle.stream())
    handle.abort()
    output = handle.result()
    assert output.outputs[0].finish_reason == "abort"
    assert list(output.token_ids) == TOKENS[: len(output.token_ids)]
    handle = llm.submit(PROMPT, max_new_tokens=200, logits_processors=[slow])
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.01)
    del handle
    eventually(lambda: is_empty(llm))
    assert num_starts() < 100


def test_errors_are_raised_by_the_call_itself(llm: LLM):
    for call in (llm.stream, llm.submit):
        with pytest.raises(RequestError):
            call("")
        with pytest.raises(ConfigError):
            call(PROMPT, max_new_token=5)


def test_two_streams_in_one_thread(llm: LLM):
    first, second = (llm.stream(prompt, max_new_tokens=24) for prompt in RECORD["prompts"][:2])
    got: list[list[int]] = [[], []]
    for chunks in zip(first, second, strict=True):
        for tokens, chunk in zip(got, chunks, strict=True):
            tokens += chunk.token_ids
    assert got == RECORD["tokens"][:2]


def test_generate_inside_a_stream(llm: LLM):
    got = []
    for chunk in llm.stream(PROMPT, max_new_tokens=24):
        got += chunk.token_ids
        if len(got) == 5:
            inner = llm.generate(RECORD["prompts"][1], max_new_tokens=24)
            assert list(inner.token_ids) == RECORD["tokens"][1]
    assert got == TOKENS


def test_eight_threads(llm: LLM):
    def ask(number: int) -> list[int]:
        prompt = RECORD["prompts"][number % 3]
        if number % 2:
            return list(llm.generate(prompt, max_new_tokens=24).token_ids)
        stream = llm.stream(prompt, max_new_tokens=24)
        return [token_id for chunk in stream for token_id in chunk.token_ids]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(48)))
    assert answers == [RECORD["tokens"][number % 3] for number in range(48)]


def test_streams_that_are_dropped_leave_nothing(llm: LLM, num_starts):
    for is_read in (False, True) * 3:
        stream = llm.stream(PROMPT, max_new_tokens=100, logits_processors=[slow])
        if is_read:
            next(stream)
        del stream
    eventually(lambda: is_empty(llm))
    assert num_starts() < 100


def test_a_stream_dropped_in_another_thread(llm: LLM):
    streams = [llm.stream(PROMPT, max_new_tokens=100)]
    next(streams[0])
    thread = threading.Thread(target=streams.clear)
    thread.start()
    thread.join()


@pytest.mark.parametrize("call", ["generate", "generate a list", "submit", "stream"])
def test_an_interrupt_stops_the_request_and_no_other(llm: LLM, call: str):
    other = llm.stream(RECORD["prompts"][1], max_new_tokens=24, logits_processors=[slow])
    timer = threading.Timer(0.1, _thread.interrupt_main)
    timer.start()
    began = time.perf_counter()
    options = {"max_new_tokens": 200, "logits_processors": [slow]}
    calls = {
        "generate": llm.generate,
        "generate a list": lambda prompt, **options: llm.generate([prompt] * 3, **options),
        "submit": lambda prompt, **options: llm.submit(prompt, **options).result(),
        "stream": lambda prompt, **options: list(llm.stream(prompt, **options)),
    }
    with pytest.raises(KeyboardInterrupt):
        calls[call](PROMPT, **options)
    assert time.perf_counter() - began < 1.5
    timer.join()
    got = [token_id for chunk in other for token_id in chunk.token_ids]
    assert got == RECORD["tokens"][1]
    eventually(lambda: is_empty(llm))
    assert time.perf_counter() - began < 1.9  # not after 200 tokens


def test_an_error_of_one_prompt_stops_the_others(llm: LLM):
    def fail_first(token_ids, logits):
        if token_ids[0] == PROMPT[0]:
            raise ZeroDivisionError
        return slow(token_ids, logits)

    prompts = [PROMPT, [7] * 5, [8] * 5]
    began = time.perf_counter()
    with pytest.raises(RequestError, match="ZeroDivisionError") as caught:
        llm.generate(prompts, max_new_tokens=200, logits_processors=[fail_first])
    eventually(lambda: is_empty(llm))
    assert time.perf_counter() - began < 1.5
    assert caught.value  # which has kept the frames with the others' handles


def test_a_device_error_leaves_the_llm_usable(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    wait = ov.InferRequest.wait_for

    def broken(request, timeout):
        wait(request, timeout)
        raise RuntimeError("device lost")

    stream = llm.stream(PROMPT, max_new_tokens=200, logits_processors=[slow])
    got = list(next(stream).token_ids)
    with monkeypatch.context() as patch:
        patch.setattr(ov.InferRequest, "wait_for", broken)
        with pytest.raises(DeviceError, match="device lost"):
            llm.generate(RECORD["prompts"][1], max_new_tokens=24)
    with pytest.raises(DeviceError, match="device lost"):
        got.extend(token_id for chunk in stream for token_id in chunk.token_ids)
    assert got == TOKENS[: len(got)]
    assert list(llm.generate(PROMPT, max_new_tokens=24).token_ids) == TOKENS


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        [],
        (),
        [[]],
        ["harbour", ""],
        list(range(4, 260)),
        "harbour " * 300,
        [4, 320],
        [-1],
        [2**64],
        [1.0, 2.0],
        [True, False],
        [4, True],
        [4, None],
        [4, "harbour"],
        ["harbour", 4],
        [[4], 5],
        [[[4]]],
        "\ud800",
        b"harbour",
        bytearray(b"harbour"),
        None,
        5,
        4.5,
        {4: 5},
        {4, 5},
    ],
    ids=repr,
)
def test_prompts_that_cannot_be_served(llm: LLM, num_starts, prompt: object):
    with pytest.raises(RequestError) as caught:
        llm.generate(prompt, max_new_tokens=1)  # type: ignore[call-overload]
    assert "\n" not in str(caught.value)
    assert num_starts() == 0


def test_a_stream_takes_one_prompt(llm: LLM):
    with pytest.raises(RequestError):
        llm.stream(["one", "two"])  # type: ignore[list-item]


def test_an_unknown_option_names_the_nearest(llm: LLM):
    for call in (llm.generate, llm.stream):
        with pytest.raises(ConfigError, match="'max_tokens'; did you mean max_new_tokens"):
            call("harbour", max_tokens=5)
    with pytest.raises(ConfigError, match="unknown generation option"):
        llm.chat([{"role": "user", "content": "hello"}], temperatur=1)


def test_options_that_are_not_a_config(llm: LLM):
    with pytest.raises(ConfigError, match="GenerationConfig"):
        llm.generate("harbour", {"max_new_tokens": 5})  # type: ignore[call-overload]


def test_more_new_tokens_than_the_context_holds(llm: LLM):
    with pytest.raises(ConfigError, match="room for 251"):
        llm.generate(PROMPT, max_new_tokens=252)
    output = llm.generate(PROMPT, ignore_eos=True)
    assert len(output.token_ids) == 251


def test_max_time(llm: LLM):
    outputs = llm.generate([PROMPT, PROMPT], max_time=0.001)
    assert [output.outputs[0].finish_reason for output in outputs] == ["length"] * 2
    assert all(list(output.token_ids) == TOKENS[: len(output.token_ids)] for output in outputs)


def test_a_chat_without_a_template(llm: LLM):
    with pytest.raises(TemplateError, match="no chat template"):
        llm.chat([{"role": "user", "content": "hello"}])


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "llama"
    shutil.copytree(LLAMA, folder)
    (folder / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ mark }}{% endfor %}"
        "{% if tools %}[{{ tools | length }}]{% endif %}"
        "{% if add_generation_prompt %}me: {% endif %}"
    )
    return folder


def test_chat(chat_folder: Path):
    messages = [{"role": "user", "content": "the sea"}]
    with LLM(chat_folder) as llm:
        output = llm.chat(messages, max_new_tokens=4)
        # The template writes the special tokens, and they are read as such.
        assert output.prompt_token_ids == (1, *llm.tokenizer.encode("user: the seame: "))
        assert len(output.token_ids) == 4
        output = llm.chat(
            messages,
            GenerationConfig(max_new_tokens=2),
            tools=[{"name": "f"}],
            add_generation_prompt=False,
            template_args={"mark": "!"},
        )
        assert output.prompt_token_ids == (1, *llm.tokenizer.encode("user: the sea![1]"))
        chunks = list(llm.stream_chat(messages, max_new_tokens=4))
        assert len(chunks) == 4


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", 5])
def test_template_args_are_for_further_variables(chat_folder: Path, name: object):
    with LLM(chat_folder) as llm, pytest.raises(ConfigError, match=repr(name)):
        llm.chat([{"role": "user", "content": "x"}], template_args={name: 1})  # type: ignore[dict-item]


def test_metrics(llm: LLM):
    metrics = llm.generate("harbour", max_new_tokens=8, ignore_eos=True).metrics
    assert metrics.num_prompt_tokens == len(llm.tokenizer.encode("harbour"))
    assert metrics.num_output_tokens == 8
    assert metrics.ttft > metrics.tokenization_time > 0
    assert len(metrics.itl) == 7
    assert all(latency > 0 for latency in metrics.itl)
    assert metrics.tpot > 0
    assert metrics.prefill_tokens_per_s > 0
    assert metrics.decode_tokens_per_s > 0
    assert metrics.detokenization_time > 0
    assert metrics.load_time == llm.load_time > 0


def test_tokenization_time_does_not_hold_the_wait_for_others(llm: LLM):
    is_held = threading.Event()

    def hold(token_ids, logits):
        is_held.set()
        time.sleep(0.3)
        return logits

    first = llm.submit(PROMPT, max_new_tokens=1, logits_processors=[hold])
    assert is_held.wait(20)
    metrics = llm.generate("harbour", max_new_tokens=1).metrics
    assert first.done
    assert metrics.tokenization_time < 0.1 < metrics.ttft


def test_closed():
    llm = LLM(LLAMA)
    done = llm.submit(PROMPT, max_new_tokens=2)
    output = done.result()
    half_read, unread = (llm.stream(PROMPT, logits_processors=[slow]) for _ in range(2))
    next(half_read)
    llm.close()
    llm.close()
    assert not llm._service._thread.is_alive()
    for use in (
        lambda: llm.generate(PROMPT),
        lambda: llm.stream(PROMPT),
        lambda: llm.submit(PROMPT),
        lambda: list(half_read),
        unread.result,
    ):
        with pytest.raises(ClosedError, match="closed"):
            use()
    assert done.result() is output


def test_the_context_manager_closes():
    with LLM(LLAMA) as llm:
        assert llm.generate(PROMPT, max_new_tokens=1)
    with pytest.raises(ClosedError):
        llm.generate(PROMPT)


def test_closing_while_another_thread_streams():
    llm = LLM(LLAMA)
    started = threading.Event()
    errors: list[BaseException] = []

    def read() -> None:
        try:
            while True:
                for _ in llm.stream(PROMPT, max_new_tokens=200):
                    started.set()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert started.wait(20)
    llm.close()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert [type(error) for error in errors] == [ClosedError] * 3


def test_an_llm_without_references_goes():
    llm = LLM(LLAMA)
    stream = llm.stream(PROMPT)
    next(stream)
    gone, thread = weakref.ref(llm), llm._service._thread
    del llm, stream
    gc.collect()
    assert gone() is None
    thread.join(20)
    assert not thread.is_alive()


def test_an_llm_serves_what_was_asked_of_it_without_being_held():
    stream = LLM(LLAMA, precision="exact").stream(PROMPT, max_new_tokens=24)
    gc.collect()
    assert [token_id for chunk in stream for token_id in chunk.token_ids] == TOKENS


AT_EXIT = """
import sys, threading
from ovgen import LLM
llm = LLM(sys.argv[1], attention_backend=sys.argv[2])
handles = [llm.submit([5] * 200, max_new_tokens=50, ignore_eos=True) for _ in range(3)]
next(handles[0].stream())
if sys.argv[3] == "error":
    raise SystemExit(7)
if sys.argv[3] == "waiting":
    waiting = threading.Thread(target=handles[2].result, daemon=True)
    waiting.start()
"""


@pytest.mark.parametrize("backend", ["stateful", "paged"])
@pytest.mark.parametrize("way", ["plain", "error", "waiting"])
def test_the_interpreter_may_end_while_requests_are_served(backend: str, way: str):
    arguments = [sys.executable, "-c", AT_EXIT, str(LLAMA), backend, way]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (7 if way == "error" else 0, "")


def test_two_llms_do_not_notice_each_other(llm: LLM):
    with LLM(QWEN2, precision="exact") as other:
        alone = other.generate(PROMPT, max_new_tokens=24).token_ids
        streams = [llm.stream(PROMPT, max_new_tokens=24), other.stream(PROMPT, max_new_tokens=24)]
        got: list[list[int]] = [[], []]
        for chunks in zip(*streams, strict=True):
            for tokens, chunk in zip(got, chunks, strict=True):
                tokens += chunk.token_ids
        assert got == [TOKENS, list(alone)]
        half_read = llm.stream(PROMPT, max_new_tokens=24)
        tokens = list(next(half_read).token_ids)
    tokens += [token_id for chunk in half_read for token_id in chunk.token_ids]
    assert tokens == TOKENS


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("tokenizer.json", "{", ModelFormatError),
        ("tokenizer.json", None, ModelNotFoundError),
        ("generation_config.json", "{", ModelFormatError),
        ("generation_config.json", '{"eos_token_id": "x"}', ModelFormatError),
        ("config.json", "{", ModelFormatError),
        ("openvino_model.xml", "<net", ModelFormatError),
    ],
)
def test_broken_folders(tmp_path: Path, name: str, content: str | None, error: type[Exception]):
    folder = shutil.copytree(LLAMA, tmp_path / "llama")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(error) as caught:
        LLM(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"device": ""},
        {"precision": "fast"},
        {"token_budget": 0},
        {"token_budget": True},
        {"properties": {5: 1}},
        {"properties": 5},
        {"weights": "int8"},
    ],
)
def test_options_that_are_wrong(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        LLM(LLAMA, **options)


def test_a_queue_that_is_full_refuses_politely():
    with LLM(LLAMA, attention_backend="stateful", max_waiting_requests=2) as llm:
        outputs = llm.generate([[5, 6, 7 + i] for i in range(9)], max_new_tokens=4)
        assert len(outputs) == 9  # one call's requests wait for each other
        handles: list[GenerationHandle] = []

        def submit_many() -> None:
            for _ in range(9):
                handles.append(llm.submit([5, 6], max_new_tokens=200, ignore_eos=True))

        with pytest.raises(QueueFullError, match="2 requests wait already and 2 may"):
            submit_many()
        assert len(handles) >= 2
        for handle in handles:
            assert len(handle.result().token_ids) == 200
        assert llm.generate([5, 6], max_new_tokens=4)

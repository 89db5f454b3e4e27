"""Sessions over tiny models: going on, forking, saving and loading equal doing it all at once."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest

from ovgen import LLM, ClosedError, ConfigError, RequestError, Session, StorageError, TemplateError
from ovgen.decoding.random import derived_seed
from ovgen.engine.block_manager import BlockManager
from ovgen.model.paged_runner import PagedRunner
from ovgen.session import store

TINY = Path(__file__).parents[1] / "fixtures" / "tiny"
LLAMA = TINY / "llama"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PROMPTS = ["hello world, the harbour is full of ships ", "and more of them ", "at night "]
OPTIONS = {"max_new_tokens": 25, "ignore_eos": True}
SAMPLING = {"do_sample": True, "top_k": 0, "temperature": 1.3}

BACKENDS = {
    "exact": {"precision": "exact", "attention_backend": "paged"},
    "default": {"attention_backend": "paged"},
    "u8": {"attention_backend": "paged", "kv_cache_precision": "u8"},
    "stateful": {"precision": "exact", "attention_backend": "stateful"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny llama with a chat template."""
    copied = copytree(LLAMA, tmp_path_factory.mktemp("model") / "llama")
    (copied / "chat_template.jinja").write_text(TEMPLATE)
    return copied


@pytest.fixture
def load(folder: Path):
    """Loads models, and closes them after the test."""
    loaded = []

    def make(name: str = "exact", model: Path = folder, **options) -> LLM:
        loaded.append(LLM(model, **(BACKENDS[name] | options)))
        return loaded[-1]

    yield make
    for llm in loaded:
        llm.close()


@pytest.fixture(scope="module")
def shared(folder: Path):
    with LLM(folder, **BACKENDS["exact"]) as llm:
        yield llm


@pytest.fixture
def num_computed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Tokens that paged runners have computed since the last look."""
    counts: list[int] = []
    start = PagedRunner.start

    def counted(self, batch):
        counts.append(sum(item.num_scheduled_tokens for item in batch.scheduled))
        start(self, batch)

    monkeypatch.setattr(PagedRunner, "start", counted)

    def look() -> int:
        number = sum(counts)
        counts.clear()
        return number

    return look


@pytest.fixture
def full_blocks_only(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """In 8 bits a block that is filled later holds a little else than one that is filled at once:
    its keys share a scale. What is moved are full blocks, so that those alone are equal."""
    if backend == "u8":
        monkeypatch.setattr(BlockManager, "take_tail", lambda self, sequence, limit: 0)


def ask(session: Session, prompts: list[str], **options) -> list[tuple[int, ...]]:
    return [session.generate(prompt, **(OPTIONS | options)).token_ids for prompt in prompts]


def ask_chat(session: Session, prompts: list[str], **options) -> list[str]:
    return [session.chat(prompt, **(OPTIONS | options)).text for prompt in prompts]


@pytest.mark.usefixtures("full_blocks_only")
@pytest.mark.parametrize("sampling", [{}, SAMPLING], ids=["greedy", "sampling"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_saved_and_loaded_equals_uninterrupted(load, backend: str, sampling, tmp_path: Path):
    llm = load(backend)
    session = llm.session(seed=11)
    ask(session, PROMPTS[:1], **sampling)
    session.save(tmp_path / "one")
    ask(session, PROMPTS[1:2], **sampling)
    session.save(tmp_path / "two")
    ask(session, PROMPTS[2:], **sampling)
    for place, name in ((1, "one"), (2, "two")):
        loaded = load(backend).load_session(tmp_path / name)
        assert loaded.num_turns == place
        assert loaded.token_ids == session.token_ids[: len(loaded.token_ids)]
        ask(loaded, PROMPTS[place:], **sampling)
        assert loaded.token_ids == session.token_ids
        assert (loaded.seed, loaded.num_turns) == (11, 3)
        again = llm.load_session(tmp_path / name)  # where all is in the prefix cache
        ask(again, PROMPTS[place:], **sampling)
        assert again.token_ids == session.token_ids


@pytest.mark.usefixtures("full_blocks_only")
@pytest.mark.parametrize("sampling", [{}, SAMPLING], ids=["greedy", "sampling"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fork_equals_a_rerun(load, backend: str, sampling):
    session = load(backend).session(seed=3)
    ask(session, PROMPTS[:1], **sampling)
    forks = [session.fork(), session.fork()]
    ask(session, PROMPTS[1:], **sampling)
    ask(forks[0], PROMPTS[1:], **sampling)
    ask(forks[1], PROMPTS[:0:-1], **sampling)
    for fork, prompts in ((forks[0], PROMPTS), (forks[1], [PROMPTS[0], *PROMPTS[:0:-1]])):
        rerun = load(backend).session(seed=3)
        ask(rerun, prompts, **sampling)
        assert rerun.token_ids == fork.token_ids
    assert forks[0].token_ids == session.token_ids != forks[1].token_ids


@pytest.mark.parametrize("backend", ["exact", "stateful"])
def test_a_chat_that_is_saved_and_forked(load, backend: str, tmp_path: Path):
    session = load(backend).session(seed=5)
    system = {"role": "system", "content": "Be brief."}
    session.chat([system, {"role": "user", "content": PROMPTS[0]}], **OPTIONS, **SAMPLING)
    session.save(tmp_path / "chat")
    fork, loaded = session.fork(), load(backend).load_session(tmp_path / "chat")
    answers = ask_chat(session, PROMPTS[1:], **SAMPLING)
    assert answers == ask_chat(fork, PROMPTS[1:], **SAMPLING)
    assert answers == ask_chat(loaded, PROMPTS[1:], **SAMPLING)
    assert session.messages == fork.messages == loaded.messages
    roles = [message["role"] for message in session.messages]
    assert roles == ["system", *["user", "assistant"] * 3]
    assert session.token_ids == loaded.token_ids


def test_a_session_equals_one_prompt_after_the_other(shared: LLM):
    session = shared.session()
    tokens: list[int] = []
    for prompt in PROMPTS:
        tokens += shared.tokenizer.encode(prompt, add_special_tokens=not tokens)
        output = session.generate(prompt, **OPTIONS)
        assert list(output.prompt_token_ids) == tokens
        assert output.token_ids == shared.generate(tokens, **OPTIONS).token_ids
        tokens += output.token_ids
        assert list(session.token_ids) == tokens
    assert session.num_turns == 3
    assert session.messages == []


def test_a_chat_equals_its_messages_rendered_anew(shared: LLM):
    session = shared.session()
    messages: list[dict[str, str]] = []
    for prompt in PROMPTS:
        messages.append({"role": "user", "content": prompt})
        output = session.chat(prompt, **OPTIONS)
        assert output.text == shared.chat(messages, **OPTIONS).text
        messages.append({"role": "assistant", "content": output.text})
        assert session.messages == messages
        assert session.token_ids == output.prompt_token_ids + output.token_ids


def test_special_tokens_come_at_the_beginning_only(load, monkeypatch: pytest.MonkeyPatch):
    llm = load()
    encode = llm.tokenizer.encode

    def with_bos(text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + encode(text, add_special_tokens=False)

    monkeypatch.setattr(llm.tokenizer, "encode", with_bos)
    session = llm.session()
    for prompt in PROMPTS:
        session.generate(prompt, max_new_tokens=2, logit_bias={1: -100.0})
    assert session.token_ids[0] == 1
    assert session.token_ids.count(1) == 1


@pytest.mark.parametrize("part", [1, 5000, 1 << 24])
def test_loaded_blocks_are_not_computed_again(
    load, num_computed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
):
    monkeypatch.setattr(store, "_PART", part)  # one block, one, all
    session = load().session()
    session.generate(PROMPTS[0] * 4, max_new_tokens=60, ignore_eos=True)
    length = len(session.token_ids)
    session.save(tmp_path / "file")
    num_saved = (length - 1) // 32
    assert num_saved >= 4
    size = (tmp_path / "file").stat().st_size
    assert num_saved * 16384 < size < num_saved * 16384 + 4 * length + 2000
    other = load()
    loaded = other.load_session(tmp_path / "file")
    num_computed()
    loaded.generate([7], max_new_tokens=1)
    assert num_computed() == length + 1 - num_saved * 32


def test_a_loaded_session_in_another_precision_is_computed_anew(load, num_computed, tmp_path: Path):
    session = load("u8").session(seed=1)
    ask(session, PROMPTS[:1])
    session.save(tmp_path / "u8")
    llm = load("exact")
    wanted = llm.generate(
        [*session.token_ids, *llm.tokenizer.encode(PROMPTS[1], add_special_tokens=False)], **OPTIONS
    )
    for backend in ("exact", "stateful"):
        loaded = load(backend).load_session(tmp_path / "u8")
        num_computed()
        (output,) = ask(loaded, PROMPTS[1:2])
        assert output == wanted.token_ids
        assert num_computed() in (0, len(loaded.token_ids) - 1)


def test_too_small_a_cache_takes_what_fits(load, num_computed, tmp_path: Path):
    session = load().session()
    session.generate([9] * 150, max_new_tokens=1)
    session.save(tmp_path / "file")
    small = load(kv_cache_tokens=96)
    assert len(small.load_session(tmp_path / "file").token_ids) == 151
    num_computed()
    small.generate([9] * 80, max_new_tokens=1)
    assert num_computed() == 80 - 64


def test_loading_while_others_are_served(load, tmp_path: Path):
    session = load().session()
    ask(session, PROMPTS[:1])
    session.save(tmp_path / "file")
    llm = load(kv_cache_tokens=512)
    prompts = [[5 + number] * 40 for number in range(3)]
    wanted = [
        output.token_ids for output in llm.generate(prompts, **(OPTIONS | {"max_new_tokens": 100}))
    ]
    for _ in range(5):
        handles = [llm.submit(p, max_new_tokens=100, ignore_eos=True) for p in prompts]
        dropped = [llm.submit([3] * 50, max_new_tokens=100) for _ in range(2)]
        loaded = [llm.load_session(tmp_path / "file")]
        dropped.clear()
        loaded += [llm.load_session(tmp_path / "file")]
        loaded[0].save(tmp_path / "again")
        assert [handle.result().token_ids for handle in handles] == wanted
        assert ask(loaded[1], PROMPTS[1:2]) == ask(session.fork(), PROMPTS[1:2])


def test_a_cache_salt_goes_with_the_session(load, num_computed, tmp_path: Path):
    llm = load()
    session = llm.session()
    session.generate([9] * 100, max_new_tokens=1, cache_salt="mine")
    session.save(tmp_path / "file")
    other = load()
    loaded = other.load_session(tmp_path / "file")
    num_computed()
    other.generate([9] * 100, max_new_tokens=1)
    assert num_computed() == 100
    loaded.generate([8], max_new_tokens=1, cache_salt="mine")
    assert num_computed() == 102 - 96


def test_seeds_are_those_of_the_turns(shared: LLM):
    session = shared.session(seed=2**64 - 1)
    outputs = [session.generate([5, 6], max_new_tokens=4, **SAMPLING) for _ in range(3)]
    seeds = [output.seed for output in outputs]
    assert seeds == [derived_seed(2**64 - 1, turn) for turn in range(3)]
    assert len(set(seeds)) == 3
    assert session.generate([5], max_new_tokens=4, **SAMPLING, seed=9).seed == 9
    assert session.generate([5], max_new_tokens=4).seed is None
    assert shared.session().seed != shared.session().seed


def test_the_mix_is_the_documented_one():
    # Steele, Lea, Flood 2014; the first two outputs of SplitMix64 from 0 are well known.
    assert derived_seed(2**64 - 0x9E3779B97F4A7C15, 1) == 0xE220A8397B1DCDAF
    assert derived_seed(2**64 - 0x9E3779B97F4A7C15, 2) == 0x6E789E6AA1B965F4


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "1", True])
def test_seeds_out_of_range(shared: LLM, seed):
    with pytest.raises(ConfigError, match="seed must be"):
        shared.session(seed=seed)


def test_text_and_messages_do_not_mix(shared: LLM):
    text, chat = shared.session(), shared.session()
    text.generate("hello", max_new_tokens=1)
    chat.chat("hello", max_new_tokens=1)
    for session in (text, text.fork()):
        with pytest.raises(RequestError, match=r"one of text: go on with generate\(\)"):
            session.chat("more")
    for session in (chat, chat.fork()):
        with pytest.raises(RequestError, match=r"one of messages: go on with chat\(\)"):
            session.generate("more")
    assert (text.num_turns, chat.num_turns) == (1, 1)


def test_a_turn_that_is_refused_leaves_the_session_as_it_was(shared: LLM, load):
    session = shared.session(seed=1)
    session.generate("hello", max_new_tokens=3)
    before = session.token_ids
    for prompt in ("", [], [320], [True], [["a"]], b"x", 5):
        with pytest.raises(RequestError):
            session.generate(prompt)
    with pytest.raises(ConfigError, match="did you mean"):
        session.generate("more", max_new_token=3)
    with pytest.raises(RequestError, match=r"this session has \d+ tokens and the prompt 250; the"):
        session.generate([5] * 250)
    chat = shared.session()
    for message in ("", [], [5], 5, None, b"x"):
        with pytest.raises(RequestError):
            chat.chat(message) if message != "" else chat.chat({"content": ""})
    with pytest.raises(TemplateError, match="no chat template"):
        load(model=LLAMA).session().chat("hello")
    assert session.token_ids == before
    assert (session.num_turns, chat.num_turns, chat.messages) == (1, 0, [])
    session.generate("more", max_new_tokens=3)


def fail(token_ids, logits):
    if len(token_ids) > 20:
        raise ZeroDivisionError
    return logits


def test_an_error_in_a_turn_leaves_the_session_as_it_was(shared: LLM):
    session, other = shared.session(seed=4), shared.session(seed=4)
    with pytest.raises(RequestError, match="a logits processor failed"):
        session.generate("hello", **OPTIONS, logits_processors=[fail])
    stream = session.stream("hello", **OPTIONS, logits_processors=[fail])
    with pytest.raises(RequestError, match="a logits processor failed"):
        list(stream)
    kept = session.stream("hello", **OPTIONS, logits_processors=[fail])
    next(kept)
    with pytest.raises(RequestError, match="a logits processor failed"):
        kept.result()
    assert session.token_ids == ()
    assert ask(session, PROMPTS, **SAMPLING) == ask(other, PROMPTS, **SAMPLING)


def test_a_stream_gives_what_generate_gives(shared: LLM):
    one, other = shared.session(seed=2), shared.session(seed=2)
    for prompt in PROMPTS:
        chunks = list(one.stream(prompt, **OPTIONS, **SAMPLING))
        output = other.generate(prompt, **OPTIONS, **SAMPLING)
        assert sum((chunk.token_ids for chunk in chunks), ()) == output.token_ids
        assert "".join(map(str, chunks)) == output.text == chunks[-1].output.text
    assert one.token_ids == other.token_ids
    chats = [shared.session(seed=2), shared.session(seed=2)]
    list(chats[0].stream_chat("hello", **OPTIONS))
    stream = chats[1].stream_chat("hello", **OPTIONS)
    next(stream)
    assert stream.result().text == chats[1].messages[-1]["content"]
    assert chats[0].messages == chats[1].messages


@pytest.mark.parametrize("how", ["close", "drop", "with", "thread"])
def test_a_stream_that_is_closed_early_leaves_what_it_gave(shared: LLM, how: str):
    session, chat = shared.session(), shared.session()
    prompt = shared.tokenizer.encode("hello world")
    stream = session.stream("hello world", max_new_tokens=200, ignore_eos=True)
    given = sum((next(stream).token_ids for _ in range(3)), ())
    chats = chat.stream_chat("hello", max_new_tokens=200, ignore_eos=True)
    text = "".join(str(next(chats)) for _ in range(3))
    if how == "with":
        with stream, chats:
            pass
    elif how == "close":
        stream.close()
        chats.close()
        assert list(stream) == []
    elif how == "thread":
        threads = [threading.Thread(target=one.close) for one in (stream, chats)]
        for thread in threads:
            thread.start()
        list(stream)
        for thread in threads:
            thread.join()
        given = session.token_ids[len(prompt) :]  # and perhaps some more
        text = chat.messages[1]["content"]
        assert len(given) >= 3
    del stream, chats
    gc.collect()
    assert session.token_ids == (*prompt, *given)
    assert chat.messages[1] == {"role": "assistant", "content": text}
    assert (session.num_turns, chat.num_turns) == (1, 1)
    wanted = shared.generate(prompt, max_new_tokens=200, ignore_eos=True).token_ids
    assert given == wanted[: len(given)]
    session.generate("more", max_new_tokens=3)


def test_a_stream_closed_before_anything_came_leaves_the_session_as_it_was(shared: LLM):
    session = shared.session()
    session.stream("hello", **OPTIONS).close()
    session.stream("hello", **OPTIONS)
    session.stream_chat("hello", **OPTIONS).close()
    assert (session.token_ids, session.messages, session.num_turns) == ((), [], 0)


def test_an_aborted_turn_is_one(shared: LLM):
    session = shared.session()
    stream = session.stream("hello", max_new_tokens=240, ignore_eos=True)
    next(stream)
    stream.abort()
    output = stream.result()
    assert session.token_ids == output.prompt_token_ids + output.token_ids


def test_one_turn_at_a_time(shared: LLM, tmp_path: Path):
    session = shared.session()
    stream = session.stream("hello", **OPTIONS)
    next(stream)
    for use in (
        lambda: session.generate("more"),
        lambda: session.chat("more"),
        lambda: session.stream("more"),
        lambda: session.save(tmp_path / "file"),
        session.fork,
    ):
        with pytest.raises(RequestError, match="a turn of this session is under way"):
            use()
    assert session.token_ids == ()
    list(stream)
    session.generate("more", **OPTIONS)
    assert session.num_turns == 2


def test_threads_that_use_one_session_at_once(shared: LLM):
    session = shared.session()
    results: list[object] = []

    def turn(number: int) -> None:
        try:
            results.append(session.generate([number + 5], max_new_tokens=5))
        except RequestError as exc:
            results.append(exc)

    threads = [threading.Thread(target=turn, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    served = [one for one in results if not isinstance(one, RequestError)]
    assert 1 <= len(served) == session.num_turns
    assert len(session.token_ids) == 6 * len(served)


def test_many_sessions_at_once(shared: LLM):
    sessions = [shared.session(seed=number) for number in range(6)]
    streams = [s.stream(PROMPTS[0], **OPTIONS, **SAMPLING) for s in sessions]
    for chunks in zip(*streams, strict=True):
        assert len(chunks) == 6
    for number, session in enumerate(sessions):
        alone = shared.session(seed=number)
        alone.generate(PROMPTS[0], **OPTIONS, **SAMPLING)
        assert alone.token_ids == session.token_ids


def test_several_outputs_and_what_options_do_to_prompts(shared: LLM):
    session = shared.session(seed=1)
    output = session.generate("hello", **OPTIONS, **SAMPLING, num_return_sequences=3)
    assert session.token_ids == output.prompt_token_ids + output.outputs[0].token_ids
    early = session.fork()
    with early.stream("more", **OPTIONS, **SAMPLING, num_return_sequences=3) as stream:
        chunks = [next(stream) for _ in range(7)]
    given = sum((chunk.token_ids for chunk in chunks if chunk.index == 0), ())
    assert {chunk.index for chunk in chunks} == {0, 1, 2}
    prompt = shared.tokenizer.encode("more", add_special_tokens=False)
    assert early.token_ids == (*session.token_ids, *prompt, *given)
    beams = session.fork()
    output = beams.generate("more", **OPTIONS, num_beams=3)
    assert beams.token_ids == output.prompt_token_ids + output.token_ids
    healed = session.fork()
    output = healed.generate("the harb", **OPTIONS, token_healing=True)
    assert healed.token_ids == output.prompt_token_ids + output.token_ids
    chat = shared.session()
    output = chat.chat("hello", **OPTIONS, echo=True)
    assert output.text.endswith("<assistant>" + chat.messages[-1]["content"])
    assert "<assistant>" not in chat.messages[-1]["content"]


def test_nobody_reaches_into_a_session(shared: LLM):
    session = shared.session()
    message = {"role": "user", "content": [{"type": "text", "text": "hello"}]}
    session.chat(message, max_new_tokens=2)
    message["content"][0]["text"] = "other"
    session.messages[0]["content"][0]["text"] = "other"
    session.messages.clear()
    assert session.messages[0]["content"][0]["text"] == "hello"
    fork = session.fork()
    fork.chat("more", max_new_tokens=2)
    assert len(session.messages) == 2


def test_a_session_that_has_not_begun(shared: LLM, tmp_path: Path):
    session = shared.session(seed=6)
    session.save(tmp_path / "file")
    loaded = shared.load_session(tmp_path / "file")
    assert (loaded.token_ids, loaded.messages, loaded.num_turns) == ((), [], 0)
    assert ask(loaded, PROMPTS, **SAMPLING) == ask(session, PROMPTS, **SAMPLING)


def test_another_models_file_is_refused(shared: LLM, load, tmp_path: Path):
    session = load(model=TINY / "qwen2").session()
    session.generate([5, 6, 7], max_new_tokens=3)
    session.save(tmp_path / "file")
    with pytest.raises(RequestError, match=r"the model 'qwen2' \(\w{12}\), .* 'llama' \(\w{12}\)"):
        shared.load_session(tmp_path / "file")


def test_a_copy_of_the_model_is_the_same_model(shared: LLM, load, tmp_path: Path):
    session = load(model=LLAMA).session(seed=1)
    ask(session, PROMPTS[:1])
    session.save(tmp_path / "file")
    assert shared.load_session(tmp_path / "file").token_ids == session.token_ids


def test_a_closed_llm(load, tmp_path: Path):
    llm = load()
    session = llm.session()
    ask(session, PROMPTS[:1])
    session.save(tmp_path / "file")
    llm.close()
    for use in (
        lambda: session.generate("more"),
        lambda: session.save(tmp_path / "other"),
        lambda: llm.load_session(tmp_path / "file"),
    ):
        with pytest.raises(ClosedError):
            use()
    assert session.num_turns == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_saving_where_it_cannot_be(shared: LLM, tmp_path: Path):
    session = shared.session()
    session.generate("hello", max_new_tokens=2)
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "missing" / "file", tmp_path / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(
            StorageError, match=r"cannot write .*; save the session to another place"
        ):
            session.save(path)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    chat = shared.session()
    chat.chat({"role": "user", "content": "hello", "extra": object()}, max_new_tokens=2)
    with pytest.raises(RequestError, match="messages as JSON"):
        chat.save(tmp_path / "file")
    session.save(str(tmp_path / "file"))
    session.generate("more", max_new_tokens=2)
    session.save(tmp_path / "file")
    assert shared.load_session(str(tmp_path / "file")).token_ids == session.token_ids


def test_a_logits_processor_may_not_use_a_session(shared: LLM, tmp_path: Path):
    session = shared.session()
    session.generate("hello", max_new_tokens=2)
    errors = []

    def process(token_ids, logits):
        for use in (lambda: session.generate("x"), lambda: session.save(tmp_path / "file")):
            try:
                use()
            except RequestError as exc:
                errors.append(str(exc))
        return logits

    shared.generate("x", max_new_tokens=1, logits_processors=[process])
    assert len(errors) == 2
    assert all("must not use the LLM" in error for error in errors)
    session.generate("more", max_new_tokens=2)

"""The file of a session: what was written is read, and nothing else is taken for it."""

from __future__ import annotations

import json
import os
import random
import time
import tracemalloc
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import pytest

from ovgen import LLM, ClosedError, ModelFormatError, OvgenError, RequestError, StorageError
from ovgen.engine.prefix_transfer import PrefixPart
from ovgen.session.file import ModelIdentity, open_session, write_session
from ovgen.session.state import SessionState

LLAMA = Path(__file__).parents[1] / "fixtures" / "tiny" / "llama"
LAYOUT = {"block_bytes": 50, "tensors": [["keys", "u8", [5, 10]]]}
MODEL = ModelIdentity("tiny", "ab" * 32)
TOKENS = tuple(range(100, 200))
MESSAGES = ({"role": "user", "content": "Grüße \ud83d"}, {"role": "assistant", "content": ""})
STATE = SessionState(2**64 - 1, TOKENS, MESSAGES, 3, "salt \udcff")
CONTENT = np.random.default_rng(0).integers(0, 256, (6, 50), np.uint8)


def parts(*lengths: int) -> Iterator[PrefixPart]:
    start = 0
    for length in lengths:
        yield PrefixPart(LAYOUT, CONTENT[start : start + length])
        start += length


def written(path: Path, state: SessionState = STATE, *lengths: int) -> Path:
    write_session(path, state, MODEL, parts(*lengths))
    return path


def read(path: Path, max_bytes: int = 1 << 20, context_length: int = 128, vocab_size: int = 200):
    """The state, and the blocks."""
    with open_session(path, context_length=context_length, vocab_size=vocab_size) as saved:
        assert saved.model == MODEL
        contents = [part.content for part in saved.parts(max_bytes)]
        assert all(len(one) * 50 <= max(50, max_bytes) for one in contents)
        return saved.state, np.concatenate(contents) if contents else None


def refusal(path: Path, **limits: int) -> str:
    """The message that it is refused with, in a moment and without large allocations."""
    tracemalloc.start()
    started = time.thread_time()
    try:
        with pytest.raises(ModelFormatError, match=r"give a file that session\.save") as caught:
            read(path, **limits)
        assert time.thread_time() - started < 1.0
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("max_bytes", [1, 100, 149, 1 << 20])
@pytest.mark.parametrize("lengths", [(6,), (1, 2, 3), (1,) * 6])
def test_what_is_written_is_read(tmp_path: Path, lengths: tuple[int, ...], max_bytes: int):
    state, content = read(written(tmp_path / "file", STATE, *lengths), max_bytes)
    assert state == STATE
    assert (content == CONTENT).all()


@pytest.mark.parametrize(
    "state", [SessionState(0), SessionState(1, TOKENS), SessionState(1, (), (), 0), STATE]
)
def test_without_blocks(tmp_path: Path, state: SessionState):
    assert read(written(tmp_path / "file", state)) == (state, None)


def test_blocks_of_another_layout_end_the_file(tmp_path: Path):
    others = [*parts(2), PrefixPart({**LAYOUT, "block_bytes": 25}, CONTENT[:, :25])]
    write_session(tmp_path / "file", STATE, MODEL, iter(others))
    _, content = read(tmp_path / "file")
    assert (content == CONTENT[:2]).all()


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path):
    def broken() -> Iterator[PrefixPart]:
        yield from parts(2)
        assert len(list(tmp_path.iterdir())) == 2, "it is being written beside the old one"
        raise ClosedError("closed")

    before = written(tmp_path / "file").read_bytes()
    with pytest.raises(ClosedError):
        write_session(tmp_path / "file", SessionState(5), MODEL, broken())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == before


def test_a_full_disk(tmp_path: Path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    os.symlink("/dev/full", tmp_path / "link")
    with pytest.raises(StorageError, match="not a file"):
        read(tmp_path / "link")


@pytest.mark.parametrize("seed", range(20))
def test_truncated_files(tmp_path: Path, seed: int):
    path = written(tmp_path / "file", STATE, 2, 4)
    whole = path.read_bytes()
    path.write_bytes(whole[: random.Random(seed).randrange(len(whole))])
    refusal(path)


@pytest.mark.parametrize("seed", range(100))
def test_changed_bytes(tmp_path: Path, seed: int):
    rng = random.Random(seed)
    path = written(tmp_path / "file", STATE, 6)
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(content))
        content[place] ^= 1 << rng.randrange(8)
    if bytes(content) == path.read_bytes():
        return
    path.write_bytes(content)
    refusal(path)


def test_every_byte_counts(tmp_path: Path):
    path = written(tmp_path / "file", SessionState(1, TOKENS[:3]), 1)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        refusal(path)


@pytest.mark.parametrize("seed", range(20))
def test_bytes_put_in_or_behind(tmp_path: Path, seed: int):
    rng = random.Random(seed)
    path = written(tmp_path / "file", STATE, 6)
    whole = path.read_bytes()
    place = rng.choice([rng.randrange(len(whole)), len(whole)])
    path.write_bytes(whole[:place] + rng.randbytes(rng.randint(1, 100)) + whole[place:])
    refusal(path)


@pytest.mark.parametrize("content", [b"", b"OVGENses", b"GGUF" + bytes(100), bytes(1 << 22)])
def test_other_files(tmp_path: Path, content: bytes):
    path = tmp_path / "file"
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
def test_other_versions(tmp_path: Path, version: int):
    path = forged(tmp_path / "file", version=version)
    assert f"of version {version}; this ovgen reads version 1" in refusal(path)


# From here on the checksums are right.

HEADER: dict[str, Any] = {
    "model": MODEL.digest,
    "model_name": MODEL.name,
    "seed": 1,
    "num_turns": 2,
    "num_tokens": 4,
    "messages": None,
    "cache_salt": "",
    "layout": LAYOUT,
}


def forged(
    path: Path,
    header: object = HEADER,
    *,
    version: int = 1,
    num_header: int | None = None,
    tokens: bytes = pack("<4I", 1, 2, 3, 4),
    blocks: bytes = bytes(100),
    num_blocks: int = 2,
) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = pack("<8sIQ", b"OVGENses", version, len(text) if num_header is None else num_header)
    content += text + tokens + blocks + pack("<Q", num_blocks)
    path.write_bytes(content + blake2b(content, digest_size=32).digest())
    return path


def test_the_forged_file_is_right_where_nothing_is_wrong(tmp_path: Path):
    state, content = read(forged(tmp_path / "file"))
    assert state == SessionState(1, (1, 2, 3, 4), None, 2, "")
    assert content.shape == (2, 50)


@pytest.mark.parametrize(
    "options",
    [
        {"num_header": 2**64 - 1},
        {"num_header": 2**40},
        {"num_header": 10_000},
        {"num_header": 0},
        {"num_blocks": 2**64 - 1},
        {"num_blocks": 0},
        {"num_blocks": 3},
        {"blocks": bytes(99)},
        {"blocks": b""},
        {"tokens": b""},
        {"tokens": bytes(15)},
        {"header": {**HEADER, "num_tokens": 5}},
        {"header": {**HEADER, "num_tokens": 2**63}},
        {"header": {**HEADER, "num_tokens": 129}},
        {"header": {**HEADER, "layout": {"block_bytes": 2**62}}},
        {"header": {**HEADER, "layout": {"block_bytes": 2**62}}, "num_blocks": 4},
        {"header": {**HEADER, "layout": {"block_bytes": 49}}},
        {"header": {**HEADER, "layout": None}},
    ],
    ids=str,
)
def test_absurd_lengths(tmp_path: Path, options: dict[str, Any]):
    refusal(forged(tmp_path / "file", **options))


@pytest.mark.parametrize("value", [None, True, -1, 1.0, 2**64, "1", [], {}])
@pytest.mark.parametrize("name", HEADER)
def test_wrong_types(tmp_path: Path, name: str, value: object):
    if (name, value) in (("messages", None), ("messages", []), ("layout", None)):
        return
    if name in ("model", "model_name", "cache_salt") and value == "1":
        return
    assert f"its {name} is not" in refusal(forged(tmp_path / "file", {**HEADER, name: value}))


@pytest.mark.parametrize(
    "value", [[5], [[]], [{}], [{"role": 5}], [{"role": "user"}, None], {"role": "user"}]
)
def test_wrong_messages(tmp_path: Path, value: object):
    assert "its messages" in refusal(forged(tmp_path / "file", {**HEADER, "messages": value}))


@pytest.mark.parametrize("value", [{"block_bytes": 0}, {"block_bytes": "50"}, {"tensors": []}])
def test_wrong_layouts(tmp_path: Path, value: object):
    assert "its layout" in refusal(forged(tmp_path / "file", {**HEADER, "layout": value}))


@pytest.mark.parametrize(
    "header",
    [
        [],
        None,
        {},
        {**HEADER, "more": 1},
        {name: value for name, value in HEADER.items() if name != "seed"},
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"seed":' + b"9" * 100_000 + b"}",
        json.dumps(HEADER).encode() + b" 1",
    ],
    ids=lambda header: str(header)[:40],
)
def test_headers_that_are_none(tmp_path: Path, header: object):
    assert "its header" in refusal(forged(tmp_path / "file", header))


def test_tokens_that_the_model_does_not_have(tmp_path: Path):
    path = forged(tmp_path / "file", tokens=pack("<4I", 1, 2, 200, 4))
    assert "has token id 200; the model knows 0 to 199" in refusal(path)
    assert "has 4 tokens; the model's context is 3" in refusal(path, context_length=3)
    assert read(path, context_length=4, vocab_size=201)[0].token_ids == (1, 2, 200, 4)


def test_a_header_beyond_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ovgen.session.file._MAX_HEADER", 1000)
    state = SessionState(1, (), ({"role": "user", "content": "x" * 1000},))
    with pytest.raises(RequestError, match=r"take \d+ bytes; 1000 can be saved"):
        written(tmp_path / "file", state)
    path = forged(tmp_path / "file", {**HEADER, "model": "x" * 1000})
    assert "cannot have a header of" in refusal(path)


def test_files_that_cannot_be_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "pipe"):
        with pytest.raises(StorageError, match="cannot read"):
            read(path)


@pytest.fixture(scope="module")
def llm():
    with LLM(LLAMA, precision="exact", attention_backend="paged") as loaded:
        yield loaded


def test_damaged_files_do_an_llm_no_harm(llm: LLM, tmp_path: Path):
    session = llm.session(seed=1)
    session.generate("hello world " * 8, max_new_tokens=40, ignore_eos=True)
    session.save(tmp_path / "file")
    whole = (tmp_path / "file").read_bytes()
    wanted = session.fork().generate("more", max_new_tokens=20).token_ids
    rng = random.Random(0)
    for _ in range(40):
        place = rng.randrange(len(whole))
        damaged = [whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]]
        for content in damaged:
            (tmp_path / "damaged").write_bytes(content)
            with pytest.raises(OvgenError):
                llm.load_session(tmp_path / "damaged")
    loaded = llm.load_session(tmp_path / "file")
    assert loaded.generate("more", max_new_tokens=20).token_ids == wanted


def test_a_sound_file_with_blocks_that_do_not_fit_it(llm: LLM, tmp_path: Path):
    """More blocks than tokens, or than there are messages for: taken as far as they make sense."""
    from ovgen.session.store import _identity

    layout = llm._service.open()._runner.block_store.layout
    for num_tokens, num_blocks in ((0, 3), (40, 3), (100, 1)):
        state = SessionState(1, (7,) * num_tokens, None, 1)
        content = np.zeros((num_blocks, layout["block_bytes"]), np.uint8)
        write_session(
            tmp_path / "file", state, _identity(llm.folder), iter([PrefixPart(layout, content)])
        )
        assert llm.load_session(tmp_path / "file").token_ids == state.token_ids

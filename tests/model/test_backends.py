"""Which runner serves a model, and how large its KV cache is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovgen.engine_config import EngineConfig
from ovgen.errors import ConfigError, UnsupportedModelError
from ovgen.model import kv_cache_size
from ovgen.model.backends import Backends, PagingWarning
from ovgen.model.kv_cache import block_size, bytes_per_block
from ovgen.model.kv_cache_size import kv_cache_blocks
from ovgen.model.memory import available_memory
from ovgen.model.paged_model import load_paged_model

TINY = Path(__file__).parents[1] / "fixtures" / "tiny"


def made(name: str = "llama", **options: object) -> Backends:
    return Backends(TINY / name, EngineConfig(**options), None)


def test_auto_begins_with_the_stateful_one_and_may_go_on_to_the_paged_one():
    both = made()
    first = both.first()
    assert (first.runner.num_blocks, first.token_budget) == (0, 8192)
    assert both.has_more
    second = both.paged_if_right()
    assert second is not None
    assert second.runner.num_blocks > 0
    assert (second.vocab_size, second.context_length) == (first.vocab_size, first.context_length)


def test_what_is_asked_for():
    assert made(attention_backend="stateful").first().runner.num_blocks == 0
    assert not made(attention_backend="stateful").has_more
    paged = made(attention_backend="paged", token_budget=77, max_num_seqs=5)
    assert not paged.has_more
    first = paged.first()
    assert first.runner.num_blocks > 0
    assert first.token_budget == 77
    assert first.runner.max_running_requests == 5


def test_what_cannot_be_paged_is_said_once_and_refused_where_it_is_asked_for():
    with pytest.warns(PagingWarning, match="mpt: .* logits after .* served one after the other"):
        assert made("mpt").paged_if_right() is None
    with pytest.raises(UnsupportedModelError, match="attention_backend='paged' does not work"):
        made("mpt", attention_backend="paged").first()


def test_the_size_of_the_kv_cache(monkeypatch: pytest.MonkeyPatch):
    config = EngineConfig(precision="exact")
    layouts = load_paged_model(TINY / "llama", config).kv_cache.layouts
    size, num_bytes = block_size(layouts), bytes_per_block(layouts)
    assert size == 32
    # Two layers of keys and values, as config.json has them, in float32.
    assert num_bytes == 2 * 2 * 2 * 16 * 32 * 4

    def blocks(**options: object) -> int:
        return kv_cache_blocks(layouts, EngineConfig(**options), 256)

    assert blocks(kv_cache_tokens=1) == 1
    assert blocks(kv_cache_tokens=33) == 2
    assert blocks(kv_cache_size=num_bytes * 7.5 / 1e9) == 7
    with pytest.raises(ConfigError, match="kv_cache_size is 1e-09 GB; one block of 32 tokens"):
        blocks(kv_cache_size=1e-9)
    assert blocks() == 8 * 256 // 32
    monkeypatch.setattr(kv_cache_size, "available_memory", lambda: 20 * num_bytes)
    assert blocks() == 10
    monkeypatch.setattr(kv_cache_size, "available_memory", lambda: 0)
    assert blocks() == 1


@pytest.mark.parametrize("kv_cache_size", [1e6, 1e12])
def test_a_cache_that_there_is_no_room_for(kv_cache_size: float):
    backends = made(attention_backend="paged", kv_cache_size=kv_cache_size)
    wanted = rf"no room for a KV cache of {kv_cache_size:.3g} GB .*: lower kv_cache_size or"
    with pytest.raises(ConfigError, match=wanted.replace("+", r"\+")):
        backends.first()


def test_blocks_are_copied_read_and_written():
    cache = load_paged_model(TINY / "gpt2", EngineConfig(), 4).kv_cache
    content = [part.copy() for part in cache.read([0, 1])]
    for number, part in enumerate(content):
        part[0], part[1] = 1 + number, 101 + number
    cache.write([2, 0], content)
    cache.copy([(2, 1), (0, 3)])
    for number, part in enumerate(cache.read([2, 0, 1, 3])):
        assert part.dtype == "uint8"
        assert [set(row.tolist()) for row in part] == [
            {1 + number}, {101 + number}, {1 + number}, {101 + number}
        ]  # fmt: skip


def test_the_memory_that_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ovgen.model import memory

    assert 0 < available_memory() < 1 << 50
    limit, used, info = (tmp_path / name for name in ("max", "current", "meminfo"))
    monkeypatch.setattr(memory, "_CGROUPS", ((limit, used),))
    monkeypatch.setattr(memory, "_MEMINFO", info)
    info.write_text("MemTotal: 9 kB\nMemAvailable:       4000 kB\n")
    assert available_memory() == 4_096_000
    limit.write_text("max\n")
    used.write_text("1000\n")
    assert available_memory() == 4_096_000
    limit.write_text("3000\n")
    assert available_memory() == 2000
    limit.write_text("500\n")
    assert available_memory() == 0

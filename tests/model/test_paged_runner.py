"""PagedAttention on the tiny checkpoints, in exact precision: whatever shares a batch, a prefix or
too little memory, the tokens are those of each request alone on the stateful graph, and
transformers'."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ovgen.errors import ConfigError, RequestError, UnsupportedModelError
from ovgen.llm import LLM

TESTS = Path(__file__).parents[1]
TINY = TESTS / "fixtures" / "tiny"
RECORDS = json.loads((TESTS / "data" / "tiny_models.json").read_text())
PAGED = [
    "llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "opt", "phi3", "gemma3", "mixtral", "bloom",
    "falcon",
]  # fmt: skip
NOT_PAGED = ["mpt", "llama_no_beam_idx", "mamba"]


def prompts(count: int, longest: int = 70, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 200, rng.integers(1, longest)).tolist() for _ in range(count)]


def paged(name: str, **options: object) -> LLM:
    return LLM(TINY / name, precision="exact", attention_backend="paged", **options)


def stateful(name: str) -> LLM:
    return LLM(TINY / name, precision="exact", attention_backend="stateful")


def tokens(llm: LLM, several: list[list[int]], **options: object) -> list[list[list[int]]]:
    results = llm.generate(several, ignore_eos=True, **options)
    return [[list(output.token_ids) for output in result.outputs] for result in results]


@pytest.mark.parametrize("budget", [1024, 7])
@pytest.mark.parametrize("name", PAGED)
def test_transformers_greedy_tokens_all_at_once_and_in_chunks(name: str, budget: int):
    record = RECORDS[name]
    with paged(name, token_budget=budget) as llm:
        outputs = llm.generate(record["prompts"], max_new_tokens=len(record["tokens"][0]))
        assert [list(output.token_ids) for output in outputs] == record["tokens"]


@pytest.mark.parametrize("name", PAGED)
def test_a_batch_equals_the_requests_alone_on_the_stateful_graph(name: str):
    several = prompts(16)
    with paged(name) as one, stateful(name) as other:
        together = tokens(one, several, max_new_tokens=20)
        assert together == [tokens(other, [p], max_new_tokens=20)[0] for p in several]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_a_prefix_that_is_found_again_changes_nothing(name: str):
    long = list(range(5, 150))
    several = [long + tail for tail in prompts(4, 30)]
    with paged(name) as with_cache, paged(name, prefix_caching=False) as without:
        first = [tokens(with_cache, [p], max_new_tokens=12) for p in several]
        again = [tokens(with_cache, [p], max_new_tokens=12) for p in several]
        assert first == again == [tokens(without, [p], max_new_tokens=12) for p in several]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_too_little_memory_changes_nothing(name: str):
    several = prompts(8, 60)
    with paged(name, kv_cache_tokens=160) as small, paged(name) as large:
        wanted = tokens(large, several, max_new_tokens=60)
        assert tokens(small, several, max_new_tokens=60) == wanted


SEARCHES = {
    "beams": {"num_beams": 4, "num_return_sequences": 4},
    "groups": {
        "num_beams": 4,
        "num_beam_groups": 2,
        "diversity_penalty": 1.0,
        "num_return_sequences": 2,
    },
    "samples": {"do_sample": True, "num_return_sequences": 5, "seed": 7, "top_k": 0},
    "beam samples": {"do_sample": True, "num_beams": 3, "seed": 7, "top_k": 0},
    "mirostat": {"do_sample": True, "mirostat_tau": 3.0, "mirostat_eta": 0.1, "seed": 3},
    "guidance": {"guidance_scale": 1.7, "negative_prompt": [6, 7, 8]},
}


@pytest.mark.parametrize("options", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_searches_and_samples_equal_the_stateful_graphs(name: str, options: dict[str, object]):
    several = prompts(4, 45)
    for length in (9, 40):
        with paged(name) as one, paged(name, kv_cache_tokens=700) as small, stateful(name) as other:
            wanted = tokens(other, several, max_new_tokens=length, **options)
            assert tokens(one, several, max_new_tokens=length, **options) == wanted
            assert tokens(small, several, max_new_tokens=length, **options) == wanted


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_scores_equal_the_stateful_graphs(name: str):
    prompt, *ends = prompts(6, 40, seed=5)
    with paged(name) as one, paged(name, token_budget=5) as chunked, stateful(name) as other:
        wanted = [score.logprobs for score in other.score(prompt, ends)]
        for llm in (one, chunked, one):
            found = [score.logprobs for score in llm.score(prompt, ends)]
            for row, expected in zip(found, wanted, strict=True):
                assert row == pytest.approx(expected, abs=1e-4)
        text = prompts(1, 200, seed=9)[0] + prompt
        perplexity = other.perplexity(text, max_length=64).perplexity
        assert one.perplexity(text, max_length=64).perplexity == pytest.approx(perplexity, rel=1e-4)
        options = {"max_new_tokens": 2, "prompt_logprobs": 3}
        (want,) = (other.generate(text[:90], **options),)
        have = one.generate(text[:90], **options)
        for mine, theirs in zip(have.prompt_logprobs[1:], want.prompt_logprobs[1:], strict=True):
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)


@pytest.mark.parametrize("name", NOT_PAGED)
def test_what_paging_computes_wrongly_is_served_by_the_stateful_graph(name: str):
    with pytest.raises(UnsupportedModelError, match="attention_backend='paged' does not work"):
        paged(name)


def test_a_request_that_can_never_fit_is_refused_with_the_figures():
    with paged("llama", kv_cache_tokens=64) as llm:
        with pytest.raises(RequestError, match=r"prompt of 64 tokens .* KV cache of 64 tokens"):
            llm.generate([5] * 64)
        with pytest.raises(ConfigError, match=r"max_new_tokens is 60, .* KV cache of 64 .* for 54"):
            llm.generate([5] * 10, max_new_tokens=60)
        with pytest.raises(RequestError, match="2 texts of 80 tokens do not fit into the KV cache"):
            llm.score([5] * 30, [[6] * 10, [7] * 10])
        assert len(llm.generate([5] * 10, ignore_eos=True, max_new_tokens=54).token_ids) == 54


@pytest.mark.parametrize(("precision", "off"), [("u8", 1.0), ("f16", 0.02), ("f32", 0.002)])
def test_the_kv_cache_has_the_precision_asked_for(precision: str, off: float):
    prompt, text = prompts(1, 70)[0], list(range(20, 80))
    options = {"kv_cache_precision": precision, "token_budget": 8}
    with LLM(TINY / "llama", attention_backend="paged", **options) as llm:
        types = {kind for _, kind, _ in llm._service.open()._runner.block_store.layout["tensors"]}
        assert types == {precision}
        (found,) = llm.score(prompt, [text])
    with stateful("llama") as exact:
        (wanted,) = exact.score(prompt, [text])
    assert found.logprobs == pytest.approx(wanted.logprobs, abs=off)

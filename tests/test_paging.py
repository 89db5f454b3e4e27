"""From the stateful runner to the paged one while requests are served."""

from __future__ import annotations

import shutil
import time
import warnings
from pathlib import Path

import pytest

from ovgen.llm import LLM
from ovgen.model.backends import Backends, PagingWarning

TINY = Path(__file__).parent / "fixtures" / "tiny"
PROMPTS = [[5 + i, 6, 7 + 3 * i] * (1 + i) for i in range(6)]


def wait_for_paging(llm: LLM) -> None:
    deadline = time.monotonic() + 60
    while llm.attention_backend != "paged":
        assert time.monotonic() < deadline
        llm.generate([5], max_new_tokens=1)


def test_one_request_does_not_compile_a_second_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Backends, "paged", lambda _: pytest.fail("compiled"))
    with LLM(TINY / "llama", precision="exact") as llm:
        llm.generate([5, 6, 7], max_new_tokens=3)
        assert llm.attention_backend == "stateful"


def test_requests_under_way_go_on_where_they_were():
    with LLM(TINY / "llama", precision="exact", attention_backend="stateful") as llm:
        wanted = [llm.generate(p, max_new_tokens=200, ignore_eos=True) for p in PROMPTS]
        sampled = llm.generate(
            PROMPTS[0], max_new_tokens=200, ignore_eos=True, do_sample=True, seed=3, top_k=0
        )
    with LLM(TINY / "llama", precision="exact") as llm:
        handles = [llm.submit(p, max_new_tokens=200, ignore_eos=True) for p in PROMPTS]
        random = llm.submit(
            PROMPTS[0], max_new_tokens=200, ignore_eos=True, do_sample=True, seed=3, top_k=0
        )
        found = [handle.result() for handle in handles]
        assert random.result().token_ids == sampled.token_ids
        assert [one.token_ids for one in found] == [one.token_ids for one in wanted]
        wait_for_paging(llm)
        again = llm.generate(PROMPTS, max_new_tokens=200, ignore_eos=True)
        assert [one.token_ids for one in again] == [one.token_ids for one in wanted]


def test_a_model_that_cannot_be_paged_says_so_once():
    with warnings.catch_warnings(record=True) as caught, LLM(TINY / "mpt") as llm:
        warnings.simplefilter("always")
        for _ in range(4):
            llm.generate([5, 6, 7], max_new_tokens=2)
        llm._upgrade.close()
        llm.generate([5, 6, 7], max_new_tokens=2)
        assert llm.attention_backend == "stateful"
    assert [one.category for one in caught] == [PagingWarning]
    assert "requests are served one after the other" in str(caught[0].message)


def test_a_close_while_it_compiles():
    for _ in range(3):
        llm = LLM(TINY / "llama")
        for _ in range(2):
            llm.generate([5], max_new_tokens=1)
        llm.close()
        assert not llm._upgrade._thread.is_alive()


def test_files_that_are_gone_only_cost_the_speed(tmp_path: Path):
    folder = Path(shutil.copytree(TINY / "llama", tmp_path / "llama"))
    with LLM(folder) as llm:
        llm.generate([5], max_new_tokens=1)
        shutil.rmtree(folder)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            llm.generate([5], max_new_tokens=1)
            llm._upgrade.close()
        assert [one.category for one in caught] == [PagingWarning]
        assert "paged attention is not used" in str(caught[0].message)
        assert len(llm.generate([5], max_new_tokens=3, ignore_eos=True).token_ids) == 3

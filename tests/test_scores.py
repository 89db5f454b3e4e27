"""Perplexity, prompt log-probabilities and scores of continuations: transformers' of SmolLM2.

The records come from tests/oracles/perplexity.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovgen import LLM

pytestmark = pytest.mark.model

DATA = Path(__file__).parent / "data"
RECORD = json.loads((DATA / "perplexity.json").read_text(encoding="utf-8"))
LOGPROB_TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def llm(smollm2_exact_folder: Path) -> Iterator[LLM]:
    with LLM(smollm2_exact_folder, precision="exact") as loaded:
        yield loaded


def corpus() -> str:
    paths = sorted((DATA / "corpus").glob("*.txt"))
    texts = [path.read_text(encoding="utf-8") for path in paths]
    return RECORD["separator"].join(texts * RECORD["repeated"])


def check_perplexity(result: Any, wanted: dict[str, Any]) -> None:
    assert result.num_tokens == wanted["num_tokens"]
    assert result.perplexity == pytest.approx(wanted["perplexity"], rel=1e-3)
    assert result.nll == pytest.approx(wanted["nll"], rel=1e-3)


@pytest.mark.parametrize("number", range(1, len(RECORD["perplexity"])))
def test_perplexity_of_ids(llm: LLM, number: int):
    wanted = RECORD["perplexity"][number]
    result = llm.perplexity(RECORD["ids"], stride=wanted["stride"], max_length=wanted["max_length"])
    check_perplexity(result, wanted)


def test_perplexity_of_a_text(llm: LLM):
    wanted = RECORD["perplexity"][0]
    result = llm.perplexity(corpus(), stride=wanted["stride"], max_length=wanted["max_length"])
    check_perplexity(result, wanted)


def test_prompt_logprobs(llm: LLM):
    wanted = RECORD["prompt_logprobs"]
    ids = wanted["ids"]
    output = llm.generate(ids, max_new_tokens=1, prompt_logprobs=5)
    first, *items = output.prompt_logprobs
    assert first is None
    assert [item.token_id for item in items] == ids[1:]
    own = [item.logprob for item in items]
    np.testing.assert_allclose(own, wanted["logprobs"], atol=LOGPROB_TOLERANCE, rtol=0)
    ranks = [(item.rank, *bounds) for item, bounds in zip(items, wanted["ranks"], strict=True)]
    assert [row for row in ranks if not row[1] <= row[0] <= row[2]] == []
    assert [[token for token, _ in item.top] for item in items] == wanted["top_ids"]
    top = [[logprob for _, logprob in item.top] for item in items]
    np.testing.assert_allclose(top, wanted["top_logprobs"], atol=LOGPROB_TOLERANCE, rtol=0)


def test_score(llm: LLM):
    wanted = RECORD["continuations"]
    results = llm.score(RECORD["prompt"], [row["text"] for row in wanted])
    assert [list(result.token_ids) for result in results] == [row["ids"] for row in wanted]
    for result, row in zip(results, wanted, strict=True):
        np.testing.assert_allclose(result.logprobs, row["logprobs"], atol=LOGPROB_TOLERANCE, rtol=0)
        assert result.logprob == pytest.approx(
            row["logprob"], abs=LOGPROB_TOLERANCE * len(row["ids"])
        )


def test_prompt_logprobs_of_a_prompt_in_chunks(llm: LLM):
    """512 tokens: more than the rows of logits that one step may have."""
    with np.load(DATA / "smollm2_kl.npz") as record:
        windows, wanted = record["token_ids"], record["next_logprobs"]
    assert llm._service.open()._scheduler._logits_budget < 512
    for ids, logprobs in zip(windows[:2], wanted[:2], strict=True):
        output = llm.generate(ids.tolist(), max_new_tokens=1, prompt_logprobs=0)
        own = [item.logprob for item in output.prompt_logprobs[1:]]
        np.testing.assert_allclose(own, logprobs, atol=LOGPROB_TOLERANCE, rtol=0)


PEAK = """
import sys
from ovgen import LLM

number = int(sys.argv[2])
ids = [1000 + 7 * i % 20000 for i in range(number)]
with LLM(sys.argv[1], attention_backend=sys.argv[4]) as llm:
    if sys.argv[3] == "perplexity":
        llm.perplexity(ids, stride=192, max_length=256)
    else:
        llm.generate(ids, max_new_tokens=1, prompt_logprobs=2)
with open("/proc/self/status") as file:  # getrusage would count the parent's peak, too
    print(next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM")))
"""


def peak(folder: Path, number: int, call: str, backend: str) -> int:
    arguments = [sys.executable, "-c", PEAK, str(folder), str(number), call, backend]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=300)
    return int(done.stdout)


@pytest.mark.parametrize("backend", ["stateful", "paged"])
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_text(smollm2_folder: Path, backend: str):
    """Its logits all at once would take 590 MB."""
    peak(smollm2_folder, 300, "perplexity", backend)  # fills the cache of compiled models
    short, long = (peak(smollm2_folder, number, "perplexity", backend) for number in (600, 3000))
    print(f"\nperplexity: {short / 1e6:.0f} MB for 600 tokens, {long / 1e6:.0f} MB for 3,000")
    assert long < short + 16e6


@pytest.mark.parametrize("backend", ["stateful", "paged"])
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_prompt_logprobs_never_hold_all_logits(smollm2_folder: Path, backend: str):
    peak(smollm2_folder, 300, "prompt_logprobs", backend)
    short, long = (
        peak(smollm2_folder, number, "prompt_logprobs", backend) for number in (400, 2000)
    )
    print(f"\nprompt_logprobs: {short / 1e6:.0f} MB for 400 tokens, {long / 1e6:.0f} MB for 2,000")
    assert long < short + 0.5 * (2000 - 400) * 49152 * 4

"""Tiny random checkpoints as optimum-intel exports them: transformers' tokens and logits in exact.

tests/oracles/tiny_models.py makes the folders and the records.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ovgen.engine.batch import ScheduledBatch, ScheduledSequence
from ovgen.engine.sequence import Request, Sequence
from ovgen.engine_config import EngineConfig
from ovgen.llm import LLM
from ovgen.model.loader import load_model
from ovgen.model.stateful_runner import StatefulRunner

TESTS = Path(__file__).parents[1]
TINY = TESTS / "fixtures" / "tiny"
RECORDS = json.loads((TESTS / "data" / "tiny_models.json").read_text())
ARCHITECTURES = [
    "llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "opt", "mpt", "phi3", "gemma3", "mixtral",
    "bloom", "falcon", "llama_no_beam_idx", "mamba",
]  # fmt: skip


STATEFUL = {"precision": "exact", "attention_backend": "stateful"}


def greedy_tokens(llm: LLM, name: str) -> list[list[int]]:
    prompts = RECORDS[name]["prompts"]
    outputs = llm.generate(prompts, max_new_tokens=len(RECORDS[name]["tokens"][0]))
    return [list(output.token_ids) for output in outputs]


def logits_after(runner: StatefulRunner, prompt: list[int], request_id: int) -> np.ndarray:
    """The logits of a prompt's last position, computed as the engine would."""
    sequence = Sequence(request_id, tuple(prompt))
    request = Request(request_id, tuple(prompt), 1, frozenset(), None, [sequence])
    runner.start(ScheduledBatch((ScheduledSequence(request, sequence, len(prompt), 1),)))
    logits = runner.wait(60.0)
    assert logits is not None
    [row] = logits
    return row.copy()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_transformers_greedy_tokens(name: str):
    with LLM(TINY / name, **STATEFUL) as llm:
        assert greedy_tokens(llm, name) == RECORDS[name]["tokens"]
    with LLM(TINY / name, **STATEFUL) as llm:  # from the cache of compiled models
        assert greedy_tokens(llm, name) == RECORDS[name]["tokens"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_chunked_prefill_gives_the_same_tokens(name: str):
    with LLM(TINY / name, **STATEFUL, token_budget=4) as llm:
        assert greedy_tokens(llm, name) == RECORDS[name]["tokens"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_transformers_logits(name: str):
    with np.load(TESTS / "data" / "tiny_models.npz") as records:
        wanted = records[name]
    loaded = load_model(TINY / name, EngineConfig(precision="exact"), None)
    runner = StatefulRunner(loaded.compiled, loaded.weights)
    for number, prompt in enumerate(RECORDS[name]["prompts"]):
        logits = logits_after(runner, prompt, number)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, wanted[number], atol=1e-4, rtol=0)


def test_every_fixture_is_tested():
    assert sorted(path.name for path in TINY.iterdir()) == sorted(ARCHITECTURES)

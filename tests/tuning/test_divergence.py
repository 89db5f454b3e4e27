"""KL divergence in chunks, against the whole of it."""

from __future__ import annotations

import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ovgen import LLM
from ovgen.tuning import divergence as module
from ovgen.tuning.divergence import CHUNK, divergence, reference

LLAMA = Path(__file__).parents[1] / "fixtures" / "tiny" / "llama"
TEXT = np.random.default_rng(1).integers(3, 320, 150).tolist()
WINDOWS = [TEXT[:100], TEXT[100:]]


@pytest.fixture(scope="module", params=["stateful", "paged"])
def load(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = shutil.copytree(LLAMA, tmp_path_factory.mktemp("models") / "llama")
    return partial(LLM, folder, token_budget=CHUNK, profile="none", attention_backend=request.param)


@pytest.fixture(scope="module")
def expected(load):
    with load(precision="exact") as llm:
        return reference(llm, WINDOWS)


def whole(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_every_predicted_token_once(expected):
    assert expected.ids.shape == (148, 320)
    assert np.exp(expected.logprobs).sum(1) == pytest.approx(1, abs=1e-5)


def test_the_same_load_is_at_zero(load, expected):
    with load(precision="exact") as llm:
        assert divergence(expected, llm, WINDOWS) < 1e-9
        assert llm.generate(TEXT[:5], max_new_tokens=1).token_ids
        assert "wait" not in vars(llm._service.open()._runner)  # it is as before


def test_another_precision(load, expected):
    with load(properties={"INFERENCE_PRECISION_HINT": "bf16"}) as llm:
        assert 1e-9 < divergence(expected, llm, WINDOWS) < 0.1


@pytest.mark.parametrize("top", [64, 1000])
def test_the_sum_of_all_others_hides_little(monkeypatch: pytest.MonkeyPatch, top: int):
    rng = np.random.default_rng(0)
    rows = (4 * rng.standard_normal((50, 1000))).astype(np.float32)
    other = rows + 0.1 * rng.standard_normal(rows.shape).astype(np.float32)
    p, q = whole(rows), whole(other)
    true = (np.exp(p) * (p - q)).sum(1).mean()
    monkeypatch.setattr(module, "_NUM_TOP", top)
    found = module._kl(module._top(rows), slice(0, 50), other).mean()
    assert found <= true * (1 + 1e-4)
    assert found == pytest.approx(true, rel=0.05 if top == 64 else 1e-3)


def test_no_numbers_give_no_number(expected, monkeypatch: pytest.MonkeyPatch):
    rows = np.full((148, 320), np.nan, np.float32)
    monkeypatch.setattr(module, "_compute", lambda llm, windows, sink: sink(rows))
    assert math.isnan(divergence(expected, None, WINDOWS))

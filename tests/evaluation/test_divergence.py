"""KL divergence in chunks, against the whole of it."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ovgen import LLM
from ovgen.evaluation import divergence as module
from ovgen.evaluation.divergence import CHUNK, compare, reference

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


def fed(monkeypatch: pytest.MonkeyPatch, rows: np.ndarray, targets: np.ndarray) -> SimpleNamespace:
    """A stand-in for a model that predicts these rows."""

    def predict(llm, windows, sink):
        for start in range(0, len(rows), 32):
            place = slice(start, min(start + 32, len(rows)))
            sink(place, targets[place], rows[place])

    monkeypatch.setattr(module, "_predict", predict)
    return SimpleNamespace(vocab_size=rows.shape[1])


def test_every_predicted_token_once(expected):
    assert expected.ids.shape == (148, 320)
    assert np.exp(expected.logprobs).sum(1) == pytest.approx(1, abs=1e-5)


def test_the_same_load_is_at_zero(load, expected):
    with load(precision="exact") as llm:
        found = compare(expected, llm, WINDOWS)
        assert found.mean_kl < 1e-9
        assert found.has_same_best.all()
        assert found.next_logprobs == pytest.approx(expected.next_logprobs, abs=1e-6)
        assert llm.generate(TEXT[:5], max_new_tokens=1).token_ids
        assert "wait" not in vars(llm._service.open()._runner)  # it is as before


def test_another_precision(load, expected):
    with load(properties={"INFERENCE_PRECISION_HINT": "bf16"}) as llm:
        assert 1e-9 < compare(expected, llm, WINDOWS).mean_kl < 0.1


def test_the_text_is_scored_as_by_score(load, expected):
    with load(precision="exact") as llm:
        scored = [llm.score(window[:1], [window[1:]])[0].logprobs for window in WINDOWS]
    assert expected.next_logprobs == pytest.approx(np.concatenate(scored), abs=1e-5)


@pytest.mark.parametrize("top", [64, 1000])
def test_against_the_whole(monkeypatch: pytest.MonkeyPatch, top: int):
    rng = np.random.default_rng(0)
    rows = (4 * rng.standard_normal((200, 1000))).astype(np.float32)
    other = rows + 0.1 * rng.standard_normal(rows.shape).astype(np.float32)
    targets = rng.integers(0, 1000, 200)
    kept = reference(fed(monkeypatch, rows, targets), [range(201)], top)
    found = compare(kept, fed(monkeypatch, other, targets), [])
    p, q = whole(rows), whole(other)
    true = (np.exp(p) * (p - q)).sum(1)
    if top == 1000:
        assert found.kl == pytest.approx(true, rel=1e-3)
        wrong = replace(kept, rest=kept.rest + 0.1)  # there are no others that it could be of
        assert (compare(wrong, fed(monkeypatch, other, targets), []).kl == found.kl).all()
    assert found.mean_kl <= true.mean() * (1 + 1e-4)  # the sum of all others hides a little
    assert found.mean_kl == pytest.approx(true.mean(), rel=0.05 if top == 64 else 1e-4)
    same = rows.argmax(1) == other.argmax(1)
    assert 0.5 < same.mean() < 1
    assert (found.has_same_best == same).all()
    assert found.next_logprobs == pytest.approx(q[np.arange(200), targets], abs=1e-5)


def test_impossible_tokens(monkeypatch: pytest.MonkeyPatch):
    """Of a padded vocabulary: nothing where both rule them out, infinite where one does."""
    targets = np.zeros(1, np.int64)
    rows = np.array([[0, 1, -np.inf]], np.float32)
    kept = reference(fed(monkeypatch, rows, targets), [range(2)])
    assert compare(kept, fed(monkeypatch, rows, targets), []).kl.tolist() == [0]
    other = np.array([[0, -np.inf, 1]], np.float32)
    assert compare(kept, fed(monkeypatch, other, targets), []).kl.tolist() == [math.inf]


def test_no_numbers_give_no_number(expected, monkeypatch: pytest.MonkeyPatch):
    rows = np.full((148, 320), np.nan, np.float32)
    found = compare(expected, fed(monkeypatch, rows, np.zeros(148, np.int64)), [])
    assert math.isnan(found.mean_kl)

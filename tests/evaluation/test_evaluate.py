"""An evaluation of tiny models, against the whole of their logits in numpy."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from ovgen import LLM, ConfigError, RequestError
from ovgen.evaluation import evaluate as module
from ovgen.evaluation.evaluate import evaluate
from ovgen.text.tokenizer import load_tokenizer

TINY = Path(__file__).parents[1] / "fixtures" / "tiny"
TEXT = "".join(chr(32 + 7 * i * i % 95) for i in range(900))
PROMPTS = ["hello", "one two"]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY / "llama", tmp_path / "llama"))


@pytest.fixture
def qwen2(tmp_path: Path) -> Path:
    """Has the same tokenizer."""
    return Path(shutil.copytree(TINY / "qwen2", tmp_path / "qwen2"))


def add_bos(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    bos = next(token for token in content["added_tokens"] if token["id"] == 1)["content"]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": bos, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {bos: {"id": bos, "ids": [1], "tokens": [bos]}},
    }
    path.write_text(json.dumps(content))


def log_probs(folder: Path, windows: list[list[int]]) -> np.ndarray:
    """Of all tokens after each token of the windows but the last ones, [num, vocab] float64."""
    rows = []

    def keep(token_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        rows.append(logits.astype(np.float64))
        return logits

    with LLM(folder, "CPU", "exact", attention_backend="stateful") as llm:
        for window in windows:
            for stop in range(1, len(window)):
                llm.generate(window[:stop], max_new_tokens=1, logits_processors=[keep])
    whole = np.stack(rows)
    return whole - np.log(np.exp(whole).sum(1, keepdims=True))


def test_a_model_is_itself(llama):
    found = evaluate(llama, llama, text=TEXT, prompts=PROMPTS, precision="exact", max_new_tokens=9)
    assert found.mean_kl == pytest.approx(0, abs=1e-9)
    assert found.max_kl == pytest.approx(0, abs=1e-8)
    assert found.top1_agreement == 1
    assert found.perplexity == pytest.approx(found.reference_perplexity, rel=1e-6)
    assert [(one.num_tokens, one.num_equal) for one in found.continuations] == [(9, 9), (9, 9)]
    assert found.continuations[0].text == found.continuations[0].reference_text


@pytest.mark.parametrize(("max_tokens", "has_bos"), [(45, False), (130, False), (97, True)])
def test_two_models_by_hand(llama, qwen2, monkeypatch, max_tokens, has_bos):
    """The same vocabulary, other weights: every figure anew from all logits."""
    monkeypatch.setattr(module, "WINDOW", 50)
    if has_bos:
        add_bos(llama)
        add_bos(qwen2)
    found = evaluate(llama, qwen2, text=TEXT, precision="exact", max_tokens=max_tokens)
    begin = [1] if has_bos else []
    ids = load_tokenizer(llama).encode(TEXT)[len(begin) :][:max_tokens]
    step = 50 - len(begin)
    windows = [begin + ids[i : i + step] for i in range(0, len(ids), step)]
    targets = [token for window in windows for token in window[1:]]
    p, q = (log_probs(folder, windows) for folder in (qwen2, llama))
    kl = (np.exp(p) * (p - q)).sum(1)
    places = np.arange(len(targets))
    assert (found.num_tokens, found.num_top) == (len(targets), 320)
    assert found.mean_kl == pytest.approx(kl.mean(), rel=1e-4)
    assert found.median_kl == pytest.approx(np.median(kl), rel=1e-4)
    assert found.p99_kl == pytest.approx(np.percentile(kl, 99), rel=1e-4)
    assert found.max_kl == pytest.approx(kl.max(), rel=1e-4)
    assert found.top1_agreement == (p.argmax(1) == q.argmax(1)).mean()
    assert found.reference_perplexity == pytest.approx(math.exp(-p[places, targets].mean()))
    assert found.perplexity == pytest.approx(math.exp(-q[places, targets].mean()))


def test_where_two_models_part(llama, qwen2):
    found = evaluate(llama, qwen2, text=TEXT[:50], prompts=PROMPTS, max_new_tokens=7)
    outputs = []
    for folder in (llama, qwen2):
        with LLM(folder) as llm:
            outputs.append(llm.generate(PROMPTS, max_new_tokens=7, ignore_eos=True))
    for one, mine, theirs in zip(found.continuations, *outputs, strict=True):
        equal = [a == b for a, b in zip(mine.token_ids, theirs.token_ids, strict=True)]
        assert one.num_equal == (equal.index(False) if False in equal else 7)
        assert (one.text, one.reference_text) == (mine.text, theirs.text)
        assert one.num_tokens == 7


def test_the_likeliest_token_whatever_the_model_asks_for(llama):
    path = llama / "generation_config.json"
    before = evaluate(llama, llama, text=TEXT[:50], prompts=PROMPTS, max_new_tokens=7)
    options = {"do_sample": True, "temperature": 2.0, "repetition_penalty": 3.0, "eos_token_id": 2}
    path.write_text(json.dumps(options))
    after = evaluate(llama, llama, text=TEXT[:50], prompts=PROMPTS, max_new_tokens=7)
    assert after.continuations == before.continuations


def test_continuations_end_with_the_context(llama):
    found = evaluate(llama, llama, text=TEXT[:50], prompts=[TEXT[:100]], max_new_tokens=999)
    (one,) = found.continuations
    assert one.num_tokens == 256 - len(load_tokenizer(llama).encode(TEXT[:100]))


def test_only_the_beginning_of_a_long_text_is_read(llama, monkeypatch):
    text = "hello world " * 20
    assert evaluate(llama, llama, text=text, max_tokens=20).num_tokens == 19
    monkeypatch.setattr(module, "CHARACTERS_A_TOKEN", 1)  # and the rest is not even tokenized
    assert evaluate(llama, llama, text=text, max_tokens=20).num_tokens < 19


def test_another_vocabulary(llama, qwen2):
    path = qwen2 / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:10]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"into different tokens, first at token 1 \("):
        evaluate(llama, qwen2, text="hello world")


def test_the_special_tokens_are_the_references(llama, qwen2):
    """Tokenizers of one vocabulary may add others: both models get those of the reference."""
    plain = evaluate(llama, qwen2, text=TEXT, max_tokens=20, precision="exact")
    add_bos(llama)
    assert evaluate(llama, qwen2, text=TEXT, max_tokens=20, precision="exact") == plain


def test_a_wider_vocabulary(llama, monkeypatch):
    """The same tokens, but a model that predicts more of them."""
    sizes = iter([320, 384])

    class WiderLLM(LLM):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.vocab_size = next(sizes)

    monkeypatch.setattr(module, "LLM", WiderLLM)
    with pytest.raises(ConfigError, match=r"predicts 384 tokens and .* predicts 320"):
        evaluate(llama, llama, text=TEXT)


def test_a_shorter_context(llama, qwen2):
    path = llama / "config.json"
    path.write_text(path.read_text().replace('embeddings": 256', 'embeddings": 32'))
    with pytest.raises(ConfigError, match=r"context of .*llama is 32 tokens"):
        evaluate(llama, qwen2, text=TEXT)
    assert evaluate(llama, llama, text=TEXT, max_tokens=64).num_tokens == 62


@pytest.mark.parametrize("text", ["", "a"])
def test_too_short_a_text(llama, text):
    with pytest.raises(RequestError, match="fewer than two tokens"):
        evaluate(llama, llama, text=text)


@pytest.mark.parametrize(
    "options", [{"max_tokens": 1}, {"max_tokens": 32_769}, {"max_new_tokens": 0}]
)
def test_options_out_of_range(llama, options):
    with pytest.raises(ConfigError, match=r"max_\w+ must be a whole number, [12]"):
        evaluate(llama, llama, text=TEXT, **options)


def test_no_numbers(llama, monkeypatch):
    def broken(rows):
        return np.full_like(rows, np.nan)

    monkeypatch.setattr("ovgen.evaluation.divergence.log_softmax", broken)
    with pytest.raises(RequestError, match="llama predicts no numbers"):
        evaluate(llama, llama, text=TEXT)

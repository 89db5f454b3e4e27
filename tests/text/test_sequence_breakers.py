"""Sequence breakers as tokens, against llama.cpp on SmolLM2's vocabulary.

The records come from tests/oracles/llama_cpp_samplers.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ovgen.decoding.logits_processors import dry
from ovgen.text.sequence_breakers import token_sequences
from ovgen.text.tokenizer import Tokenizer, load_tokenizer

DATA = Path(__file__).parents[1] / "data"
RECORDS = json.loads((DATA / "llama_cpp_samplers.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2_folder: Path) -> Tokenizer:
    return load_tokenizer(smollm2_folder)


def recorded(name: str) -> set[tuple[int, ...]]:
    item = RECORDS["breakers"][name]
    return {(token_id,) for token_id in item["tokens"]} | {tuple(s) for s in item["sequences"]}


@pytest.mark.model
@pytest.mark.parametrize("name", [n for n in RECORDS["breakers"] if n != "beyond_ascii"])
def test_like_llama_cpp(smollm2_tokenizer: Tokenizer, name: str):
    breakers = RECORDS["breakers"][name]["breakers"]
    assert token_sequences(smollm2_tokenizer, breakers) == recorded(name)


@pytest.mark.model
def test_beyond_ascii_like_llama_cpp(smollm2_tokenizer: Tokenizer):
    """llama.cpp cannot say the tail of a head that ends within a character: there is more here."""
    breakers = RECORDS["breakers"]["beyond_ascii"]["breakers"]
    sequences = token_sequences(smollm2_tokenizer, breakers)
    assert sequences >= recorded("beyond_ascii")
    for more in sequences - recorded("beyond_ascii"):
        text = smollm2_tokenizer.decode(more)
        assert any(breaker in text for breaker in breakers)
        assert len(more) > 1


@pytest.mark.model
@pytest.mark.parametrize("name", ["none", "default", "colon_space", "turns", "word"])
def test_dry_from_texts_like_llama_cpp(smollm2_tokenizer: Tokenizer, name: str):
    sequences = token_sequences(smollm2_tokenizer, RECORDS["breakers"][name]["breakers"])
    process = dry(0.8, 1.75, 2, breakers=sequences)
    with np.load(DATA / "llama_cpp_samplers.npz") as arrays:
        bounds = arrays["dry_texts_ends"][:-1]
        changed = np.split(arrays["dry_texts_changed"], bounds)
        values = np.split(arrays["dry_texts_values"], bounds)
    num_checked = 0
    for case, ids, expected in zip(RECORDS["dry_texts"], changed, values, strict=True):
        if case["breakers"] != name:
            continue
        history = np.array(RECORDS["texts"][case["text"]][: case["length"]], np.int64)
        logits = process(history, np.zeros(49_152, np.float32))
        assert np.flatnonzero(logits).tolist() == ids.tolist(), case
        np.testing.assert_allclose(logits[ids], expected, rtol=1e-5)
        num_checked += 1
    assert num_checked == 28

"""Logits processors against what transformers and llama.cpp make of the same rows.

The records come from tests/oracles/logits_processors.py and llama_cpp_samplers.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovgen.decoding import logits_processors as lp

DATA = Path(__file__).parents[1] / "data"
VOCAB = 400


class Records:
    """A .json and .npz of the two oracles."""

    def __init__(self, name: str) -> None:
        self.content: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text("utf-8"))
        with np.load(DATA / f"{name}.npz") as arrays:
            self.arrays = dict(arrays)

    def row(self, name: str) -> np.ndarray:
        return self.arrays[f"row_{name}"].copy()

    def changes(self, prefix: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per case the ids that changed, and their new values."""
        bounds = self.arrays[f"{prefix}ends"][:-1]
        return list(
            zip(
                np.split(self.arrays[f"{prefix}changed"], bounds),
                np.split(self.arrays[f"{prefix}values"], bounds),
                strict=True,
            )
        )


TRANSFORMERS = Records("logits_processors")
LLAMA_CPP = Records("llama_cpp_samplers")


def check(
    processors: Sequence[lp.LogitsProcessor],
    history: Sequence[int],
    row: np.ndarray,
    change: tuple[np.ndarray, np.ndarray],
) -> None:
    token_ids = np.array(history, np.int64)
    expected = row.copy()
    expected[change[0]] = change[1]
    made = row.copy()
    for process in processors:
        made = process(token_ids, made)
    assert made.dtype == np.float32
    assert token_ids.tolist() == list(history)
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)


def from_params(name: str, params: dict[str, Any]) -> lp.LogitsProcessor:
    if name == "sequence_bias":
        return lp.sequence_bias([(tuple(ids), float(bias)) for ids, bias in params["biases"]])
    if name == "min_new_tokens":
        return lp.min_length(params["num_prompt"] + params["min_new"], params["ending_ids"])
    return getattr(lp, name)(**params)


@pytest.mark.parametrize(
    ("case", "change"),
    [
        pytest.param(case, change, id=f"{case['name']}-{case['row']}-{case['history']}-{index}")
        for index, (case, change) in enumerate(
            zip(TRANSFORMERS.content["processors"], TRANSFORMERS.changes(""), strict=True)
        )
    ],
)
def test_like_transformers(case, change):
    history = TRANSFORMERS.content["histories"][case["history"]]
    row = TRANSFORMERS.row(case["row"])
    check([from_params(case["name"], case["params"])], history, row, change)


@pytest.mark.parametrize(
    ("case", "change"),
    [
        pytest.param(case, change, id=f"{case['history']}-{case['params']}")
        for case, change in zip(LLAMA_CPP.content["dry"], LLAMA_CPP.changes("dry_"), strict=True)
    ],
)
def test_dry_like_llama_cpp(case, change):
    history = LLAMA_CPP.content["histories"][case["history"]]
    check([lp.dry(*case["params"])], history, LLAMA_CPP.row("noise"), change)


@pytest.mark.parametrize(
    ("case", "change"),
    [
        pytest.param(case, change, id=f"{case['text']}-{case['length']}-{case['breakers']}")
        for case, change in zip(
            LLAMA_CPP.content["dry_texts"], LLAMA_CPP.changes("dry_texts_"), strict=True
        )
    ],
)
def test_dry_with_breakers_like_llama_cpp(case, change):
    recorded = LLAMA_CPP.content["breakers"][case["breakers"]]
    breakers = {(token_id,) for token_id in recorded["tokens"]}
    breakers |= {tuple(sequence) for sequence in recorded["sequences"]}
    history = LLAMA_CPP.content["texts"][case["text"]][: case["length"]]
    processor = lp.dry(0.8, 1.75, 2, breakers=breakers)
    check([processor], history, np.zeros(49_152, np.float32), change)


@pytest.mark.parametrize(
    ("case", "change"),
    [
        pytest.param(case, change, id=f"{case['row']}-{case['history']}-{case['params']}")
        for case, change in zip(
            LLAMA_CPP.content["penalties"], LLAMA_CPP.changes("penalties_"), strict=True
        )
    ],
)
def test_penalties_like_llama_cpp(case, change):
    repeat, frequency, presence, last_n = case["params"]
    processors = [
        lp.repetition_penalty(repeat, last_n),
        lp.presence_frequency_penalty(presence, frequency, 0, last_n),
    ]
    history = LLAMA_CPP.content["histories"][case["history"]]
    check(processors, history, LLAMA_CPP.row(case["row"]), change)


def run(processor: lp.LogitsProcessor, history: Sequence[int], vocab: int = 10) -> list[float]:
    return processor(np.array(history, np.int64), np.zeros(vocab, np.float32)).tolist()


def test_presence_and_frequency_count_what_was_generated():
    processor = lp.presence_frequency_penalty(1.0, 0.25, num_prompt_tokens=3)
    assert run(processor, [1, 1, 2, 2, 3, 3], 5) == [0, 0, -1.25, -1.5, 0]
    assert run(processor, [1, 1, 2], 5) == [0] * 5


def test_a_window_of_presence_and_frequency_ends_at_the_prompt():
    processor = lp.presence_frequency_penalty(0.5, 0.25, num_prompt_tokens=2, last_n=3)
    assert run(processor, [1, 1, 2], 5) == [0, 0, -0.75, 0, 0]
    assert run(processor, [1, 1, 2, 4, 3, 3], 5) == [0, 0, 0, -1.0, -0.75]


def test_dry_of_a_history_as_long_as_allowed_or_shorter():
    processor = lp.dry(1.0, 2.0, allowed_length=2)
    assert run(processor, [3, 3]) == [0] * 10
    assert run(processor, [3, 3, 3]) == [0, 0, 0, -1.0] + [0] * 6


def naive_dry(
    history: list[int], multiplier: float, base: float, allowed: int, breakers: set[tuple[int, ...]]
) -> np.ndarray:
    """Each place by itself, character by character; for breakers that do not overlap."""
    unbroken = len(history)
    for start in range(len(history)):
        for breaker in breakers:
            if tuple(history[start : start + len(breaker)]) == breaker:
                unbroken = len(history) - start - len(breaker)
    longest: dict[int, int] = {}
    for place in range(len(history) - 1):
        length = 0
        while (
            length <= place
            and length < unbroken
            and history[place - length] == history[len(history) - 1 - length]
        ):
            length += 1
        if length >= allowed:
            follower = history[place + 1]
            longest[follower] = max(length, longest.get(follower, 0))
    logits = np.zeros(VOCAB, np.float32)
    for token_id, length in longest.items():
        if (token_id,) not in breakers:
            logits[token_id] -= multiplier * base ** (length - allowed)
    return logits


@pytest.mark.parametrize("seed", range(40))
def test_dry_against_the_naive_one(seed: int):
    rng = np.random.default_rng(seed)
    history = rng.integers(0, 2 + seed % 4, 5 + 3 * seed).tolist()
    breakers = [set(), {(1,)}, {(0, 1, 0)}, {(2, 2), (1,)}][seed % 4]
    allowed, last_n = 1 + seed % 3, [None, 20, 7][seed // 4 % 3]
    processor = lp.dry(0.5, 1.1, allowed, last_n, breakers)
    made = processor(np.array(history, np.int64), np.zeros(VOCAB, np.float32))
    recent = history if last_n is None else history[-last_n:]
    expected = naive_dry(recent, 0.5, 1.1, allowed, breakers)
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)


def test_processors_keep_nothing_between_calls():
    """The same function serves any number of sequences, in any order."""
    processors = [
        lp.sequence_bias([((1,), 1.0), ((1, 2), -math.inf)]),
        lp.repetition_penalty(1.5),
        lp.presence_frequency_penalty(0.5, 0.5, 1),
        lp.dry(1.0, 2.0, 1, None, {(4,), (3, 4)}),
        lp.no_repeat_ngram(2),
        lp.bad_words([[1, 2], [3]], [0]),
        lp.min_length(4, [0]),
        lp.forced_bos(3),
        lp.forced_eos(5, [0]),
        lp.exponential_decay(2, 1.5, [0]),
        lp.suppress([7]),
        lp.begin_suppress([8], 1),
    ]
    row = np.linspace(-2, 2, 10).astype(np.float32)
    histories = [np.array(h, np.int64) for h in ([1], [1, 2, 1, 2, 1], [3, 4, 3], [1, 2, 1, 2])]
    for process in processors:
        first = [process(history, row.copy()).copy() for history in histories]
        again = [process(history, row.copy()).copy() for history in reversed(histories)]
        for one, other in zip(first, reversed(again), strict=True):
            np.testing.assert_array_equal(one, other)

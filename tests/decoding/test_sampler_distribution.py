"""Draws follow the distribution that the warpers leave: chi-square over 20,000 of them.

The expected distribution is computed here, in float64 and by full sorts.
"""

from __future__ import annotations

import numpy as np
import pytest

from ovgen.decoding.beam_search import drawn_candidates
from ovgen.decoding.candidates import Workspace
from ovgen.decoding.random import Draws
from ovgen.decoding.sampler import Sampler, pick
from ovgen.generation_config import GenerationConfig

NUM_DRAWS = 20_000
# 99.99% quantiles of the chi-square distribution, by degrees of freedom (Wilson-Hilferty).
Z = 3.719


def quantile(freedom: int) -> float:
    return freedom * (1 - 2 / (9 * freedom) + Z * (2 / (9 * freedom)) ** 0.5) ** 3


def assert_follows(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Chi-square, cells with fewer than 5 expected taken together."""
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities * counts.sum()
    is_big = expected >= 5
    cells = [*zip(counts[is_big], expected[is_big], strict=True)]
    if expected[~is_big].sum() > 0.5:
        cells.append((counts[~is_big].sum(), expected[~is_big].sum()))
    statistic = sum((count - wanted) ** 2 / wanted for count, wanted in cells)
    assert len(cells) > 2
    assert statistic < quantile(len(cells) - 1), (statistic, len(cells))


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def expected_distribution(logits: np.ndarray, options: dict[str, float]) -> np.ndarray:
    logits = logits.astype(np.float64) / options.get("temperature", 1)
    if options.get("top_k"):
        logits[logits < np.sort(logits)[-int(options["top_k"])]] = -np.inf
    if "top_p" in options:
        order = np.argsort(-logits)
        before = np.cumsum(softmax(logits)[order]) - softmax(logits)[order]
        logits[order[before >= options["top_p"]]] = -np.inf
    if "min_p" in options:
        logits[softmax(logits) < options["min_p"] * softmax(logits).max()] = -np.inf
    return softmax(logits)


def draw(logits: np.ndarray, config: GenerationConfig) -> np.ndarray:
    sampler, workspace = Sampler(config.resolve()), Workspace()
    counts = np.zeros(len(logits), int)
    for position in range(NUM_DRAWS):
        token_id, _ = sampler.sample(logits.copy(), workspace, Draws(7, 0, position))
        counts[token_id] += 1
    return counts


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"top_k": 0, "temperature": 0.7},
        {"top_k": 12, "temperature": 1.5},
        {"top_k": 0, "top_p": 0.8},
        {"top_k": 0, "top_p": 0.35, "temperature": 2.0},  # most draws fall outside the nucleus
        {"top_k": 30, "top_p": 0.9, "min_p": 0.02, "temperature": 0.9},
    ],
)
@pytest.mark.parametrize("vocab", [40, 3000])
def test_draws_follow_the_filtered_distribution(options, vocab: int):
    logits = np.random.default_rng(3).normal(0, 1, vocab).astype(np.float32)
    counts = draw(logits, GenerationConfig(do_sample=True, **options))
    assert_follows(counts, expected_distribution(logits, options))


def test_a_forbidden_token_is_never_drawn():
    logits = np.random.default_rng(4).normal(0, 1, 40).astype(np.float32)
    logits[[0, 7, 39]] = -np.inf
    counts = draw(logits, GenerationConfig(do_sample=True, top_k=0))
    assert_follows(counts, softmax(logits))


def test_xtc_is_applied_as_often_as_it_says():
    """Of the three tokens above 0.1 the two likeliest go, in 30% of the draws."""
    probabilities = np.array([0.4, 0.3, 0.2, 0.06, 0.04])
    options = {"xtc_probability": 0.3, "xtc_threshold": 0.1, "top_k": 0}
    counts = draw(
        np.log(probabilities).astype(np.float32), GenerationConfig(do_sample=True, **options)
    )
    left = np.where(np.arange(5) < 2, 0, probabilities)
    assert_follows(counts, 0.7 * probabilities + 0.3 * left / left.sum())


@pytest.mark.parametrize("size", [1, 2, 511, 512, 513, 1024, 1025, 1600, 5000])
def test_pick_is_the_inverse_of_the_distribution(size: int):
    """Blocks and their rests: every index has just its own share of [0, 1)."""
    weights = np.random.default_rng(size).random(size).astype(np.float32)
    weights[size // 2 :: 7] = 0
    if not weights.any():
        weights[0] = 1
    bounds = np.cumsum(weights.astype(np.float64)) / weights.sum(dtype=np.float64)
    for index in np.flatnonzero(weights)[:: max(1, size // 40)].tolist():
        low = bounds[index - 1] if index else 0.0
        assert pick(weights, low + 0.5 * (bounds[index] - low)) == index
    assert weights[pick(weights, 0.0)] > 0
    assert weights[pick(weights, 1 - 2.0**-53)] > 0


def test_beams_are_drawn_without_replacement():
    """The first of the drawn follows the distribution of all beams' continuations; the second
    that of what is left; none comes twice."""
    rng = np.random.default_rng(5)
    rows = [(np.arange(6), rng.normal(0, 1, 6).astype(np.float32)) for _ in range(2)]
    offsets = [-0.5, -1.0]
    together = np.concatenate(
        [row + offset for (_, row), offset in zip(rows, offsets, strict=True)]
    )
    probabilities = softmax(together)
    first, second = np.zeros(12, int), np.zeros(12, int)
    for position in range(NUM_DRAWS):
        drawn = drawn_candidates(rows, offsets, 4, Draws(9, 0, position))
        places = [candidate.parent * 6 + candidate.token_id for candidate in drawn]
        assert len(set(places)) == 4
        assert drawn[0].score == pytest.approx(together[places[0]])
        first[places[0]] += 1
        second[places[1]] += 1
    assert_follows(first, probabilities)
    after = [
        sum(p * probabilities[j] / (1 - p) for i, p in enumerate(probabilities) if i != j)
        for j in range(12)
    ]
    assert_follows(second, np.array(after))

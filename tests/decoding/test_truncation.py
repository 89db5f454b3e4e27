"""Truncations against transformers, llama.cpp, and naive ones that sort everything.

The records come from tests/oracles/logits_processors.py and llama_cpp_samplers.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ovgen.decoding import truncation
from ovgen.decoding.candidates import Candidates, Workspace

DATA = Path(__file__).parents[1] / "data"
WARPERS = ("top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


class Records:
    """A .json and .npz of the two oracles."""

    def __init__(self, name: str) -> None:
        self.content: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text("utf-8"))
        with np.load(DATA / f"{name}.npz") as arrays:
            self.arrays = dict(arrays)

    def row(self, name: str) -> np.ndarray:
        return self.arrays[f"row_{name}"].copy()

    def per_case(self, name: str, ends: str) -> list[np.ndarray]:
        return np.split(self.arrays[name], self.arrays[ends][:-1])


TRANSFORMERS = Records("logits_processors")
LLAMA_CPP = Records("llama_cpp_samplers")


def keep(function: Callable[..., np.ndarray], row: np.ndarray) -> np.ndarray:
    """Indices kept of a row that may hold minus infinity."""
    candidates = np.flatnonzero(row > -np.inf)
    logits = row[candidates]
    before = logits.copy()
    kept = function(Candidates(logits, Workspace()))
    assert np.issubdtype(kept.dtype, np.integer)
    assert (np.diff(kept) > 0).all()
    np.testing.assert_array_equal(logits, before)
    return candidates[kept]


@pytest.mark.parametrize(
    ("case", "kept"),
    [
        pytest.param(c, kept, id=f"{c['name']}-{c['row']}-{c['value']}-{c['min_keep']}")
        for c, kept in zip(
            TRANSFORMERS.content["warpers"],
            TRANSFORMERS.per_case("kept", "kept_ends"),
            strict=True,
        )
    ],
)
def test_like_transformers(case, kept):
    function = getattr(truncation, case["name"])(case["value"], case["min_keep"])
    assert keep(function, TRANSFORMERS.row(case["row"])).tolist() == kept.tolist()


@pytest.mark.parametrize(
    ("case", "kept", "values"),
    [
        pytest.param(case, kept, values, id=f"{case['row']}-{'-'.join(case['options'])}")
        for case, kept, values in zip(
            TRANSFORMERS.content["chains"],
            TRANSFORMERS.per_case("chain_kept", "chain_ends"),
            TRANSFORMERS.per_case("chain_values", "chain_ends"),
            strict=True,
        )
    ],
)
def test_one_after_the_other_like_transformers(case, kept, values):
    options = case["options"]
    row = TRANSFORMERS.row(case["row"]) / np.float32(options["temperature"])
    left = np.arange(len(row))
    for name in WARPERS:
        if options.get(name):
            left = left[keep(getattr(truncation, name)(options[name]), row[left])]
    assert left.tolist() == kept.tolist()
    np.testing.assert_allclose(row[left], values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "kept"),
    [
        pytest.param(case, kept, id=f"{case['name']}-{case['row']}-{case['value']}")
        for case, kept in zip(
            LLAMA_CPP.content["truncations"],
            LLAMA_CPP.per_case("kept", "kept_ends"),
            strict=True,
        )
    ],
)
def test_like_llama_cpp(case, kept):
    function = getattr(truncation, case["name"])(case["value"])
    assert keep(function, LLAMA_CPP.row(case["row"])).tolist() == kept.tolist()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"{case['row']}-{case['tau']}-{case['eta']}")
        for case in LLAMA_CPP.content["mirostat"]
    ],
)
def test_mirostat_like_llama_cpp(case):
    """Step by step: mu, which llama.cpp does not show, decides how many are kept."""
    row = LLAMA_CPP.row(case["row"])
    descending = np.argsort(-row, kind="stable")
    mu = 2 * case["tau"]
    for size, selected in zip(case["sizes"], case["selected"], strict=True):
        kept = keep(truncation.mirostat(mu), row)
        assert kept.tolist() == sorted(descending[:size].tolist())
        weights = np.exp(row[kept].astype(np.float64) - row.max())
        probability = weights[kept.tolist().index(selected)] / weights.sum()
        mu -= case["eta"] * (-math.log2(probability) - case["tau"])


# The naive ones give the indices kept and whether the last bits of a float decide. Of equal
# candidates any may be kept, so what is compared are the logits kept.


@st.composite
def rows(draw: st.DrawFn) -> np.ndarray:
    """Short ones of any values, long ones of noise, both with many equal values at times."""
    if draw(st.booleans()):
        value = st.one_of(st.integers(-12, 12).map(lambda n: n / 2), st.floats(-30, 30, width=32))
        return np.array(draw(st.lists(value, min_size=1, max_size=40)), np.float32)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    row = rng.normal(size=draw(st.integers(1, 3000))) * draw(st.sampled_from([0.3, 1.0, 2.0, 4.0]))
    peaks = rng.integers(0, len(row), draw(st.integers(0, 5)))
    row[peaks] += rng.uniform(4, 14, len(peaks))
    if draw(st.booleans()):
        row = np.round(row * 4) / 4
    return row.astype(np.float32)


def probabilities_of(row: np.ndarray) -> np.ndarray:
    weights = np.exp(row.astype(np.float64) - row.max())
    return weights / weights.sum()


def near(values: np.ndarray, bound: float, tolerance: float = 1e-6) -> bool:
    return bool((np.abs(values - bound) < tolerance).any())


def most_likely(row: np.ndarray) -> np.ndarray:
    return np.argsort(-row, kind="stable")


def naive_top_k(row: np.ndarray, k: int, min_keep: int):
    k = min(max(k, min_keep), len(row))
    return [i for i, x in enumerate(row) if x >= np.sort(row)[::-1][k - 1]], False


def naive_top_p(row: np.ndarray, p: float, min_keep: int):
    ascending = np.argsort(row, kind="stable")
    mass = np.cumsum(probabilities_of(row)[ascending])
    first = next(i for i, m in enumerate(mass) if m > 1 - p or i == len(row) - 1)
    return ascending[max(0, min(first, len(row) - min_keep)) :], near(mass[:-1], 1 - p)


def naive_min_p(row: np.ndarray, p: float, min_keep: int):
    ratios = np.exp(row.astype(np.float64) - row.max())
    kept = set(np.flatnonzero(ratios >= p)) | set(most_likely(row)[:min_keep])
    return sorted(kept), near(ratios / p, 1, 1e-5)


def naive_typical_p(row: np.ndarray, p: float, min_keep: int):
    probabilities = probabilities_of(row)
    log_probabilities = np.log(probabilities)
    entropy = -(probabilities * log_probabilities).sum()
    distance = np.abs(-log_probabilities - entropy)
    order = np.argsort(distance, kind="stable")
    mass = np.cumsum(probabilities[order])
    last = min(int((mass < p).sum()), len(row) - 1)
    kept = max(int((distance[order] <= distance[order[last]]).sum()), min_keep)
    while kept < len(row) and row[order[kept]] == row[order[last]] and kept > min_keep:
        kept += 1  # equal logits whose distance is rounded differently
    # Different logits at nearly the same distance, around what decides.
    is_close = near(mass[:-1], p)
    for place in {last, min(kept, len(row)) - 1}:
        others = row != row[order[place]]
        is_close = is_close or near(distance[others], distance[order[place]], 2e-5)
    return order[:kept], is_close


def naive_cutoff(row: np.ndarray, bound: float, min_keep: int):
    probabilities = probabilities_of(row)
    least = np.sort(row)[::-1][min(min_keep, len(row)) - 1]
    kept = [i for i, x in enumerate(row) if probabilities[i] >= bound or x >= least]
    return kept, near(probabilities / bound, 1, 1e-5)


def naive_eta_cutoff(row: np.ndarray, epsilon: float, min_keep: int):
    probabilities = probabilities_of(row)
    entropy = -(probabilities * np.log(probabilities)).sum()
    eta = min(epsilon, math.sqrt(epsilon) * math.exp(-entropy))
    return naive_cutoff(row, eta, min_keep)


NAIVE = {
    "top_k": (naive_top_k, st.integers(1, 60)),
    "top_p": (naive_top_p, st.floats(0.01, 0.99)),
    "min_p": (naive_min_p, st.floats(0.001, 1.0)),
    "typical_p": (naive_typical_p, st.floats(0.01, 0.99)),
    "epsilon_cutoff": (naive_cutoff, st.floats(1e-4, 0.5)),
    "eta_cutoff": (naive_eta_cutoff, st.floats(1e-4, 0.5)),
}


@pytest.mark.parametrize("name", WARPERS)
@given(data=st.data(), row=rows(), min_keep=st.integers(1, 5))
@settings(deadline=None, max_examples=150)
def test_against_the_naive_one(name: str, data: st.DataObject, row: np.ndarray, min_keep: int):
    naive, values = NAIVE[name]
    value = data.draw(values)
    expected, is_close = naive(row, value, min_keep)
    assume(not is_close)
    kept = keep(getattr(truncation, name)(value, min_keep), row)
    assert len(kept) == len(expected)
    # Logits that differ by less have equal weights in float32.
    np.testing.assert_allclose(np.sort(row[kept]), np.sort(row[expected]), atol=1e-6)


@given(row=rows(), n=st.floats(0.1, 6))
@settings(deadline=None, max_examples=150)
def test_top_n_sigma_against_the_naive_one(row: np.ndarray, n: float):
    values = row.astype(np.float64)
    bound = values.max() - n * values.std()
    assume(len(row) > 1 and not near(values, bound, 1e-5 * (1 + abs(bound))))
    kept = keep(truncation.top_n_sigma(n), row)
    assert kept.tolist() == [i for i, x in enumerate(values) if x >= bound]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("value", [0.0, 1.1, -7.3, 1e4])
def test_top_n_sigma_of_equal_ones_is_all_of_them(size: int, value: float):
    kept = keep(truncation.top_n_sigma(1.0), np.full(size, value, np.float32))
    assert kept.tolist() == list(range(size))


@given(row=rows(), threshold=st.floats(0.005, 0.5))
@settings(deadline=None, max_examples=150)
def test_xtc_against_the_naive_one(row: np.ndarray, threshold: float):
    probabilities = probabilities_of(row)
    assume(not near(probabilities / threshold, 1, 1e-5))
    descending = most_likely(row)
    reach = [i for i in descending if probabilities[i] >= threshold]
    expected = descending[max(0, len(reach) - 1) :]
    kept = keep(truncation.xtc(threshold), row)
    assert np.sort(row[kept]).tolist() == np.sort(row[expected]).tolist()


@given(row=rows(), mu=st.floats(-1, 15))
@settings(deadline=None, max_examples=150)
def test_mirostat_against_the_naive_one(row: np.ndarray, mu: float):
    surprise = -np.log2(probabilities_of(row))
    assume(not near(surprise, mu, 2e-5))
    within = np.flatnonzero(surprise <= mu)
    expected = within if len(within) else most_likely(row)[:1]
    kept = keep(truncation.mirostat(mu), row)
    assert np.sort(row[kept]).tolist() == np.sort(row[expected]).tolist()


@pytest.mark.parametrize("name", WARPERS)
def test_a_single_candidate_stays(name: str):
    value = 1 if name == "top_k" else 0.5
    for min_keep in (1, 3):
        function = getattr(truncation, name)(value, min_keep)
        assert keep(function, np.array([-3.5], np.float32)).tolist() == [0]


@pytest.mark.parametrize(
    "function",
    [truncation.top_n_sigma(1.0), truncation.xtc(0.1), truncation.mirostat(0.0)],
    ids=["top_n_sigma", "xtc", "mirostat"],
)
def test_a_single_candidate_stays_in_llama_cpps_too(function):
    assert keep(function, np.array([-3.5], np.float32)).tolist() == [0]

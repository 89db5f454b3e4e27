"""Top-k and log-sum-exp without sorting, against plain sorts in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovgen.decoding.arrays import highest, log_sum_exp, top_indices


@st.composite
def rows(draw: st.DrawFn) -> np.ndarray:
    """Rows from one value to wide ones, noisy or full of ties, with and without holes."""
    size = draw(st.integers(1, 3000))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    row = rng.normal(0, 3, size)
    if draw(st.booleans()):
        row = np.round(row)
    if draw(st.booleans()):
        row[rng.random(size) < 0.5] = -np.inf
    return row.astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(rows(), st.integers(1, 80))
def test_the_highest(row: np.ndarray, k: int):
    best = top_indices(row, k).tolist()
    assert best == sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
    kth = np.sort(row)[::-1][min(k, len(row)) - 1]
    assert highest(row, k).tolist() == np.flatnonzero(row >= kth).tolist()


@pytest.mark.parametrize("size", [63, 64, 65, 128, 4096, 151_936])
@pytest.mark.parametrize("place", [0, -1])
def test_the_highest_at_the_edges(size: int, place: int):
    """Slices leave out the row's rest, and the highest may be in it."""
    row = np.zeros(size, np.float32)
    row[place] = 1
    assert top_indices(row, 1).tolist() == [place % size]
    assert highest(row, 1).tolist() == [place % size]
    assert highest(row, 2).tolist() == list(range(size))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2000), st.integers(0, 2**32), st.floats(-80, 80))
def test_log_sum_exp(size: int, seed: int, shift: float):
    row = (np.random.default_rng(seed).normal(0, 5, size) + shift).astype(np.float32)
    wide = row.astype(np.float64)
    expected = wide.max() + math.log(np.exp(wide - wide.max()).sum())
    before = row.copy()
    assert log_sum_exp(row) == pytest.approx(expected, abs=2e-5)
    assert log_sum_exp(row, np.empty_like(row)) == log_sum_exp(row)
    assert (row == before).all()


def test_log_sum_exp_of_what_is_forbidden():
    row = np.array([1, -np.inf, 1], np.float32)
    assert log_sum_exp(row) == pytest.approx(1 + math.log(2))

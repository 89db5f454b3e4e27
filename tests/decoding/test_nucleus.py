"""Whether a token is in the nucleus, against transformers' records and against a naive one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovgen.decoding.nucleus import draw, is_inside
from ovgen.decoding.random import Draws
from tests.decoding.test_truncation import TRANSFORMERS, naive_top_p, rows


def members(row: np.ndarray, p: float) -> list[int]:
    weights = np.exp(row - row.max())
    before = weights.copy()
    scratch = np.empty(len(row), np.bool_)
    total = float(weights.sum())
    inside = [i for i in range(len(row)) if is_inside(i, weights, total, p, scratch)]
    np.testing.assert_array_equal(weights, before)
    return inside


@pytest.mark.parametrize(
    ("row", "p", "kept"),
    [
        pytest.param(case["row"], case["value"], kept, id=f"{case['row']}-{case['value']}")
        for case, kept in zip(
            TRANSFORMERS.content["warpers"],
            TRANSFORMERS.per_case("kept", "kept_ends"),
            strict=True,
        )
        if case["name"] == "top_p" and case["min_keep"] == 1
    ],
)
def test_like_transformers(row: str, p: float, kept: np.ndarray):
    assert members(TRANSFORMERS.row(row), p) == kept.tolist()


@given(row=rows(), p=st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=100)
def test_against_the_naive_one(row: np.ndarray, p: float):
    expected, is_close = naive_top_p(row, p, 1)
    inside = members(row, p)
    assert inside
    if not is_close:
        assert len(inside) == len(expected)
        np.testing.assert_allclose(np.sort(row[inside]), np.sort(row[expected]), atol=1e-6)


def test_of_equal_ones_the_last_stay():
    assert members(np.zeros(8, np.float32), 0.5) == [4, 5, 6, 7]
    assert members(np.zeros(3, np.float32), 1e-9) == [2]


def test_a_draw_gives_up_after_a_few_tries():
    """A nucleus of one in 4,096 is all but never hit."""
    weights = np.ones(4096, np.float32)
    weights[7] = 1.5
    scratch = np.empty(4096, np.bool_)
    assert [draw(weights, 1e-4, Draws(1, 0, place), scratch) for place in range(20)] == [None] * 20


def test_nothing_without_weight_is_drawn():
    weights = np.zeros(2000, np.float32)
    weights[[3, 600, 1999]] = 1, 2, 1
    scratch = np.empty(2000, np.bool_)
    drawn = {draw(weights, 0.99, Draws(1, 0, place), scratch) for place in range(200)}
    assert drawn == {3, 600, 1999}

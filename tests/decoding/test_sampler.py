"""From logits to tokens."""

from __future__ import annotations

import numpy as np
import pytest

from ovgen.decoding.sampler import greedy


def test_the_most_likely_of_each_row():
    logits = np.array([[0.0, 2.0, 1.0], [-1.0, -3.0, -2.0], [1e-7, 0.0, 2e-7]], np.float32)
    assert greedy(logits) == [1, 0, 2]


def test_of_equal_ones_the_first():
    assert greedy(np.array([[1.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]], np.float32)) == [1, 0]


@pytest.mark.parametrize("num_rows", [0, 1, 64])
def test_plain_ints_one_a_row(num_rows: int):
    token_ids = greedy(np.zeros((num_rows, 10), np.float32))
    assert token_ids == [0] * num_rows
    assert all(type(token_id) is int for token_id in token_ids)


def test_infinities():
    logits = np.array([[-np.inf, -np.inf, 0.0], [-np.inf, np.inf, 5.0]], np.float32)
    assert greedy(logits) == [2, 1]

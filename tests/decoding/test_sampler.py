"""From logits to tokens."""

from __future__ import annotations

import numpy as np
import pytest

from ovgen.decoding.candidates import Workspace
from ovgen.decoding.random import Draws
from ovgen.decoding.sampler import Sampler, greedy
from ovgen.errors import RequestError
from ovgen.generation_config import GenerationConfig


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


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("top_k", [0, 50])
@pytest.mark.parametrize("size", [60, 1000, 40_000])
def test_logits_that_are_no_numbers_are_an_error(value: float, top_k: int, size: int):
    row = np.zeros(size, np.float32)
    row[size // 2] = value
    sampler = Sampler(GenerationConfig(do_sample=True, top_p=0.9, top_k=top_k).resolve())
    with pytest.raises(RequestError, match=f"the logits hold {value}: the model or a logits"):
        sampler.sample(row, Workspace(), Draws(0, 0, 0), may_forbid=False)

"""Log-probabilities of tokens, against a plain log-softmax in float64."""

from __future__ import annotations

import numpy as np
import pytest

from ovgen.decoding.candidates import Workspace
from ovgen.decoding.logprobs import token_logprob


@pytest.mark.parametrize("num_top", [0, 1, 5, 400])
def test_against_a_log_softmax(num_top: int):
    row = np.random.default_rng(1).normal(0, 4, 400).astype(np.float32)
    wide = row.astype(np.float64)
    expected = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    order = np.argsort(-wide, kind="stable").tolist()
    workspace, before = Workspace(), row.copy()
    for token_id in (0, 399, order[0], order[-1]):
        found = token_logprob(row, token_id, num_top, workspace)
        assert found.token_id == token_id
        assert found.logprob == pytest.approx(expected[token_id], abs=1e-5)
        assert found.rank == 1 + order.index(token_id)
        assert [other for other, _ in found.top] == order[:num_top]
        wanted = [expected[other] for other in order[:num_top]]
        assert [logprob for _, logprob in found.top] == pytest.approx(wanted, abs=1e-5)
    assert (row == before).all()


def test_equal_tokens_share_a_rank():
    row = np.array([1, 3, 3, 0], np.float32)
    ranks = [token_logprob(row, token_id, 0, Workspace()).rank for token_id in range(4)]
    assert ranks == [3, 1, 1, 4]

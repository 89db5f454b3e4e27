"""Top-p sampling that draws from all tokens, and draws anew what lies outside the nucleus.

Rejection gives the distribution of `truncation.top_p` followed by a draw, and seldom has to look at
the rest of the vocabulary: a token that is likely enough is in the nucleus whatever the others are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ovgen.decoding.arrays import Logits
from ovgen.decoding.candidates import Mask
from ovgen.decoding.cumulative import CumulativeWeights
from ovgen.decoding.random import Draws


class Nucleus(NamedTuple):
    """How a row is drawn from."""

    temperature: float
    p: float  # 1: from all


# A draw falls outside with a chance of 1 - p. After so many the nucleus is cheaper to find.
TRIES = 4


def draw(weights: Logits, p: float, draws: Draws, scratch: Mask) -> int | None:
    """A token drawn by its weight from the smallest set of the likeliest that reaches p.

    Args:
        weights: [vocab] float32, not negative, with a positive sum.
        p: above 0, at most 1.
        draws: one number is taken for each try.
        scratch: [vocab] bool, overwritten.

    Returns:
        The token's index, or None where a few tries did not find one.
    """
    cumulative = CumulativeWeights(weights)
    for _ in range(TRIES):
        index = cumulative.index_at(draws.uniform())
        if is_inside(index, weights, cumulative.total, p, scratch):
            return index
    return None


def is_inside(index: int, weights: Logits, total: float, p: float, scratch: Mask) -> bool:
    """Whether `truncation.top_p` keeps a token: whether those before it do not reach p already.

    Of equal weights the later come before the earlier ones, as there.
    """
    weight, bound = float(weights[index]), 1 - p
    if weight > bound * total * 1.00001:  # all the others together do not reach p
        return True
    (reaching,) = np.greater_equal(weights, weights[index], out=scratch).nonzero()
    found = weights[reaching]
    at_most = float(np.add.reduce(found, dtype=np.float64)) - weight  # is before it
    if total - at_most > bound * total * 1.00001:
        return True
    others = np.count_nonzero(found[: reaching.searchsorted(index)] == weights[index])
    before = at_most - others * weight
    return before <= 0 or bool(np.float32(1.0 - before / total) > np.float32(bound))

"""Which candidates a token may be sampled from: each function keeps a part of them.

They take the candidates' logits [n] float32, all finite, and where the caller has them the weights
``exp(logits - max)`` up to a common factor; they give the indices kept, ascending. Leaving a
candidate out is what transformers does by setting its logit to minus infinity. ``min_keep``: so
many of the most likely stay in any case.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ovgen.decoding.arrays import Indices, Logits, kth_highest, top_indices

Truncation: TypeAlias = Callable[..., Indices]

# Weights, relative to the highest, below which candidates are at first not looked at.
_FLOORS = (1e-2, 1e-4, 1e-6)


def weights_of(logits: Logits, out: Logits | None = None) -> Logits:
    """``exp(logits - max)``: probabilities up to a common factor, the highest is 1."""
    shifted = np.subtract(logits, logits.max(), out=out)
    return np.exp(shifted, out=shifted)


def top_k(k: int, min_keep: int = 1) -> Truncation:
    """The k most likely, and all that equal the last of them (Fan et al., 2018)."""
    k = max(k, min_keep)

    def keep(logits: Logits, weights: Logits | None = None) -> Indices:
        return np.flatnonzero(logits >= kth_highest(logits, k))

    return keep


def top_p(p: float, min_keep: int = 1) -> Truncation:
    """The smallest set of the most likely whose probability reaches p (Holtzman et al., 2019).

    Of equal candidates the later ones are kept, as transformers does where its ascending sort is
    stable (torch's is not on every processor).
    """

    def keep(logits: Logits, weights: Logits | None = None) -> Indices:
        weights = weights_of(logits) if weights is None else weights
        total = float(weights.sum())
        candidates = _at_least(weights, p * total)
        descending = np.sort(logits[candidates])[::-1]
        probabilities = np.exp((descending - descending[0]).astype(np.float64))
        probabilities *= float(weights[candidates].max()) / total
        up_to_here = 1.0 - (np.cumsum(probabilities) - probabilities)
        # In float32, as transformers compares them: matters where probabilities are round.
        is_kept = up_to_here.astype(np.float32) > np.float32(1 - p)
        num_kept = max(int(is_kept.sum()), min(min_keep, len(logits)), 1)
        if num_kept > len(descending):
            return np.sort(top_indices(logits, num_kept))
        lowest = descending[num_kept - 1]
        kept = candidates[logits[candidates] >= lowest]
        surplus = len(kept) - num_kept
        return kept if surplus == 0 else np.delete(kept, _first(logits[kept] == lowest, surplus))

    return keep


def min_p(p: float, min_keep: int = 1) -> Truncation:
    """Those at least p times as likely as the most likely (Nguyen et al., 2024)."""

    def keep(logits: Logits, weights: Logits | None = None) -> Indices:
        weights = weights_of(logits) if weights is None else weights
        return _with_top(np.flatnonzero(weights >= np.float32(p) * weights.max()), logits, min_keep)

    return keep


def typical_p(p: float, min_keep: int = 1) -> Truncation:
    """Those whose surprise is closest to the expected one, of mass p (Meister et al., 2022)."""

    def keep(logits: Logits, weights: Logits | None = None) -> Indices:
        weights = weights_of(logits) if weights is None else weights
        probabilities = weights / weights.sum()
        log_probabilities = _log(probabilities)
        entropy = -float(np.dot(probabilities, log_probabilities))
        distance = np.abs(-log_probabilities - np.float32(entropy))
        for radius in (1.0, 2.0, 4.0, math.inf):
            near = np.flatnonzero(distance <= radius)
            if radius == math.inf or float(probabilities[near].sum()) > p:
                break
        order = near[np.argsort(distance[near], kind="stable")]
        mass = np.cumsum(probabilities[order].astype(np.float64))
        last = min(int((mass < p).sum()), len(order) - 1)
        kept = near[distance[near] <= distance[order[last]]]
        if len(kept) >= min_keep:
            return kept
        # Of these, not of the most likely: as in transformers.
        return np.sort(np.argsort(distance, kind="stable")[:min_keep])

    return keep


def epsilon_cutoff(epsilon: float, min_keep: int = 1) -> Truncation:
    """Those with a probability of at least epsilon (Hewitt et al., 2022)."""

    def keep(logits: Logits, weights: Logits | None = None) -> Indices:
        weights = weights_of(logits) if weights is None else weights
        threshold = np.float32(epsilon * float(weights.sum()))
        return _with_ties(np.flatnonzero(weights >= threshold), logits, min_keep)

    return keep


def eta_cutoff(epsilon: float, min_keep: int = 1) -> Truncation:
    """As epsilon_cutoff, by a bound that falls with the entropy (Hewitt et al., 2022)."""

    def keep(logits: Logits, weights: Logits | None = None) -> Indices:
        weights = weights_of(logits) if weights is None else weights
        probabilities = weights / weights.sum()
        entropy = -float(np.dot(probabilities, _log(probabilities)))
        eta = min(epsilon, math.sqrt(epsilon) * math.exp(-entropy))
        return _with_ties(np.flatnonzero(probabilities >= np.float32(eta)), logits, min_keep)

    return keep


def top_n_sigma(n: float) -> Truncation:
    """Those within n standard deviations of the highest logit (Tang et al., 2024)."""

    def keep(logits: Logits, weights: Logits | None = None) -> Indices:
        return np.flatnonzero(logits >= logits.max() - np.float32(n) * logits.std())

    return keep


def xtc(threshold: float, min_keep: int = 1) -> Truncation:
    """All but the most likely that reach the threshold, the least of which stays.

    "Exclude top choices", by p-e-w, as in llama.cpp; its chance is drawn by the caller.
    """

    def keep(logits: Logits, weights: Logits | None = None) -> Indices:
        weights = weights_of(logits) if weights is None else weights
        reach = np.flatnonzero(weights / weights.sum() >= np.float32(threshold))
        if len(reach) < 2 or len(logits) - len(reach) + 1 < min_keep:
            return np.arange(len(logits))
        stays = reach[np.argsort(-logits[reach], kind="stable")[-1]]
        return np.delete(np.arange(len(logits)), reach[reach != stays])

    return keep


def mirostat(mu: float) -> Truncation:
    """Those with a surprise of at most mu bits, one at least: Mirostat 2 (Basu et al., 2020)."""

    def keep(logits: Logits, weights: Logits | None = None) -> Indices:
        weights = weights_of(logits) if weights is None else weights
        threshold = float(weights.sum()) * 2.0 ** min(-mu, 64.0)
        kept = np.flatnonzero(weights >= np.float32(threshold))
        return kept if len(kept) else np.flatnonzero(logits == logits.max())[:1]

    return keep


def _at_least(weights: Logits, mass: float) -> Indices:
    """Indices of the highest weights, all those above some floor, that weigh more than mass."""
    for floor in _FLOORS:
        candidates = np.flatnonzero(weights >= floor)
        # A little more than mass: sums in float32 differ with their order.
        if float(weights[candidates].sum()) > mass * 1.00001:
            return candidates
    return np.arange(len(weights))


def _with_top(kept: Indices, logits: Logits, min_keep: int) -> Indices:
    if len(kept) >= min_keep:  # they are the most likely ones already
        return kept
    return np.sort(top_indices(logits, min_keep))


def _with_ties(kept: Indices, logits: Logits, min_keep: int) -> Indices:
    if len(kept) >= min_keep:
        return kept
    return np.flatnonzero(logits >= kth_highest(logits, min_keep))


def _log(probabilities: Logits) -> Logits:
    """Their logarithm, 0 where a probability is 0: it is multiplied by it."""
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))


def _first(mask: np.ndarray[tuple[int], np.dtype[np.bool_]], count: int) -> Indices:
    return np.flatnonzero(mask)[:count]

"""Which candidates a token may be sampled from: each function keeps a part of them.

They give the indices kept, ascending. Leaving a candidate out is what transformers does by setting
its logit to minus infinity. ``min_keep``: so many of the most likely stay in any case.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ovgen.decoding.arrays import Indices, Logits, highest, top_indices
from ovgen.decoding.candidates import Candidates, Mask

Truncation: TypeAlias = Callable[[Candidates], Indices]

# So many candidates are handled faster one by one than by calls of numpy, each of which costs some
# microseconds, and more where the device has just used the caches.
FEW = 256

# Weights, relative to the mass wanted, below which candidates are at first not looked at.
_FLOORS = (2e-4, 5e-6)


def top_k(k: int, min_keep: int = 1) -> Truncation:
    """The k most likely, and all that equal the last of them (Fan et al., 2018)."""
    k = max(k, min_keep)

    def keep(candidates: Candidates) -> Indices:
        return highest(candidates.logits, k)

    return keep


def top_p(p: float, min_keep: int = 1) -> Truncation:
    """The smallest set of the most likely whose probability reaches p (Holtzman et al., 2019).

    Of equal candidates the later ones are kept, as transformers does where its ascending sort is
    stable (torch's is not on every processor).
    """

    def keep(candidates: Candidates) -> Indices:
        weights, total = candidates.weights, candidates.total
        likely, shares = _at_least(weights, p * total, candidates.workspace.mask(len(weights)))
        if min_keep <= len(likely) <= FEW:
            return likely[_few_top_p(shares.tolist(), total, p, min_keep)]
        ascending = shares.copy()
        ascending.sort()
        num_kept = _num_in_mass(ascending[::-1], total, p)
        num_kept = max(num_kept, min(min_keep, len(weights)))
        if num_kept > len(likely):
            return np.sort(top_indices(candidates.logits, num_kept))
        lowest = ascending[-num_kept]
        is_kept = shares >= lowest
        surplus = int(np.count_nonzero(is_kept)) - num_kept
        if surplus:
            is_kept[(shares == lowest).nonzero()[0][:surplus]] = False
        return likely[is_kept]

    return keep


def min_p(p: float, min_keep: int = 1) -> Truncation:
    """Those at least p times as likely as the most likely (Nguyen et al., 2024)."""

    def keep(candidates: Candidates) -> Indices:
        weights = candidates.weights
        kept = np.flatnonzero(weights >= np.float32(p) * weights.max())
        return _with_top(kept, candidates.logits, min_keep)

    return keep


def typical_p(p: float, min_keep: int = 1) -> Truncation:
    """Those whose surprise is closest to the expected one, of mass p (Meister et al., 2022)."""

    def keep(candidates: Candidates) -> Indices:
        probabilities = candidates.weights / np.float32(candidates.total)
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

    def keep(candidates: Candidates) -> Indices:
        kept = np.flatnonzero(candidates.weights >= np.float32(epsilon * candidates.total))
        return _with_ties(kept, candidates.logits, min_keep)

    return keep


def eta_cutoff(epsilon: float, min_keep: int = 1) -> Truncation:
    """As epsilon_cutoff, by a bound that falls with the entropy (Hewitt et al., 2022)."""

    def keep(candidates: Candidates) -> Indices:
        probabilities = candidates.weights / np.float32(candidates.total)
        entropy = -float(np.dot(probabilities, _log(probabilities)))
        eta = min(epsilon, math.sqrt(epsilon) * math.exp(-entropy))
        kept = np.flatnonzero(probabilities >= np.float32(eta))
        return _with_ties(kept, candidates.logits, min_keep)

    return keep


def top_n_sigma(n: float) -> Truncation:
    """Those within n standard deviations of the highest logit (Tang et al., 2024)."""

    def keep(candidates: Candidates) -> Indices:
        logits = candidates.logits
        return np.flatnonzero(logits >= logits.max() - np.float32(n) * logits.std())

    return keep


def xtc(threshold: float, min_keep: int = 1) -> Truncation:
    """All but the most likely that reach the threshold, the least of which stays.

    "Exclude top choices", by p-e-w, as in llama.cpp; its chance is drawn by the caller.
    """

    def keep(candidates: Candidates) -> Indices:
        probabilities = candidates.weights / np.float32(candidates.total)
        reach = np.flatnonzero(probabilities >= np.float32(threshold))
        everything = np.arange(len(candidates))
        if len(reach) < 2 or len(candidates) - len(reach) + 1 < min_keep:
            return everything
        stays = reach[np.argsort(-candidates.logits[reach], kind="stable")[-1]]
        return np.delete(everything, reach[reach != stays])

    return keep


def mirostat(mu: float) -> Truncation:
    """Those with a surprise of at most mu bits, one at least: Mirostat 2 (Basu et al., 2020)."""

    def keep(candidates: Candidates) -> Indices:
        threshold = candidates.total * 2.0 ** min(-mu, 64.0)
        kept = np.flatnonzero(candidates.weights >= np.float32(threshold))
        if len(kept):
            return kept
        return np.flatnonzero(candidates.logits == candidates.logits.max())[:1]

    return keep


def _few_top_p(weights: list[float], total: float, p: float, min_keep: int) -> list[int]:
    """What top_p keeps of a few candidates, the least likely of which it does not reach."""
    order = sorted(range(len(weights)), key=weights.__getitem__)
    order.reverse()
    bound, before = np.float32(1 - p), 0.0
    about = float(bound) + 1e-6
    for num_kept, place in enumerate(order):
        left = 1.0 - before / total
        if left < about and num_kept >= min_keep and np.float32(left) <= bound:
            return sorted(order[:num_kept])
        before += weights[place]
    return sorted(order)


def _num_in_mass(descending: Logits, total: float, p: float) -> int:
    """How many of the highest weights reach the share p of the total, one at least."""
    reached = np.add.accumulate(descending, dtype=np.float64)
    bound = np.float32(1 - p)
    num = int(reached.searchsorted((1.0 - float(bound)) * total * (1 - 1e-6)))
    # In float32, as transformers compares them: matters where probabilities are round.
    while num < len(reached) and np.float32(1.0 - reached[num] / total) > bound:
        num += 1
    return min(num + 1, len(reached))


def _at_least(weights: Logits, mass: float, scratch: Mask) -> tuple[Indices, Logits]:
    """The highest weights, all above some floor, that weigh more than mass: indices, values."""
    for floor in _FLOORS:
        (likely,) = np.greater_equal(weights, np.float32(floor * mass), out=scratch).nonzero()
        found = weights[likely]
        # A little more than mass: sums in float32 differ with their order.
        if float(np.add.reduce(found)) > mass * 1.00001:
            return likely, found
    return np.arange(len(weights)), weights


def _with_top(kept: Indices, logits: Logits, min_keep: int) -> Indices:
    if len(kept) >= min_keep:  # they are the most likely ones already
        return kept
    return np.sort(top_indices(logits, min_keep))


def _with_ties(kept: Indices, logits: Logits, min_keep: int) -> Indices:
    if len(kept) >= min_keep:
        return kept
    return highest(logits, min_keep)


def _log(probabilities: Logits) -> Logits:
    """Their logarithm, 0 where a probability is 0: it is multiplied by it."""
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))

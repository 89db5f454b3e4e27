"""Beam search written out in plain Python, and the exhaustive search: oracles of the engine's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fakes import EOS

PROMPT = (5, 2, 7)


def log_probabilities(script, tokens: Sequence[int]) -> list[float]:
    row = script(tuple(tokens)).astype(np.float64)
    return (row - np.log(np.exp(row).sum())).tolist()


def best_of_all(script, *, most: int, length_penalty: float, endings=(EOS,)):
    """Every sequence there can be, best first, with its score."""
    found = []
    growing = [((), 0.0)]
    for length in range(1, most + 1):
        grown = [
            ((*tokens, token), total + logprob)
            for tokens, total in growing
            for token, logprob in enumerate(log_probabilities(script, (*PROMPT, *tokens)))
        ]
        ended = [t for t in grown if t[0][-1] in endings or length == most]
        found += [(total / length**length_penalty, tokens) for tokens, total in ended]
        growing = [t for t in grown if t[0][-1] not in endings]
    return sorted(found, reverse=True)


def search_by_hand(
    script, *, beams: int, most: int, length_penalty=1.0, early_stopping=False, endings=(EOS,)
):
    """Beam search as transformers describes it, one list comprehension after the other."""
    running = [((), 0.0)]
    finished: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, most + 1):
        candidates = [
            ((*tokens, token), total + logprob)
            for tokens, total in running
            for token, logprob in enumerate(log_probabilities(script, (*PROMPT, *tokens)))
        ]
        candidates.sort(key=lambda c: -c[1])
        candidates = candidates[: beams * max(2, 1 + len(endings))]
        is_last = length == most
        ended = [c[0][-1] in endings or is_last for c in candidates]
        finished += [
            (total / length**length_penalty, tokens)
            for (tokens, total), end in list(zip(candidates, ended, strict=True))[:beams]
            if end
        ]
        finished = sorted(finished, key=lambda f: -f[0])[:beams]
        going_on = zip(candidates, ended, strict=True)
        running = [candidate for candidate, end in going_on if not end][:beams]
        if not running:
            break
        if len(finished) == beams:
            if early_stopping is True:
                break
            longest = most if early_stopping == "never" and length_penalty > 0 else length
            if running[0][1] / longest**length_penalty <= finished[-1][0]:
                break
    return finished

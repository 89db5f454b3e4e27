"""What changes the logits before a token is chosen: functions with their parameters bound once.

Each takes one sequence's tokens, prompt and output [num_tokens] int64, and its logits [vocab]
float32, which it may change in place, and gives the logits. None keeps anything between two calls,
so sequences fork, and steps are computed again, at no cost.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

import numpy as np

from ovgen.decoding.arrays import Logits, TokenIds

LogitsProcessor: TypeAlias = Callable[[TokenIds, Logits], Logits]

_FORBIDDEN = np.float32(-np.inf)
_LARGEST_EXPONENT = np.float32(88.7228391)  # the logarithm of the largest float32


def sequence_bias(biases: Sequence[tuple[tuple[int, ...], float]]) -> LogitsProcessor:
    """Add a bias to the last token of each sequence, wherever the output ends with the others.

    A sequence of one token is biased everywhere. Biases of the same token add up.
    """
    single: dict[int, float] = defaultdict(float)
    for sequence, bias in biases:
        if len(sequence) == 1:
            single[sequence[0]] += bias
    single_ids = np.array(list(single), np.int64)
    single_biases = np.array(list(single.values()), np.float32)
    longer = [
        (np.array(sequence[:-1], np.int64), sequence[-1], np.float32(bias))
        for sequence, bias in biases
        if len(sequence) > 1
    ]

    def process(token_ids: TokenIds, logits: Logits) -> Logits:
        logits[single_ids] += single_biases
        for beginning, last, bias in longer:
            # A sequence as long as all there is counts, a longer one cannot match.
            if len(beginning) < len(token_ids) and _ends_with(token_ids, beginning):
                logits[last] += bias
        return logits

    return process


def bad_words(words: Sequence[Sequence[int]], ending_ids: Collection[int]) -> LogitsProcessor:
    """Forbid each word's last token where the output ends with its others.

    A word that is a single ending token is let through, as in transformers.
    """
    kept = [tuple(word) for word in words if not (len(word) == 1 and word[0] in ending_ids)]
    return sequence_bias([(word, -math.inf) for word in dict.fromkeys(kept)])


def repetition_penalty(penalty: float, last_n: int | None = None) -> LogitsProcessor:
    """Divide positive logits of tokens seen, and multiply negative ones (Keskar et al., 2019).

    ``last_n``: only the last so many tokens count.
    """
    factor = np.float32(penalty)

    def process(token_ids: TokenIds, logits: Logits) -> Logits:
        seen = _window(token_ids, last_n)
        values = logits[seen]
        # Repeated ids write the same value several times.
        logits[seen] = np.where(values < 0, values * factor, values / factor)
        return logits

    return process


def presence_frequency_penalty(
    presence: float, frequency: float, num_prompt_tokens: int, last_n: int | None = None
) -> LogitsProcessor:
    """Subtract ``presence + frequency * count`` for each token generated so far (OpenAI's API)."""

    def process(token_ids: TokenIds, logits: Logits) -> Logits:
        output = _window(token_ids[num_prompt_tokens:], last_n)
        if len(output):
            seen, counts = np.unique(output, return_counts=True)
            logits[seen] -= (presence + frequency * counts).astype(np.float32)
        return logits

    return process


def dry(
    multiplier: float,
    base: float,
    allowed_length: int,
    last_n: int | None = None,
    breakers: Collection[tuple[int, ...]] = (),
) -> LogitsProcessor:
    """Penalize the tokens that would prolong a repetition: "don't repeat yourself", by p-e-w.

    Where the last n tokens occurred before, the token that followed there loses
    ``multiplier * base ** (n - allowed_length)``, from n = allowed_length on, for the largest such
    n. A repetition does not reach back over a breaker, and breakers of one token are never
    penalized. As in llama.cpp.
    """
    tails_of_head: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for head, *tail in breakers:
        tails_of_head[head].append(tuple(tail))
    heads = np.array(list(tails_of_head), np.int64)
    exempt = np.array([head for head, tails in tails_of_head.items() if () in tails], np.int64)
    # In float32, as llama.cpp has it.
    longest = int(_LARGEST_EXPONENT / np.log(np.float32(base))) if base > 1.000001 else None

    def process(token_ids: TokenIds, logits: Logits) -> Logits:
        recent = _window(token_ids, last_n)
        limit = _unbroken_length(recent, heads, tails_of_head)
        if len(recent) <= allowed_length or limit < allowed_length:
            return logits
        if longest is not None:  # beyond it the penalty stays the same
            limit = min(limit, allowed_length + longest)
        followers, lengths = _repetitions(recent, limit, allowed_length)
        if len(exempt):
            is_penalized = ~np.isin(followers, exempt)
            followers, lengths = followers[is_penalized], lengths[is_penalized]
        penalties = multiplier * np.power(float(base), lengths - allowed_length)
        with np.errstate(over="ignore"):  # to infinity, which forbids the token
            logits[followers] -= penalties.astype(np.float32)
        return logits

    return process


def no_repeat_ngram(size: int) -> LogitsProcessor:
    """Forbid every token that would complete an n-gram seen before (Paulus et al., 2017)."""

    def process(token_ids: TokenIds, logits: Logits) -> Logits:
        num_ngrams = len(token_ids) - size + 1
        if num_ngrams < 1:
            return logits
        followers = token_ids[size - 1 :]
        if size > 1:
            is_repeated = np.ones(num_ngrams, bool)
            for offset in range(size - 1):
                last = token_ids[len(token_ids) - size + 1 + offset]
                is_repeated &= token_ids[offset : offset + num_ngrams] == last
            followers = followers[is_repeated]
        logits[followers] = _FORBIDDEN
        return logits

    return process


def min_length(length: int, ending_ids: Collection[int]) -> LogitsProcessor:
    """Forbid the ending tokens while prompt and output have fewer than ``length`` tokens."""
    forbidden = np.array(list(ending_ids), np.int64)

    def process(token_ids: TokenIds, logits: Logits) -> Logits:
        if len(token_ids) < length:
            logits[forbidden] = _FORBIDDEN
        return logits

    return process


def forced_bos(token_id: int) -> LogitsProcessor:
    """Force the token after a prompt of a single one, as transformers means it."""
    forced = np.array([token_id], np.int64)

    def process(token_ids: TokenIds, logits: Logits) -> Logits:
        return _force(logits, forced) if len(token_ids) == 1 else logits

    return process


def forced_eos(max_length: int, token_ids: Sequence[int]) -> LogitsProcessor:
    """Force one of the tokens as the last of ``max_length``, prompt included."""
    forced = np.array(token_ids, np.int64)

    def process(token_ids: TokenIds, logits: Logits) -> Logits:
        return _force(logits, forced) if len(token_ids) == max_length - 1 else logits

    return process


def exponential_decay(start: int, factor: float, ending_ids: Collection[int]) -> LogitsProcessor:
    """Raise the ending tokens by ``|logit| * (factor ** n - 1)``, n tokens after ``start``.

    ``start`` counts prompt and output.
    """
    raised = np.array(list(ending_ids), np.int64)

    def process(token_ids: TokenIds, logits: Logits) -> Logits:
        excess = len(token_ids) - start
        if excess > 0:
            allowed = raised[logits[raised] > _FORBIDDEN]  # what is forbidden stays so
            logits[allowed] += np.abs(logits[allowed]) * np.float32(_power(factor, excess) - 1)
        return logits

    return process


def suppress(token_ids: Collection[int]) -> LogitsProcessor:
    """Forbid the tokens."""
    forbidden = np.array(list(token_ids), np.int64)

    def process(token_ids: TokenIds, logits: Logits) -> Logits:
        logits[forbidden] = _FORBIDDEN
        return logits

    return process


def begin_suppress(token_ids: Collection[int], begin_index: int) -> LogitsProcessor:
    """Forbid the tokens at one position, counted with the prompt."""
    forbidden = np.array(list(token_ids), np.int64)

    def process(token_ids: TokenIds, logits: Logits) -> Logits:
        if len(token_ids) == begin_index:
            logits[forbidden] = _FORBIDDEN
        return logits

    return process


def _window(token_ids: TokenIds, last_n: int | None) -> TokenIds:
    return token_ids if last_n is None else token_ids[-last_n:]


def _ends_with(token_ids: TokenIds, end: TokenIds) -> bool:
    return bool((token_ids[-len(end) :] == end).all())


def _force(logits: Logits, token_ids: TokenIds) -> Logits:
    logits.fill(_FORBIDDEN)
    logits[token_ids] = 0
    return logits


def _power(base: float, exponent: int) -> float:
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return float(np.finfo(np.float32).max)


def _unbroken_length(
    recent: TokenIds, heads: TokenIds, tails_of_head: dict[int, list[tuple[int, ...]]]
) -> int:
    """How many of the last tokens come after the last breaker."""
    if not len(heads):
        return len(recent)
    for position in np.flatnonzero(np.isin(recent, heads))[::-1].tolist():
        following = recent[position + 1 : position + 1 + 40].tolist()
        fitting = [
            len(tail)
            for tail in tails_of_head[int(recent[position])]
            if following[: len(tail)] == list(tail)
        ]
        if fitting:
            return len(recent) - 1 - position - max(fitting)
    return len(recent)


def _repetitions(recent: TokenIds, limit: int, allowed_length: int) -> tuple[TokenIds, TokenIds]:
    """The tokens that followed earlier occurrences of the end, with the longest such end's length.

    Ends of ``allowed_length`` to ``limit`` tokens count: the places that match are narrowed down
    token by token, from the end.
    """
    ends = np.arange(len(recent) - 1)  # where an earlier occurrence may end
    lengths = np.zeros(len(ends), np.int64)
    for length in range(limit):
        ends = ends[ends >= length]
        ends = ends[recent[ends - length] == recent[len(recent) - 1 - length]]
        if not len(ends):
            break
        lengths[ends] = length + 1
    is_long = lengths >= allowed_length
    followers, places = np.unique(recent[1:][is_long], return_inverse=True)
    longest = np.zeros(len(followers), np.int64)
    np.maximum.at(longest, places, lengths[is_long])
    return followers, longest

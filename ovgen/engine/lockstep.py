"""Which of a request's tokens come next.

Its sequences move in lockstep: in one step each takes as many tokens, and the longest begin first,
so that all reach their ends together. This is what a stateful graph can do.
"""

from __future__ import annotations

from ovgen.engine.batch import ScheduledSequence
from ovgen.engine.sequence import Request, Sequence


def next_tokens(request: Request, budget: int, logits_budget: int) -> list[ScheduledSequence]:
    """What a request computes next: the same number of tokens of each row that has begun.

    Args:
        request: unfinished.
        budget: most tokens; a row that has begun takes one in any case.
        logits_budget: most rows of logits, where a prompt's are wanted.
    """
    missing = _missing_tokens(request)
    if not missing:
        return []
    if request.max_output_tokens == 0:  # scores: rows end as they are done
        begun, count = missing, min(number for _, number in missing)
    else:
        longest = max(number for _, number in missing)
        begun = [(row, number) for row, number in missing if number == longest]
        count = longest - max((n for _, n in missing if n < longest), default=0)
    # A row of a request takes one token at the least, however many there are of them.
    count = max(1, min(count, budget // len(begun)))
    if request.score_from is not None:
        count = max(1, min(count, logits_budget // len(begun)))
    return [
        ScheduledSequence(request, row, count, _num_logits(request, row, count)) for row, _ in begun
    ]


def _missing_tokens(request: Request) -> list[tuple[Sequence, int]]:
    """The rows that are to be computed now, with the number of tokens they lack."""
    first, *others = request.unfinished
    if others and first.num_computed_tokens < request.num_shared_tokens:
        rows = [(row, num_shared_tokens(request, row, first)) for row in first.rows]
    else:
        rows = [
            (row, request.num_wanted_tokens(row))
            for sequence in (first, *others)
            for row in sequence.rows
        ]
    return [(row, wanted - row.num_computed_tokens) for row, wanted in rows]


def num_shared_tokens(request: Request, row: Sequence, first: Sequence) -> int:
    """How many tokens of a row of the first sequence the others have in common with it."""
    return request.num_shared_tokens + row.num_tokens - first.num_tokens


def _num_logits(request: Request, row: Sequence, count: int) -> int:
    """How many of the next ``count`` tokens of a row need their logits."""
    end = row.num_computed_tokens + count
    is_last = end == row.num_tokens and request.max_output_tokens > 0
    if request.score_from is None or not _is_scored(request, row):
        return int(is_last)
    first = max(request.score_from + len(row.prompt_logprobs), row.num_computed_tokens)
    num_prompt = min(end, len(row.prompt_token_ids) - 1)
    return end - first if first < num_prompt else int(is_last)


def _is_scored(request: Request, row: Sequence) -> bool:
    return any(row is sequence for sequence in request.sequences)

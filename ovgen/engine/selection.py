"""From a computed batch to what becomes of each request: its rows of logits go to its decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ovgen.decoding.arrays import Logits
from ovgen.decoding.logprobs import token_logprob
from ovgen.decoding.sampler import Workspace, greedy
from ovgen.engine.batch import ScheduledBatch, ScheduledSequence
from ovgen.engine.decoder import SampledRow
from ovgen.engine.sequence import Choice, Request, Sequence
from ovgen.errors import OvgenError, RequestError

Rows = Mapping[int, Logits]  # by seq_id


@dataclass(frozen=True, slots=True)
class Selection:
    """By request_id: what becomes of its sequences, or the error that ends it."""

    choices: dict[int, list[Choice]] = field(default_factory=dict)
    failed: dict[int, OvgenError] = field(default_factory=dict)


def select(batch: ScheduledBatch, logits: Logits, workspace: Workspace) -> Selection:
    """Choose the next tokens.

    Args:
        batch: what was computed.
        logits: its rows [num_logits, vocab] float32, valid until the next step begins.
        workspace: of the engine.
    """
    selection = Selection()
    if len(logits) == len(batch.scheduled) and all(map(_is_greedy, batch.scheduled)):
        for item, token_id in zip(batch.scheduled, greedy(logits), strict=True):
            choice = Choice(item.sequence, token_id)
            selection.choices[item.request.request_id] = [choice]
        return selection
    start = 0
    for request, items in batch.by_request:
        first, start = start, start + sum(item.num_logits for item in items)
        if request.is_finished:
            continue
        try:
            rows = _score_prompts(request, items, logits[first:start], workspace)
            choices = _choose(request, rows)
        except OvgenError as exc:
            selection.failed[request.request_id] = exc
        except Exception as exc:  # of a user's logits processor: it is the request's alone
            error = RequestError(f"a logits processor failed: {type(exc).__name__}: {exc}")
            error.__cause__ = exc
            selection.failed[request.request_id] = error
        else:
            if choices:
                selection.choices[request.request_id] = choices
    return selection


def _is_greedy(item: ScheduledSequence) -> bool:
    """Whether the row is that of a request's only sequence, and the argmax is all it takes."""
    request = item.request
    return (
        request.decoder is not None
        and request.decoder.is_greedy
        and item.num_logits == 1
        and item.is_sampled
        and request.score_from is None
        and item.sequence.finish_reason is None
        and len(request.sequences) == 1
    )


def _score_prompts(
    request: Request,
    items: tuple[ScheduledSequence, ...],
    logits: Logits,
    workspace: Workspace,
) -> Rows:
    """Record the log-probabilities of prompt tokens; give the rows to choose by."""
    sampled = {}
    start = 0
    for item in items:
        rows, sequence = logits[start : start + item.num_logits], item.sequence
        start += item.num_logits
        if item.is_sampled:
            sampled[sequence.seq_id] = rows[-1]
        if request.score_from is not None and item.num_logits:
            _score_prompt(request, sequence, item, rows, workspace)
    return sampled


def _score_prompt(
    request: Request,
    sequence: Sequence,
    item: ScheduledSequence,
    rows: Logits,
    workspace: Workspace,
) -> None:
    prompt = sequence.prompt_token_ids
    first = sequence.num_computed_tokens + item.num_scheduled_tokens - item.num_logits
    for position, row in enumerate(rows, start=first):
        place = position - (request.score_from or 0)
        if position + 1 < len(prompt) and place == len(sequence.prompt_logprobs):
            target = prompt[position + 1]
            num_top = request.num_prompt_logprobs or 0
            sequence.prompt_logprobs.append(token_logprob(row, target, num_top, workspace))


def _choose(request: Request, rows: Rows) -> list[Choice]:
    sampled = [
        SampledRow(
            sequence,
            rows[sequence.seq_id],
            None if sequence.negative is None else rows[sequence.negative.seq_id],
        )
        for sequence in request.unfinished
        if sequence.seq_id in rows
    ]
    if not sampled or request.decoder is None:
        return []
    choices: list[Choice] = request.decoder.select(request, sampled)
    return choices

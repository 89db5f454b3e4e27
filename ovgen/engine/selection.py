"""From a computed batch to what becomes of each request: its rows of logits go to its decoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ovgen.decoding import nucleus_rows
from ovgen.decoding.arrays import Logits
from ovgen.decoding.candidates import Workspace
from ovgen.decoding.logprobs import token_logprob
from ovgen.decoding.random import states_of
from ovgen.decoding.row_threads import RowThreads
from ovgen.decoding.sampler import greedy
from ovgen.engine.batch import ScheduledBatch, ScheduledSequence
from ovgen.engine.decoder import SampledRow
from ovgen.engine.sequence import Choice, Request
from ovgen.errors import OvgenError, RequestError

_FEWEST = 8  # rows that are drawn together sooner than one by one


@dataclass(slots=True)
class Selection:
    """By request_id: what becomes of its sequences, or the error that ends it."""

    choices: dict[int, list[Choice]] = field(default_factory=dict)
    failed: dict[int, OvgenError] = field(default_factory=dict)


def select(
    batch: ScheduledBatch, logits: Logits, workspace: Workspace, threads: RowThreads
) -> Selection:
    """Choose the next tokens.

    Args:
        batch: what was computed.
        logits: its rows [num_logits, vocab] float32, valid until the next step begins.
        workspace: of the engine.
        threads: of the engine.
    """
    if batch.is_greedy:
        chosen = zip(batch.sampled, greedy(logits), strict=True)
        return Selection(
            {
                item.request.request_id: [Choice(item.sequence, token_id)]
                for item, token_id in chosen
                if item.sequence.finish_reason is None
            }
        )
    selection = Selection(_drawn(batch, logits, workspace, threads))
    for request, rows in _rows_to_choose_by(batch, logits, workspace):
        if request.request_id in selection.choices:
            continue
        try:
            choices = request.decoder.select(request, rows)
        except OvgenError as exc:
            selection.failed[request.request_id] = exc
        except Exception as exc:  # of a user's logits processor: it is the request's alone
            error = RequestError(f"a logits processor failed: {type(exc).__name__}: {exc}")
            error.__cause__ = exc
            selection.failed[request.request_id] = error
        else:
            selection.choices[request.request_id] = choices
    return selection


def _drawn(
    batch: ScheduledBatch, logits: Logits, workspace: Workspace, threads: RowThreads
) -> dict[int, list[Choice]]:
    """The rows that can be drawn together."""
    places = batch.drawn
    if len(places) < _FEWEST:
        return {}
    items = [batch.sampled[place] for place in places]
    states = states_of(
        [item.request.seed or 0 for item in items],
        [item.sequence.index for item in items],
        [len(item.sequence.output_token_ids) for item in items],
    )
    nuclei = [item.request.decoder.nucleus for item in items]
    rows = logits if len(places) == len(logits) else logits[list(places)]
    token_ids = nucleus_rows.draw(rows, nuclei, states, workspace, threads)
    chosen = zip(items, token_ids, strict=True)
    return {
        item.request.request_id: [Choice(item.sequence, token_id, item.sequence.index)]
        for item, token_id in chosen
        if token_id is not None and item.sequence.finish_reason is None
    }


def _rows_to_choose_by(
    batch: ScheduledBatch, logits: Logits, workspace: Workspace
) -> Iterator[tuple[Request, list[SampledRow]]]:
    """The requests that have not ended, where any of their sequences is at its end."""
    if batch.is_plain:
        for item, row in zip(batch.sampled, logits, strict=True):
            if item.sequence.finish_reason is None:
                yield item.request, [SampledRow(item.sequence, row)]
        return
    stop = 0
    for request, items in batch.by_request:
        start, stop = stop, stop + sum(item.num_logits for item in items)
        if stop > start and not request.is_finished:
            rows = _sampled_rows(request, items, logits[start:stop], workspace)
            if rows:
                yield request, rows


def _sampled_rows(
    request: Request,
    items: tuple[ScheduledSequence, ...],
    logits: Logits,
    workspace: Workspace,
) -> list[SampledRow]:
    """The rows to choose by; those of prompt tokens are recorded as log-probabilities."""
    by_id = {}
    stop = 0
    for item in items:
        start, stop = stop, stop + item.num_logits
        if request.score_from is not None and item.num_logits:
            _score_prompt(request, item, logits[start:stop], workspace)
        if item.is_sampled:
            by_id[item.sequence.seq_id] = logits[stop - 1]
    return [
        SampledRow(
            sequence,
            by_id[sequence.seq_id],
            None if sequence.negative is None else by_id[sequence.negative.seq_id],
        )
        for sequence in request.unfinished
        if sequence.seq_id in by_id
    ]


def _score_prompt(
    request: Request, item: ScheduledSequence, rows: Logits, workspace: Workspace
) -> None:
    sequence = item.sequence
    prompt = sequence.prompt_token_ids
    first = sequence.num_computed_tokens + item.num_scheduled_tokens - item.num_logits
    for position, row in enumerate(rows, start=first):
        place = position - (request.score_from or 0)
        if position + 1 < len(prompt) and place == len(sequence.prompt_logprobs):
            target = prompt[position + 1]
            num_top = request.num_prompt_logprobs or 0
            sequence.prompt_logprobs.append(token_logprob(row, target, num_top, workspace))

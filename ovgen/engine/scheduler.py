"""Decides what each step computes, and what becomes of the chosen tokens.

There is no prefill phase and no decode phase: every sequence catches up with its tokens under a
token budget. Queues and status are written here and nowhere else.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Choices

from ovgen.engine.batch import ScheduledBatch, ScheduledSequence
from ovgen.engine.block_manager import BlockCopy, BlockManager
from ovgen.engine.lockstep import next_tokens, num_shared_tokens
from ovgen.engine.sequence import Choice, FinishReason, Request, Sequence


class Scheduler:
    """First come, first served within a priority, at most ``max_running_requests`` at a time.

    A request's sequences move in lockstep; see `ovgen.engine.lockstep`.

    Where blocks run out the request served last gives its own back: it waits, and is computed anew.

    Args:
        token_budget: most tokens in one step.
        logits_budget: most rows of logits in one step, where a prompt's are wanted.
        max_running_requests: requests that share a step; 1 for the stateful runner.
        ids: gives new sequences their ids.
        blocks: of the KV cache; None where a graph keeps it itself.
    """

    def __init__(
        self,
        *,
        token_budget: int,
        max_running_requests: int,
        ids: Iterator[int],
        logits_budget: int = 1 << 30,
        blocks: BlockManager | None = None,
    ) -> None:
        self._token_budget = token_budget
        self._logits_budget = logits_budget
        self._max_running_requests = max_running_requests
        self._ids = ids
        self._blocks = blocks
        self._waiting: list[Request] = []  # both in the order in which they are served
        self._running: list[Request] = []
        self._steady: ScheduledBatch | None = None  # the next batch too, where nothing has changed
        self.unfit: list[Request] = []  # for which there are too few blocks even alone

    @property
    def has_unfinished(self) -> bool:
        """Whether there is anything left to compute."""
        return bool(self._waiting or self._running)

    @property
    def has_running(self) -> bool:
        """Whether any request has begun to be computed."""
        return bool(self._running)

    @property
    def waiting(self) -> tuple[Request, ...]:
        """Requests that have not begun, in their order."""
        return tuple(self._waiting)

    @property
    def _has_newcomer(self) -> bool:
        """Whether a request waits that may begin."""
        return bool(self._waiting) and len(self._running) < self._max_running_requests

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._steady = None
        insort(self._waiting, request, key=_order)

    def schedule(self) -> ScheduledBatch | None:
        """The next step's batch, or None when nothing is left to compute."""
        if self._steady is not None and self._has_room(self._steady):
            return self._steady
        self._steady = None
        budget = self._token_budget
        scheduled: list[ScheduledSequence] = []
        copies: list[BlockCopy] = []
        for request in self._in_turn():
            items = next_tokens(request, budget, self._logits_budget)
            copied = self._reserve(request, items)
            if copied is None:
                break
            scheduled += items
            copies += copied
            budget -= sum(item.num_scheduled_tokens for item in items)
            if budget <= 0:
                break
        return ScheduledBatch(tuple(scheduled), tuple(copies)) if scheduled else None

    def _in_turn(self) -> Iterator[Request]:
        """The requests that run and those that may begin, in their order.

        Whoever is preempted meanwhile comes after the one that is served, and is not given.
        """
        place = 0
        while True:
            begins = self._may_begin(place)
            if begins:
                request = self._waiting[0]
                self._running.insert(place, request)  # first: a step may break off anywhere
                del self._waiting[0]
                self._match(request)
            elif place >= len(self._running):
                return
            yield self._running[place]
            place += 1

    def _may_begin(self, place: int) -> bool:
        """Whether the first request that waits is to run, as the one of this place."""
        if not self._has_newcomer:
            return False
        request = self._waiting[0]
        if place < len(self._running):
            return _order(request) < _order(self._running[place])
        if self._blocks is None or not self._running:
            return True
        # It would soon be preempted, had it no room for all its tokens and some more.
        tokens = [row.num_tokens + 1 for row in request.sequences[0].rows]
        return sum(map(self._blocks.num_blocks_for, tokens)) < self._blocks.num_free

    def _match(self, request: Request) -> None:
        """Find what the prefix cache has of a request that begins."""
        if self._blocks is None:
            return
        first, *others = request.unfinished
        is_led = bool(others) and request.num_shared_tokens > 0
        for sequence in (first,) if is_led else (first, *others):
            for row in sequence.rows:
                # The last token is computed in any case, and whatever else has its logits wanted.
                limit = request.num_wanted_tokens(row) - 1
                if request.score_from is not None:
                    limit = min(limit, request.score_from + len(row.prompt_logprobs))
                if is_led:  # and one step at the least, after which the others share all of it
                    limit = min(limit, num_shared_tokens(request, row, first) - 1)
                row.num_computed_tokens = self._blocks.match(row, limit, request.cache_salt)
                row.num_computed_tokens += self._blocks.take_tail(row, limit)

    def _reserve(self, request: Request, items: list[ScheduledSequence]) -> list[BlockCopy] | None:
        """Have blocks for what is scheduled, be it at the cost of requests served later.

        Gives what is to be copied, or None where the request itself has to wait.
        """
        copies: list[BlockCopy] = []
        if self._blocks is None:
            return copies
        for item in items:
            while True:
                copied = self._blocks.reserve(item.sequence, item.num_scheduled_tokens)
                if copied is not None:
                    copies += copied
                    break
                last = self._running[-1]
                if last is request and len(self._running) == 1:
                    self.unfit.append(request)
                    return None
                self._preempt(last)
                if last is request:
                    return None
        return copies

    def _has_room(self, batch: ScheduledBatch) -> bool:
        """Whether each row of a batch has, or gets, a block for one more token."""
        if self._blocks is None:
            return True
        size = self._blocks.block_size
        for item in batch.scheduled:
            row = item.sequence
            if row.num_computed_tokens < len(row.block_table) * size:
                continue
            if self._blocks.reserve(row, 1) != []:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        """Take a request's blocks back, and have all of it computed again."""
        insort(self._waiting, request, key=_order)
        self._running.remove(request)
        self._free(request.sequences)
        for sequence in request.sequences:
            for row in sequence.rows:
                row.num_computed_tokens = 0

    def update(
        self, batch: ScheduledBatch, choices: Mapping[int, Choices[Choice]]
    ) -> list[Request]:
        """Take in a computed batch, and give the requests that grew or ended by it.

        Args:
            batch: what was computed.
            choices: by request_id, what becomes of the sequences that were sampled.
        """
        for item in batch.scheduled:
            sequence, count = item.sequence, item.num_scheduled_tokens
            if sequence.finish_reason is not None:  # it ended while the device was computing
                continue
            sequence.num_computed_tokens += count
            blocks = self._blocks
            if blocks is None or item.request.is_single_score:
                continue
            if sequence.num_computed_tokens % blocks.block_size < count:  # one has become full
                blocks.commit(sequence)
        updated = []
        is_steady = batch.is_decoding
        for request, _ in batch.by_request:
            if request.is_finished:
                is_steady = False
                continue
            self._share_prefix(request)
            chosen = choices.get(request.request_id)
            is_steady &= chosen is not None
            if chosen:
                is_steady &= self._advance(request, chosen)
            elif request.max_output_tokens == 0:
                self._end_scored(request)
            if chosen or request.is_finished:
                updated.append(request)
            if request.is_finished:
                self._remove(request)
        is_steady &= not batch.block_copies and not self._has_newcomer
        self._steady = batch if is_steady else None
        return updated

    def next_deadline(self) -> float:
        """The earliest time.perf_counter() at which a request is late; infinity if none is."""
        deadlines = [r.deadline for r in (*self._running, *self._waiting) if r.deadline is not None]
        return min(deadlines, default=math.inf)

    def late(self, now: float) -> list[Request]:
        """Unfinished requests that are aborted, or past their deadlines."""
        return [
            request
            for request in (*self._running, *self._waiting)
            if request.is_aborted or (request.deadline is not None and now >= request.deadline)
        ]

    def end(
        self, request: Request, finish_reason: FinishReason, sequences: list[Sequence] | None = None
    ) -> None:
        """End all of a request; ``sequences``: what is left of it, else all it has."""
        left = request.sequences if sequences is None else sequences
        for sequence in left:
            sequence.finish_reason = sequence.finish_reason or finish_reason
        self._free(request.sequences)
        request.sequences = left
        self._remove(request)

    def stop(self, request: Request, sequence: Sequence, stop_string: str) -> None:
        """End a sequence that ran into a stop string, be it also too long by the same token."""
        self._steady = None
        sequence.finish_reason, sequence.stop_reason = "stop", stop_string
        self._free([sequence], keeps_tail=True)
        if request.is_finished:
            self._remove(request)

    def preempt_all(self) -> None:
        """Forget what was computed, so that all of it is computed again."""
        self._steady = None
        unfinished = list(dict.fromkeys([*self._running, *self._waiting]))
        self._running, self._waiting = [], unfinished
        if self._blocks is not None:
            self._blocks.reset()  # whatever the step has left of them
        for request in unfinished:
            for sequence in request.sequences:
                sequence.state = None  # it may have broken off in the middle of a token
                for row in sequence.rows:
                    row.num_computed_tokens, row.block_table = 0, []
                # An update may have broken off after the append.
                if sequence.output_token_ids and not request.is_beam_search:
                    _finish_if_done(request, sequence, sequence.output_token_ids[-1])
            _cut_to_the_shortest(request.unfinished)
        self._waiting = [request for request in unfinished if not request.is_finished]
        self._waiting.sort(key=_order)

    def _advance(self, request: Request, choices: Choices[Choice]) -> bool:
        """Make of each choice a sequence: its parent with one more token, or a fork of it.

        True where the sequences are those of before, and all go on.

        A step may break off anywhere. Beams, and whatever has more to it than its tokens, are
        always forked, so that it leaves the whole of the step before; of other sequences some may
        then have a token that others do not have, which `preempt_all` takes away.
        """
        if len(choices) == len(request.sequences) == 1 and not request.is_beam_search:
            (choice,) = choices
            if choice.mu is None and choice.token_id is not None:
                _append(request, choice.parent, choice, choice.token_id)
                if choice.parent.finish_reason is None:
                    return True
                self._free([choice.parent], keeps_tail=True)
                return False
        is_fork = request.is_beam_search or len(choices) > len(request.sequences)
        heirs = [self._heir(choice, is_fork or choice.mu is not None) for choice in choices]
        for sequence, choice in zip(heirs, choices, strict=True):
            if choice.token_id is not None:
                _append(request, sequence, choice, choice.token_id)
        before, request.sequences = request.sequences, heirs
        self._pass_on_blocks(before, heirs, choices)
        return before == heirs and all(sequence.finish_reason is None for sequence in heirs)

    def _pass_on_blocks(
        self, before: list[Sequence], heirs: list[Sequence], choices: Choices[Choice]
    ) -> None:
        if self._blocks is None:
            return
        for heir, choice in zip(heirs, choices, strict=True):
            if heir is not choice.parent and heir.finish_reason is None:
                for parent, child in zip(choice.parent.rows, heir.rows, strict=True):
                    self._blocks.fork(parent, child)
        kept = set(heirs)
        self._free([sequence for sequence in before if sequence not in kept])
        self._free([s for s in heirs if s.finish_reason is not None])

    def _free(self, sequences: list[Sequence], *, keeps_tail: bool = False) -> None:
        if self._blocks is not None:
            for sequence in sequences:
                for row in sequence.rows:
                    self._blocks.free(row, keeps_tail=keeps_tail)

    def _heir(self, choice: Choice, is_fork: bool) -> Sequence:
        if choice.token_id is None or not is_fork:
            return choice.parent
        heir = choice.parent.fork(self._ids)
        heir.index = choice.index
        return heir

    def _share_prefix(self, request: Request) -> None:
        """Let all sequences go on from what the first one has computed of their beginning."""
        if len(request.sequences) == 1:
            return
        first, *others = request.unfinished
        if not others or first.num_computed_tokens != request.num_shared_tokens:
            return
        for sequence in others:
            for row, leader in zip(sequence.rows, first.rows, strict=True):
                if row.num_computed_tokens == 0:
                    row.num_computed_tokens = leader.num_computed_tokens
                    row.parent_id = leader.seq_id
                    if self._blocks is not None:
                        self._blocks.fork(leader, row)

    def _end_scored(self, request: Request) -> None:
        for sequence in request.unfinished:
            if sequence.num_computed_tokens >= request.num_wanted_tokens(sequence):
                sequence.finish_reason = "length"
                self._free([sequence])

    def _remove(self, request: Request) -> None:
        self._steady = None
        for queue in (self._running, self._waiting):
            if request in queue:
                queue.remove(request)


def _order(request: Request) -> tuple[int, int]:
    """By it requests are served: priority, then arrival."""
    return request.priority, request.request_id


def _cut_to_the_shortest(sequences: list[Sequence]) -> None:
    """Take away the tokens that an update has given to some of them before it broke off."""
    shortest = min((len(sequence.output_token_ids) for sequence in sequences), default=0)
    for sequence in sequences:
        del sequence.output_token_ids[shortest:]


def _append(request: Request, sequence: Sequence, choice: Choice, token_id: int) -> None:
    sequence.score, sequence.mu = choice.score, choice.mu
    if choice.logprob is not None:
        sequence.logprobs[len(sequence.output_token_ids) :] = [choice.logprob]
    sequence.output_token_ids.append(token_id)
    if request.is_beam_search:
        sequence.finish_reason, sequence.stop_reason = choice.finish_reason, choice.stop_reason
    else:
        _finish_if_done(request, sequence, token_id)


def _finish_if_done(request: Request, sequence: Sequence, token_id: int) -> None:
    if sequence.finish_reason is not None:
        return
    if token_id in request.ending_ids:
        sequence.finish_reason, sequence.stop_reason = "stop", token_id
    elif len(sequence.output_token_ids) >= request.max_output_tokens:
        sequence.finish_reason = "length"

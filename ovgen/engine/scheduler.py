"""Decides what each step computes, and what becomes of the sampled tokens.

There is no prefill phase and no decode phase: every sequence catches up with its tokens under a
token budget. Queues and status are written here and nowhere else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Tokens

from ovgen.engine.batch import ScheduledBatch, ScheduledSequence
from ovgen.engine.sequence import FinishReason, Request, Sequence


class Scheduler:
    """First come, first served, at most ``max_running_requests`` at a time.

    Args:
        token_budget: most tokens in one step.
        max_running_requests: requests that share a step; 1 for the stateful runner.
    """

    def __init__(self, *, token_budget: int, max_running_requests: int) -> None:
        self._token_budget = token_budget
        self._max_running_requests = max_running_requests
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []

    @property
    def has_unfinished(self) -> bool:
        """Whether there is anything left to compute."""
        return bool(self._waiting or self._running)

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._waiting.append(request)

    def schedule(self) -> ScheduledBatch | None:
        """The next step's batch, or None when nothing is left to compute."""
        while self._waiting and len(self._running) < self._max_running_requests:
            self._running.append(self._waiting.popleft())
        budget = self._token_budget
        scheduled: list[ScheduledSequence] = []
        for request in self._running:
            for sequence in request.sequences:
                missing = sequence.num_tokens - sequence.num_computed_tokens
                count = min(missing, budget)
                if sequence.finish_reason is None and count > 0:
                    scheduled.append(ScheduledSequence(request, sequence, count))
                    budget -= count
        return ScheduledBatch(tuple(scheduled)) if scheduled else None

    def update(
        self, batch: ScheduledBatch, token_ids: Tokens[int], now: float
    ) -> list[tuple[Request, Sequence]]:
        """Take in a computed batch, and give the sequences that grew or ended by it.

        Args:
            batch: what was computed.
            token_ids: the sampled token of each of ``batch.sampled``.
            now: time.perf_counter(), held against the deadlines.
        """
        sampled = dict(zip((id(s.sequence) for s in batch.sampled), token_ids, strict=True))
        updated = []
        for item in batch.scheduled:
            request, sequence = item.request, item.sequence
            if sequence.finish_reason is not None:  # ended while the device was computing
                continue
            sequence.num_computed_tokens += item.num_scheduled_tokens
            token_id = sampled.get(id(sequence))
            if token_id is not None:
                sequence.output_token_ids.append(token_id)
                self._finish_if_done(request, sequence, token_id)
            if request.deadline is not None and now >= request.deadline:
                self.finish(request, sequence, "length")
            if token_id is not None or sequence.finish_reason is not None:
                updated.append((request, sequence))
        return updated + self._end_late_waiting(now)

    def _end_late_waiting(self, now: float) -> list[tuple[Request, Sequence]]:
        """End the requests that were to be done before their turn came."""
        late = [r for r in self._waiting if r.deadline is not None and now >= r.deadline]
        ended = [(request, sequence) for request in late for sequence in request.sequences]
        for request, sequence in ended:
            self.finish(request, sequence, "length")
        return ended

    def _finish_if_done(self, request: Request, sequence: Sequence, token_id: int) -> None:
        if token_id in request.eos_ids:
            self.finish(request, sequence, "stop", token_id)
        elif len(sequence.output_token_ids) >= request.max_output_tokens:
            self.finish(request, sequence, "length")

    def finish(
        self,
        request: Request,
        sequence: Sequence,
        finish_reason: FinishReason,
        stop_reason: int | str | None = None,
    ) -> None:
        """End a sequence, and its request with the last of them; ended ones stay as they are."""
        if sequence.finish_reason is None:
            sequence.finish_reason, sequence.stop_reason = finish_reason, stop_reason
        if request.is_finished:
            self._remove(request)

    def stop(self, request: Request, sequence: Sequence, stop_string: str) -> None:
        """End a sequence that ran into a stop string, be it also too long by the same token."""
        sequence.finish_reason, sequence.stop_reason = "stop", stop_string
        if request.is_finished:
            self._remove(request)

    def abort(self, request: Request) -> None:
        """End whatever of a request is unfinished."""
        for sequence in request.sequences:
            self.finish(request, sequence, "abort")

    def preempt_all(self) -> None:
        """Forget what was computed, so that all of it is computed again."""
        for request in [*self._running, *self._waiting]:
            for sequence in request.sequences:
                sequence.num_computed_tokens = 0
                # An update may have broken off after the append.
                if sequence.output_token_ids:
                    self._finish_if_done(request, sequence, sequence.output_token_ids[-1])
            if request.is_finished:
                self._remove(request)

    def _remove(self, request: Request) -> None:
        for queue in (self._running, self._waiting):
            if request in queue:
                queue.remove(request)

"""What one step computes: a ragged batch of sequences, each with its next tokens."""

from __future__ import annotations

from dataclasses import dataclass

from ovgen.engine.sequence import Request, Sequence


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """The next ``num_scheduled_tokens`` of a sequence, after those computed before."""

    request: Request
    sequence: Sequence
    num_scheduled_tokens: int

    @property
    def is_sampled(self) -> bool:
        """Whether these tokens reach the sequence's last one, so that the next is sampled."""
        end = self.sequence.num_computed_tokens + self.num_scheduled_tokens
        return end == self.sequence.num_tokens


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """The sequences of one step."""

    scheduled: tuple[ScheduledSequence, ...]

    @property
    def sampled(self) -> tuple[ScheduledSequence, ...]:
        """Those whose next token is sampled; the runner gives a row of logits for each."""
        return tuple(item for item in self.scheduled if item.is_sampled)

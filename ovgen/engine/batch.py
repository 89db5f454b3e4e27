"""What one step computes: a ragged batch of sequences, each with its next tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

from ovgen.engine.sequence import Request, Sequence


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """The next ``num_scheduled_tokens`` of a row, after those computed before.

    ``num_logits`` of them, the last ones, are to have their logits.
    """

    request: Request
    sequence: Sequence
    num_scheduled_tokens: int
    num_logits: int

    @property
    def is_sampled(self) -> bool:
        """Whether these tokens reach the sequence's last one, so that the next is sampled."""
        end = self.sequence.num_computed_tokens + self.num_scheduled_tokens
        return end == self.sequence.num_tokens and self.request.max_output_tokens > 0


@dataclass(frozen=True, slots=True, eq=False)
class ScheduledBatch:
    """The rows of one step; the same object serves several while nothing but tokens changes.

    Attributes:
        scheduled: the rows.
        by_request: the rows of each request.
        is_decoding: every row takes one token, and has the next one chosen.
        is_plain: every row is its request's only one, and the next token is all that is wanted.
        is_greedy: it is plain, and the most likely tokens are all that is wanted.
    """

    scheduled: tuple[ScheduledSequence, ...]
    by_request: tuple[tuple[Request, tuple[ScheduledSequence, ...]], ...] = field(init=False)
    is_decoding: bool = field(init=False)
    is_plain: bool = field(init=False)
    is_greedy: bool = field(init=False)

    def __post_init__(self) -> None:
        groups = groupby(self.scheduled, key=lambda item: item.request)
        by_request = tuple((request, tuple(items)) for request, items in groups)
        is_decoding = all(i.num_scheduled_tokens == i.num_logits == 1 for i in self.scheduled)
        object.__setattr__(self, "by_request", by_request)
        object.__setattr__(self, "is_decoding", is_decoding)
        is_plain = all(map(_is_plain, self.scheduled))
        object.__setattr__(self, "is_plain", is_plain)
        is_greedy = is_plain and all(item.request.decoder.is_greedy for item in self.scheduled)
        object.__setattr__(self, "is_greedy", is_greedy)

    @property
    def num_logits(self) -> int:
        """Rows of logits that the runner gives, in the order of ``scheduled``."""
        return sum(item.num_logits for item in self.scheduled)


def _is_plain(item: ScheduledSequence) -> bool:
    request = item.request
    return (
        request.decoder is not None
        and request.score_from is None
        and item.num_logits == 1
        and len(request.sequences) == 1
        and item.sequence.negative is None
        and request.sequences[0] is item.sequence
    )

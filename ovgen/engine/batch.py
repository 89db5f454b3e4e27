"""What one step computes: a ragged batch of sequences, each with its next tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

from ovgen.engine.block_manager import BlockCopy
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

    @property
    def is_plain(self) -> bool:
        """Whether it is its request's only row, and nothing but the next token is wanted of it."""
        request = self.request
        return (
            request.decoder is not None
            and request.score_from is None
            and self.num_logits <= 1
            and len(request.sequences) == 1
            and request.sequences[0] is self.sequence
            and self.sequence.negative is None
        )


@dataclass(frozen=True, slots=True, eq=False)
class ScheduledBatch:
    """The rows of one step; the same object serves several while nothing but tokens changes.

    Attributes:
        scheduled: the rows.
        block_copies: blocks of the KV cache to copy before anything is computed: (from, to).
        sampled: the rows that have logits.
        by_request: the rows of each request.
        is_decoding: every row takes one token, and has the next one chosen.
        is_plain: all that is wanted of every row is its request's next token.
        is_greedy: it is plain, and the most likely tokens are all that is wanted.
        drawn: places in ``sampled`` of the rows that can be drawn together; none where it is not
            plain.
    """

    scheduled: tuple[ScheduledSequence, ...]
    block_copies: tuple[BlockCopy, ...] = ()
    sampled: tuple[ScheduledSequence, ...] = field(init=False)
    by_request: tuple[tuple[Request, tuple[ScheduledSequence, ...]], ...] = field(init=False)
    is_decoding: bool = field(init=False)
    is_plain: bool = field(init=False)
    is_greedy: bool = field(init=False)
    drawn: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        rows = self.scheduled
        sampled = tuple(row for row in rows if row.num_logits)
        groups = groupby(rows, key=lambda row: row.request)
        is_plain = all(row.is_plain for row in rows)
        decoders = [row.request.decoder for row in sampled] if is_plain else []
        facts = {
            "sampled": sampled,
            "by_request": tuple((request, tuple(items)) for request, items in groups),
            "is_decoding": all(r.num_scheduled_tokens == r.num_logits == 1 for r in rows),
            "is_plain": is_plain,
            "is_greedy": is_plain and all(decoder.is_greedy for decoder in decoders),
            "drawn": tuple(place for place, d in enumerate(decoders) if d.nucleus is not None),
        }
        for name, fact in facts.items():
            object.__setattr__(self, name, fact)

    @property
    def num_logits(self) -> int:
        """Rows of logits that the runner gives, in the order of ``scheduled``."""
        return sum(item.num_logits for item in self.scheduled)

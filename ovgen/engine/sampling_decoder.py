"""Greedy decoding and sampling: one token for each sequence, and n of the first."""

from __future__ import annotations

from collections.abc import Sequence

from ovgen.decoding.random import Draws
from ovgen.decoding.sampler import Sampler
from ovgen.engine.decoder import RowReader, SampledRow, refuse_empty
from ovgen.engine.sequence import Choice, Request
from ovgen.engine.sequence import Sequence as TokenSequence
from ovgen.generation_config import GenerationConfig


class SamplingDecoder:
    """Implements Decoder.

    Args:
        config: resolved, with one beam.
        reader: of the request.
        seed: of the request's random numbers.
    """

    def __init__(self, config: GenerationConfig, reader: RowReader, seed: int) -> None:
        self._reader = reader
        self._sampler = Sampler(config) if config.do_sample else None
        self._seed = seed
        self._num_sequences = config.num_return_sequences or 1
        self.is_greedy = self._sampler is None and reader.is_neutral and config.logprobs is None

    def select(self, request: Request, rows: Sequence[SampledRow]) -> list[Choice]:
        """See `Decoder.select`."""
        by_id = {row.sequence.seq_id: row for row in rows}
        choices = []
        for sequence in request.sequences:
            row = by_id.get(sequence.seq_id)
            if row is None:
                choices.append(Choice(sequence, index=sequence.index))
            else:
                choices.append(self._choose(row, sequence.index))
        # Those that have not begun are forked off the first one.
        for index in range(len(request.sequences), self._num_sequences):
            choices.append(self._choose(rows[0], index))
        return choices

    def conclude(self, request: Request) -> list[TokenSequence]:
        """See `Decoder.conclude`: those that have begun."""
        return request.sequences

    def _choose(self, row: SampledRow, index: int) -> Choice:
        token_id, mu = self._next(row, index)
        return Choice(
            row.sequence,
            token_id,
            index=index,
            mu=mu,
            logprob=self._reader.logprob(row, token_id),
        )

    def _next(self, row: SampledRow, index: int) -> tuple[int, float | None]:
        if self._sampler is None and self._reader.is_neutral:
            return int(row.logits.argmax()), None
        logits, is_neutral = row.logits, self._reader.is_neutral
        if not is_neutral:
            logits = self._reader.processed(row, self._reader.private(row))
            refuse_empty(logits)
        if self._sampler is None:
            return int(logits.argmax()), None
        sequence = row.sequence
        draws = Draws(self._seed, index, len(sequence.output_token_ids))
        mu = self._sampler.initial_mu if sequence.mu is None else sequence.mu
        workspace = self._reader.workspace
        return self._sampler.sample(logits, workspace, draws, mu, may_forbid=not is_neutral)

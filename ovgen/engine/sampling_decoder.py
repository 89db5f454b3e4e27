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
        is_plain = reader.is_neutral and config.logprobs is None and self._num_sequences == 1
        self.is_greedy = is_plain and self._sampler is None
        self.nucleus = self._sampler.nucleus if is_plain and self._sampler is not None else None

    def select(self, request: Request, rows: Sequence[SampledRow]) -> list[Choice]:
        """See `Decoder.select`."""
        choices = []
        place = 0
        for sequence in request.sequences:
            if place < len(rows) and rows[place].sequence is sequence:
                choices.append(self._choose(rows[place], sequence.index))
                place += 1
            else:
                choices.append(Choice(sequence, index=sequence.index))
        # Those that have not begun are forked off the first one.
        for index in range(len(request.sequences), self._num_sequences):
            choices.append(self._choose(rows[0], index))
        return choices

    def conclude(self, request: Request) -> list[TokenSequence]:
        """See `Decoder.conclude`: those that have begun."""
        return request.sequences

    def _choose(self, row: SampledRow, index: int) -> Choice:
        token_id, mu = self._next(row, index)
        logprob = self._reader.logprob(row, token_id)
        return Choice(row.sequence, token_id, index, None, mu, logprob)

    def _next(self, row: SampledRow, index: int) -> tuple[int, float | None]:
        logits, reader, sampler = row.logits, self._reader, self._sampler
        if not reader.is_neutral:
            logits = reader.processed(row, reader.private(row))
            refuse_empty(logits)
        if sampler is None:
            return int(logits.argmax()), None
        sequence = row.sequence
        draws = Draws(self._seed, index, len(sequence.output_token_ids))
        mu = sampler.initial_mu if sequence.mu is None else sequence.mu
        may_forbid = not reader.is_neutral
        return sampler.sample(logits, reader.workspace, draws, mu, may_forbid=may_forbid)

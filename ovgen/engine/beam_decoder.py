"""Beam search over a request's sequences: plain, drawn, and in diverse groups.

Beams that run and hypotheses that are finished are all sequences of the request; the latter have
their reason to end, and as score what they are ranked by. A sequence's ``index`` is its group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ovgen.decoding.arrays import Logits, log_sum_exp, top_indices
from ovgen.decoding.beam_search import (
    BeamSearch,
    Candidate,
    EarlyStopping,
    GroupBeamSearch,
    best_candidates,
    drawn_candidates,
)
from ovgen.decoding.nucleus import Nucleus
from ovgen.decoding.random import Draws
from ovgen.decoding.sampler import Sampler
from ovgen.engine.decoder import RowReader, SampledRow, refuse_empty
from ovgen.engine.sequence import Choice, FinishReason, Request
from ovgen.engine.sequence import Sequence as TokenSequence
from ovgen.generation_config import GenerationConfig

Ending = tuple[FinishReason, int | str | None]


class BeamDecoder:
    """Implements Decoder.

    Args:
        config: resolved, with several beams.
        reader: of the request.
        seed: of the request's random numbers.
        num_endings: token ids that end a sequence.
        max_output_tokens: most tokens to generate.
    """

    is_greedy = False
    nucleus: Nucleus | None = None

    def __init__(
        self,
        config: GenerationConfig,
        reader: RowReader,
        seed: int,
        *,
        num_endings: int,
        max_output_tokens: int,
    ) -> None:
        assert config.num_beams is not None, "resolved"
        assert config.length_penalty is not None, "resolved"
        self._num_groups = config.num_beam_groups or 1
        rules = GroupBeamSearch if self._num_groups > 1 else BeamSearch
        self._rules = rules(
            num_beams=config.num_beams // self._num_groups,
            num_endings=num_endings,
            length_penalty=config.length_penalty,
            early_stopping=_early_stopping(config),
            max_new_tokens=max_output_tokens,
        )
        # So many that the search can go on where the best candidates end it, as in transformers.
        min_keep = max(2, 1 + num_endings)
        self._sampler = Sampler(config, min_keep) if config.do_sample else None
        self._reader = reader
        self._seed = seed
        self._diversity_penalty = config.diversity_penalty or 0.0
        self._num_return_sequences = config.num_return_sequences or 1

    def select(self, request: Request, rows: Sequence[SampledRow]) -> list[Choice]:
        """See `Decoder.select`."""
        length = len(rows[0].sequence.output_token_ids) + 1
        is_last = length == request.max_output_tokens
        running: list[Choice] = []
        finished: list[Choice] = []
        chosen: Counter[int] = Counter()  # by the groups before
        for group in range(self._num_groups):
            group_rows = [row for row in rows if length == 1 or row.sequence.index == group]
            hypotheses = [
                sequence
                for sequence in request.sequences
                if sequence.index == group and sequence.finish_reason is not None
            ]
            if not group_rows:  # this group is done
                finished += [_as_it_is(hypothesis) for hypothesis in hypotheses]
                continue
            go_on, ended = self._advance(request, group, group_rows, hypotheses, chosen, is_last)
            running += go_on
            finished += ended
        if not running and not finished:
            refuse_empty(np.full(1, -np.inf, np.float32))
        return [*running, *finished] if running else self._best(finished)

    def conclude(self, request: Request) -> list[TokenSequence]:
        """See `Decoder.conclude`: the best of the hypotheses and of the beams as they are."""
        sequences = [
            self._as_hypothesis(sequence) if sequence.finish_reason is None else sequence
            for sequence in request.sequences
        ]
        sequences.sort(key=lambda sequence: -(sequence.score or 0.0))
        return sequences[: self._num_return_sequences]

    def _as_hypothesis(self, beam: TokenSequence) -> TokenSequence:
        """A copy, for the step may break off and be done again."""
        length = max(1, len(beam.output_token_ids))
        return replace(beam, score=self._rules.score(beam.score or 0.0, length))

    def _advance(
        self,
        request: Request,
        group: int,
        rows: Sequence[SampledRow],
        hypotheses: Sequence[TokenSequence],
        chosen: Counter[int],
        is_last: bool,
    ) -> tuple[list[Choice], list[Choice]]:
        """A group's beams that run on, none where it is done, and its hypotheses; counts the
        tokens that it chose in ``chosen``."""
        candidates = self._candidates(rows, self._diversity(chosen))
        endings = [
            self._ending(request, rows[candidate.parent], candidate.token_id)
            for candidate in candidates
        ]
        is_plain = self._num_groups == 1
        if is_last and is_plain:
            endings = [ending or ("length", None) for ending in endings]
        length = len(rows[0].sequence.output_token_ids) + 1
        step = self._rules.advance(
            candidates,
            [ending is not None for ending in endings],
            [hypothesis.score or 0.0 for hypothesis in hypotheses],
            length,
        )

        def choice(index: int, score: float, ending: Ending | None) -> Choice:
            candidate = candidates[index]
            row = rows[candidate.parent]
            reason, stop_reason = ending or (None, None)
            return Choice(
                row.sequence,
                candidate.token_id,
                index=group,
                score=score,
                logprob=self._reader.logprob(row, candidate.token_id),
                finish_reason=reason,
                stop_reason=stop_reason,
            )

        finished = [
            choice(h.index, h.score, endings[h.index])
            if h.is_new
            else _as_it_is(hypotheses[h.index])
            for h in step.finished
        ]
        # A group that is done by this step has chosen tokens all the same.
        chosen.update(candidates[i].token_id for i in step.running)
        if step.is_done:
            return [], finished
        running = [choice(i, candidates[i].score, None) for i in step.running]
        return ([], self._cut(running, finished, length)) if is_last else (running, finished)

    def _cut(self, running: list[Choice], finished: list[Choice], length: int) -> list[Choice]:
        """A diverse search takes its last beams as they are, but for those that rank too low."""
        scores = [self._rules.score(beam.score or 0.0, length) for beam in running]
        cut = [
            replace(beam, score=score, finish_reason="length")
            for beam, score in zip(running, scores, strict=True)
        ]
        return sorted([*finished, *cut], key=_rank)[: self._rules.num_beams]

    def _candidates(
        self, rows: Sequence[SampledRow], diversity: Callable[[Logits], None] | None
    ) -> list[Candidate]:
        count = self._rules.num_candidates
        scores = [row.sequence.score or 0.0 for row in rows]
        if self._sampler is not None:
            left = []
            for row in rows:
                log_probs = self._log_probs(row, diversity)
                if log_probs.max() == -np.inf:  # a beam at its dead end
                    left.append((np.empty(0, np.intp), log_probs[:0]))
                    continue
                left_over = self._sampler.warp(log_probs, self._reader.workspace, None)
                ids = np.arange(len(log_probs)) if left_over.ids is None else left_over.ids
                left.append((ids, left_over.warped()))
            draws = Draws(self._seed, 0, len(rows[0].sequence.output_token_ids))
            return drawn_candidates(left, scores, count, draws)
        continuations = []
        is_raw = self._reader.is_neutral and diversity is None
        scratch = self._reader.workspace.row("weights", len(rows[0].logits))
        for row, score in zip(rows, scores, strict=True):
            if is_raw:
                values, offset = row.logits, score - log_sum_exp(row.logits, scratch)
            else:
                values, offset = self._log_probs(row, diversity), score
            best = top_indices(values, count)
            continuations.append((best, values[best] + np.float32(offset)))
        return best_candidates(continuations, count)

    def _log_probs(self, row: SampledRow, diversity: Callable[[Logits], None] | None) -> Logits:
        """Processed log-probabilities [vocab]: processors see these in a beam search, not logits,
        as in transformers."""
        log_probs = self._reader.private(row)
        if row.negative is None:  # guidance gives log-probabilities by itself
            scratch = self._reader.workspace.row("weights", len(log_probs))
            log_probs -= np.float32(log_sum_exp(log_probs, scratch))
        return self._reader.processed(row, log_probs, diversity)

    def _diversity(self, chosen: Counter[int]) -> Callable[[Logits], None] | None:
        """The penalty on tokens that other groups chose in this step."""
        if not chosen:
            return None
        ids = np.array(list(chosen), np.int64)
        penalties = np.float32(self._diversity_penalty) * np.array(
            list(chosen.values()), np.float32
        )

        def penalize(logits: Logits) -> None:
            logits[ids] -= penalties

        return penalize

    def _ending(self, request: Request, row: SampledRow, token_id: int) -> Ending | None:
        if token_id in request.ending_ids:
            return "stop", token_id
        matched = self._reader.stop_string(row.sequence, token_id)
        return None if matched is None else ("stop", matched)

    def _best(self, finished: list[Choice]) -> list[Choice]:
        return sorted(finished, key=_rank)[: self._num_return_sequences]


def _early_stopping(config: GenerationConfig) -> EarlyStopping:
    return "never" if config.early_stopping == "never" else bool(config.early_stopping)


def _as_it_is(hypothesis: TokenSequence) -> Choice:
    return Choice(hypothesis, index=hypothesis.index, score=hypothesis.score)


def _rank(choice: Choice) -> float:
    return -(choice.score or 0.0)

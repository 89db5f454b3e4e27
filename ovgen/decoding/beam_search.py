"""The rules of beam search: which candidates go on, which are finished, and when it is over.

`BeamSearch` is transformers' search since 4.50, `GroupBeamSearch` its diverse one (Vijayakumar et
al., 2016) as in 4.56, the last version to have it. Both get the best candidates of a step and the
scores of what is finished; they keep nothing and change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ovgen.decoding.arrays import Indices, Logits, top_indices
from ovgen.decoding.random import Draws

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A running beam (by its row) with one more token, and their log-probability together."""

    parent: int
    token_id: int
    score: float


@dataclass(frozen=True, slots=True)
class Finished:
    """A hypothesis: of those finished before, or (``is_new``) one of the step's candidates."""

    is_new: bool
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class BeamStep:
    """What a step leaves: candidates that run on, by index; hypotheses, best first."""

    running: tuple[int, ...]
    finished: tuple[Finished, ...]
    is_done: bool


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """Rules of a search by ``num_beams`` beams.

    Attributes:
        num_beams: beams that run, and hypotheses that are kept.
        num_endings: token ids that end a sequence.
        length_penalty: a hypothesis' score is its log-probability over ``length ** penalty``.
        early_stopping: True: done when as many hypotheses are finished as there are beams; False:
            when the best beam, were it as long as now, could not beat the worst of them;
            "never": when it could not even at its best length.
        max_new_tokens: most tokens of a hypothesis.
    """

    num_beams: int
    num_endings: int
    length_penalty: float
    early_stopping: EarlyStopping
    max_new_tokens: int

    @property
    def num_candidates(self) -> int:
        """Enough that ``num_beams`` are left where all the best ones end."""
        return max(2, 1 + self.num_endings) * self.num_beams

    def advance(
        self,
        candidates: Sequence[Candidate],
        has_ended: Sequence[bool],
        finished: Sequence[float],
        length: int,
    ) -> BeamStep:
        """One step.

        Args:
            candidates: the best ones, best first (where they are drawn: in that order).
            has_ended: whether each of them is at its end.
            finished: scores of the hypotheses finished before, best first.
            length: tokens generated, with that of the candidates.
        """
        going_on = [i for i, ended in enumerate(has_ended) if not ended]
        going_on.sort(key=lambda i: -candidates[i].score)
        running = tuple(going_on[: self.num_beams])
        merged = [Finished(False, i, score) for i, score in enumerate(finished)]
        # Ended candidates behind the best num_beams are lost.
        merged += [
            Finished(True, i, self.score(candidates[i].score, length))
            for i in range(min(self.num_beams, len(candidates)))
            if has_ended[i]
        ]
        merged.sort(key=lambda hypothesis: -hypothesis.score)
        kept = tuple(merged[: self.num_beams])
        return BeamStep(running, kept, self._is_done(candidates, running, kept, length))

    def score(self, log_probability: float, length: int) -> float:
        """What hypotheses are ranked by, in float32 as transformers computes it."""
        return float(np.float32(log_probability) / np.float32(length**self.length_penalty))

    def _is_done(
        self,
        candidates: Sequence[Candidate],
        running: Sequence[int],
        finished: Sequence[Finished],
        length: int,
    ) -> bool:
        if not running:
            return True
        if len(finished) < self.num_beams:
            return False
        if self.early_stopping is True:
            return True
        best = self._best_attainable(candidates[running[0]].score, length)
        return not best > finished[-1].score

    def _best_attainable(self, log_probability: float, length: int) -> float:
        at_its_longest = self.early_stopping == "never" and self.length_penalty > 0
        return self.score(log_probability, self.max_new_tokens if at_its_longest else length)


@dataclass(frozen=True, slots=True)
class GroupBeamSearch(BeamSearch):
    """Rules of one group of a diverse search; ``num_beams`` is the group's size."""

    def advance(
        self,
        candidates: Sequence[Candidate],
        has_ended: Sequence[bool],
        finished: Sequence[float],
        length: int,
    ) -> BeamStep:
        """One step of the group, as `BeamSearch.advance`; a group's search never runs dry here."""
        running: list[int] = []
        kept = [Finished(False, i, score) for i, score in enumerate(finished)]
        for rank, candidate in enumerate(candidates):
            if not has_ended[rank]:
                running.append(rank)
            elif rank < self.num_beams:
                self._add(kept, Finished(True, rank, self.score(candidate.score, length)))
            if len(running) == self.num_beams:
                break
        is_done = not running or self._is_group_done(candidates[0].score, kept, length)
        kept.sort(key=lambda hypothesis: -hypothesis.score)
        return BeamStep(tuple(running), tuple(kept), is_done)

    def _add(self, kept: list[Finished], hypothesis: Finished) -> None:
        if len(kept) < self.num_beams:
            kept.append(hypothesis)
            return
        worst = min(kept, key=lambda other: other.score)
        if hypothesis.score > worst.score:
            kept.remove(worst)
            kept.append(hypothesis)

    def _is_group_done(self, best: float, kept: Sequence[Finished], length: int) -> bool:
        if len(kept) < self.num_beams:
            return False
        if self.early_stopping is True:
            return True
        return min(h.score for h in kept) >= self._best_attainable(best, length)


def best_candidates(continuations: Sequence[tuple[Indices, Logits]], count: int) -> list[Candidate]:
    """The ``count`` best continuations of all beams, best first; impossible ones are left out.

    Args:
        continuations: of each beam, the best token ids and the log-probabilities of the whole beam
            with them, best first.
        count: at most so many.
    """
    parents = np.repeat(np.arange(len(continuations)), [len(ids) for ids, _ in continuations])
    token_ids = np.concatenate([ids for ids, _ in continuations])
    scores = np.concatenate([scores for _, scores in continuations])
    return [
        Candidate(int(parents[i]), int(token_ids[i]), float(scores[i]))
        for i in top_indices(scores, count).tolist()
        if scores[i] > -math.inf
    ]


def drawn_candidates(
    rows: Sequence[tuple[Indices, Logits]],
    offsets: Sequence[float],
    count: int,
    draws: Draws,
) -> list[Candidate]:
    """``count`` continuations drawn without replacement, by their probabilities, in that order.

    The Gumbel top-k trick (Kool et al., 2019): the highest sums of log-probability and Gumbel noise
    are distributed as successive draws are. One uniform number a candidate, in order.

    Args:
        rows: of each beam, the token ids left and their log-probabilities but for a constant.
        offsets: of each beam, what makes them the log-probabilities of the whole beam.
        count: at most so many.
        draws: where the noise comes from.
    """
    parents = np.repeat(np.arange(len(rows)), [len(ids) for ids, _ in rows])
    token_ids = np.concatenate([ids for ids, _ in rows])
    scores = np.concatenate(
        [row + np.float32(offset) for (_, row), offset in zip(rows, offsets, strict=True)]
    )
    uniform = np.maximum(draws.uniforms(len(scores)), 2.0**-54)
    noisy = scores.astype(np.float64) - np.log(-np.log(uniform))
    order = np.argsort(-noisy, kind="stable")[:count]
    return [Candidate(int(parents[i]), int(token_ids[i]), float(scores[i])) for i in order.tolist()]

"""How far a model's predictions are from a reference's, token by token of a text.

The reference keeps the likeliest next tokens and one sum for all the others: two models need not be
in memory together. That sum hides some of the divergence, about 1% of it where 4,096 of 49,152 are
kept; where all are kept, nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ovgen.llm import LLM

Rows = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
TokenIds = npt.NDArray[np.int64]
Windows = Sequence[Sequence[int]]

# Tokens computed in a step. Small, so that most of them read the KV cache as it is stored, and that
# the rows of logits need little memory: 34 MB with a vocabulary of 262,144.
CHUNK = 32
WINDOW = 512  # tokens that share a context

NUM_TOP = 4096
_LEAST = 1e-12  # probability that all the other tokens have together, where rounding leaves none


@dataclass(frozen=True, slots=True)
class Reference:
    """Distributions of the next token, one a row.

    Attributes:
        ids: the likeliest tokens, [num, top] int32.
        logprobs: of them, [num, top] float32.
        rest: probability of all others together, [num].
        best: the likeliest token, [num] int32.
        next_logprobs: of the tokens that do come next, [num].
    """

    ids: npt.NDArray[np.int32]
    logprobs: Rows
    rest: Doubles
    best: npt.NDArray[np.int32]
    next_logprobs: Doubles


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model beside the reference, one entry a predicted token.

    Attributes:
        kl: KL divergence of the model's distribution from the reference's in nats, [num].
        has_same_best: whether both have the same likeliest token, [num] bool.
        next_logprobs: of the tokens that do come next, [num].
    """

    kl: Doubles
    has_same_best: npt.NDArray[np.bool_]
    next_logprobs: Doubles

    @property
    def mean_kl(self) -> float:
        """At least 0, or NaN where the model computes no numbers."""
        mean = float(self.kl.mean())
        return mean if math.isnan(mean) else max(0.0, mean)


def reference(llm: LLM, windows: Windows, num_top: int = NUM_TOP) -> Reference:
    """What a model predicts for texts of two tokens and more.

    Takes ``8 * num_top`` bytes a token.
    """
    count = sum(len(window) - 1 for window in windows)
    top = min(num_top, llm.vocab_size)
    found = Reference(
        np.empty((count, top), np.int32),
        np.empty((count, top), np.float32),
        np.empty(count),
        np.empty(count, np.int32),
        np.empty(count),
    )

    def keep(place: slice, targets: TokenIds, rows: Rows) -> None:
        logprobs = log_softmax(rows)
        ids = np.argpartition(logprobs, -top, axis=1)[:, -top:]
        found.ids[place] = ids
        found.logprobs[place] = np.take_along_axis(logprobs, ids, 1)
        found.rest[place] = _rest(found.logprobs[place])
        found.best[place] = rows.argmax(1)
        found.next_logprobs[place] = _of(logprobs, targets)

    _predict(llm, windows, keep)
    return found


def compare(expected: Reference, llm: LLM, windows: Windows) -> Comparison:
    """What another load or another model predicts for the same texts, beside the reference."""
    count = len(expected.ids)
    found = Comparison(np.empty(count), np.empty(count, np.bool_), np.empty(count))

    def put(place: slice, targets: TokenIds, rows: Rows) -> None:
        logprobs = log_softmax(rows)
        found.kl[place] = _kl(expected, place, logprobs)
        found.has_same_best[place] = rows.argmax(1) == expected.best[place]
        found.next_logprobs[place] = _of(logprobs, targets)

    _predict(llm, windows, put)
    return found


def log_softmax(rows: Rows) -> Rows:
    """Natural log-probabilities of rows of logits; not finite where those are not."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shifted = rows - rows.max(1, keepdims=True)
        total = np.log(np.exp(shifted).sum(1, keepdims=True, dtype=np.float64))
        return np.asarray(shifted - total, np.float32)


def _predict(llm: LLM, windows: Windows, sink: Callable[[slice, TokenIds, Rows], None]) -> None:
    """Have a function take all rows of logits, with their places among the predicted tokens and
    the tokens that do come next."""
    targets = np.array([token for window in windows for token in window[1:]], np.int64)
    start = 0

    def take(rows: Rows) -> None:
        nonlocal start
        place = slice(start, start + len(rows))
        sink(place, targets[place], rows)
        start = place.stop

    with _listening(llm, take):
        for window in windows:
            llm.score(window[:1], [window[1:]])
    assert start == len(targets), "every token but a window's first is predicted once"


@contextmanager
def _listening(llm: LLM, sink: Callable[[Rows], None]) -> Iterator[None]:
    """Have all logits that the model computes go through a function as well.

    No public call gives the whole distribution of a prompt's tokens, and copies of it would take
    hundreds of megabytes.
    """
    runner = llm._service.open()._runner
    wait = runner.wait

    def listen(timeout: float) -> Rows | None:
        logits = wait(timeout)
        if logits is not None:
            sink(logits)
        return logits

    runner.wait = listen  # type: ignore[method-assign]
    try:
        yield
    finally:
        del runner.wait


def _kl(expected: Reference, place: slice, logprobs: Rows) -> Doubles:
    """KL(expected || logprobs) of each row, over the expected top and one bucket for the others."""
    top = expected.logprobs[place].astype(np.float64)
    others = np.take_along_axis(logprobs, expected.ids[place], 1)
    with np.errstate(invalid="ignore"):
        terms = np.exp(top) * (top - others)
    terms[np.isneginf(top)] = 0  # impossible in the reference, whatever the model says
    inner = np.asarray(terms.sum(1), np.float64)
    if top.shape[1] == logprobs.shape[1]:
        return inner
    rest = expected.rest[place]
    return inner + rest * np.log(rest / _rest(others))


def _rest(top: Rows) -> Doubles:
    left = 1 - np.exp(top.astype(np.float64)).sum(1)
    return np.asarray(np.maximum(left, _LEAST), np.float64)


def _of(logprobs: Rows, targets: TokenIds) -> Doubles:
    """The targets' own log-probabilities, [num]."""
    return np.take_along_axis(logprobs, targets[:, None], 1)[:, 0].astype(np.float64)

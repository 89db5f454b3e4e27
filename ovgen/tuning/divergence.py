"""How far a model's predictions are from those that it makes in float32.

The mean over a text's tokens of the KL divergence of the next token's distribution. The reference
keeps the likeliest tokens and one sum for all the others: that sum hides some of the divergence,
about 1% of it with a vocabulary of 49,152.
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

# Tokens computed in a step. Small, so that most of them read the KV cache as it is stored, and that
# the rows of logits need little memory: 34 MB with a vocabulary of 262,144.
CHUNK = 32
WINDOW = 512  # tokens that share a context

_NUM_TOP = 4096
_LEAST = 1e-12  # probability that all the other tokens have together, where rounding leaves none


@dataclass(frozen=True, slots=True)
class Reference:
    """Distributions of the next token, one a row.

    Attributes:
        ids: the likeliest tokens, [num, top] int32.
        logprobs: of them, [num, top] float32.
        rest: probability of all others together, [num] float64.
    """

    ids: npt.NDArray[np.int32]
    logprobs: Rows
    rest: npt.NDArray[np.float64]


def reference(llm: LLM, windows: Sequence[Sequence[int]]) -> Reference:
    """What a model in float32 predicts for texts of two tokens and more."""
    parts: list[Reference] = []
    _compute(llm, windows, lambda rows: parts.append(_top(rows)))
    return Reference(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.logprobs for part in parts]),
        np.concatenate([part.rest for part in parts]),
    )


def divergence(expected: Reference, llm: LLM, windows: Sequence[Sequence[int]]) -> float:
    """Mean KL divergence of another load's predictions for the same texts, in nats."""
    total, start = 0.0, 0

    def add(rows: Rows) -> None:
        nonlocal total, start
        stop = start + len(rows)
        total += float(_kl(expected, slice(start, stop), rows).sum())
        start = stop

    _compute(llm, windows, add)
    assert start == len(expected.ids), "the same texts give the same rows"
    return max(0.0, total / start) if not math.isnan(total) else math.nan


def _compute(llm: LLM, windows: Sequence[Sequence[int]], sink: Callable[[Rows], None]) -> None:
    with _listening(llm, sink):
        for window in windows:
            llm.score(window[:1], [window[1:]])


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


def _top(rows: Rows) -> Reference:
    logprobs = _log_softmax(rows)
    count = min(_NUM_TOP, rows.shape[1])
    ids = np.argpartition(logprobs, -count, axis=1)[:, -count:]
    top = np.take_along_axis(logprobs, ids, 1)
    return Reference(ids.astype(np.int32), top, _rest(top))


def _kl(expected: Reference, place: slice, rows: Rows) -> npt.NDArray[np.float64]:
    """KL(expected || rows) of each row, over the expected top and one bucket for the others."""
    logprobs, rest = expected.logprobs[place].astype(np.float64), expected.rest[place]
    others = np.take_along_axis(_log_softmax(rows), expected.ids[place], 1)
    inner: npt.NDArray[np.float64] = (np.exp(logprobs) * (logprobs - others)).sum(1)
    return inner + rest * np.log(rest / _rest(others))


def _rest(top: Rows) -> npt.NDArray[np.float64]:
    left = 1 - np.exp(top.astype(np.float64)).sum(1)
    return np.asarray(np.maximum(left, _LEAST), np.float64)


def _log_softmax(rows: Rows) -> Rows:
    shifted = rows - rows.max(1, keepdims=True)
    total = np.log(np.exp(shifted).sum(1, keepdims=True, dtype=np.float64))
    return np.asarray(shifted - total, np.float32)

"""The outcome of an evaluation, as tables for people and as plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ovgen.evaluation.divergence import Comparison, Doubles, Reference

_MAX_PROMPT = 40  # characters of a prompt in the table


@dataclass(frozen=True, slots=True)
class Continuation:
    """Where two models part that go on with the same prompt, each with its likeliest token.

    Attributes:
        prompt: what they go on with.
        num_tokens: that each of them wrote.
        num_equal: before the first that differs, ``num_tokens`` where none does.
        text: the model's.
        reference_text: the reference's.
    """

    prompt: str
    num_tokens: int
    num_equal: int
    text: str
    reference_text: str


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How faithful a model is to its reference.

    Attributes:
        num_tokens: of the text that were predicted.
        num_top: likeliest tokens whose probabilities the divergence has one by one; it has one sum
            for the others, which hides some of it unless this is the whole vocabulary.
        perplexity: of the text, the model's.
        reference_perplexity: the reference's.
        mean_kl: KL divergence of the next token's distribution from the reference's, in nats.
        median_kl: of the tokens.
        p99_kl: the 99th percentile, interpolated.
        max_kl: of the worst token.
        top1_agreement: share of the tokens where both have the same likeliest one.
        continuations: of the prompts.
    """

    num_tokens: int
    num_top: int
    perplexity: float
    reference_perplexity: float
    mean_kl: float
    median_kl: float
    p99_kl: float
    max_kl: float
    top1_agreement: float
    continuations: tuple[Continuation, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data; None for what is infinite."""
        figures = asdict(self)
        figures["continuations"] = list(figures["continuations"])
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in figures.items()
        }

    def figures(self) -> list[tuple[str, str]]:
        """A table of two columns."""
        ratio = self.perplexity / self.reference_perplexity
        return [
            ("FIGURE", "VALUE"),
            ("perplexity", f"{self.perplexity:,.3f}"),
            ("perplexity of the reference", f"{self.reference_perplexity:,.3f}"),
            ("ratio of the two", f"{ratio:.4f}"),
            ("KL divergence, mean", _small(self.mean_kl)),
            ("KL divergence, median", _small(self.median_kl)),
            ("KL divergence, 99th percentile", _small(self.p99_kl)),
            ("KL divergence, maximum", _small(self.max_kl)),
            ("same likeliest token", f"{self.top1_agreement:.2%}"),
        ]

    def prompts(self) -> list[tuple[str, str, str]]:
        """A table of three columns; empty without prompts."""
        if not self.continuations:
            return []
        rows = [("PROMPT", "TOKENS", "EQUAL UP TO THE FIRST DIFFERENCE")]
        for one in self.continuations:
            equal = "all" if one.num_equal == one.num_tokens else str(one.num_equal)
            rows.append((_shortened(one.prompt), str(one.num_tokens), equal))
        return rows


def fidelity(
    expected: Reference, found: Comparison, continuations: Sequence[Continuation]
) -> Fidelity:
    """The figures of token by token results."""
    return Fidelity(
        num_tokens=len(found.kl),
        num_top=expected.ids.shape[1],
        perplexity=_perplexity(found.next_logprobs),
        reference_perplexity=_perplexity(expected.next_logprobs),
        mean_kl=found.mean_kl,
        median_kl=max(0.0, float(np.median(found.kl))),
        p99_kl=max(0.0, _percentile(found.kl, 99)),
        max_kl=max(0.0, float(found.kl.max())),
        top1_agreement=float(found.has_same_best.mean()),
        continuations=tuple(continuations),
    )


def _perplexity(logprobs: Doubles) -> float:
    return math.exp(min(-float(logprobs.mean()), math.log(1e300)))


def _percentile(values: Doubles, percent: int) -> float:
    """Linear between neighbours, which may be infinite."""
    place = percent / 100 * (len(values) - 1)
    low, high = np.sort(values)[[math.floor(place), math.ceil(place)]]
    return float(low if low == high else low + (high - low) * (place % 1))


def _small(value: float) -> str:
    """Four digits that count, whatever the size."""
    return f"{value:.4f}" if value >= 0.1 or value == 0 else f"{value:.3g}"


def _shortened(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= _MAX_PROMPT else f"{line[: _MAX_PROMPT - 3].rstrip()}..."

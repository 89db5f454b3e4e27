"""What a request gives back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "tool_calls"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token in the model's own distribution, before any option changes it.

    Attributes:
        token_id: the token.
        logprob: its natural log-probability.
        rank: its place among all tokens, 1 for the most likely.
        top: the most likely tokens with their log-probabilities, best first, as many as were asked
            for.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One finished sequence.

    Attributes:
        text: the generated text; the prompt's before it with ``echo``.
        token_ids: the generated token ids; an end-of-sequence token that ended it is the last one.
        finish_reason: ``stop`` (an end-of-sequence token or a stop string), ``length``
            (max_new_tokens, max_time or the end of the context) or ``abort``.
        stop_reason: the token id or the stop string that ended it, None otherwise.
        score: what a beam search ranks by, the log-probability of all tokens after processing over
            ``length ** length_penalty``; None without beams.
        logprobs: per token, where they were asked for; None otherwise.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: int | str | None = None
    score: float | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        """Log-probability of all tokens together, None without ``logprobs``."""
        return None if self.logprobs is None else sum(token.logprob for token in self.logprobs)


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Times of one request, in seconds unless said otherwise.

    Attributes:
        num_prompt_tokens: tokens in the prompt.
        num_output_tokens: tokens generated.
        ttft: time to first token, from the request's arrival, tokenization included.
        itl: inter-token latencies, one for each token after the first.
        load_time: loading of the model, once for its LLM.
        tokenization_time: encoding the prompt, the chat template included.
        detokenization_time: decoding the output, summed over its tokens.
    """

    num_prompt_tokens: int
    num_output_tokens: int
    ttft: float
    itl: tuple[float, ...] = field(repr=False)
    load_time: float
    tokenization_time: float
    detokenization_time: float

    @property
    def tpot(self) -> float:
        """Mean time per output token after the first; 0 where there is only one."""
        return sum(self.itl) / len(self.itl) if self.itl else 0.0

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens a second up to the first token, tokenization left out."""
        seconds = self.ttft - self.tokenization_time
        return self.num_prompt_tokens / seconds if seconds > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens a second after the first."""
        return 1.0 / self.tpot if self.tpot > 0 else 0.0


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A finished request.

    Attributes:
        prompt_token_ids: the prompt as the model saw it.
        outputs: its sequences: beams best first, samples in the order of their draws.
        metrics: its times.
        seed: gives the same tokens again; None where nothing was drawn.
        prompt_logprobs: of each of the prompt's tokens, None for the first, which nothing predicts;
            None where they were not asked for.
    """

    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    metrics: RequestMetrics
    seed: int | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None

    @property
    def text(self) -> str:
        """Text of the first output."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Token ids of the first output."""
        return self.outputs[0].token_ids


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """What one step added to a stream.

    Attributes:
        text: new text that is certain; may be empty while a character or a possible stop string
            is incomplete.
        token_ids: new token ids.
        output: the finished request, on the last chunk only.
        index: whose they are, of several samples; a beam search streams its best output alone.
        logprobs: of the new tokens, where they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    output: RequestOutput | None = None
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class ScoreOutput:
    """What a model thinks of a text that is there already.

    Attributes:
        token_ids: the tokens that were scored.
        logprobs: the natural log-probability of each, given all tokens before it.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = field(repr=False)

    @property
    def logprob(self) -> float:
        """Log-probability of all the tokens together."""
        return sum(self.logprobs)


@dataclass(frozen=True, slots=True)
class PerplexityOutput:
    """How well a model predicts a text.

    Attributes:
        nll: negative log-likelihood in nats, summed over the tokens.
        num_tokens: tokens that were predicted: all but the first.
    """

    nll: float
    num_tokens: int

    @property
    def perplexity(self) -> float:
        """``exp(nll / num_tokens)``; infinite where that overflows."""
        try:
            return math.exp(self.nll / self.num_tokens)
        except OverflowError:
            return math.inf

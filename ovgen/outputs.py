"""What a request gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "tool_calls"]


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One finished sequence.

    Attributes:
        text: the generated text, without the prompt.
        token_ids: the generated token ids; an end-of-sequence token that ended it is the last one.
        finish_reason: ``stop`` (an end-of-sequence token or a stop string), ``length``
            (max_new_tokens, max_time or the end of the context) or ``abort``.
        stop_reason: the token id or the stop string that ended it, None otherwise.
        score: the score a beam search ranks by; None in greedy decoding.
        logprobs: per token, where they were asked for; None otherwise.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: int | str | None = None
    score: float | None = None
    logprobs: tuple[float, ...] | None = None


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
        outputs: its sequences, best first.
        metrics: its times.
    """

    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    metrics: RequestMetrics

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
    """

    text: str
    token_ids: tuple[int, ...]
    output: RequestOutput | None = None

    def __str__(self) -> str:
        return self.text

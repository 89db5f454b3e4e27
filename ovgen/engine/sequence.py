"""A request and its sequences: what has been asked, what has been generated, how it ended."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "tool_calls"]


@dataclass(slots=True, eq=False)
class Sequence:
    """One row of tokens: the prompt and what was generated after it.

    ``num_computed_tokens`` of them are in the KV cache. A sequence is always behind by at least
    one token, and the scheduler lets it catch up: many tokens for a prompt, one in decoding.
    """

    seq_id: int
    prompt_token_ids: tuple[int, ...]
    output_token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    @property
    def num_tokens(self) -> int:
        """Prompt and output together."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    def token_ids(self, start: int, stop: int) -> Tokens[int]:
        """Tokens ``start`` to ``stop`` of prompt and output together."""
        num_prompt = len(self.prompt_token_ids)
        if start >= num_prompt:
            return self.output_token_ids[start - num_prompt : stop - num_prompt]
        prompt = self.prompt_token_ids[start:stop]
        if stop <= num_prompt:
            return prompt
        return [*prompt, *self.output_token_ids[: stop - num_prompt]]


@dataclass(slots=True, eq=False)
class Request:
    """What was asked for, with its sequences.

    Attributes:
        max_output_tokens: most tokens to generate, the end of the context included.
        eos_ids: token ids that end a sequence.
        deadline: time.perf_counter() after which the request ends, or None.
    """

    request_id: int
    prompt_token_ids: tuple[int, ...]
    max_output_tokens: int
    eos_ids: frozenset[int]
    deadline: float | None
    sequences: list[Sequence]

    @property
    def is_finished(self) -> bool:
        """Whether all its sequences have ended."""
        return all(sequence.finish_reason is not None for sequence in self.sequences)

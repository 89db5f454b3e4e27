"""A request and its sequences: what has been asked, what has been generated, how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length", "abort", "tool_calls"]


class Forkable(Protocol):
    """State that a sequence carries for somebody else."""

    def fork(self) -> Any:
        """A copy that goes its own way."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One row of tokens: the prompt and what was generated after it.

    ``num_computed_tokens`` of them are in the KV cache. A sequence is always behind by at least
    one token, and the scheduler lets it catch up: many tokens for a prompt, one in decoding.

    Attributes:
        index: its place among the request's sequences: the n-th sample, or a beam's group.
        parent_id: the seq_id whose KV cache it shares up to where it was forked.
        score: in a beam search, its log-probability, or its final score once it has ended.
        mu: Mirostat's bound of surprise.
        logprobs: of its output tokens, where they were asked for.
        prompt_logprobs: of its prompt's tokens from the first that is scored.
        negative: the same output after the negative prompt, for guidance.
        state: what the decoder carries along.
        block_table: the blocks of the KV cache that hold it, where there are blocks; written by the
            BlockManager.
    """

    seq_id: int
    prompt_token_ids: tuple[int, ...]
    output_token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    index: int = 0
    parent_id: int | None = None
    score: float | None = None
    mu: float | None = None
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] = field(default_factory=list)
    negative: Sequence | None = None
    state: Forkable | None = None
    block_table: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Prompt and output together."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def rows(self) -> tuple[Sequence, ...]:
        """The rows it takes in a batch: itself, and its negative."""
        return (self,) if self.negative is None else (self, self.negative)

    @property
    def next_token_id(self) -> int:
        """The first token that is not computed."""
        place = self.num_computed_tokens - len(self.prompt_token_ids)
        return self.output_token_ids[place] if place >= 0 else self.prompt_token_ids[place]

    def token_ids(self, start: int, stop: int) -> Tokens[int]:
        """Tokens ``start`` to ``stop`` of prompt and output together."""
        num_prompt = len(self.prompt_token_ids)
        if start >= num_prompt:
            return self.output_token_ids[start - num_prompt : stop - num_prompt]
        prompt = self.prompt_token_ids[start:stop]
        if stop <= num_prompt:
            return prompt
        return [*prompt, *self.output_token_ids[: stop - num_prompt]]

    def fork(self, ids: Iterator[int]) -> Sequence:
        """A copy with ids of its own, which shares what is computed so far."""
        copy = Sequence(
            seq_id=next(ids),
            prompt_token_ids=self.prompt_token_ids,
            output_token_ids=self.output_token_ids.copy(),
            num_computed_tokens=self.num_computed_tokens,
            index=self.index,
            parent_id=self.seq_id,
            score=self.score,
            mu=self.mu,
            logprobs=self.logprobs.copy(),
            prompt_logprobs=self.prompt_logprobs,
            state=None if self.state is None else self.state.fork(),
        )
        if self.negative is not None:
            copy.negative = self.negative.fork(ids)
            copy.negative.output_token_ids = copy.output_token_ids
        return copy


@dataclass(slots=True)
class Choice:
    """One sequence of a request after a step.

    Attributes:
        parent: the sequence that it continues.
        token_id: by which token; None: it stays as it is.
        index: as `Sequence.index`.
        score: as `Sequence.score`.
        mu: as `Sequence.mu`.
        logprob: of the token, where it was asked for.
        finish_reason: where the decoder knows that this is the end.
        stop_reason: the token id or the stop string that ended it.
    """

    parent: Sequence
    token_id: int | None = None
    index: int = 0
    score: float | None = None
    mu: float | None = None
    logprob: Any = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True, eq=False)
class Request:
    """What was asked for, with its sequences.

    Attributes:
        max_output_tokens: most tokens to generate, the end of the context included; 0 where the
            prompts are only scored.
        ending_ids: token ids that end a sequence.
        deadline: time.perf_counter() after which the request ends, or None.
        sequences: one at first; as many as are asked for, or as there are beams, after its first
            token.
        decoder: what chooses its tokens.
        num_prompt_logprobs: alternatives beside the log-probability of each of the prompt's tokens,
            None where those are not wanted.
        score_from: the position from which the prompt's logits are wanted, None where they are not.
        num_shared_tokens: tokens at the beginning that all sequences have in common.
        is_beam_search: its sequences are beams.
        seed: of its random numbers, None where nothing is drawn.
        is_aborted: it is to end at the next chance; may be set by any thread.
        is_streamed: somebody reads its text as it comes, not only the whole of it; may be set by
            any thread.
        priority: of two requests that wait the lower is served first.
        cache_salt: it shares its part of the prefix cache only with requests of the same.
    """

    request_id: int
    prompt_token_ids: tuple[int, ...]
    max_output_tokens: int
    ending_ids: frozenset[int]
    deadline: float | None
    sequences: list[Sequence]
    decoder: Any = None
    num_prompt_logprobs: int | None = None
    score_from: int | None = None
    num_shared_tokens: int = 0
    is_beam_search: bool = False
    seed: int | None = None
    is_aborted: bool = False
    is_streamed: bool = True
    priority: int = 0
    cache_salt: bytes = b""

    @property
    def is_finished(self) -> bool:
        """Whether all its sequences have ended."""
        return not self.unfinished

    @property
    def unfinished(self) -> list[Sequence]:
        """The sequences that go on."""
        return [sequence for sequence in self.sequences if sequence.finish_reason is None]

    @property
    def is_single_score(self) -> bool:
        """Whether it scores one text, such as a window of a long one: nobody asks for it again."""
        return self.max_output_tokens == 0 and len(self.sequences) == 1

    def num_wanted_tokens(self, sequence: Sequence) -> int:
        """Tokens of a row that have to be computed: nothing follows the last one of a score."""
        return sequence.num_tokens if self.max_output_tokens else sequence.num_tokens - 1

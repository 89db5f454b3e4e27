"""Which logits processors a request has, in which order, and the state they need of a sequence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

from ovgen.decoding import logits_processors as processors
from ovgen.decoding.arrays import Logits, TokenIds
from ovgen.decoding.logits_processors import LogitsProcessor
from ovgen.generation_config import GenerationConfig


class StreamingProcessor(Protocol):
    """A user's processor that keeps state of one sequence."""

    def accept(self, token_ids: TokenIds) -> None:
        """Take in the tokens [num_new] that came since the last call; the prompt's at first."""

    def process(self, logits: Logits) -> Logits:
        """The logits [vocab] changed, in place or not."""

    def fork(self) -> StreamingProcessor:
        """A copy that goes its own way: sequences fork in sampling and in beam search."""


@runtime_checkable
class StreamingProcessorFactory(Protocol):
    """What a user passes to have a streaming processor for each sequence."""

    def start(self) -> StreamingProcessor:
        """A new one, for a new request."""


UserProcessor: TypeAlias = LogitsProcessor | StreamingProcessorFactory


class Processing:
    """The processors of one request, bound once; neutral options add none.

    The order is transformers' own, so that the same options give the same tokens. What it does not
    have stands where it has the same meaning: logit_bias with sequence_bias; the presence and
    frequency penalties after the repetition penalty, which scales logits and would scale their
    subtraction too; DRY, a penalty that forbids nothing, before the processors that forbid. Token
    healing restricts the first token last of the built-in ones, and the user's own processors see
    what all others have made; only what forces a token could be undone by them.

    Attributes:
        before_diversity: the biases, which transformers applies before the penalty of diverse
            beams.
        after_diversity: all others.
    """

    def __init__(
        self,
        config: GenerationConfig,
        *,
        num_prompt_tokens: int,
        ending_ids: Collection[int],
        max_output_tokens: int,
        breakers: Collection[tuple[int, ...]] = (),
        first_token_ids: Collection[int] = (),
        user_processors: Sequence[UserProcessor] = (),
    ) -> None:
        self.before_diversity = tuple(_biases(config))
        self.after_diversity = (
            *_penalties(config, num_prompt_tokens, breakers),
            *_constraints(config, num_prompt_tokens, ending_ids, max_output_tokens),
            *([_only_first(first_token_ids, num_prompt_tokens)] if first_token_ids else ()),
            *(p for p in user_processors if not isinstance(p, StreamingProcessorFactory)),
        )
        self._factories = tuple(
            p for p in user_processors if isinstance(p, StreamingProcessorFactory)
        )

    @property
    def is_neutral(self) -> bool:
        """Whether nothing is changed."""
        return not (self.before_diversity or self.after_diversity or self._factories)

    def start(self) -> tuple[StreamingProcessor, ...]:
        """The user's streaming processors for a new sequence."""
        return tuple(factory.start() for factory in self._factories)

    def apply(
        self,
        token_ids: TokenIds,
        logits: Logits,
        streaming: Sequence[StreamingProcessor],
        diversity: Callable[[Logits], None] | None = None,
    ) -> Logits:
        """The processed logits; ``logits`` [vocab] may be overwritten."""
        for process in self.before_diversity:
            logits = process(token_ids, logits)
        if diversity is not None:
            diversity(logits)
        for process in self.after_diversity:
            logits = _checked(process(token_ids, logits), logits)
        for processor in streaming:
            logits = _checked(processor.process(logits), logits)
        return logits


def _checked(result: object, logits: Logits) -> Logits:
    """A user's result, as an array of the right shape."""
    if result is logits:
        return logits
    array = np.asarray(result, np.float32)
    if array.shape != logits.shape:
        raise ValueError(
            f"a logits processor must give logits of shape {logits.shape}, not {array.shape}"
        )
    return array


def _biases(config: GenerationConfig) -> list[LogitsProcessor]:
    biases = [((token_id,), bias) for token_id, bias in config.logit_bias or ()]
    biases += config.sequence_bias or ()
    return [processors.sequence_bias(biases)] if biases else []


def _penalties(
    config: GenerationConfig, num_prompt_tokens: int, breakers: Collection[tuple[int, ...]]
) -> list[LogitsProcessor]:
    found: list[LogitsProcessor] = []
    last_n = config.penalty_last_n
    if config.repetition_penalty not in (None, 1):
        found.append(processors.repetition_penalty(config.repetition_penalty, last_n))
    if config.presence_penalty or config.frequency_penalty:
        presence, frequency = config.presence_penalty or 0.0, config.frequency_penalty or 0.0
        found.append(
            processors.presence_frequency_penalty(presence, frequency, num_prompt_tokens, last_n)
        )
    if config.dry_multiplier:
        assert config.dry_base is not None, "resolved"
        assert config.dry_allowed_length is not None, "resolved"
        found.append(
            processors.dry(
                config.dry_multiplier,
                config.dry_base,
                config.dry_allowed_length,
                config.dry_penalty_last_n,
                breakers,
            )
        )
    return found


def _constraints(
    config: GenerationConfig,
    num_prompt_tokens: int,
    ending_ids: Collection[int],
    max_output_tokens: int,
) -> list[LogitsProcessor]:
    found: list[LogitsProcessor] = []
    if config.no_repeat_ngram_size:
        found.append(processors.no_repeat_ngram(config.no_repeat_ngram_size))
    if config.bad_words_ids:
        found.append(processors.bad_words(config.bad_words_ids, ending_ids))
    if config.min_length:
        found.append(processors.min_length(config.min_length, ending_ids))
    if config.min_new_tokens:
        found.append(processors.min_length(num_prompt_tokens + config.min_new_tokens, ending_ids))
    if config.forced_bos_token_id is not None:
        found.append(processors.forced_bos(config.forced_bos_token_id))
    if config.forced_eos_token_id is not None:
        max_length = num_prompt_tokens + max_output_tokens
        found.append(processors.forced_eos(max_length, config.forced_eos_token_id))
    if config.exponential_decay_length_penalty is not None:
        start, factor = config.exponential_decay_length_penalty
        found.append(processors.exponential_decay(num_prompt_tokens + start, factor, ending_ids))
    if config.suppress_tokens:
        found.append(processors.suppress(config.suppress_tokens))
    if config.begin_suppress_tokens:
        # After a forced first token, as transformers counts it.
        is_forced = num_prompt_tokens == 1 and config.forced_bos_token_id is not None
        begin_index = num_prompt_tokens + is_forced
        found.append(processors.begin_suppress(config.begin_suppress_tokens, begin_index))
    return found


def _only_first(token_ids: Collection[int], num_prompt_tokens: int) -> LogitsProcessor:
    """Forbid all but these as the first token of the output."""
    allowed = np.array(sorted(token_ids), np.int64)

    def process(token_ids: TokenIds, logits: Logits) -> Logits:
        if len(token_ids) == num_prompt_tokens:
            kept = logits[allowed]
            logits.fill(-np.inf)
            logits[allowed] = kept
        return logits

    return process

"""The seam between the engine and the strategies: sampled rows in, choices out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ovgen.decoding.arrays import Logits, TokenIds, log_sum_exp
from ovgen.decoding.candidates import Workspace
from ovgen.decoding.logprobs import token_logprob
from ovgen.decoding.nucleus import Nucleus
from ovgen.decoding.processing import Processing
from ovgen.engine.sequence import Choice, Request
from ovgen.engine.sequence import Sequence as TokenSequence
from ovgen.engine.sequence_state import SequenceState
from ovgen.errors import RequestError
from ovgen.generation_config import GenerationConfig
from ovgen.outputs import TokenLogprob
from ovgen.text.text_stream import TextStream


@dataclass(slots=True)
class SampledRow:
    """A sequence at its end, with the logits [vocab] of its next token; not to be written to.

    ``negative``: the logits after the negative prompt, for guidance.
    """

    sequence: TokenSequence
    logits: Logits
    negative: Logits | None = None


class Decoder(Protocol):
    """Chooses the tokens of one request."""

    is_greedy: bool  # takes each row's most likely token and nothing else
    nucleus: Nucleus | None  # draws each row's token from it and does nothing else

    def select(self, request: Request, rows: Sequence[SampledRow]) -> list[Choice]:
        """What becomes of all the request's sequences; changes none of them.

        Args:
            request: whose sequences they are.
            rows: of those that have not ended, in their order.

        Raises:
            RequestError: no token is left to choose.
        """

    def conclude(self, request: Request) -> list[TokenSequence]:
        """The sequences to put out when the request ends at once, without another token."""


class RowReader:
    """What decoders do with a row before they choose: guidance, processors, log-probabilities.

    Args:
        config: resolved.
        processing: the request's processors.
        workspace: shared by all requests of an engine.
        new_text: makes the text of a sequence, where stop strings are to be found in it.
    """

    def __init__(
        self,
        config: GenerationConfig,
        processing: Processing,
        workspace: Workspace,
        new_text: Callable[[], TextStream] | None = None,
    ) -> None:
        self.processing = processing
        self.workspace = workspace
        self.is_neutral = processing.is_neutral and config.guidance_scale in (None, 1)
        self._guidance_scale = np.float32(
            1 if config.guidance_scale is None else config.guidance_scale
        )
        self._num_logprobs = config.logprobs
        self._new_text = new_text

    def state(self, sequence: TokenSequence) -> tuple[SequenceState, TokenIds]:
        """The sequence's state and all its tokens."""
        state = SequenceState.of(sequence, self.processing, self._new_text)
        return state, state.catch_up(sequence)

    def private(self, row: SampledRow) -> Logits:
        """A copy of the row that may be written to, guided where that is asked for."""
        out = self.workspace.row("logits", len(row.logits))
        if row.negative is None:
            out[:] = row.logits
            return out
        # UnbatchedClassifierFreeGuidance of transformers (Sanchez et al., 2023).
        scratch = self.workspace.row("weights", len(out))
        negative = row.negative - np.float32(log_sum_exp(row.negative, scratch))
        np.subtract(row.logits, np.float32(log_sum_exp(row.logits, scratch)), out=out)
        with np.errstate(invalid="ignore"):
            out -= negative
            out *= self._guidance_scale
            out += negative
        out[np.isnan(out)] = -np.inf  # a token that is impossible in both
        return out

    def processed(
        self,
        row: SampledRow,
        logits: Logits,
        diversity: Callable[[Logits], None] | None = None,
    ) -> Logits:
        """The row's logits after all processors; ``logits`` are overwritten."""
        state, token_ids = self.state(row.sequence)
        return self.processing.apply(token_ids, logits, state.streaming, diversity)

    def stop_string(self, sequence: TokenSequence, token_id: int) -> str | None:
        """The stop string that one more token would complete, where any are looked for."""
        if self._new_text is None:
            return None
        state, _ = self.state(sequence)
        assert state.text is not None, "made with one"
        text = state.text.fork()
        text.decode([token_id])
        return text.matched

    def logprob(self, row: SampledRow, token_id: int) -> TokenLogprob | None:
        """The raw log-probability of a token, where it is asked for."""
        if self._num_logprobs is None:
            return None
        return token_logprob(row.logits, token_id, self._num_logprobs, self.workspace)


def refuse_empty(logits: Logits) -> None:
    """RequestError where every token is forbidden, or the logits are no numbers."""
    highest = logits.max()
    if highest == -np.inf:
        raise RequestError(
            "no token is left to choose: the options and logits processors forbid every one; "
            "allow some, or end the sequence with an end-of-sequence token"
        )
    if not np.isfinite(highest):
        raise RequestError(f"the logits hold {highest}: the model or a logits processor overflows")

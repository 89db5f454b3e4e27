"""What decoding carries along with a sequence: its tokens as an array, and streaming state."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ovgen.decoding.arrays import TokenIds
from ovgen.decoding.processing import Processing, StreamingProcessor
from ovgen.engine.sequence import Sequence
from ovgen.text.text_stream import TextStream

_ROOM = 256


class SequenceState:
    """Follows one sequence; see `catch_up`. Sequences only grow, so a step done again is no harm.

    Args:
        prompt_token_ids: where it begins.
        streaming: the user's streaming processors.
        text: finds stop strings, where a decoder has to know of them.
    """

    __slots__ = ("_buffer", "_failure", "_length", "_num_prompt", "streaming", "text")

    def __init__(
        self,
        prompt_token_ids: tuple[int, ...],
        streaming: tuple[StreamingProcessor, ...],
        text: TextStream | None,
    ) -> None:
        self._num_prompt = self._length = len(prompt_token_ids)
        self._buffer = np.empty(self._length + _ROOM, np.int64)
        self._buffer[: self._length] = prompt_token_ids
        self.streaming = streaming
        self.text = text
        self._failure: Exception | None = None
        for processor in streaming:
            processor.accept(_read_only(self._buffer[: self._length]))

    @classmethod
    def of(
        cls, sequence: Sequence, processing: Processing, new_text: Callable[[], TextStream] | None
    ) -> SequenceState:
        """The sequence's own state, made when it is first asked for."""
        if sequence.state is None:
            text = None if new_text is None else new_text()
            sequence.state = cls(sequence.prompt_token_ids, processing.start(), text)
        assert isinstance(sequence.state, cls)
        return sequence.state

    def catch_up(self, sequence: Sequence) -> TokenIds:
        """All tokens of the sequence, [num_tokens] int64; new ones are passed on."""
        if self._failure is not None:
            raise self._failure
        new = sequence.output_token_ids[self._length - self._num_prompt :]
        if new:
            end = self._length + len(new)
            if end > len(self._buffer):
                self._buffer = np.concatenate([self._buffer, np.empty(end, np.int64)])
            self._buffer[self._length : end] = new
            added = _read_only(self._buffer[self._length : end])
            self._length = end
            for processor in self.streaming:
                processor.accept(added)
            if self.text is not None:
                self.text.decode(new)
        return _read_only(self._buffer[: self._length])

    def fork(self) -> SequenceState:
        """A copy that goes its own way; an error of the user's comes when it is next used."""
        copy = SequenceState.__new__(SequenceState)
        copy._buffer = self._buffer.copy()
        copy._length, copy._num_prompt = self._length, self._num_prompt
        copy.streaming, copy._failure = (), None
        try:
            copy.streaming = tuple(processor.fork() for processor in self.streaming)
        except Exception as exc:
            copy._failure = exc
        copy.text = None if self.text is None else self.text.fork()
        return copy


def _read_only(tokens: TokenIds) -> TokenIds:
    """A view that a user's processor may see."""
    tokens.flags.writeable = False
    return tokens

"""The chunks of a session's turn, and what the turn leaves."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from ovgen.engine.handle import TokenStream
from ovgen.outputs import RequestOutput, StreamChunk


class Turn:
    """Takes in what a turn brings, and tells what it brought when it ends.

    Args:
        end: called once, with the tokens of the first output and their text.
    """

    def __init__(self, end: Callable[[tuple[int, ...], str], None]) -> None:
        self._ends = [end]  # taken by whoever ends the turn: threads may do so at once
        self._token_ids: list[int] = []
        self._text: list[str] = []

    def take(self, chunk: StreamChunk) -> None:
        """Take in a chunk; the last one ends the turn."""
        if chunk.output is not None:
            self.finish(chunk.output)
        elif chunk.index == 0:
            self._token_ids += chunk.token_ids
            self._text.append(chunk.text)

    def finish(self, output: RequestOutput) -> None:
        """End it with the whole output."""
        self._token_ids, self._text = list(output.token_ids), [output.text]
        self.close()

    def fail(self) -> None:
        """End it with nothing."""
        self._token_ids = []
        self.close()

    def close(self) -> None:
        """End it with what was taken in, if it has not ended."""
        try:
            end = self._ends.pop()
        except IndexError:
            return
        end(tuple(self._token_ids), "".join(self._text))


class SessionStream:
    """The chunks of a session's turn, as they come; the last one holds the whole output.

    As `TokenStream`. The session takes its next turn when this one has been read to its end, or was
    closed or dropped: then it goes on after the chunks that were read.
    """

    def __init__(self, stream: TokenStream, turn: Turn) -> None:
        self._stream = stream
        self._turn = turn

    def __iter__(self) -> SessionStream:
        return self

    def __next__(self) -> StreamChunk:
        try:
            chunk = next(self._stream)
        except StopIteration:
            self._turn.close()
            raise
        except Exception:  # not an interrupt, after which chunks still come
            self._turn.fail()
            raise
        self._turn.take(chunk)
        return chunk

    def close(self) -> None:
        """Stop the work; nothing more comes."""
        self._turn.close()
        self._stream.close()

    def abort(self) -> None:
        """Have the turn end as soon as can be; see `TokenStream.abort`."""
        self._stream.abort()

    def result(self) -> RequestOutput:
        """The whole output, when it is there; chunks that were not read yet are passed over.

        Raises:
            ClosedError: this, or the LLM, was closed.
            OvgenError: whatever ended the request.
        """
        try:
            output = self._stream.result()
        except Exception:
            self._turn.fail()
            raise
        self._turn.finish(output)
        return output

    def __enter__(self) -> SessionStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

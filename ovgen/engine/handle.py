"""What a caller has of a request that the engine works on: a handle, and a stream of chunks."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from ovgen.engine.mailbox import Mailbox, Waiters, wait_until
from ovgen.outputs import RequestOutput, StreamChunk


class Owner(Protocol):
    """Whom a handle's request is served by."""

    def refuse_engine_thread(self) -> None:
        """RequestError in the engine's own thread, which would wait for itself."""

    def drop(self, mailbox: Mailbox) -> None:
        """Have the engine forget a request; may be called in the garbage collector."""


class GenerationHandle:
    """A request that the engine works on, whether or not anybody reads what it brings.

    `LLM.submit` gives it. Its methods may be called from any thread. When the last reference to it
    goes the work is stopped: nobody could ask for the result.
    """

    def __init__(self, mailbox: Mailbox, owner: Owner) -> None:
        self.mailbox = mailbox
        self._owner = owner

    @property
    def request_id(self) -> int:
        """A number that no other request of this LLM has."""
        return self.mailbox.submission.request.request_id

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.mailbox.is_done

    def stream(self) -> TokenStream:
        """Its chunks as they come, those that are there already first.

        Each chunk is given once, however many streams there are. Text is made from now on as it
        comes; what was generated before the first call is a single chunk.
        """
        self.mailbox.want_chunks()
        return TokenStream(self)

    def result(self, timeout: float | None = None) -> RequestOutput:
        """The whole output, when it is there.

        An interrupt, such as Ctrl-C, ends the request as `abort` does.

        Args:
            timeout: seconds to wait at most; the request goes on after them. None: as long as it
                takes.

        Raises:
            ClosedError: this, or the LLM, was closed.
            TimeoutError: the time is over.
            OvgenError: whatever ended the request.
        """
        if not self.wait(self.mailbox.has_ended, self.mailbox.waiters, timeout):
            raise TimeoutError(f"the request has not ended within {timeout} s; it goes on")
        return self.mailbox.outcome()

    def abort(self) -> None:
        """Have the request end as soon as can be, with what it has and the finish_reason ``abort``.

        Returns at once; the output comes within 0.1 s, whatever the device is computing.
        """
        self.mailbox.submission.request.is_aborted = True

    def close(self) -> None:
        """Stop the work and forget it; nothing more comes."""
        was_done = self.mailbox.is_done
        self.mailbox.drop()
        if not was_done:
            self._owner.drop(self.mailbox)

    def wait(
        self, is_ready: Callable[[], bool], waiters: Waiters, timeout: float | None = None
    ) -> bool:
        """Wait for chunks or the end; False after ``timeout`` seconds. Not for users."""
        self._owner.refuse_engine_thread()
        try:
            return is_ready() or wait_until(is_ready, waiters, timeout)
        except BaseException:
            self.abort()
            raise

    def __del__(self) -> None:
        if not self.mailbox.is_done:
            self.mailbox.is_dropped = True
            self._owner.drop(self.mailbox)


class TokenStream:
    """The chunks of one request, as they come; the last one holds the whole output.

    An iterator, and a context manager that closes it. The engine works whether or not it is read.
    Dropping it unread, breaking out of a loop over it or `close` stop the work and forget it; those
    of a `GenerationHandle` may be dropped as long as the handle is there.
    """

    def __init__(self, handle: GenerationHandle) -> None:
        self._handle = handle
        self._has_told = False

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> StreamChunk:
        mailbox = self._handle.mailbox
        while True:
            self._handle.wait(mailbox.has_news, mailbox.readers)
            is_done = mailbox.is_done  # then no chunk comes after the next look
            chunk = mailbox.take()
            if chunk is not None:
                return chunk
            if is_done:
                break
        if not self._has_told:
            self._has_told = True
            mailbox.refuse_failed()
        raise StopIteration

    def close(self) -> None:
        """Stop the work; nothing more comes."""
        self._handle.close()

    def abort(self) -> None:
        """Have the request end as soon as can be, with what it has and the finish_reason ``abort``.

        May be called from any thread, also while another one waits for the next chunk. Returns at
        once; the stream's last chunk comes within 0.1 s, whatever the device is computing.
        """
        self._handle.abort()

    def result(self) -> RequestOutput:
        """The whole output, when it is there; chunks that were not read yet are passed over.

        Raises:
            ClosedError: this, or the LLM, was closed.
            OvgenError: whatever ended the request.
        """
        output = self._handle.result()
        self._handle.mailbox.chunks.clear()
        return output

    def __enter__(self) -> TokenStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

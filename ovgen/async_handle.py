"""What asyncio has of a request that the engine works on, and how the engine wakes event loops."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from functools import partial

from ovgen.engine.handle import GenerationHandle
from ovgen.engine.mailbox import Waiters
from ovgen.outputs import RequestOutput, StreamChunk


class AsyncGenerationHandle:
    """A request that the engine works on, whether or not anybody awaits what it brings.

    `AsyncLLM.submit` gives it. When the last reference to it goes the work is stopped: nobody could
    ask for the result.
    """

    def __init__(self, handle: GenerationHandle, loops: EventLoops) -> None:
        self._handle = handle
        self._loops = loops

    @property
    def request_id(self) -> int:
        """A number that no other request of this LLM has."""
        return self._handle.request_id

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._handle.done

    async def stream(self) -> AsyncGenerator[StreamChunk, None]:
        """Its chunks as they come; each is given once. What was generated before the first is asked
        for is a single chunk.

        Cancellation while it waits for a chunk ends the request as `abort` does.
        """
        while (chunk := await self.next()) is not None:
            yield chunk

    async def result(self) -> RequestOutput:
        """The whole output, when it is there.

        Cancellation ends the request as `abort` does; `asyncio.shield` keeps it from that.

        Raises:
            ClosedError: this, or the LLM, was closed.
            OvgenError: whatever ended the request.
        """
        mailbox = self._handle.mailbox
        await self._wait(mailbox.has_ended, mailbox.waiters)
        return mailbox.outcome()

    def abort(self) -> None:
        """Have the request end as soon as can be, with what it has and the finish_reason ``abort``.

        Returns at once, and may be called from any thread.
        """
        self._handle.abort()

    def close(self) -> None:
        """Stop the work and forget it; nothing more comes."""
        self._handle.close()

    async def next(self) -> StreamChunk | None:
        """The next chunk, None after the last one."""
        mailbox = self._handle.mailbox
        mailbox.want_chunks()
        while True:
            await self._wait(mailbox.has_news, mailbox.readers)
            is_done = mailbox.is_done  # then no chunk comes after the next look
            chunk = mailbox.take()
            if chunk is not None:
                return chunk
            if is_done:
                mailbox.refuse_failed()
                return None

    async def _wait(self, is_ready: Callable[[], bool], waiters: Waiters) -> None:
        try:
            while not is_ready():
                loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = loop.create_future()
                waiters[id(future)] = partial(self._loops.of(loop).wake, future)
                try:
                    if not is_ready():
                        await future
                finally:
                    waiters.pop(id(future), None)
        except BaseException:
            self.abort()
            raise


class _EventLoop:
    """Wakes what waits in one event loop: any number of futures by one call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready: deque[asyncio.Future[None]] = deque()
        self._is_called = False

    def wake(self, future: asyncio.Future[None]) -> None:
        """Have a future of this loop done, soon; for other threads."""
        self._ready.append(future)
        if not self._is_called:
            self._is_called = True
            # A loop that was closed has nobody left who waits.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        self._is_called = False  # before the last look: whoever comes after it calls again
        while self._ready:
            future = self._ready.popleft()
            if not future.done():
                future.set_result(None)


class EventLoops:
    """The event loops that wait for one LLM."""

    def __init__(self) -> None:
        self._known: dict[asyncio.AbstractEventLoop, _EventLoop] = {}

    def of(self, loop: asyncio.AbstractEventLoop) -> _EventLoop:
        """What wakes a loop; called in that loop."""
        known = self._known.get(loop)
        if known is None:
            for other in [other for other in self._known.copy() if other.is_closed()]:
                self._known.pop(other, None)
            known = self._known[loop] = _EventLoop(loop)
        return known

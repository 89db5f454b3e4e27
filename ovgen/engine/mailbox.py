"""From the engine's thread to whoever waits for a request: its chunks, its output or its error."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock, current_thread, main_thread
from time import monotonic

from ovgen.engine.output_processor import Arrival
from ovgen.engine.sequence import Request
from ovgen.errors import ClosedError
from ovgen.generation_config import GenerationConfig
from ovgen.outputs import RequestOutput, StreamChunk

# Seconds between two looks of the main thread at its signals: not every platform lets Ctrl-C end
# its wait for a lock.
_SLICE = 0.05
_HOUR = 3600.0

Waiters = dict[int, Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Submission:
    """A prepared request, with what its text needs."""

    request: Request
    config: GenerationConfig
    arrival: Arrival


class Mailbox:
    """What the engine has put out of one request, and who waits for it.

    The engine's thread writes, any other reads, and no lock is held: a caller may be interrupted
    anywhere, and the engine is not to wait for what it held. Single operations of deques and dicts
    are atomic. Whoever waits registers and then looks once more; the engine writes and then looks
    who waits.

    Attributes:
        chunks: not read yet, oldest first.
        output: of the whole request.
        error: that ended it.
        is_done: nothing more comes.
        is_dropped: nobody is interested any more.
        readers: called, once each, by the next chunk or the end.
        waiters: called, once each, by the end.
    """

    def __init__(self, submission: Submission) -> None:
        self.submission = submission
        submission.request.is_streamed = False
        self.chunks: deque[StreamChunk] = deque()
        self.output: RequestOutput | None = None
        self.error: BaseException | None = None
        self.is_done = self.is_dropped = False
        self.readers: Waiters = {}
        self.waiters: Waiters = {}

    def want_chunks(self) -> None:
        """Somebody reads the text as it comes; until then it is made at the end, all at once."""
        self.submission.request.is_streamed = True

    def put(self, chunk: StreamChunk) -> None:
        """Take in what a step brought."""
        self.chunks.append(chunk)
        if chunk.output is not None:
            self.output = chunk.output
            self._end()
        elif self.readers:
            call_all(self.readers)

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self.error = error
        self._end()

    def drop(self) -> None:
        """End with nothing, whatever there is."""
        self.is_dropped = True
        self.chunks.clear()
        self._end()

    def take(self) -> StreamChunk | None:
        """The next chunk, if there is one."""
        try:
            return None if self.is_dropped else self.chunks.popleft()
        except IndexError:
            return None

    def has_news(self) -> bool:
        """Whether there is a chunk to read, or none will come."""
        return bool(self.chunks) or self.is_done

    def has_ended(self) -> bool:
        """Whether nothing more comes."""
        return self.is_done

    def outcome(self) -> RequestOutput:
        """The output of a request that is done; its error is raised."""
        if self.is_dropped:
            raise ClosedError("this request was closed, and its output with it")
        if self.error is not None:
            raise _own(self.error)
        assert self.output is not None, "it is done"
        return self.output

    def refuse_failed(self) -> None:
        """Raise the error that ended it, if one did."""
        if self.error is not None and not self.is_dropped:
            raise _own(self.error)

    def _end(self) -> None:
        self.is_done = True
        call_all(self.readers)
        call_all(self.waiters)


def call_all(waiters: Waiters) -> None:
    """Wake all who wait."""
    while waiters:
        try:
            _, wake = waiters.popitem()
        except KeyError:  # the last one does not wait any more
            return
        wake()


def wait_until(is_ready: Callable[[], bool], waiters: Waiters, timeout: float | None) -> bool:
    """Sleep until something is ready; False after ``timeout`` seconds."""
    longest = _SLICE if current_thread() is main_thread() else _HOUR
    deadline = None if timeout is None else monotonic() + timeout
    while not is_ready():
        lock = Lock()
        lock.acquire()
        waiters[id(lock)] = lock.release
        try:
            while not is_ready():
                left = longest if deadline is None else min(longest, deadline - monotonic())
                if lock.acquire(timeout=max(0.0, left)):
                    break
                if left <= 0:
                    return False
        finally:
            waiters.pop(id(lock), None)
    return True


def _own(error: BaseException) -> BaseException:
    """A copy to raise: many may raise it, and its traceback would hold the frames of them all."""
    try:
        own = copy.copy(error)
    except Exception:  # of a class that wants other arguments
        return error
    own.__cause__ = error.__cause__
    return own.with_traceback(error.__traceback__)

"""One engine for many callers: a thread of its own serves what any other thread submits."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from threading import Event, Lock, Thread, current_thread
from typing import Generic, TypeVar

from ovgen.engine.engine import Engine
from ovgen.engine.engine_loop import EngineLoop, Message, Task, closed_error
from ovgen.engine.handle import GenerationHandle
from ovgen.engine.mailbox import Mailbox, Submission, wait_until
from ovgen.errors import QueueFullError, RequestError

# Seconds between two looks of a thread that waits for a task at its signals.
_SLICE = 0.05

_T = TypeVar("_T")


class EngineService:
    """Shares an engine: requests are served first come, first served, by a thread of its own.

    The thread begins with the first request and ends with `close`, or with the service itself when
    nobody has it any more. Nothing here waits for a step but `close`.
    """

    def __init__(self, engine: Engine, max_waiting_requests: int | None = None) -> None:
        self._max_waiting_requests = max_waiting_requests
        self._loop = EngineLoop(engine)
        self._thread = Thread(target=self._loop.run, name="ovgen-engine", daemon=True)
        self._lock = Lock()  # of the two flags here; the thread never takes it
        self._is_closed = False
        self._has_started = False
        # Left to the thread, for this may run in the garbage collector, in any thread.
        weakref.finalize(self, self._loop.inbox.put, None).atexit = False

    @property
    def _engine(self) -> Engine | None:
        return self._loop.engine

    def open(self) -> Engine:
        """The engine, to prepare requests with.

        Raises:
            ClosedError: it was closed.
        """
        engine = self._engine
        self._refuse_closed()
        if engine is None:  # the thread has ended by itself, which it never should
            raise closed_error()
        return engine

    def submit(
        self, submissions: Sequence[Submission], *, has_stream: bool = False
    ) -> list[GenerationHandle]:
        """Serve prepared requests from now on; they come to the engine together.

        Args:
            submissions: the requests.
            has_stream: whether somebody reads chunks from the first token on; else from when a
                stream is asked for.

        Raises:
            ClosedError: the service was closed.
            QueueFullError: with them more requests would wait than may; none of them is served.
            RequestError: in a logits processor of a request that this engine serves.
        """
        self.refuse_engine_thread()
        self._refuse_too_many(len(submissions))
        mailboxes = [Mailbox(one) for one in submissions]
        if has_stream:
            for mailbox in mailboxes:
                mailbox.want_chunks()
        handles = [GenerationHandle(mailbox, self) for mailbox in mailboxes]
        self._send(mailboxes)
        return handles

    def call(self, task: Task) -> None:
        """Have something done to the engine between two steps.

        Before the first request it waits for that one; after `close` nothing is done.
        """
        self._loop.inbox.put(task)

    def result_of(self, task: Callable[[Engine], _T]) -> _T:
        """Have something done to the engine between two steps, and wait for what comes of it.

        Raises:
            ClosedError: the service was closed before it was done.
            RequestError: in a logits processor of a request that this engine serves.
        """
        self.refuse_engine_thread()
        answer = _Answer(task)
        self._send(answer)
        while not answer.is_there.wait(_SLICE):
            if self._loop.has_ended() and not answer.is_there.is_set():
                raise closed_error()
        return answer.result()

    def drop(self, mailbox: Mailbox) -> None:
        """Have the engine forget a request."""
        self._loop.inbox.put((mailbox,))

    def close(self) -> None:
        """Free the model, when the step under way has ended; requests end with ClosedError.

        May be called again, and from any thread.

        Raises:
            RequestError: in a logits processor of a request that this engine serves.
        """
        self.refuse_engine_thread()
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                if self._has_started:
                    self._loop.inbox.put(None)
                else:
                    self._loop.close()
        if self._has_started:
            # A join that is interrupted takes the thread for ended (bpo-45274): not before it is.
            wait_until(self._loop.has_ended, self._loop.waiters, None)
            self._thread.join()

    def _send(self, message: Message) -> None:
        with self._lock:
            self._refuse_closed()
            if not self._has_started:
                self._thread.start()
                self._has_started = True
            self._loop.inbox.put(message)

    def refuse_engine_thread(self) -> None:
        """A logits processor is called in a step: one that waits for another would wait forever."""
        if current_thread() is self._thread:  # its ident may be another's, once it has ended
            raise RequestError("a logits processor must not use the LLM that it serves")

    def _refuse_too_many(self, count: int) -> None:
        """About as many as there are: others may come at the same time."""
        engine, limit = self._engine, self._max_waiting_requests
        if engine is None or limit is None:
            return
        num_waiting = self._loop.inbox.qsize() + engine.num_waiting
        if num_waiting + count > limit:
            raise QueueFullError(
                f"{num_waiting} requests wait already and {limit} may (max_waiting_requests): try "
                "again later"
            )

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise closed_error()


class _Answer(Generic[_T]):
    """A task whose result somebody waits for; its error is theirs, not the engine's."""

    def __init__(self, task: Callable[[Engine], _T]) -> None:
        self.is_there = Event()
        self._task = task
        self._results: list[_T] = []
        self._error: BaseException | None = None

    def __call__(self, engine: Engine) -> None:
        try:
            self._results.append(self._task(engine))
        except BaseException as exc:
            self._error = exc
        finally:
            self.is_there.set()

    def result(self) -> _T:
        if self._error is not None:
            raise self._error
        return self._results[0]

"""What the thread of an engine does: steps while there is work, and rests otherwise."""

from __future__ import annotations

import atexit
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from threading import Thread, current_thread

from ovgen.engine.engine import Engine
from ovgen.engine.mailbox import Mailbox, Waiters, call_all
from ovgen.engine.sequence import Request
from ovgen.errors import ClosedError
from ovgen.outputs import StreamChunk

Task = Callable[[Engine], object]
# Mailboxes are new, or dropped if they say so; a task is run between two steps; None is the end.
Message = Sequence[Mailbox] | Task | None


class EngineLoop:
    """What the thread does. It does not know the service, which may go while the thread runs.

    Attributes:
        engine: None once it is closed.
        inbox: what the thread is told; its put may be called anywhere, the garbage collector
            included.
        waiters: called, once each, by the end.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine: Engine | None = engine
        self.inbox: SimpleQueue[Message] = SimpleQueue()
        self._mailboxes: dict[int, Mailbox] = {}  # by request_id
        self._tasks: deque[Task] = deque()
        self._is_closing = self._is_exiting = False
        self.waiters: Waiters = {}

    def run(self) -> None:
        """Serve until the end."""
        assert self.engine is not None, "not closed before it began"
        # A thread that is in native code when the interpreter ends may take the process down.
        at_exit = partial(self._end_at_exit, current_thread())
        atexit.register(at_exit)
        try:
            while not self._is_closing:
                if self.engine.has_unfinished:
                    self._step(self.engine)
                else:
                    self._take(self.inbox.get())
                    self._take_in()
                while self._tasks and not self._is_closing:
                    self._run_task(self._tasks.popleft(), self.engine)
        finally:
            self.close()
            atexit.unregister(at_exit)
            call_all(self.waiters)

    def has_ended(self) -> bool:
        """Whether the model is free."""
        return self.engine is None

    def close(self) -> None:
        """End everything that is unfinished, and free the model."""
        self._is_closing = True
        self._take_in()
        self._end_all(closed_error())
        try:
            if self.engine is not None:
                self.engine.close()
        finally:
            self.engine = None

    def _step(self, engine: Engine) -> None:
        try:
            emitted = engine.step(self._take_in)
        except BaseException as exc:
            self._recover(engine, exc)
            return
        for request, news in emitted:
            if isinstance(news, StreamChunk) and news.output is None:
                self._mailboxes[request.request_id].put(news)
                continue
            # Out of here before anybody knows of it: what is done has left nothing.
            mailbox = self._mailboxes.pop(request.request_id)
            if isinstance(news, StreamChunk):
                mailbox.put(news)
            else:
                mailbox.fail(news)

    def _recover(self, engine: Engine, error: BaseException) -> None:
        """Tell those whose step broke off; the others are computed anew, where they have begun."""
        concerned: list[Request] = []
        with suppress(Exception):  # a device that cannot even be reset fails the next one, too
            concerned = engine.recover()
        # No batch was it, so it may have been anyone.
        if not self._end(concerned, error):
            self._end_all(error)

    def _take_in(self) -> None:
        while not self.inbox.empty():
            self._take(self.inbox.get())

    def _take(self, message: Message) -> None:
        if message is None:
            self._is_closing = True
            self._end_all(closed_error())  # so that no further step is begun
        elif callable(message):
            self._tasks.append(message)
        else:
            for mailbox in message:
                self._add_or_drop(mailbox)

    def _add_or_drop(self, mailbox: Mailbox) -> None:
        submission = mailbox.submission
        request = submission.request
        if mailbox.is_dropped:
            if self._mailboxes.pop(request.request_id, None) is not None:
                self._forget(request)
        elif self._is_closing or self.engine is None:
            mailbox.fail(closed_error())
        else:
            self._mailboxes[request.request_id] = mailbox
            try:
                self.engine.add_request(request, submission.config, submission.arrival)
            except Exception as exc:
                self._end([request], exc)

    def _run_task(self, task: Task, engine: Engine) -> None:
        try:
            task(engine)
        except BaseException as exc:
            self._recover(engine, exc)

    def _end_all(self, error: BaseException) -> None:
        self._end([one.submission.request for one in self._mailboxes.values()], error)

    def _end(self, requests: Sequence[Request], error: BaseException) -> bool:
        """End requests with an error; whether there was one that waits for an answer."""
        found = False
        for request in requests:
            mailbox = self._mailboxes.pop(request.request_id, None)
            if mailbox is not None:
                found = True
                self._forget(request)
                if not self._is_exiting:
                    mailbox.fail(error)
        return found

    def _end_at_exit(self, thread: Thread) -> None:
        """End the thread; the threads that still wait then, all daemons, are let rest in peace."""
        self._is_exiting = True
        self.inbox.put(None)
        thread.join()

    def _forget(self, request: Request) -> None:
        if self.engine is not None:
            self.engine.abort(request)


def closed_error() -> ClosedError:
    """Of an engine that serves nobody any more."""
    return ClosedError("this LLM was closed; make a new one")

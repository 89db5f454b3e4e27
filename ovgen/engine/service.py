"""One engine for many threads: whoever waits for a request drives the engine meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from threading import Lock, get_ident
from types import TracebackType

from ovgen.engine.engine import Engine
from ovgen.engine.output_processor import Arrival
from ovgen.engine.sequence import Request
from ovgen.errors import ClosedError, OvgenError, RequestError
from ovgen.generation_config import GenerationConfig
from ovgen.outputs import RequestOutput, StreamChunk


class TokenStream:
    """The chunks of one request, as they come; the last one holds the whole output.

    An iterator, and a context manager that closes it. Dropping it unread, breaking out of a loop
    over it or `close` stop the work and forget it.
    """

    def __init__(self, request: Request, chunks: Generator[StreamChunk, None, None]) -> None:
        self._request = request
        self._chunks = chunks

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> StreamChunk:
        return next(self._chunks)

    def close(self) -> None:
        """Stop the work; nothing more comes."""
        self._chunks.close()

    def abort(self) -> None:
        """Have the request end as soon as can be, with what it has and the finish_reason ``abort``.

        May be called from any thread, also while another one waits for the next chunk. Returns at
        once; the stream's last chunk comes within 0.1 s, whatever the device is computing.
        """
        self._request.is_aborted = True

    def result(self) -> RequestOutput:
        """The whole output, when it is there; chunks that were not read yet are passed over.

        Raises:
            ClosedError: the stream was read to its end, or closed.
        """
        output = None
        for chunk in self._chunks:
            output = chunk.output
        if output is None:
            raise ClosedError("this stream is over; its output was in its last chunk")
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


class EngineService:
    """Shares an engine: requests are served first come, first served."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = Lock()
        self._is_closed = False
        self._driver: int | None = None  # the thread that is in a step
        self._mailboxes: dict[int, deque[StreamChunk | OvgenError]] = {}  # by request_id
        self._abandoned: deque[Request] = deque()

    def open(self) -> Engine:
        """The engine, to prepare requests with.

        Raises:
            ClosedError: it was closed.
        """
        self._refuse_closed()
        return self._engine

    def submit(self, request: Request, config: GenerationConfig, arrival: Arrival) -> TokenStream:
        """Serve a prepared request, from when its stream is first read."""
        return TokenStream(request, self._chunks(request, config, arrival))

    def close(self) -> None:
        """Free the model; everything but another close() then raises ClosedError."""
        self._refuse_driver()
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._engine.close()
                del self._engine

    def _chunks(
        self, request: Request, config: GenerationConfig, arrival: Arrival
    ) -> Generator[StreamChunk, None, None]:
        mailbox: deque[StreamChunk | OvgenError] = deque()
        self._refuse_driver()
        try:
            with self._lock:
                self._refuse_closed()
                self._mailboxes[request.request_id] = mailbox
                self._engine.add_request(request, config, arrival)
            while True:
                while not mailbox:
                    self._step(request, mailbox)
                chunk = mailbox.popleft()
                if isinstance(chunk, OvgenError):
                    raise chunk
                yield chunk
                if chunk.output is not None:
                    return
        finally:
            # Taken up by the next step: this may run in the garbage collector, in any thread.
            self._abandoned.append(request)

    def _step(self, request: Request, mailbox: deque[StreamChunk | OvgenError]) -> None:
        """Drive the engine by a step, unless another thread's step has filled the mailbox."""
        self._refuse_driver()
        with self._lock:
            self._refuse_closed()
            if mailbox:
                return
            if not self._engine.is_known(request):
                raise OvgenError("the output was lost as another thread was interrupted; ask again")
            self._driver = get_ident()
            try:
                while self._abandoned:
                    self._drop(self._abandoned[0])
                    self._abandoned.popleft()
                for served, chunk in self._engine.step():
                    self._mailboxes[served.request_id].append(chunk)
            except BaseException:
                self._engine.recover()
                raise
            finally:
                self._driver = None

    def _refuse_driver(self) -> None:
        """A logits processor is called in a step: one that waits for another would wait forever."""
        if self._driver == get_ident():
            raise RequestError("a logits processor must not use the LLM that it serves")

    def _drop(self, request: Request) -> None:
        self._engine.abort(request)
        self._mailboxes.pop(request.request_id, None)

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise ClosedError("this LLM was closed; make a new one")

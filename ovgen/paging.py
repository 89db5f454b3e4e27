"""From the runner that is ready first to the one that serves many: in the background."""

from __future__ import annotations

import warnings
import weakref
from threading import Lock, Thread

from ovgen.engine.engine import Engine
from ovgen.engine.service import EngineService
from ovgen.errors import OvgenError
from ovgen.model.backends import Backends, PagingWarning

# A process that makes one request only shall not pay for compiling a second time.
_NUM_REQUESTS = 2


class PagingUpgrade:
    """Gives an engine its paged runner, from the second request on.

    Args:
        backends: of the model.
        service: whose engine it is; may go at any time.
    """

    def __init__(self, backends: Backends, service: EngineService) -> None:
        self._backends = backends
        self._service = weakref.ref(service)
        self._num_requests = 0
        self._thread: Thread | None = None
        self._lock = Lock()

    def notice(self, num_requests: int) -> None:
        """So many more requests have come."""
        with self._lock:
            self._num_requests += num_requests
            if self._thread or self._num_requests < _NUM_REQUESTS or not self._backends.has_more:
                return
            # Not a daemon: a thread in native code when the interpreter ends may crash it.
            self._thread = Thread(target=self._run, name="ovgen-paging")
            self._thread.start()

    def close(self) -> None:
        """Wait for what is under way."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            backend = self._backends.paged_if_right()
        except OvgenError as exc:
            warnings.warn(f"paged attention is not used: {exc}", PagingWarning, stacklevel=1)
            return
        service = self._service()
        if backend is None or service is None:
            return

        def replace(engine: Engine) -> None:
            engine.replace_runner(backend.runner, backend.token_budget)

        service.call(replace)

"""The bench's side of a worker: a child process that is asked, and that is gone afterwards."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any

from ovgen.bench.engines import WORKER_MAIN, Engine, environment
from ovgen.bench.worker import Settings
from ovgen.errors import OvgenError

_CLEAN_UP_SECONDS = 1.5  # for what a worker that is still loading has begun to write
_LAST_LINES = 20
_LONGEST_LINE = 500


class WorkerProcess:
    """A worker, told to load its model. A context manager that ends it.

    Args:
        engine: what it runs.
        settings: what it loads.
        timeout: seconds that loading, and each answer, may take.
        env: variables for it alone.

    Attributes:
        facts: what its engine tells of itself, as of its last answer.
        peak_rss: bytes at most so far, likewise; None where nobody tells.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        timeout: float,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.facts: Mapping[str, Any] = {}
        self.peak_rss: int | None = None
        self._name = engine.name
        self._timeout = timeout
        self._is_loaded = False
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._last_lines: deque[bytes] = deque(maxlen=_LAST_LINES)
        self._process = subprocess.Popen(
            [engine.python, str(WORKER_MAIN), engine.kind.worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(engine.python, env),
        )
        self._readers = [
            threading.Thread(target=read, daemon=True)
            for read in (self._read_answers, self._read_errors)
        ]
        for reader in self._readers:
            reader.start()
        self.send(asdict(settings))

    def ask(self, job: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send a job and wait for its answer."""
        self.send(job)
        return self.receive()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a line; a worker that has ended says so in `receive`."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self) -> Mapping[str, Any]:
        """The next answer; the first one comes when the model is loaded.

        Raises:
            OvgenError: the worker ended, or takes too long.
        """
        try:
            line = self._answers.get(timeout=self._timeout)
        except queue.Empty:
            raise OvgenError(
                f"{self._name} gave no answer within {self._timeout:g} s; "
                "give it more with --timeout, or measure less with --only"
            ) from None
        if line is None:
            raise OvgenError(self._why_it_ended())
        try:
            answer = json.loads(line)
            self.facts, self.peak_rss = answer["facts"], answer["peak_rss"]
        except (ValueError, KeyError, TypeError) as exc:
            raise OvgenError(f"{self._name}'s worker answered {line!r:.80}") from exc
        self._is_loaded = True
        return dict(answer)

    def close(self) -> None:
        """End the process, and wait for its end."""
        if not self._is_loaded:  # it may be writing a cache
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_CLEAN_UP_SECONDS)
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            # A child of its own could hold the streams open.
            reader.join(_CLEAN_UP_SECONDS)
        if not any(reader.is_alive() for reader in self._readers):
            for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
                assert stream is not None
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _read_answers(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if line.strip():
                self._last_lines.append(line)

    def _why_it_ended(self) -> str:
        try:
            code = self._process.wait(_CLEAN_UP_SECONDS)
        except subprocess.TimeoutExpired:
            return f"{self._name}'s worker closed its output"
        self._readers[1].join(_CLEAN_UP_SECONDS)
        how = f"ended with exit code {code}"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        last = self._last_lines[-1].decode(errors="replace").strip() if self._last_lines else ""
        told = f": {last[:_LONGEST_LINE]}" if last else " and said nothing"
        hint = "; it may have run out of memory" if code == -getattr(signal, "SIGKILL", 0) else ""
        return f"{self._name}'s worker {how}{told}{hint}"

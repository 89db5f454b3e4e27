"""What all workers have in common: a line of JSON on stdin asks, a line on stdout answers.

Imports the standard library alone: a peer's interpreter has none of ovgen's dependencies.

    settings                                  -> peak_rss, facts
    {"job": "one", "prompt", "new_tokens"}    -> ttft, tpot, token_ids, peak_rss, facts
    {"job": "many", "prompts", "new_tokens"}  -> tokens, seconds, peak_rss, facts

The process ends as soon as its stdin does, whatever it is computing: no worker outlives the bench.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO


@dataclass(frozen=True)
class Settings:
    """What a worker loads.

    Attributes:
        model: the IR's folder.
        gguf: the file that it was exported from, None where there is none.
        device: an OpenVINO device name.
        properties: OpenVINO compile properties.
        num_context: most tokens of a request, its output included.
    """

    model: str
    gguf: str | None
    device: str
    properties: dict[str, str]
    num_context: int


@dataclass(frozen=True)
class Answer:
    """One request: seconds to the first token, mean seconds for each further one, the tokens."""

    ttft: float
    tpot: float
    token_ids: list[int]


class Engine(Protocol):
    """What a worker's module makes: ``load(settings) -> Engine``."""

    def facts(self) -> Mapping[str, Any]:
        """What it tells of itself, when nothing of it goes on in the background any more."""
        ...

    def one(self, prompt: list[int], new_tokens: int) -> Answer:
        """Serve a request of token ids, greedily, past any end-of-sequence token."""
        ...

    def many(self, prompts: list[list[int]], new_tokens: list[int]) -> int:
        """Serve requests that come all at once; gives the number of tokens generated."""
        ...


class Clock:
    """Takes the times of one request's tokens."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._times: list[float] = []

    def tick(self) -> None:
        """A token is there."""
        self._times.append(time.perf_counter())

    def answer(self, token_ids: list[int]) -> Answer:
        """What was measured."""
        first, last = self._times[0], self._times[-1]
        further = max(len(token_ids) - 1, 1)
        return Answer(first - self._started, (last - first) / further, token_ids)


def run(name: str) -> None:
    """Serve the engine of a module of this package until stdin ends."""
    answers = _take_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bench's: it ends its workers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that clean-ups run
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(lines,), daemon=True).start()
    try:
        settings = Settings(**json.loads(lines.get()))
        engine: Engine = importlib.import_module(f"ovgen.bench.{name}").load(settings)
        answer: dict[str, Any] = {}
        while True:
            answer["facts"] = dict(engine.facts())
            answer["peak_rss"] = peak_rss()
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
            answer = _serve(engine, json.loads(lines.get()))
    except Exception as exc:
        traceback.print_exc()
        # The bench shows the last line.
        sys.exit(f"{type(exc).__name__}: {' '.join(str(exc).split())}")


def _serve(engine: Engine, job: Mapping[str, Any]) -> dict[str, Any]:
    if job["job"] == "one":
        return asdict(engine.one(job["prompt"], job["new_tokens"]))
    started = time.perf_counter()
    tokens = engine.many(job["prompts"], job["new_tokens"])
    return {"tokens": tokens, "seconds": time.perf_counter() - started}


def _take_stdout() -> TextIO:
    """Stdout for the answers alone: what libraries write to it goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _read_lines(lines: queue.SimpleQueue[bytes]) -> None:
    # Not sys.stdin: its lock, held by a daemon thread, would spoil the interpreter's end.
    rest = b""
    while chunk := os.read(0, 1 << 16):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            lines.put(line)
    os._exit(0)


def peak_rss() -> int | None:
    """Most memory that this process had at any time, in bytes; None where nobody tells."""
    try:
        status = Path("/proc/self/status").read_text()
        return next(
            int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")
        )
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def num_cores() -> int:
    """Cores that this process may use; two threads of one core count once, where Linux tells."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cpus = os.sched_getaffinity(0)
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    try:
        return len({Path(siblings.format(cpu)).read_text() for cpu in cpus})
    except OSError:
        return len(cpus)

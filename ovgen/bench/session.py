"""Measures engines in rounds: each case is asked of every engine in turn, never of two at once.

A machine that slows down thereby slows all of them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovgen.bench.engines import OWN_NAME, Engine, rotated
from ovgen.bench.figures import MEMORY, START, Figure, Samples
from ovgen.bench.worker import Settings
from ovgen.bench.worker_process import WorkerProcess
from ovgen.bench.workloads import (
    MAX_CONTEXT,
    START_PROMPT,
    Prompts,
    Workload,
    make_workloads,
    one_request,
)
from ovgen.errors import StorageError

_WITH_MEMORY = ("latency", "throughput")  # the workloads after which it is looked at


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured.

    Attributes:
        folder: the model's IR.
        gguf: the file that it was exported from, None where there is none.
        device: an OpenVINO device name.
        workloads: names out of WORKLOADS.
        rounds: how often.
        timeout: seconds that a worker's answer may take.
        home: where ovgen keeps its caches.
    """

    folder: Path
    gguf: Path | None
    device: str
    workloads: tuple[str, ...]
    rounds: int
    timeout: float
    home: Path


class Session:
    """One run of the benchmark.

    Args:
        engines: ovgen first, then its peers.
        options: what is measured.
        progress: called with a line about what is being done.

    Attributes:
        facts: by engine, what it told of itself at the end.
    """

    def __init__(
        self, engines: Sequence[Engine], options: Options, progress: Callable[[str], None]
    ) -> None:
        assert engines[0].name == OWN_NAME
        self._engines = {engine.name: engine for engine in engines}
        self._options = options
        self._progress = progress
        self.facts: dict[str, Mapping[str, Any]] = {}
        self._samples = Samples()
        self._num_context = MAX_CONTEXT
        self._prompts = Prompts(1)

    def run(self) -> Samples:
        """Measure it all.

        Raises:
            OvgenError: a worker failed; ConfigError, StorageError.
        """
        with ExitStack() as stack:
            own, workloads = self._load_own(stack)
            planned = [(each, self._rounds_of(each)) for each in workloads]
            if any(rounds for _, rounds in planned) or "memory" in self._options.workloads:
                workers = {OWN_NAME: own, **self._load_peers(stack)}
                self._note_memory(workers, "loaded")
                for workload, rounds in planned:
                    if rounds:
                        self._measure(workers, workload, rounds)
                self.facts = {name: worker.facts for name, worker in workers.items()}
        if "start" in self._options.workloads:
            self._measure_starts()
        return self._samples

    def _rounds_of(self, workload: Workload) -> int:
        """How often a workload is run: once where its memory alone is asked for."""
        if workload.name in self._options.workloads:
            return self._options.rounds
        return int("memory" in self._options.workloads and workload.name in _WITH_MEMORY)

    def _load_own(self, stack: ExitStack) -> tuple[WorkerProcess, tuple[Workload, ...]]:
        """ovgen's worker, which knows what the model is capable of."""
        worker = self._load(stack, OWN_NAME)
        worker.receive()
        context_length = worker.facts["context_length"]
        workloads = make_workloads(context_length)
        self._num_context = min(context_length, MAX_CONTEXT)
        self._prompts = Prompts(worker.facts["vocab_size"])
        return worker, workloads

    def _load_peers(self, stack: ExitStack) -> dict[str, WorkerProcess]:
        workers = {}
        for name in list(self._engines)[1:]:
            workers[name] = self._load(stack, name)
            workers[name].receive()
        return workers

    def _load(self, stack: ExitStack, name: str) -> WorkerProcess:
        self._progress(f"loading {name}")
        return stack.enter_context(
            WorkerProcess(self._engines[name], self._settings(name), self._options.timeout)
        )

    def _settings(self, name: str) -> Settings:
        return Settings(
            str(self._options.folder),
            None if self._options.gguf is None else str(self._options.gguf),
            self._options.device,
            dict(self._engines[name].properties),
            self._num_context,
        )

    def _measure(self, workers: dict[str, WorkerProcess], workload: Workload, rounds: int) -> None:
        is_shown = workload.name in self._options.workloads
        cases = workload.cases if is_shown else workload.cases[-1:]  # which takes most memory
        for case in workload.warm_up if is_shown else ():
            for name, worker in workers.items():
                self._progress(f"warming up {name}")
                # A key of no round.
                case.run(worker.ask, self._prompts, -1, has_batches=self._has_batches(name))
        for round_ in range(rounds):
            for case in cases:
                for name in rotated(list(workers), round_):
                    self._progress(f"round {round_ + 1} of {rounds}: {case.title}: {name}")
                    found = case.run(
                        workers[name].ask,
                        self._prompts,
                        round_,
                        has_batches=self._has_batches(name),
                    )
                    for figure, value in found.items() if is_shown else ():
                        self._samples.add(figure, name, value)
        if workload.name in _WITH_MEMORY:
            self._note_memory(workers, f"after {workload.name}")

    def _has_batches(self, name: str) -> bool:
        return self._engines[name].kind.has_batches

    def _note_memory(self, workers: dict[str, WorkerProcess], label: str) -> None:
        if "memory" not in self._options.workloads:
            return
        for name, worker in workers.items():
            if worker.peak_rss is not None:
                self._samples.add(Figure(MEMORY, label, "bytes"), name, worker.peak_rss)

    def _measure_starts(self) -> None:
        """From a process's start to its first token: with empty caches, and then with full ones."""
        first, later = (Figure(START, label, "s")
                        for label in ("empty caches", "full caches"))  # fmt: skip
        with _empty_home(self._options.home) as home:
            for round_ in range(self._options.rounds + 1):
                for name in rotated(list(self._engines), round_):
                    self._progress(f"start {round_ + 1} of {self._options.rounds + 1}: {name}")
                    seconds = self._start(name, home, round_)
                    self._samples.add(later if round_ else first, name, seconds)

    def _start(self, name: str, home: Path, round_: int) -> float:
        job = one_request(self._prompts.make(START_PROMPT, "start", round_), 1)
        env = {"OVGEN_HOME": str(home)}
        started = time.perf_counter()
        with WorkerProcess(
            self._engines[name], self._settings(name), self._options.timeout, env
        ) as worker:
            worker.send(job)  # it is there when the model is loaded
            worker.receive()
            worker.receive()
            return time.perf_counter() - started


@contextmanager
def _empty_home(home: Path) -> Iterator[Path]:
    """A folder for ovgen's compiled models, on the disk that they usually are on."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".bench-", dir=home)
    except OSError as exc:
        raise StorageError(f"cannot write to {home}: {exc.strerror or exc}") from exc
    with folder as name:
        yield Path(name)

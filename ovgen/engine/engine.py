"""The engine: schedule, run, sample, update, emit."""

from __future__ import annotations

import time
from collections.abc import Iterable
from collections.abc import Sequence as Tokens
from itertools import count
from operator import index
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ovgen.decoding.sampler import greedy
from ovgen.engine.batch import ScheduledBatch
from ovgen.engine.output_processor import Arrival, OutputProcessor
from ovgen.engine.scheduler import Scheduler
from ovgen.engine.sequence import Request, Sequence
from ovgen.errors import ConfigError, RequestError
from ovgen.generation_config import GenerationConfig
from ovgen.outputs import StreamChunk


class ModelRunner(Protocol):
    """The only seam to OpenVINO: computes batches, and holds the KV cache."""

    @property
    def max_running_requests(self) -> int:
        """Requests that may share a batch."""

    def start(self, batch: ScheduledBatch) -> None:
        """Begin to compute a batch; one at a time."""

    def wait(self) -> npt.NDArray[np.float32]:
        """The logits [num_sampled, vocab] of the batch begun, valid until the next `start`."""

    def reset(self) -> None:
        """Forget everything computed, a batch under way with it."""

    def close(self) -> None:
        """Free the model."""


class Engine:
    """Serves requests over one model; not thread-safe, its owner takes turns.

    Args:
        runner: computes logits.
        output_processor: makes text.
        context_length: most tokens of prompt and output together.
        vocab_size: token ids are below it.
        token_budget: most tokens in one step.
    """

    def __init__(
        self,
        runner: ModelRunner,
        output_processor: OutputProcessor,
        *,
        context_length: int,
        vocab_size: int,
        token_budget: int,
    ) -> None:
        self._runner = runner
        self._output_processor = output_processor
        self._context_length = context_length
        self._vocab_size = vocab_size
        self._scheduler = Scheduler(
            token_budget=token_budget, max_running_requests=runner.max_running_requests
        )
        self._batch: ScheduledBatch | None = None  # under way on the device
        self._updated: list[tuple[Request, Sequence]] = []  # not put out yet
        self._updated_at = 0.0
        self._ids = count()

    def prepare(
        self, prompt_token_ids: Tokens[int], config: GenerationConfig, now: float
    ) -> Request:
        """A checked request, not queued yet; ``now`` is time.perf_counter().

        Raises:
            RequestError: no token ids, an empty prompt, one that leaves no room in the context, or
                a token id that the model does not have.
            ConfigError: more new tokens than the context has room for.
        """
        prompt = _token_ids(prompt_token_ids)
        self._check(prompt, config)
        room = self._context_length - len(prompt)
        return Request(
            request_id=next(self._ids),
            prompt_token_ids=prompt,
            max_output_tokens=config.max_new_tokens or room,
            eos_ids=frozenset(() if config.ignore_eos else config.eos_ids),
            deadline=None if config.max_time is None else now + config.max_time,
            sequences=[Sequence(next(self._ids), prompt)],
        )

    def add_request(self, request: Request, config: GenerationConfig, arrival: Arrival) -> None:
        """Queue a prepared request."""
        self._output_processor.add(request, config, arrival)
        self._scheduler.add(request)

    def step(self) -> list[tuple[Request, StreamChunk]]:
        """Finish the batch under way, begin the next, and give what the finished one brought.

        The text of this step is made while the device computes the next one.
        """
        if not self._updated:  # else the step before broke off
            batch = self._batch or self._start_next()
            if batch is None:
                return []
            token_ids = greedy(self._runner.wait())
            self._updated_at = time.perf_counter()
            self._updated = self._scheduler.update(batch, token_ids, self._updated_at)
            self._start_next()
        return self._emit()

    def abort(self, request: Request) -> None:
        """End a request, if it has not ended, and forget it; it emits nothing more."""
        self._scheduler.abort(request)
        self._output_processor.drop(request)

    def is_known(self, request: Request) -> bool:
        """Whether a request was added, and neither aborted nor put out whole."""
        return self._output_processor.is_known(request)

    def recover(self) -> None:
        """After an error anywhere in a step: whatever is still wanted is computed anew.

        Tokens that were sampled stay, and the next step puts out those that were not.
        """
        self._batch = None
        self._scheduler.preempt_all()
        self._updated = self._output_processor.behind()
        self._runner.reset()

    def close(self) -> None:
        """Free the model."""
        self._batch = None
        self._runner.close()

    def _start_next(self) -> ScheduledBatch | None:
        self._batch = self._scheduler.schedule()
        if self._batch is not None:
            self._runner.start(self._batch)
        return self._batch

    def _emit(self) -> list[tuple[Request, StreamChunk]]:
        emitted = []
        for request, sequence in self._updated:
            if not self.is_known(request):  # aborted since
                continue
            chunk, stop_string = self._output_processor.advance(request, sequence, self._updated_at)
            if stop_string is not None:
                self._scheduler.stop(request, sequence, stop_string)
            if request.is_finished:
                output = self._output_processor.finish(request)
                chunk = StreamChunk(chunk.text, chunk.token_ids, output)
            emitted.append((request, chunk))
        self._updated = []
        return emitted

    def _check(self, prompt: tuple[int, ...], config: GenerationConfig) -> None:
        if not prompt:
            raise RequestError("the prompt is empty; give at least one token")
        if len(prompt) >= self._context_length:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens; the model's context of "
                f"{self._context_length} must hold it and at least one new token: shorten it"
            )
        if max(prompt) >= self._vocab_size or min(prompt) < 0:
            bad = next(token for token in prompt if not 0 <= token < self._vocab_size)
            raise RequestError(
                f"the prompt holds token id {bad}; the model knows 0 to {self._vocab_size - 1}"
            )
        wanted = config.max_new_tokens
        if wanted is not None and wanted + len(prompt) > self._context_length:
            raise ConfigError(
                f"max_new_tokens is {wanted}, but after a prompt of {len(prompt)} tokens the "
                f"model's context of {self._context_length} has room for "
                f"{self._context_length - len(prompt)}"
            )


def _token_ids(prompt: object) -> tuple[int, ...]:
    """A prompt as plain ints; numpy's are welcome, while bools and bytes are mistakes."""
    if not isinstance(prompt, Iterable) or isinstance(prompt, (str, bytes, bytearray)):
        raise RequestError(f"a prompt is a string or a list of token ids, not {prompt!r:.80}")
    tokens = tuple(prompt)
    try:
        if not any(isinstance(token, bool) for token in tokens):
            return tuple(map(index, tokens))
    except TypeError:
        pass
    raise RequestError(f"token ids must be whole numbers, not as in {tokens!r:.80}")

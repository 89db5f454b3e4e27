"""The engine: schedule, run, select, update, emit."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Sequences
from itertools import count

from ovgen.decoding.candidates import Workspace
from ovgen.decoding.row_threads import RowThreads
from ovgen.engine.batch import ScheduledBatch
from ovgen.engine.block_manager import BlockManager
from ovgen.engine.model_runner import ModelRunner
from ovgen.engine.output_processor import Arrival, OutputProcessor
from ovgen.engine.prefix_transfer import PrefixPart, PrefixTransfer
from ovgen.engine.request_builder import Prompt, RequestBuilder
from ovgen.engine.scheduler import Scheduler
from ovgen.engine.selection import Selection, select
from ovgen.engine.sequence import FinishReason, Request
from ovgen.errors import OvgenError, RequestError, UnsupportedModelError
from ovgen.generation_config import GenerationConfig
from ovgen.outputs import StreamChunk

# Rows of logits in one step, where those of a prompt are wanted: 64 MB of float32.
_LOGITS_SIZE = 1 << 24

# Seconds after which a step looks up from the device: for aborts, deadlines and other threads.
_SLICE = 0.05

Emitted = tuple[Request, StreamChunk | OvgenError]


class Engine:
    """Serves requests over one model; not thread-safe, its owner takes turns.

    Args:
        runner: computes logits.
        output_processor: makes text.
        context_length: most tokens of prompt and output together.
        vocab_size: token ids are below it.
        token_budget: most tokens in one step.
        logits_budget: most rows of logits in one step, where those of a prompt are wanted.
        has_prefix_cache: whether a prompt's beginning is taken from where it was computed before.
    """

    def __init__(
        self,
        runner: ModelRunner,
        output_processor: OutputProcessor,
        *,
        context_length: int,
        vocab_size: int,
        token_budget: int,
        logits_budget: int | None = None,
        has_prefix_cache: bool = True,
    ) -> None:
        ids = count()
        self._runner = runner
        self._output_processor = output_processor
        self._workspace = Workspace()
        self._threads = RowThreads()
        self._builder = RequestBuilder(
            output_processor,
            self._workspace,
            ids,
            context_length=context_length,
            vocab_size=vocab_size,
        )
        self._logits_budget = logits_budget or max(1, _LOGITS_SIZE // vocab_size)
        self._has_prefix_cache = has_prefix_cache
        self._ids = ids
        self._scheduler = self._scheduler_for(runner, token_budget)
        self._batch: ScheduledBatch | None = None  # under way on the device
        self._updated: list[Request] = []  # not put out yet
        self._failed: list[tuple[Request, OvgenError]] = []
        self._updated_at = 0.0

    @property
    def has_unfinished(self) -> bool:
        """Whether a step would do anything."""
        return self._scheduler.has_unfinished or bool(self._updated or self._failed)

    @property
    def num_waiting(self) -> int:
        """Requests that have not begun to be computed."""
        return len(self._scheduler.waiting)

    @property
    def attention_backend(self) -> str:
        """``paged`` where the KV cache is in blocks, else ``stateful``."""
        return "paged" if self._runner.num_blocks else "stateful"

    def prepare(self, prompt: Prompt, config: GenerationConfig, arrival: Arrival) -> Request:
        """A checked request, not queued yet.

        Raises:
            RequestError: no token ids, an empty prompt, one that leaves no room in the context, or
                a token id that the model does not have.
            ConfigError: more new tokens than the context has room for, or an option with a token
                id that the model does not have.
            UnsupportedModelError: guidance by a graph that cannot do it.
        """
        request = self._builder.generation(prompt, config, arrival)
        lengths = {len(row.prompt_token_ids) for row in request.sequences[0].rows}
        # Refused here, for the runner's error would be that of whoever drives the engine then.
        if len(lengths) > 1 and not self._runner.has_padding:
            raise UnsupportedModelError(
                "guidance by a prompt of another length needs a graph with an attention_mask over "
                "a KV cache; leave guidance_scale out"
            )
        return request

    def prepare_scores(
        self, token_ids: Sequences[Sequences[int]], num_context: Sequences[int]
    ) -> Request:
        """A request that generates nothing: log-probabilities of texts, as `prompt_logprobs`.

        Args:
            token_ids: the texts, which share as much of their beginnings as they can.
            num_context: of each text, how many tokens at its beginning are only context.

        Raises:
            RequestError: as `prepare`.
        """
        return self._builder.scores(token_ids, num_context)

    def add_request(self, request: Request, config: GenerationConfig, arrival: Arrival) -> None:
        """Queue a prepared request."""
        self._output_processor.add(request, config, arrival)
        self._scheduler.add(request)

    def step(self, take_in: Callable[[], None] = lambda: None) -> list[Emitted]:
        """Finish the batch under way, begin the next, and give what the finished one brought.

        The text of this step is made while the device computes the next one. Where a request is
        aborted or its time is up, it ends at once, whatever the device is computing.

        Args:
            take_in: called when the device has been waited for; requests that it adds are in the
                next batch already.
        """
        if not self._updated and not self._failed:  # else the step before broke off
            batch = self._batch or self._start_next()
            if batch is None:
                return []
            time_left = self._scheduler.next_deadline() - time.perf_counter()
            logits = self._runner.wait(min(_SLICE, max(0.0, time_left)))
            now = self._updated_at = time.perf_counter()
            if logits is not None:
                selection = select(batch, logits, self._workspace, self._threads)
                self._updated = self._scheduler.update(batch, selection.choices)
                self._fail(batch, selection)
            take_in()
            self._end_late(now)
            if logits is not None:
                self._start_next()
            elif self._is_unwanted(batch):
                self._batch = None
                self._runner.reset()
        return self._emit()

    def abort(self, request: Request) -> None:
        """End a request, if it has not ended, and forget it; it emits nothing more."""
        self._scheduler.end(request, "abort")
        self._output_processor.drop(request)

    def is_known(self, request: Request) -> bool:
        """Whether a request was added, and neither aborted nor put out whole."""
        return self._output_processor.is_known(request)

    def recover(self) -> list[Request]:
        """After an error anywhere in a step: whatever is still wanted is computed anew.

        Tokens that were chosen stay, and the next step puts out those that were not. Gives the
        requests of the batch under way.
        """
        batch, self._batch = self._batch, None
        self._scheduler.preempt_all()
        self._updated = self._output_processor.behind()
        self._runner.reset()
        return [] if batch is None else [request for request, _ in batch.by_request]

    def replace_runner(self, runner: ModelRunner, token_budget: int) -> None:
        """Go on with another runner of the same model, which computes anew what is unfinished."""
        self.recover()
        before, self._runner = self._runner, runner
        requests = self._scheduler.waiting
        self._scheduler = self._scheduler_for(runner, token_budget)
        for request in requests:
            self._scheduler.add(request)
        before.close()

    def export_prefix(
        self, token_ids: tuple[int, ...], start: int, max_bytes: int, salt: bytes = b""
    ) -> PrefixPart | None:
        """Full blocks of some tokens that are in the prefix cache; None where there is none.

        Args:
            token_ids: a request's, prompt and output together.
            start: number of the first block; none where one before it is missing.
            max_bytes: gives as many as these hold, but one at least if it is there.
            salt: the request's ``cache_salt``.
        """
        prefixes = self._prefixes()
        return prefixes.export(token_ids, start, max_bytes, salt) if prefixes else None

    def import_prefix(
        self, token_ids: tuple[int, ...], start: int, part: PrefixPart, salt: bytes = b""
    ) -> int:
        """Put into the prefix cache what `export_prefix` gave, of this or another engine.

        Returns:
            How many full blocks of these tokens are there now; none for those of another layout.
        """
        prefixes = self._prefixes()
        return prefixes.adopt(token_ids, start, part, salt) if prefixes else 0

    def close(self) -> None:
        """Free the model."""
        self._batch = None
        self._runner.close()

    def _scheduler_for(self, runner: ModelRunner, token_budget: int) -> Scheduler:
        blocks = None
        if runner.num_blocks:
            blocks = BlockManager(
                runner.num_blocks, runner.block_size, has_prefix_cache=self._has_prefix_cache
            )
        self._builder.blocks = blocks
        return Scheduler(
            token_budget=token_budget,
            logits_budget=self._logits_budget,
            max_running_requests=runner.max_running_requests,
            ids=self._ids,
            blocks=blocks,
        )

    def _prefixes(self) -> PrefixTransfer | None:
        blocks = self._builder.blocks
        if blocks is None or not self._has_prefix_cache or self._runner.block_store is None:
            return None
        return PrefixTransfer(blocks, self._runner.block_store, self._ids)

    def _start_next(self) -> ScheduledBatch | None:
        self._batch = self._scheduler.schedule()
        while self._scheduler.unfit:
            self._refuse(self._scheduler.unfit.pop())
            self._batch = self._batch or self._scheduler.schedule()
        if self._batch is not None:
            self._runner.start(self._batch)
        return self._batch

    def _refuse(self, request: Request) -> None:
        tokens = sum(sequence.num_tokens for sequence in request.unfinished)
        error = RequestError(
            f"the sequences of this request have {tokens} tokens, for which the KV cache of "
            f"{self._runner.num_blocks * self._runner.block_size} is too small; ask for fewer, or "
            "raise kv_cache_tokens"
        )
        self._failed.append((request, error))
        self._scheduler.end(request, "abort")

    def _end_late(self, now: float) -> None:
        """End the requests that are aborted or late."""
        for request in self._scheduler.late(now):
            reason: FinishReason = "abort" if request.is_aborted else "length"
            conclusion = request.decoder.conclude(request) if request.decoder else None
            self._scheduler.end(request, reason, conclusion)
            if request not in self._updated:
                self._updated.append(request)

    def _is_unwanted(self, batch: ScheduledBatch) -> bool:
        """Whether nobody waits for a batch under way, nor has anything else in the KV cache."""
        is_over = all(item.request.is_finished for item in batch.scheduled)
        return is_over and not self._scheduler.has_running

    def _fail(self, batch: ScheduledBatch, selection: Selection) -> None:
        for request, _ in batch.by_request:
            error = selection.failed.get(request.request_id)
            if error is not None:
                self._failed.append((request, error))
                self._scheduler.end(request, "abort")

    def _emit(self) -> list[Emitted]:
        emitted: list[Emitted] = []
        # Those that are not known have been aborted since.
        for request, error in self._failed:
            if self.is_known(request):
                self._output_processor.drop(request)
                emitted.append((request, error))
        for request in self._updated:
            if self.is_known(request):
                emitted += [(request, chunk) for chunk in self._chunks(request)]
        self._updated, self._failed = [], []
        return emitted

    def _chunks(self, request: Request) -> list[StreamChunk]:
        """A request's news, the last of them with its output where it has ended."""
        chunks, stopped = self._output_processor.advance(request, self._updated_at)
        for sequence, stop_string in stopped:
            self._scheduler.stop(request, sequence, stop_string)
        if request.is_finished:
            last = chunks.pop() if chunks else StreamChunk("", ())
            output = self._output_processor.finish(request)
            chunks.append(StreamChunk(last.text, last.token_ids, output, last.index, last.logprobs))
        return chunks

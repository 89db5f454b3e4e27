"""Runs a graph with PagedAttention: many requests at once, their KV cache in shared blocks."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from ovgen.engine.batch import ScheduledBatch, ScheduledSequence
from ovgen.engine.sequence import Request, Sequence
from ovgen.errors import UnsupportedModelError
from ovgen.model.block_store import BlockStore
from ovgen.model.device_errors import device_error
from ovgen.model.inference import Inference
from ovgen.model.input_tensors import InputTensors
from ovgen.model.kv_cache import is_cache_input
from ovgen.model.paged_model import PagedModel
from ovgen.model.sampled_tokens import SAMPLED_TOKENS
from ovgen.model.single_token import SINGLE_TOKEN

_INPUTS = {
    "input_ids",
    "position_ids",
    "past_lens",
    "subsequence_begins",
    "block_indices",
    "block_indices_begins",
    "max_context_len",
}
_COUNTERS = ("position_ids", "past_lens", "max_context_len")
_MIN_TABLE = 8  # blocks
_LOOK_UP = 0.05  # seconds, after which Ctrl-C gets through


class PagedRunner:
    """Implements the engine's ModelRunner over one infer request and one KV cache.

    Args:
        model: a decoder after the PagedAttention transformation; its logits are
            [num_sampled, 1, vocab] where it has the input ``sampled_tokens_indices``, else
            [tokens, 1, vocab].
        max_running_requests: requests that share a step at most.

    Raises:
        UnsupportedModelError: the graph has an input that is not known.
    """

    has_padding = True
    max_batch_tokens = None

    def __init__(self, model: PagedModel, *, max_running_requests: int) -> None:
        names = {port.get_any_name() for port in model.compiled.inputs}
        self._inputs = {name for name in names if not is_cache_input(name)}
        unknown = self._inputs - _INPUTS - {SAMPLED_TOKENS, SINGLE_TOKEN}
        if unknown or "block_indices" not in names:
            raise UnsupportedModelError(
                f"the graph's inputs are {sorted(self._inputs)}; with PagedAttention they are "
                f"{sorted(_INPUTS)}"
            )
        self.kv_cache = model.kv_cache
        self.num_blocks = model.kv_cache.num_blocks
        self.block_size = model.kv_cache.block_size
        self.max_running_requests = max_running_requests
        request = model.compiled.create_infer_request()
        self.kv_cache.bind(request)
        self._inference = Inference(
            request, model.head.create_infer_request() if model.head else None
        )
        self._tensors = InputTensors(request)
        self.block_store = BlockStore(model.compiled, self.kv_cache, self._inference)
        self._weights = model.weights
        self._batch: ScheduledBatch | None = None
        self._layout = _Layout()
        # Of a step in which each row takes one token: how many each has before it, as positions and
        # as lengths, and the greatest number after it.
        self._counters: tuple[npt.NDArray[Any], ...] = ()

    def start(self, batch: ScheduledBatch) -> None:
        """Begin to compute a batch: any rows of any requests, each with its next tokens."""
        self._inference.let_end()  # a step that broke off
        self.kv_cache.copy(batch.block_copies)
        try:
            self._set_inputs(batch)
        except RuntimeError as exc:
            raise device_error(exc) from exc
        self._batch = batch
        self._inference.start()

    def wait(self, timeout: float) -> npt.NDArray[np.float32] | None:
        """The logits [num_logits, vocab] of the batch begun, valid until the next `start`; None
        where they are not there after ``timeout`` seconds."""
        assert self._batch is not None, "a batch was begun"
        logits = self._inference.wait(timeout)
        if logits is None:
            return None
        batch, self._batch = self._batch, None
        logits = logits.reshape(-1, logits.shape[-1])
        if SAMPLED_TOKENS not in self._inputs:
            return logits[_sampled_tokens(batch)]
        return logits[: batch.num_logits]

    def warm_up(self) -> None:
        """Compute a few tokens, whose places in the KV cache nobody has yet: the device packs the
        weights then, and the file's are not needed any more.

        Raises:
            DeviceError: it failed, for want of memory perhaps.
        """
        sequence = Sequence(0, (0, 0))
        sequence.block_table = [0]
        request = Request(0, sequence.prompt_token_ids, 1, frozenset(), None, [sequence])
        with self._weights.dropping_pages():
            for num_tokens in (1, 2):  # which another graph may compute
                self.start(ScheduledBatch((ScheduledSequence(request, sequence, num_tokens, 1),)))
                while self.wait(_LOOK_UP) is None:
                    pass

    def reset(self) -> None:
        """A batch under way is waited for when the next begins; the blocks are the engine's."""

    def close(self) -> None:
        """Let go of the infer request and of the KV cache."""
        self._inference.close()
        self._tensors.close()
        self.kv_cache.close()
        self._batch = None

    def _set_inputs(self, batch: ScheduledBatch) -> None:
        tensors, rows = self._tensors, batch.scheduled
        is_same = batch is self._layout.batch
        begins, table, table_begins = self._layout.update(batch)
        if not batch.is_decoding:
            spans = [_span(item) for item in rows]
            past = [start for start, _ in spans]
            tokens = (row.sequence.token_ids(*span) for row, span in zip(rows, spans, strict=True))
            ids = list(chain.from_iterable(tokens))
            positions = list(chain.from_iterable(range(*span) for span in spans))
            tensors.set("position_ids", (len(ids),), positions)
            tensors.set("past_lens", (len(rows),), past, np.int32)
            tensors.set("max_context_len", (), max(stop for _, stop in spans), np.int32)
        else:
            ids = [item.sequence.next_token_id for item in rows]
            if is_same:  # each row has one token more than in the step before
                for array in self._counters:
                    array += 1
            else:
                numbers = [item.sequence.num_computed_tokens for item in rows]
                self._counters = (
                    np.array(numbers),
                    np.array(numbers, np.int32),
                    np.array(max(numbers) + 1, np.int32),
                )
            for name, array in zip(_COUNTERS, self._counters, strict=True):
                tensors.share(name, array)
        tensors.set("input_ids", (len(ids),), ids)
        tensors.set("subsequence_begins", (len(begins),), begins, np.int32)
        tensors.share("block_indices", table)
        tensors.share("block_indices_begins", table_begins)
        if SINGLE_TOKEN in self._inputs:
            tensors.set(SINGLE_TOKEN, (1,), [int(len(ids) == 1)], np.bool_)
        if SAMPLED_TOKENS in self._inputs:
            # One at least, for a graph without any is not run.
            sampled = self._layout.sampled_tokens or [0]
            tensors.set(SAMPLED_TOKENS, (len(sampled),), sampled)


class _Layout:
    """What a batch's inputs say of its rows, kept while the same batch is computed again.

    The tables of all rows lie behind each other, each with room to grow: a step in which nothing
    but tokens changes writes only the blocks that are new.
    """

    def __init__(self) -> None:
        self.batch: ScheduledBatch | None = None
        self._begins: list[int] = []
        self.sampled_tokens: list[int] = []
        self._num_known: list[int] = []  # blocks of each row that are written
        self._room = 0  # blocks of a row
        self._table = np.empty(0, np.int32)  # [rows * room]
        self._table_begins = np.empty(0, np.int32)  # [rows + 1]

    def update(
        self, batch: ScheduledBatch
    ) -> tuple[list[int], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """The rows' begins among the tokens, all block tables, and the rows' begins in those."""
        lengths = [len(item.sequence.block_table) for item in batch.scheduled]
        if batch is not self.batch or max(lengths) > self._room:
            self._lay_out(batch, max(lengths))
        elif lengths == self._num_known:
            return self._begins, self._table, self._table_begins
        rows = self._table.reshape(len(lengths), self._room)
        for place, item in enumerate(batch.scheduled):
            known, length = self._num_known[place], lengths[place]
            if known < length:
                rows[place, known:length] = item.sequence.block_table[known:]
        self._num_known = lengths
        return self._begins, self._table, self._table_begins

    def _lay_out(self, batch: ScheduledBatch, longest: int) -> None:
        self.batch = batch
        self._begins = [0]
        for item in batch.scheduled:
            self._begins.append(self._begins[-1] + item.num_scheduled_tokens)
        self.sampled_tokens = _sampled_tokens(batch)
        self._room = max(_MIN_TABLE, longest + longest // 8)
        self._num_known = [0] * len(batch.scheduled)
        self._table = np.zeros(len(batch.scheduled) * self._room, np.int32)
        self._table_begins = np.arange(len(batch.scheduled) + 1, dtype=np.int32) * self._room


def _span(item: ScheduledSequence) -> tuple[int, int]:
    """The places of a row's next tokens among its own."""
    start = item.sequence.num_computed_tokens
    return start, start + item.num_scheduled_tokens


def _sampled_tokens(batch: ScheduledBatch) -> list[int]:
    """Places, among the tokens of a batch, of those whose logits are wanted."""
    places: list[int] = []
    stop = 0
    for item in batch.scheduled:
        stop += item.num_scheduled_tokens
        places += range(stop - item.num_logits, stop)
    return places

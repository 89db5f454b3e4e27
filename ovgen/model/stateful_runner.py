"""Runs a stateful graph: its KV cache is a set of variables (ReadValue/Assign) in the request.

One request at a time, all its sequences in lockstep: rows are forked, reordered and dropped by
``beam_idx`` as the next tokens are computed. For devices and graphs without
PagedAttention, and for a single request from a cached compilation.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import openvino as ov

from ovgen.engine.batch import ScheduledBatch, ScheduledSequence
from ovgen.errors import UnsupportedModelError
from ovgen.model.device_errors import device_error
from ovgen.model.inference import Inference
from ovgen.model.input_tensors import InputTensors, Values
from ovgen.model.mapped_weights import MappedWeights
from ovgen.model.sampled_tokens import SAMPLED_TOKENS

_CACHE_POSITION = "cache_position"
_KNOWN_INPUTS = {
    "input_ids",
    "attention_mask",
    "position_ids",
    "beam_idx",
    _CACHE_POSITION,
    SAMPLED_TOKENS,
}


class StatefulRunner:
    """Implements the engine's ModelRunner over one infer request.

    Args:
        compiled: a stateful decoder with the input ``input_ids`` [batch, tokens] and, where the
            graph has them, ``attention_mask`` [batch, past + tokens], ``position_ids``
            [batch, tokens], ``beam_idx`` [batch] and ``sampled_tokens_indices`` [num]; its first
            output are the logits. A graph with ``cache_position`` is recurrent (Mamba): its states
            are no KV cache, and its mask is that of the step's own tokens.
        weights: what the model was read from, kept as long as it is in use; in the first step the
            device packs the weights, and their pages are dropped meanwhile.
        head: makes the logits, where the first output are hidden states.

    Raises:
        UnsupportedModelError: the graph has an input that is not one of these.
    """

    max_running_requests = 1
    num_blocks = block_size = 0  # the graph keeps the KV cache
    block_store = None

    def __init__(
        self,
        compiled: ov.CompiledModel,
        weights: Tokens[MappedWeights] = (),
        *,
        head: ov.CompiledModel | None = None,
    ) -> None:
        self._inputs = {port.get_any_name() for port in compiled.inputs}
        if self._inputs - _KNOWN_INPUTS or "input_ids" not in self._inputs:
            raise UnsupportedModelError(
                f"the graph's inputs are {sorted(self._inputs)}; a text decoder has input_ids "
                f"and may have {sorted(_KNOWN_INPUTS - {'input_ids', SAMPLED_TOKENS})}"
            )
        request = compiled.create_infer_request()
        self._inference = Inference(request, head.create_infer_request() if head else None)
        self._tensors = InputTensors(request)
        self._weights = weights
        self._dropping: ExitStack | None = ExitStack()  # until the first step is over
        is_recurrent = _CACHE_POSITION in self._inputs
        self._conv_kernel = _conv_kernel(request) if is_recurrent else None
        self._batch: ScheduledBatch | None = None
        self._request_id: int | None = None
        self._layout: tuple[ScheduledBatch, list[int]] | None = None  # the last batch, its paddings
        self._same_rows: list[int] = []  # beam_idx where nothing moves
        self._rows: dict[int, tuple[int, int]] = {}  # by seq_id: row of the cache, its padding
        self._num_columns = 0  # tokens in the cache, of every row

    @property
    def max_batch_tokens(self) -> int | None:
        """Most tokens a step can take, None for any number.

        A recurrent graph goes on from its states by one token only; optimum's scan over a whole
        prompt is possible too, but loses precision where states decay fast.
        """
        return None if self._conv_kernel is None else 1

    def start(self, batch: ScheduledBatch) -> None:
        """Begin to compute a batch: rows of one request, each with as many new tokens."""
        if self._batch is not None:  # of a step that broke off
            self.reset()
            self._inference.let_end()
            self._batch = None
        request_id = batch.scheduled[0].request.request_id
        try:
            if request_id != self._request_id or not self._rows:
                self._inference.request.reset_state()
                self._request_id, self._rows, self._num_columns = request_id, {}, 0
                self._layout = None
            self._set_inputs(batch)
        except RuntimeError as exc:
            raise device_error(exc) from exc
        self._batch = batch
        if self._dropping is not None:
            for weights in self._weights:
                self._dropping.enter_context(weights.dropping_pages())
        self._inference.start()

    def wait(self, timeout: float) -> npt.NDArray[np.float32] | None:
        """The logits [num_logits, vocab] of the batch begun, valid until the next `start`; None
        where they are not there after ``timeout`` seconds."""
        assert self._batch is not None, "a batch was begun"
        logits = self._inference.wait(timeout)  # [rows, tokens, vocab]
        if logits is None:
            return None
        self._stop_dropping()
        batch, self._batch = self._batch, None
        counts = {item.num_logits for item in batch.scheduled}
        if len(counts) == 1:
            return logits[:, logits.shape[1] - counts.pop() :].reshape(-1, logits.shape[2])
        rows = zip(logits, batch.scheduled, strict=True)
        return np.concatenate([row[len(row) - item.num_logits :] for row, item in rows])

    def reset(self) -> None:
        """Forget everything computed; a batch under way is waited for when the next begins."""
        self._request_id = self._layout = None
        self._rows = {}

    def close(self) -> None:
        """Let go of the infer request, and with it of the KV cache."""
        self.reset()
        self._inference.close()
        self._stop_dropping()
        self._batch, self._weights = None, ()
        self._tensors.close()

    def _stop_dropping(self) -> None:
        if self._dropping is not None:
            self._dropping.close()
            self._dropping = None

    def _set_inputs(self, batch: ScheduledBatch) -> None:
        """Write the inputs of a batch; from here on the rows are those of the batch."""
        if self._layout is None or self._layout[0] is not batch:
            self._set_rows(batch)
        elif "beam_idx" in self._inputs:  # all rows are as they were
            self._tensors.set("beam_idx", (len(batch.scheduled),), self._same_rows, np.int32)
        assert self._layout is not None, "set just now"
        paddings, tensors = self._layout[1], self._tensors
        past, count = self._num_columns, batch.scheduled[0].num_scheduled_tokens
        stop = self._num_columns = past + count
        rows = [_new_tokens(item, count) for item in batch.scheduled]
        tensors.set("input_ids", (len(rows), count), rows)
        if "attention_mask" in self._inputs:
            seen = stop if self._conv_kernel is None else count
            tensors.set_mask("attention_mask", seen, paddings)
        if self._conv_kernel is not None:
            # The first step says how long the window of the convolution is; later ones never
            # point before its last place.
            size = self._conv_kernel
            window = range(size) if past == 0 else range(max(size - 1, past), max(size, past + 1))
            tensors.set(_CACHE_POSITION, (len(window),), window)
        if "position_ids" in self._inputs:
            positions: Values = range(past, stop)
            if any(paddings):
                positions = np.arange(past, stop) - np.array(paddings)[:, None]
            tensors.set("position_ids", (len(rows), count), positions)

    def _set_rows(self, batch: ScheduledBatch) -> None:
        """Place the rows of a batch that is not the one before, and say where logits are wanted."""
        past, num_rows = self._num_columns, len(self._rows)
        sources, paddings = self._places(batch)
        self._layout, self._same_rows = (batch, paddings), list(range(len(sources)))
        if "beam_idx" in self._inputs:
            self._tensors.set("beam_idx", (len(sources),), sources, np.int32)
        elif past and sources != list(range(num_rows)):
            self._reorder_states(sources)
        if SAMPLED_TOKENS in self._inputs:
            count = batch.scheduled[0].num_scheduled_tokens
            num_logits = max(1, *(item.num_logits for item in batch.scheduled))
            self._tensors.set(SAMPLED_TOKENS, (num_logits,), range(count - num_logits, count))

    def _places(self, batch: ScheduledBatch) -> tuple[list[int], list[int]]:
        """Of each row of a batch: the row it continues, and the columns that are not its own.

        All rows share the columns of the cache. One that joins late, a shorter prompt, has its
        first token where the others are already; the mask hides from it what comes before.
        """
        sources: list[int] = []
        paddings: list[int] = []
        for item in batch.scheduled:
            sequence = item.sequence
            row, padding = 0, self._num_columns
            if sequence.num_computed_tokens > 0:
                known = self._rows.get(sequence.seq_id)
                if known is None:
                    assert sequence.parent_id is not None, "a sequence goes on from its own tokens"
                    known = self._rows[sequence.parent_id]
                row, padding = known
            assert not padding or self.has_padding, "the engine asks no more of a graph than it can"
            sources.append(row)
            paddings.append(padding)
        self._rows = {
            item.sequence.seq_id: (row, padding)
            for row, (item, padding) in enumerate(zip(batch.scheduled, paddings, strict=True))
        }
        return sources, paddings

    @property
    def has_padding(self) -> bool:
        """Whether rows of different lengths can share the graph: a mask hides the difference."""
        return "attention_mask" in self._inputs and self._conv_kernel is None

    def _reorder_states(self, sources: list[int]) -> None:
        """What beam_idx does, for a graph without it: at the cost of copying the whole cache."""
        for state in self._inference.request.query_state():
            state.state = ov.Tensor(state.state.data[sources])


def _new_tokens(item: ScheduledSequence, count: int) -> Tokens[int]:
    past = item.sequence.num_computed_tokens
    assert item.num_scheduled_tokens == count, "in lockstep"
    return item.sequence.token_ids(past, past + count)


def _conv_kernel(request: ov.InferRequest) -> int:
    """The window of a recurrent graph's convolutions, the last axis of their states."""
    for state in request.query_state():
        if ".conv." in state.name:
            return int(state.state.shape[-1])
    raise UnsupportedModelError("the graph has a cache_position, but no states of convolutions")

"""Runs a stateful graph: its KV cache is a set of variables (ReadValue/Assign) in the request.

One request at a time, all its sequences in lockstep. For devices and graphs without
PagedAttention, and for a single request from a cached compilation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from ovgen.engine.batch import ScheduledBatch
from ovgen.errors import DeviceError, UnsupportedModelError
from ovgen.model.graph_passes import SAMPLED_TOKENS
from ovgen.model.loader import first_line

_SLICE_MS = 50
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
        blob: whatever the compiled model's weights are in; kept as long as it is.
        compiled: a stateful decoder with the input ``input_ids`` [batch, tokens] and, where the
            graph has them, ``attention_mask`` [batch, past + tokens], ``position_ids``
            [batch, tokens], ``beam_idx`` [batch] and ``sampled_tokens_indices`` [num]; its first
            output are the logits. A graph with ``cache_position`` is recurrent (Mamba): its states
            are no KV cache, and its mask is that of the step's own tokens.

    Raises:
        UnsupportedModelError: the graph has an input that is not one of these.
    """

    max_running_requests = 1

    def __init__(self, compiled: ov.CompiledModel, blob: object = None) -> None:
        self._inputs = {port.get_any_name() for port in compiled.inputs}
        if self._inputs - _KNOWN_INPUTS or "input_ids" not in self._inputs:
            raise UnsupportedModelError(
                f"the graph's inputs are {sorted(self._inputs)}; a text decoder has input_ids "
                f"and may have {sorted(_KNOWN_INPUTS - {'input_ids', SAMPLED_TOKENS})}"
            )
        self._request: ov.InferRequest | None = compiled.create_infer_request()
        self._blob = blob
        is_recurrent = _CACHE_POSITION in self._inputs
        self._conv_kernel = _conv_kernel(self._request) if is_recurrent else None
        self._batch: ScheduledBatch | None = None
        self._request_id: int | None = None

    @property
    def max_batch_tokens(self) -> int | None:
        """Most tokens a step can take, None for any number.

        A recurrent graph goes on from its states by one token only; optimum's scan over a whole
        prompt is possible too, but loses precision where states decay fast.
        """
        return None if self._conv_kernel is None else 1

    def start(self, batch: ScheduledBatch) -> None:
        """Begin to compute a batch of one request, whose sequences are equally long."""
        request = self._infer_request
        if self._batch is not None:  # of a step that broke off
            self._let_end()
        first = batch.scheduled[0]
        is_new = first.request.request_id != self._request_id
        self._batch = batch
        with _device_errors():
            if is_new or first.sequence.num_computed_tokens == 0:
                request.reset_state()
                self._request_id = first.request.request_id
            request.start_async(self._feed(batch), share_inputs=True)

    def wait(self) -> npt.NDArray[np.float32]:
        """The logits [num_sampled, vocab] of the batch begun, valid until the next `start`."""
        assert self._batch is not None, "a batch was begun"
        request = self._infer_request
        with _device_errors():
            # In slices, for Python handles a signal only between two calls.
            while not request.wait_for(_SLICE_MS):
                pass
        batch, self._batch = self._batch, None
        logits: npt.NDArray[np.float32] = request.get_output_tensor(0).data[:, -1]
        if logits.dtype != np.float32:
            logits = logits.astype(np.float32)
        return logits[: len(batch.sampled)]

    def reset(self) -> None:
        """Forget everything computed; a batch under way is waited for when the next begins.

        It is not cancelled: that leaves OpenVINO's CPU graph with shapes of two steps.
        """
        self._request_id = None

    def close(self) -> None:
        """Let go of the infer request, and with it of the KV cache."""
        self._let_end()
        self._request = None
        self._blob = None

    def _let_end(self) -> None:
        self.reset()
        if self._request is not None and self._batch is not None:
            with suppress(RuntimeError):  # it broke off, and wait() has told so
                self._request.wait()
        self._batch = None

    @property
    def _infer_request(self) -> ov.InferRequest:
        assert self._request is not None, "the runner is open"
        return self._request

    def _feed(self, batch: ScheduledBatch) -> dict[str, npt.NDArray[Any]]:
        past = batch.scheduled[0].sequence.num_computed_tokens
        stop = past + batch.scheduled[0].num_scheduled_tokens
        rows = [item.sequence.token_ids(past, stop) for item in batch.scheduled]
        input_ids = np.array(rows, np.int64)  # [batch, tokens]
        feed: dict[str, npt.NDArray[Any]] = {"input_ids": input_ids}
        if "attention_mask" in self._inputs:
            seen = stop if self._conv_kernel is None else stop - past
            feed["attention_mask"] = np.ones((len(rows), seen), np.int64)
        if self._conv_kernel is not None:
            # The first step says how long the window of the convolution is; later ones never
            # point before its last place.
            window = np.arange(self._conv_kernel, dtype=np.int64)
            feed[_CACHE_POSITION] = window if past == 0 else np.maximum(window[-1:], past)
        if "position_ids" in self._inputs:
            positions = np.arange(past, stop, dtype=np.int64)
            feed["position_ids"] = np.broadcast_to(positions, input_ids.shape).copy()
        if "beam_idx" in self._inputs:
            feed["beam_idx"] = np.arange(len(rows), dtype=np.int32)
        if SAMPLED_TOKENS in self._inputs:
            feed[SAMPLED_TOKENS] = np.array([stop - past - 1], np.int64)
        return feed


def _conv_kernel(request: ov.InferRequest) -> int:
    """The window of a recurrent graph's convolutions, the last axis of their states."""
    for state in request.query_state():
        if ".conv." in state.name:
            return int(state.state.shape[-1])
    raise UnsupportedModelError("the graph has a cache_position, but no states of convolutions")


@contextmanager
def _device_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as exc:
        raise DeviceError(f"the device failed to compute a step: {first_line(exc)}") from exc

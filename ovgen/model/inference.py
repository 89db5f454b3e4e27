"""What computes one step after the other on the device."""

from __future__ import annotations

import math
import time
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import openvino as ov

from ovgen.model.device_errors import device_error

_SLICE_MS = 50


class Inference:
    """Starts steps and waits for them; at most one is under way.

    Args:
        request: of the whole model, or of its body.
        head: of the head, which makes logits of the body's output.
    """

    def __init__(self, request: ov.InferRequest, head: ov.InferRequest | None = None) -> None:
        self._request: ov.InferRequest | None = request
        self._head = head
        # What the device computes of a step, one after the other.
        self._under_way: list[ov.InferRequest] = []

    @property
    def request(self) -> ov.InferRequest:
        """The open infer request."""
        assert self._request is not None, "the runner is open"
        return self._request

    def start(self) -> None:
        """Begin to compute; the inputs are set."""
        try:
            self._under_way = [self.request] if self._head is None else [self.request, self._head]
            self.request.start_async()
        except RuntimeError as exc:
            raise device_error(exc) from exc

    def wait(self, timeout: float) -> npt.NDArray[np.float32] | None:
        """The logits as they are in the device's memory, as float32; None where they are not there
        after ``timeout`` seconds.

        Raises:
            DeviceError: the step failed.
        """
        assert self._under_way, "a step was begun"
        deadline = time.perf_counter() + timeout
        try:
            while True:
                # Never for long: Python handles a signal only between two calls.
                left = max(0.0, deadline - time.perf_counter())
                if not self._under_way[0].wait_for(math.ceil(left * 1000)):
                    return None
                done = self._under_way.pop(0)
                if not self._under_way:
                    break
                self._under_way[0].set_input_tensor(done.get_output_tensor(0))
                self._under_way[0].start_async()
        except RuntimeError as exc:
            raise device_error(exc) from exc
        logits: npt.NDArray[np.float32] = done.get_output_tensor(0).data
        return logits if logits.dtype == np.float32 else logits.astype(np.float32)

    def let_end(self) -> None:
        """Wait for a step that broke off, whatever comes of it.

        It is not cancelled: that leaves OpenVINO's CPU graph with shapes of two steps.
        """
        self.settle()
        self._under_way = []

    def settle(self) -> None:
        """Wait until the device is idle; `wait` still gives what came of the step under way."""
        if self._request is not None and self._under_way:
            with suppress(RuntimeError):  # wait() tells so
                while not self._under_way[0].wait_for(_SLICE_MS):
                    pass

    def close(self) -> None:
        """Let go of the requests, and with them of the KV cache."""
        self.let_end()
        self._request = self._head = None

"""One infer request that computes one step after the other."""

from __future__ import annotations

import math
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import openvino as ov

from ovgen.model.device_errors import device_error

_SLICE_MS = 50


class Inference:
    """Starts steps and waits for them; at most one is under way."""

    def __init__(self, request: ov.InferRequest) -> None:
        self._request: ov.InferRequest | None = request
        self._is_under_way = False

    @property
    def request(self) -> ov.InferRequest:
        """The open infer request."""
        assert self._request is not None, "the runner is open"
        return self._request

    def start(self) -> None:
        """Begin to compute; the inputs are set."""
        try:
            self._is_under_way = True
            self.request.start_async()
        except RuntimeError as exc:
            raise device_error(exc) from exc

    def wait(self, timeout: float) -> npt.NDArray[np.float32] | None:
        """The first output as it is in the device's memory, as float32; None where it is not there
        after ``timeout`` seconds.

        Raises:
            DeviceError: the step failed.
        """
        assert self._is_under_way, "a step was begun"
        try:
            # Never for long: Python handles a signal only between two calls.
            if not self.request.wait_for(math.ceil(timeout * 1000)):
                return None
        except RuntimeError as exc:
            raise device_error(exc) from exc
        self._is_under_way = False
        logits: npt.NDArray[np.float32] = self.request.get_output_tensor(0).data
        return logits if logits.dtype == np.float32 else logits.astype(np.float32)

    def let_end(self) -> None:
        """Wait for a step that broke off, whatever comes of it.

        It is not cancelled: that leaves OpenVINO's CPU graph with shapes of two steps.
        """
        self.settle()
        self._is_under_way = False

    def settle(self) -> None:
        """Wait until the device is idle; `wait` still gives what came of the step under way."""
        if self._request is not None and self._is_under_way:
            with suppress(RuntimeError):  # wait() tells so
                while not self._request.wait_for(_SLICE_MS):
                    pass

    def close(self) -> None:
        """Let go of the request, and with it of the KV cache."""
        self.let_end()
        self._request = None

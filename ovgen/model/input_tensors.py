"""The inputs of an infer request, in memory that stays: setting a tensor costs more than a token's
worth of numbers does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import openvino as ov

Values: TypeAlias = int | range | list[int] | list[Sequence[int]] | npt.NDArray[np.int64]


class InputTensors:
    """Writes the inputs of one request; not while it is computing."""

    def __init__(self, request: ov.InferRequest) -> None:
        self._request: ov.InferRequest | None = request
        self._arrays: dict[str, npt.NDArray[Any]] = {}  # that the tensors share
        self._values: dict[str, Values] = {}  # that they hold
        self._mask: ov.Tensor | None = None
        self._capacity = 0  # elements of the mask's memory
        self._has_zeros = False

    def set(
        self, name: str, shape: tuple[int, ...], values: Values, dtype: type = np.int64
    ) -> None:
        """An input's values, broadcast to its shape; nothing is done where they are as before."""
        array = self._arrays.get(name)
        if array is None or array.shape != shape:
            array = self._arrays[name] = np.empty(shape, dtype)
            self._open_request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        elif not isinstance(values, np.ndarray) and values == self._values.get(name):
            return
        array[...] = values
        self._values[name] = values

    def share(self, name: str, array: npt.NDArray[Any]) -> None:
        """Let an input be an array of the caller's, who may go on to write to it."""
        if self._arrays.get(name) is not array:
            self._arrays[name] = array
            self._values.pop(name, None)
            self._open_request.set_tensor(name, ov.Tensor(array, shared_memory=True))

    def close(self) -> None:
        """Let go of the request, and of all memory."""
        self._request = self._mask = None
        self._arrays.clear()

    @property
    def _open_request(self) -> ov.InferRequest:
        assert self._request is not None, "open"
        return self._request

    def set_mask(self, name: str, num_columns: int, paddings: Sequence[int]) -> None:
        """Ones [len(paddings), num_columns] int64, but zeros at the beginning of padded rows.

        A step adds a column: the tensor takes another shape in the memory it has.
        """
        size = len(paddings) * num_columns
        if self._mask is None or size > self._capacity:
            self._capacity = max(256, 2 * size)
            self._mask = ov.Tensor(ov.Type.i64, [1, self._capacity])
            self._mask.data[:] = 1
            self._has_zeros = False
            self._open_request.set_tensor(name, self._mask)
        if self._has_zeros:
            self._mask.shape = [1, self._capacity]
            self._mask.data[:] = 1
        self._mask.shape = [len(paddings), num_columns]
        self._has_zeros = any(paddings)
        if self._has_zeros:
            mask = self._mask.data
            for row, padding in enumerate(paddings):
                mask[row, :padding] = 0

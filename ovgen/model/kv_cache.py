"""The tensors of a paged KV cache: for every layer, blocks of keys and of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

_KEYS, _VALUES = "key_cache.", "value_cache."


class KVCache:
    """The cache inputs of one infer request.

    Shapes and types are what the compiled model asks for. All the memory is asked of the system at
    once, but the system gives it page by page as blocks are first written to; blocks are taken in
    that order, so that the cache takes as much as it has ever held.

    Args:
        compiled: a model after the PagedAttention transformation.
        request: of it.
        num_blocks: blocks to have.
    """

    def __init__(
        self, compiled: ov.CompiledModel, request: ov.InferRequest, num_blocks: int
    ) -> None:
        self._arrays: list[npt.NDArray[np.uint8]] = []  # [num_blocks, bytes of a layer's block]
        for port in _cache_ports(compiled):
            array = np.empty((num_blocks, _block_bytes(port)), np.uint8)
            shape = [num_blocks, *_block_shape(port)]
            request.set_tensor(
                port.get_any_name(), ov.Tensor(array, ov.Shape(shape), port.get_element_type())
            )
            self._arrays.append(array)

    @property
    def block_bytes(self) -> list[int]:
        """Bytes of a block in each cache tensor."""
        return [array.shape[1] for array in self._arrays]

    def copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy the content of blocks, each from one to another."""
        if copies:
            sources, targets = (list(blocks) for blocks in zip(*copies, strict=True))
            for array in self._arrays:
                array[targets] = array[sources]

    def read(self, blocks: Sequence[int]) -> list[npt.NDArray[np.uint8]]:
        """The content of blocks, [len(blocks), bytes] of each cache tensor."""
        return [array[list(blocks)] for array in self._arrays]

    def write(self, blocks: Sequence[int], content: Sequence[npt.NDArray[np.uint8]]) -> None:
        """Set the content of blocks to what `read` gave."""
        for array, part in zip(self._arrays, content, strict=True):
            array[list(blocks)] = part

    def close(self) -> None:
        """Let go of the memory."""
        self._arrays.clear()


def block_size(compiled: ov.CompiledModel) -> int:
    """Tokens in a block: the third axis of the values."""
    (size,) = {
        _block_shape(port)[1]
        for port in _cache_ports(compiled)
        if port.get_any_name().startswith(_VALUES)
    }
    return size


def bytes_per_block(compiled: ov.CompiledModel) -> int:
    """Memory that a block takes in all layers together."""
    return sum(_block_bytes(port) for port in _cache_ports(compiled))


def tensor_layouts(compiled: ov.CompiledModel) -> list[list[Any]]:
    """Name, type and block shape of each cache tensor, in their order."""
    return [
        [port.get_any_name(), port.get_element_type().get_type_name(), _block_shape(port)]
        for port in _cache_ports(compiled)
    ]


def is_cache_input(name: str) -> bool:
    """Whether an input is one of the cache."""
    return name.startswith((_KEYS, _VALUES))


def _cache_ports(compiled: ov.CompiledModel) -> list[ov.ConstOutput]:
    return [port for port in compiled.inputs if is_cache_input(port.get_any_name())]


def _block_shape(port: ov.ConstOutput) -> list[int]:
    return [axis.get_length() for axis in list(port.get_partial_shape())[1:]]


def _block_bytes(port: ov.ConstOutput) -> int:
    return int(np.prod(_block_shape(port))) * port.get_element_type().size

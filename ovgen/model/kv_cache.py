"""The tensors of a paged KV cache: for every layer, blocks of keys and of values."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import openvino as ov

from ovgen.errors import ConfigError

_KEYS, _VALUES = "key_cache.", "value_cache."


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """What a block is in one cache tensor.

    Attributes:
        name: of the input.
        element_type: of the values.
        shape: of a block: heads, tokens and head size, with room for scales; a device's own.
    """

    name: str
    element_type: ov.Type
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of a block in this tensor."""
        return math.prod(self.shape) * int(self.element_type.size)


class KVCache:
    """The tensors of one cache.

    All the memory is asked of the system at once, but the system gives it page by page as blocks
    are first written to; blocks are taken in that order, so that the cache takes as much as it has
    ever held.

    Args:
        layouts: of the tensors.
        num_blocks: blocks to have.

    Raises:
        ConfigError: the system has no room for so many.

    Attributes:
        layouts: of the tensors.
        num_blocks: of each tensor.
        tensors: by name; over memory that has to outlive whatever computes with them.
    """

    def __init__(self, layouts: Sequence[BlockLayout], num_blocks: int) -> None:
        self.layouts = tuple(layouts)
        self.num_blocks = num_blocks
        self.tensors: dict[str, ov.Tensor] = {}
        self._arrays: list[npt.NDArray[np.uint8]] = []  # [num_blocks, bytes of a layer's block]
        for layout in layouts:
            try:
                array = _zeros(num_blocks * layout.num_bytes).reshape(num_blocks, -1)
            except (OSError, OverflowError, MemoryError) as exc:
                size = num_blocks * bytes_per_block(layouts) / 1e9
                raise ConfigError(
                    f"the system has no room for a KV cache of {size:.3g} GB ({exc}): "
                    "lower kv_cache_size or kv_cache_tokens"
                ) from exc
            shape = ov.Shape([num_blocks, *layout.shape])
            self.tensors[layout.name] = ov.Tensor(array, shape, layout.element_type)
            self._arrays.append(array)

    @property
    def block_bytes(self) -> list[int]:
        """Bytes of a block in each tensor."""
        return [layout.num_bytes for layout in self.layouts]

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return block_size(self.layouts)

    def bind(self, request: ov.InferRequest) -> None:
        """Make them the inputs of a request whose graph has them as inputs."""
        for name in {port.get_any_name() for port in request.model_inputs} & set(self.tensors):
            request.set_tensor(name, self.tensors[name])

    def copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy the content of blocks, each from one to another."""
        if copies:
            sources, targets = (list(blocks) for blocks in zip(*copies, strict=True))
            for array in self._arrays:
                array[targets] = array[sources]

    def read(self, blocks: Sequence[int]) -> list[npt.NDArray[np.uint8]]:
        """The content of blocks, [len(blocks), bytes] of each tensor."""
        return [array[list(blocks)] for array in self._arrays]

    def write(self, blocks: Sequence[int], content: Sequence[npt.NDArray[np.uint8]]) -> None:
        """Set the content of blocks to what `read` gave."""
        for array, part in zip(self._arrays, content, strict=True):
            array[list(blocks)] = part

    def close(self) -> None:
        """Let go of the memory; nothing computes with it any more."""
        self._arrays.clear()
        self.tensors.clear()


def block_size(layouts: Sequence[BlockLayout]) -> int:
    """Tokens in a block: the second axis of its values."""
    (size,) = {layout.shape[1] for layout in layouts if layout.name.startswith(_VALUES)}
    return size


def bytes_per_block(layouts: Sequence[BlockLayout]) -> int:
    """Memory that a block takes in all tensors together."""
    return sum(layout.num_bytes for layout in layouts)


def block_layouts(compiled: ov.CompiledModel) -> list[BlockLayout]:
    """What a device makes of the cache inputs of a graph with PagedAttention."""
    return [
        BlockLayout(
            port.get_any_name(),
            port.get_element_type(),
            tuple(axis.get_length() for axis in list(port.get_partial_shape())[1:]),
        )
        for port in compiled.inputs
        if is_cache_input(port.get_any_name())
    ]


def is_cache_input(name: str) -> bool:
    """Whether an input is one of the cache."""
    return name.startswith((_KEYS, _VALUES))


def _zeros(num_bytes: int) -> npt.NDArray[np.uint8]:
    """Memory of whole pages, which the system gives when they are first written to.

    A constant that is not aligned, or holds subnormal numbers, would be copied by the CPU device.
    """
    flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
    return np.frombuffer(mmap.mmap(-1, max(1, num_bytes), **flags), np.uint8)[:num_bytes]

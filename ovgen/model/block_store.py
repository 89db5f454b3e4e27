"""The content of a KV cache's blocks: taken out to be kept, and put in again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from ovgen.model.inference import Inference
from ovgen.model.kv_cache import KVCache

# What else the values in a block depend on, beside the model and its tokens.
_PROPERTIES = (
    "EXECUTION_DEVICES",
    "INFERENCE_PRECISION_HINT",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
)


class BlockStore:
    """Reads and writes the blocks of one KV cache.

    Args:
        compiled: the model that the cache is of.
        kv_cache: its tensors.
        inference: what computes with them.

    Attributes:
        layout: says what the bytes of a block mean, in values of JSON; bytes of another layout are
            of no use. ``block_bytes`` of it is how many they are.
    """

    def __init__(self, compiled: ov.CompiledModel, kv_cache: KVCache, inference: Inference) -> None:
        self.layout: Mapping[str, Any] = {
            "openvino": ov.get_version(),
            "properties": _properties(compiled),
            "block_size": kv_cache.block_size,
            "block_bytes": sum(kv_cache.block_bytes),
            "tensors": [
                [layout.name, layout.element_type.get_type_name(), list(layout.shape)]
                for layout in kv_cache.layouts
            ],
        }
        self._kv_cache = kv_cache
        self._inference = inference

    def read(self, blocks: Sequence[int]) -> npt.NDArray[np.uint8]:
        """The content of blocks, [len(blocks), block_bytes]: of all cache tensors in a row."""
        return np.concatenate(self._kv_cache.read(blocks), axis=1)

    def write(self, blocks: Sequence[int], content: npt.NDArray[np.uint8]) -> None:
        """Set the content of blocks to what `read` gave.

        Waits for a step under way: it may still write to blocks that nobody has any more.
        """
        self._inference.settle()
        ends = np.cumsum(self._kv_cache.block_bytes)[:-1]
        self._kv_cache.write(blocks, np.split(content, ends, axis=1))


def _properties(compiled: ov.CompiledModel) -> dict[str, str]:
    found = {}
    for name in _PROPERTIES:
        with suppress(RuntimeError):  # a device need not have all of them
            found[name] = str(compiled.get_property(name))
    return found

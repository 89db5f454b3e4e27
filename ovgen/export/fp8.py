"""FP8 checkpoints: eight-bit floats with a scale for the tensor, for each row or for each block.

Blocks are as DeepSeek and Qwen publish them, 128 x 128, with ``weight_scale_inv`` as the factor
(its name notwithstanding); other publishers call it ``weight_scale``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ovgen.errors import ModelFormatError, UnsupportedModelError
from ovgen.export.checkpoint import Floats, Rows, Tensor
from ovgen.export.float_formats import to_float32
from ovgen.export.float_tensor import FloatTensor
from ovgen.export.safetensors import StoredTensor

_F8 = ("F8_E4M3", "F8_E5M2")
_SCALES = ("_scale_inv", "_scale")
# What activations are quantized with, which has no say in the weights' values.
_OF_ACTIVATIONS = (
    *("activation_scale", "input_scale", "input_scale_ub", "input_zero_point", "output_scale"),
    *("k_scale", "v_scale", "q_scale"),
)


class ScaledTensor(FloatTensor):
    """A tensor [..., rows, cols] of F8 times the scales of its blocks.

    Args:
        stored: the F8 values.
        scales: [..., row blocks, column blocks] as one matrix, float32.
        block: rows and columns of a block; the last ones may be cut off.
    """

    __slots__ = ("_block", "_scales")

    def __init__(self, stored: StoredTensor, scales: Floats, block: tuple[int, int]) -> None:
        super().__init__(stored)
        self._scales = scales
        self._block = block

    def values(self, rows: Rows) -> Floats:
        """Rows as float32 [rows, cols]."""
        values = super().values(rows)
        num_rows, cols = self.shape[-2:]
        block_rows, block_cols = self._block
        matrix, row = np.divmod(np.arange(len(self._stored.data))[rows], num_rows)
        scales = self._scales[matrix * -(-num_rows // block_rows) + row // block_rows]
        with np.errstate(all="ignore"):
            values *= np.repeat(scales, block_cols, axis=1)[:, :cols]
        return values


def fp8_tensors(
    stored: Mapping[str, StoredTensor], options: Mapping[str, Any], folder: Path
) -> dict[str, Tensor]:
    """The tensors of an FP8 checkpoint by the names of the model that was quantized.

    Raises ModelFormatError (scales without a weight, or of the wrong shape) and
    UnsupportedModelError (other numbers than F8 that have scales).
    """
    block = _block_size(options.get("weight_block_size"), folder)
    tensors: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, tensor in stored.items():
        scale_name = next((name + end for end in _SCALES if name + end in stored), None)
        if scale_name is None:
            tensors[name] = FloatTensor(tensor)
            continue
        if tensor.dtype not in _F8:
            raise UnsupportedModelError(
                f"{folder}: tensor {name!r:.80} of dtype {tensor.dtype} has scales; supported: "
                f"{', '.join(_F8)}"
            )
        used.add(scale_name)
        tensors[name] = _scaled(tensor, stored[scale_name], block, folder)
    for name in [*tensors]:
        if name in used or name.rpartition(".")[2] in _OF_ACTIVATIONS:
            del tensors[name]
        elif name.endswith(_SCALES):
            raise ModelFormatError(f"{folder}: {name!r:.80} are the scales of no tensor")
    return tensors


def _block_size(value: Any, folder: Path) -> tuple[int, int] | None:
    if value is None:
        return None
    is_pair = isinstance(value, list) and len(value) == 2
    if not is_pair or not all(type(size) is int and 0 < size < 2**31 for size in value):
        raise ModelFormatError(
            f"{folder}: 'weight_block_size' of the quantization config is {value!r:.80}, expected "
            "two sizes"
        )
    return value[0], value[1]


def _scaled(
    tensor: StoredTensor, scale: StoredTensor, block: tuple[int, int] | None, folder: Path
) -> ScaledTensor:
    """The tensor with scales of whichever of the three kinds their shape tells."""
    if len(tensor.shape) < 2 or scale.dtype not in ("F32", "BF16", "F16"):
        raise ModelFormatError(
            f"{folder}: {scale.name!r:.80} of dtype {scale.dtype} cannot scale a tensor of shape "
            f"{list(tensor.shape)}"
        )
    *leading, rows, cols = tensor.shape
    factors = to_float32(scale.data, scale.dtype)
    if factors.size == 1:
        total = len(tensor.data) // rows
        return ScaledTensor(tensor, np.tile(factors.reshape(1, 1), (total, 1)), (rows, cols))
    sizes = [(1, cols)]
    if block:
        sizes.append((min(block[0], rows), min(block[1], cols)))
    for size in sizes:
        counts = (-(-rows // size[0]), -(-cols // size[1]))
        shapes = [(*leading, *counts)] + ([(*leading, rows)] if size == (1, cols) else [])
        if scale.shape in shapes:
            return ScaledTensor(tensor, factors.reshape(-1, counts[1]), size)
    raise ModelFormatError(
        f"{folder}: {scale.name!r:.80} of shape {list(scale.shape)} fits no tensor of shape "
        f"{list(tensor.shape)} with blocks of {list(block) if block else 'a row or the whole'}"
    )

"""AWQ checkpoints: the packed layers of a folder as the weights that they stand for.

The layout is AutoAWQ's GEMM one: eight four-bit codes that are neighbours along the output axis
share a 32-bit word, in both ``qweight`` [in, out / 8] and ``qzeros`` [groups, out / 8].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ovgen.errors import UnsupportedModelError
from ovgen.export.checkpoint import Floats, Rows, Tensor
from ovgen.export.grouped_tensor import Bytes, GroupedTensor, Words, scales_of_columns, words
from ovgen.export.packed_layers import PackedLayer, get_int, get_packing, split_layers
from ovgen.export.safetensors import StoredTensor

_BITS = 4
_PER_WORD = 8
# From the lowest bits up a word holds outputs 0, 2, 4, 6, 1, 3, 5, 7: where each of the eight is.
_SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)


class AWQTensor(GroupedTensor):
    """One packed weight; see `GroupedTensor`."""

    kind = "AWQ"

    def __init__(self, layer: PackedLayer, shape: tuple[int, int], group: int) -> None:
        column_groups = np.arange(shape[1]) // group
        num_groups = layer["scales"].shape[0]
        super().__init__(f"{layer.name}.weight", shape, _BITS, num_groups, column_groups)
        self._stored_scales = layer["scales"]  # [groups, out]
        self._qweight = words(layer["qweight"])
        self._qzeros = words(layer["qzeros"])

    def _quants(self, rows: Rows) -> Bytes:
        return self._unpack(self._qweight, rows)

    def _scales(self, rows: Rows) -> Floats:
        return scales_of_columns(self._stored_scales, rows)

    def _zeros(self, rows: Rows) -> Bytes:
        return self._unpack(self._qzeros, rows)

    def _unpack(self, packed: Words, rows: Rows) -> Bytes:
        """The codes [rows, packed rows] of `packed` [packed rows, out / 8]."""
        columns = np.arange(self._shape[0])[rows]
        needed, places = np.unique(columns // _PER_WORD, return_inverse=True)
        first, last = int(needed[0]), int(needed[-1]) + 1
        is_run = last - first == len(needed)
        block = packed[:, first:last] if is_run else packed[:, needed]
        block = np.ascontiguousarray(block.T)
        codes = np.empty((len(needed), _PER_WORD, packed.shape[0]), np.uint8)
        for place, shift in enumerate(_SHIFTS):
            codes[:, place] = (block >> np.uint32(shift)) & np.uint32(15)
        flat: Bytes = codes.reshape(-1, packed.shape[0])
        return flat.take(places * _PER_WORD + columns % _PER_WORD, axis=0)


def awq_tensors(
    stored: Mapping[str, StoredTensor], options: Mapping[str, Any], folder: Path
) -> dict[str, Tensor]:
    """The tensors of an AWQ checkpoint by the names of the model that was quantized.

    Raises ModelFormatError (parts missing or at odds with each other and the options) and
    UnsupportedModelError (another packing).
    """
    packing = get_packing(options, ("version", "format", "checkpoint_format"), "gemm")
    if packing != "gemm":
        raise UnsupportedModelError(
            f"{folder}: an AWQ checkpoint packed as {packing!r:.80}; supported: 'gemm'"
        )
    bits = get_int(options, "bits" if "bits" in options else "w_bit", folder)
    if bits != _BITS:
        raise UnsupportedModelError(f"{folder}: an AWQ checkpoint of {bits} bits; supported: 4")
    key = "group_size" if "group_size" in options else "q_group_size"
    group_size = get_int(options, key, folder, default=-1)
    tensors, layers = split_layers(stored, ("qweight", "qzeros", "scales"), (), folder)
    for layer in layers:
        tensor = _tensor(layer, group_size)
        tensors[tensor.name] = tensor
    return tensors


def _tensor(layer: PackedLayer, group_size: int) -> AWQTensor:
    cols, packed_out = layer.matrix("qweight", ("I32",))
    out = packed_out * _PER_WORD
    groups = layer.matrix("scales", ("F16", "BF16", "F32"))[0]
    layer.expect("scales", (groups, out))
    layer.expect("qzeros", (groups, packed_out), ("I32",))
    return AWQTensor(layer, (out, cols), layer.group_size(cols, groups, group_size))

"""GPTQ checkpoints: the packed layers of a folder as the weights that they stand for.

The layout is AutoGPTQ's and GPTQModel's: ``qweight`` packs neighbours along the input axis into
32-bit words, lowest bits first, ``qzeros`` along the output axis; three-bit codes run on over word
borders. The first version of the format stores zero points less one; ``gptq_v2`` as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ovgen.errors import UnsupportedModelError
from ovgen.export.checkpoint import Floats, Rows, Tensor
from ovgen.export.grouped_tensor import (
    Bytes,
    GroupedTensor,
    scales_of_columns,
    unpack,
    unpack_columns,
    words,
)
from ovgen.export.packed_layers import PackedLayer, get_int, get_packing, split_layers
from ovgen.export.safetensors import StoredTensor

_BITS = (2, 3, 4, 8)
_FORMATS = {"gptq": 1, "gptq_v2": 2}


class GPTQTensor(GroupedTensor):
    """One packed weight; see `GroupedTensor`."""

    kind = "GPTQ"

    def __init__(
        self,
        layer: PackedLayer,
        shape: tuple[int, int],
        bits: int,
        column_groups: npt.NDArray[np.intp],
        version: int,
    ) -> None:
        num_groups = layer["scales"].shape[0]
        super().__init__(f"{layer.name}.weight", shape, bits, num_groups, column_groups)
        self._qweight = words(layer["qweight"])  # [in * bits / 32, out]
        self._qzeros = words(layer["qzeros"])  # [groups, out * bits / 32]
        self._stored_scales = layer["scales"]  # [groups, out]
        self._version = version

    def _quants(self, rows: Rows) -> Bytes:
        return unpack(np.ascontiguousarray(self._qweight[:, rows].T), self._bits)

    def _scales(self, rows: Rows) -> Floats:
        return scales_of_columns(self._stored_scales, rows)

    def _zeros(self, rows: Rows) -> Bytes:
        added = 0
        if self._version == 1 and self._bits != 3:
            # GPTQModel takes one from each code by one subtraction from the word, in which a zero
            # point of 0 borrows from its neighbour; the addition pays that back.
            added = sum(1 << bit for bit in range(0, 32, self._bits))
        columns = np.arange(self._shape[0])[rows]
        zeros = unpack_columns(self._qzeros, self._bits, columns, added=added)
        if self._version == 1 and self._bits == 3:
            zeros += np.uint8(1)
            zeros &= np.uint8(7)
        return np.ascontiguousarray(zeros.T)


@dataclass(frozen=True, slots=True)
class _Options:
    bits: int
    group_size: int
    version: int
    is_dynamic: bool  # layers may differ from bits and group_size


def gptq_tensors(
    stored: Mapping[str, StoredTensor], options: Mapping[str, Any], folder: Path
) -> dict[str, Tensor]:
    """The tensors of a GPTQ checkpoint by the names of the model that was quantized.

    Raises ModelFormatError (parts missing or at odds with each other and the options) and
    UnsupportedModelError (another packing).
    """
    checked = _options(options, folder)
    tensors, layers = split_layers(stored, ("qweight", "qzeros", "scales"), ("g_idx",), folder)
    for layer in layers:
        tensor = _tensor(layer, checked)
        tensors[tensor.name] = tensor
    return tensors


def _options(options: Mapping[str, Any], folder: Path) -> _Options:
    kind = get_packing(options, ("format", "checkpoint_format"), "gptq")
    if options.get("is_marlin_format"):
        kind = "marlin"
    if not isinstance(kind, str) or kind not in _FORMATS:
        raise UnsupportedModelError(
            f"{folder}: a GPTQ checkpoint packed as {kind!r:.80}; supported: {', '.join(_FORMATS)}"
        )
    bits = get_int(options, "bits", folder)
    if bits not in _BITS:
        raise UnsupportedModelError(
            f"{folder}: a GPTQ checkpoint of {bits} bits; supported: {', '.join(map(str, _BITS))}"
        )
    group_size = get_int(options, "group_size", folder, default=-1)
    return _Options(bits, group_size, _FORMATS[kind], bool(options.get("dynamic")))


def _tensor(layer: PackedLayer, options: _Options) -> GPTQTensor:
    packed_rows, out = layer.matrix("qweight", ("I32",))
    index = layer.get("g_idx")
    if index is None:
        bits, cols = options.bits, packed_rows * 32 // options.bits
    else:
        cols = index.data.nbytes // 4
        layer.expect("g_idx", (cols,), ("I32",))
        bits = packed_rows * 32 // cols
        if bits != options.bits and not options.is_dynamic:
            layer.fail(f"is of {bits} bits, the config says {options.bits}")
    if bits not in _BITS or packed_rows * 32 != cols * bits:
        layer.fail(f"packs {cols} inputs into {packed_rows} words, which is no whole number")
    groups = layer.matrix("scales", ("F16", "BF16", "F32"))[0]
    layer.expect("scales", (groups, out))
    if out * bits % 32 or (bits == 3 and out % 32):
        layer.fail(f"has {out} outputs, which do not fill words of {bits}-bit zero points")
    layer.expect("qzeros", (groups, out * bits // 32), ("I32",))
    group = layer.group_size(cols, groups, options.group_size, options.is_dynamic)
    if index is None:
        column_groups = np.arange(cols) // group
    else:
        column_groups = index.data.view(np.dtype("<i4"))[0].astype(np.intp)
        if column_groups.min() < 0 or column_groups.max() >= groups:
            layer.fail(f"has columns in groups beyond its {groups}")
    return GPTQTensor(layer, (out, cols), bits, column_groups, options.version)

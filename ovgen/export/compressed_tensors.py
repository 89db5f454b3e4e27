"""Checkpoints of compressed-tensors (llm-compressor): integers, packed or not, and FP8.

A layer's tensors tell how it is stored: ``weight_packed`` has codes along the input axis in 32-bit
words, lowest bits first and biased by half their range, and ``weight_zero_point`` likewise along
the output axis; else ``weight`` is of I8 or F8. ``weight_scale`` is [out, groups], or a single one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ovgen.errors import ModelFormatError, UnsupportedModelError
from ovgen.export.checkpoint import Floats, Rows, Tensor
from ovgen.export.float_formats import to_float32
from ovgen.export.fp8 import fp8_tensors
from ovgen.export.grouped_tensor import Bytes, GroupedTensor, unpack, unpack_columns, words
from ovgen.export.packed_layers import PackedLayer
from ovgen.export.safetensors import StoredTensor

_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "dense")
_MIXED = "mixed-precision"  # each group of layers names its own
_BITS = (2, 3, 4, 8)
_INT8_PARTS = ("weight", "weight_scale", "weight_zero_point")
_PACKED_PARTS = (
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
)  # fmt: skip


class IntegerTensor(GroupedTensor):
    """One weight of integers, packed or I8; see `GroupedTensor`."""

    kind = "INT"

    def __init__(
        self,
        layer: PackedLayer,
        shape: tuple[int, int],
        bits: int,
        num_groups: int,
        column_groups: npt.NDArray[np.intp] | None = None,
    ) -> None:
        super().__init__(f"{layer.name}.weight", shape, bits, num_groups, column_groups)
        self._packed = layer.get("weight_packed")
        self._weight = layer.get("weight")
        self._zero_point = layer.get("weight_zero_point")
        self._weight_scale = layer["weight_scale"]

    def _quants(self, rows: Rows) -> Bytes:
        if self._weight is not None:
            return _biased(self._weight.data[rows])
        assert self._packed is not None
        codes = unpack(words(self._packed)[rows], self._bits)
        return codes[:, : self._shape[1]]

    def _scales(self, rows: Rows) -> Floats:
        return to_float32(self._of_rows(self._weight_scale, rows), self._weight_scale.dtype)

    def _zeros(self, rows: Rows) -> Bytes:
        stored = self._zero_point
        columns = np.arange(self._shape[0])[rows]
        if stored is None:
            return np.full((len(columns), self._num_groups), self._middle, np.uint8)
        if self._weight is not None:
            return _biased(self._of_rows(stored, rows))
        return np.ascontiguousarray(unpack_columns(words(stored).T, self._bits, columns).T)

    def _of_rows(self, stored: StoredTensor, rows: Rows) -> Bytes:
        """The bytes for each of the rows, where a single value is for all of them."""
        out = self._shape[0]
        each = stored.data.reshape(1 if _is_single(stored) else out, -1)
        return np.broadcast_to(each, (out, each.shape[1]))[rows]


def compressed_tensors(
    stored: Mapping[str, StoredTensor], options: Mapping[str, Any], folder: Path
) -> dict[str, Tensor]:
    """The tensors of a compressed-tensors checkpoint by the names of the original model.

    Raises ModelFormatError (parts missing or at odds with each other) and UnsupportedModelError
    (a format that ovgen does not read: sparse, FP4, MX).
    """
    groups = options.get("config_groups")
    schemes = list(groups.values()) if isinstance(groups, dict) else []
    _check_formats(options, schemes, folder)
    rest = dict(stored)
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        prefix, _, part = name.rpartition(".")
        if part == "weight_packed":
            weight = _packed(_take(rest, prefix, _PACKED_PARTS, folder))
        elif part == "weight" and tensor.dtype == "I8" and f"{name}_scale" in stored:
            weight = _int8(_take(rest, prefix, _INT8_PARTS, folder))
        else:
            continue
        if weight.name in rest:
            raise ModelFormatError(f"{folder}: {weight.name!r:.120} is there packed and as it is")
        tensors[weight.name] = weight
    return {**fp8_tensors(rest, {"weight_block_size": _block(schemes)}, folder), **tensors}


def _check_formats(options: Mapping[str, Any], schemes: list[Any], folder: Path) -> None:
    sparsity = options.get("sparsity_config")
    formats = [options.get("format"), *(_get(scheme, "format") for scheme in schemes)]
    if _get(sparsity, "format") not in (None, "dense"):
        formats.append(_get(sparsity, "format"))
    for kind in formats:
        if kind is not None and kind not in (*_FORMATS, _MIXED):
            raise UnsupportedModelError(
                f"{folder}: compressed as {kind!r:.80}; supported: {', '.join(_FORMATS)}"
            )


def _block(schemes: list[Any]) -> Any:
    """The size of the blocks that share a scale, from whichever scheme has blocks."""
    sizes = [_get(_get(scheme, "weights"), "block_structure") for scheme in schemes]
    return next((size for size in sizes if size is not None), None)


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _take(
    rest: dict[str, StoredTensor], prefix: str, parts: tuple[str, ...], folder: Path
) -> PackedLayer:
    """A layer of those parts that are there, which are no longer in `rest` afterwards."""
    found = {part: rest.pop(f"{prefix}.{part}") for part in parts if f"{prefix}.{part}" in rest}
    layer = PackedLayer(prefix, folder, found)
    if layer.get("weight_scale") is None:
        layer.fail("has no 'weight_scale'")
    return layer


def _packed(layer: PackedLayer) -> IntegerTensor:
    out, packed_cols = layer.matrix("weight_packed", ("I32",))
    if layer.get("weight_shape") is None:
        layer.fail("has no 'weight_shape'")
    sizes = layer["weight_shape"]
    layer.expect("weight_shape", (2,), ("I64", "I32"))
    shape = sizes.data.view("<i8" if sizes.dtype == "I64" else "<i4")[0].tolist()
    cols = shape[1]
    bits = packed_cols * 32 // cols if 0 < cols <= packed_cols * 32 else 0
    is_whole = packed_cols == -(-cols * bits // 32) and (bits != 3 or cols % 32 == 0)
    if shape[0] != out or bits not in _BITS or not is_whole:
        layer.fail(f"packs a matrix {shape} into words {[out, packed_cols]}, which cannot be")
    groups = _num_groups(layer, out, cols)
    if layer.get("weight_zero_point") is not None:
        if bits == 3 and out % 32:
            layer.fail(f"has {out} outputs, which do not fill words of 3-bit zero points")
        layer.expect("weight_zero_point", (-(-out * bits // 32), groups), ("I32",))
    return IntegerTensor(layer, (out, cols), bits, groups, _column_groups(layer, cols, groups))


def _int8(layer: PackedLayer) -> IntegerTensor:
    out, cols = layer.matrix("weight", ("I8",))
    groups = _num_groups(layer, out, cols)
    zero_point = layer.get("weight_zero_point")
    if zero_point is not None:
        layer.expect("weight_zero_point", layer["weight_scale"].shape, ("I8",))
    return IntegerTensor(layer, (out, cols), 8, groups)


def _num_groups(layer: PackedLayer, out: int, cols: int) -> int:
    """How many scales a row has."""
    scale = layer["weight_scale"]
    shape = scale.shape
    groups = 1 if _is_single(scale) else shape[1] if len(shape) == 2 and shape[0] == out else 0
    if scale.dtype not in ("F16", "BF16", "F32") or groups == 0 or cols % groups:
        layer.fail(
            f"has 'weight_scale' of dtype {scale.dtype} and shape {list(shape)}, expected floats, "
            f"one or {[out, 'groups']} where groups divide {cols}"
        )
    return groups


def _column_groups(layer: PackedLayer, cols: int, groups: int) -> npt.NDArray[np.intp] | None:
    index = layer.get("weight_g_idx")
    if index is None:
        return None
    layer.expect("weight_g_idx", (cols,), ("I32",))
    column_groups: npt.NDArray[np.intp] = index.data.view(np.dtype("<i4"))[0].astype(np.intp)
    if (column_groups == -1).all():  # left as it was before an order was chosen
        return None
    if column_groups.min() < 0 or column_groups.max() >= groups:
        layer.fail(f"has columns in groups beyond its {groups}")
    return column_groups


def _biased(signed: Bytes) -> Bytes:
    """Signed bytes as codes whose zero is 128."""
    codes: Bytes = np.bitwise_xor(signed, np.uint8(128))
    return codes


def _is_single(stored: StoredTensor) -> bool:
    return math.prod(stored.shape) == 1

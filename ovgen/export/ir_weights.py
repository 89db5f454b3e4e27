"""The weights of an exported IR as a checkpoint: what its matmuls and lookups decompress.

Constants are read from the .bin file some rows at a time; OpenVINO's own would stay in memory.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from ovgen.errors import ModelFormatError
from ovgen.export.checkpoint import Codes, Floats, Grid, Rows, Tensor
from ovgen.export.float_formats import to_float32
from ovgen.export.float_tensor import no_codes
from ovgen.export.mapped_file import close_mapping, map_file, read_json_object, release_pages
from ovgen.export.quantize import NF4_LEVELS
from ovgen.export.weight_store import MODEL_BIN, MODEL_XML

_FLOATS = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_INTEGERS = {"i8": 8, "u8": 8, "i4": 4, "u4": 4, "nf4": 4}
_BITS = {"f32": 32, "f16": 16, "bf16": 16, **_INTEGERS}
_NUMBERED = re.compile(r"(?:[a-z_]+\.)+\d+\.")


@dataclass(frozen=True, slots=True)
class StoredConstant:
    """A constant where it is stored.

    Attributes:
        dtype: OpenVINO's name of it, ``u4``.
        shape: outermost axis first.
        data: its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]

    def rows(self, rows: Rows, total: int) -> Floats:
        """Some of so many rows as float32 [rows, ...]; a constant of fewer rows is for all."""
        if math.prod(self.shape) == 1 and total > 1:
            return _numbers(self.dtype, self.data).reshape(1, 1)
        if len(self.data) % total:  # rows of 4-bit values that share bytes
            numbers = _numbers(self.dtype, self.data)[: math.prod(self.shape)]
            return np.asarray(numbers.reshape(total, -1)[rows], np.float32)
        return _numbers(self.dtype, self.data.reshape(total, -1)[rows])


def _numbers(dtype: str, data: npt.NDArray[np.uint8]) -> Floats:
    if dtype in _FLOATS:
        return to_float32(data, _FLOATS[dtype])
    if dtype == "u8":
        return data.astype(np.float32)
    if dtype == "i8":
        return data.view(np.int8).astype(np.float32)
    nibbles = np.stack((data & 15, data >> 4), axis=-1).reshape(*data.shape[:-1], -1)
    if dtype == "nf4":
        return np.asarray(NF4_LEVELS[nibbles], np.float32)
    if dtype == "i4":
        nibbles = (nibbles ^ 8).view(np.int8) - np.int8(8)
    return np.asarray(nibbles, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class IRTensor:
    """A weight [rows, cols] that an IR may hold compressed; see `checkpoint.Tensor`.

    Attributes:
        name: as transformers calls it, as far as the IR tells.
        shape: (rows, cols).
        codes_: its numbers, ``scales * (codes - zero_points)`` where there are scales.
        scales: one for each group, or None.
        zero_points: like them, or None.
    """

    name: str
    shape: tuple[int, ...]
    stored: StoredConstant
    scales: StoredConstant | None
    zero_points: StoredConstant | None

    @property
    def dtype(self) -> str:
        """As OpenVINO calls it."""
        return self.stored.dtype

    @property
    def grid(self) -> Grid | None:
        """None: it is read as floats."""
        return None

    @property
    def column_order(self) -> npt.NDArray[np.intp] | None:
        """None."""
        return None

    def values(self, rows: Rows) -> Floats:
        """Rows as float32 [rows, cols]."""
        total, cols = self.shape
        values = self.stored.rows(rows, total).reshape(-1, cols)
        if self.scales is None:
            return values
        scales = self.scales.rows(rows, total)
        grouped = values.reshape(len(values), scales.shape[1], -1)
        if self.zero_points is not None:
            zero_points = self.zero_points.rows(rows, total)
            grouped = grouped - zero_points[..., None]
        return np.asarray(grouped * scales[..., None], np.float32).reshape(-1, cols)

    def codes(self, rows: Rows) -> Codes:
        """Not to be called: `grid` is None."""
        no_codes(self.name)


@dataclass(frozen=True, slots=True)
class IRWeight:
    """A weight in the graph.

    Attributes:
        tensor: to read it from.
        output: its float32 value in the graph.
        is_table: its rows are looked up.
    """

    tensor: IRTensor
    output: Any
    is_table: bool


class IRCheckpoint:
    """An IR folder opened for its weights; see `checkpoint.Checkpoint`.

    Raises:
        ModelNotFoundError: a file is missing.
        ModelFormatError: the IR is damaged.
        StorageError: a file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        config = folder / "config.json"
        self.config: Mapping[str, Any] = read_json_object(config) if config.exists() else {}
        self._mapping = map_file(folder / MODEL_BIN, "an IR's weights")
        try:
            self.model = _read_model(folder / MODEL_XML)
            self._constants = dict(_constants(folder / MODEL_XML, self._mapping))
            self.weights = self._find_weights()
        except BaseException:
            self.close()
            raise

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The weights by name."""
        return {weight.tensor.name: weight.tensor for weight in self.weights}

    def release_pages(self) -> None:
        """Let the system drop from memory what was read."""
        release_pages(self._mapping)

    def close(self) -> None:
        """Let go of the file."""
        close_mapping(self._mapping)

    def __enter__(self) -> IRCheckpoint:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _find_weights(self) -> list[IRWeight]:
        found: dict[str, IRWeight] = {}
        for node in self.model.get_ordered_ops():
            kind = node.get_type_name()
            if kind == "MatMul" and node.get_attributes()["transpose_b"]:
                if node.input_value(0).get_node().get_type_name() == "ReduceSum":
                    continue  # offsets of a weight, which stay
                output, is_table = node.input_value(1), False
            elif kind == "Gather":
                output, is_table = node.input_value(0), True
            else:
                continue
            tensor = self._tensor(output, node.get_friendly_name())
            if tensor is not None:
                key = output.get_node().get_friendly_name()
                known = found.get(key)
                is_table = is_table or (known is not None and known.is_table)
                found[key] = IRWeight(tensor if known is None else known.tensor, output, is_table)
        names = [weight.tensor.name for weight in found.values()]
        if len(set(names)) < len(names):
            raise ModelFormatError(f"{self.path}: two weights of the graph have one name")
        return list(found.values())

    def _tensor(self, output: Any, user: str) -> IRTensor | None:
        """The weight that a value is, or None where it is something else."""
        shape = output.get_partial_shape()
        node = _without(output.get_node(), "Convert", "Reshape")
        if shape.is_dynamic or len(shape) != 2:
            return None
        rows, cols = (int(dim.get_length()) for dim in shape)
        scales = zero_points = None
        if node.get_type_name() == "Multiply":
            scales = self._constant(node.input_value(1))
            node = node.input_value(0).get_node()
            if node.get_type_name() == "Subtract":
                zero_points = self._constant(node.input_value(1))
                if zero_points is None:
                    return None
                node = node.input_value(0).get_node()
            if scales is None:
                return None
        stored = self._constant(node.output(0))
        if stored is None or math.prod(stored.shape) != rows * cols or min(rows, cols) < 2:
            return None
        if (scales is None) == (stored.dtype in _INTEGERS):
            return None
        name = _name(_without(node, "Convert").get_friendly_name(), user)
        return IRTensor(name, (rows, cols), stored, scales, zero_points)

    def _constant(self, output: Any) -> StoredConstant | None:
        node = _without(output.get_node(), "Convert")
        if node.get_type_name() != "Constant":
            return None
        return self._constants.get(node.get_friendly_name())


def _without(node: Any, *kinds: str) -> Any:
    while node.get_type_name() in kinds:
        node = node.input_value(0).get_node()
    return node


def _name(constant: str, user: str) -> str:
    """``self.model.layers.0.mlp.up_proj.weight`` -> ``model.layers.0.mlp.up_proj.weight``; a
    constant that has no such name takes its user's."""
    name = constant.removeprefix("self.").split("/")[0]
    if not _NUMBERED.match(name):
        other = user.removeprefix("__module.").split("/")[0]
        if _NUMBERED.match(other):
            return f"{other}.weight"
    return name


def _read_model(xml: Path) -> ov.Model:
    try:
        return ov.Core().read_model(xml)
    except RuntimeError as exc:
        raise ModelFormatError(
            f"{xml}: OpenVINO cannot read it ({str(exc).strip()[:200]})"
        ) from exc


def _constants(xml: Path, mapping: Any) -> Iterator[tuple[str, StoredConstant]]:
    """All constants of types that weights may have."""
    size = len(mapping)
    try:
        for _, layer in ET.iterparse(xml):
            data = layer.find("data") if layer.tag == "layer" else None
            if data is None or layer.get("type") != "Const":
                continue
            dtype = data.get("element_type", "")
            shape = tuple(int(dim) for dim in data.get("shape", "").split(",") if dim.strip())
            offset, nbytes = int(data.get("offset", "")), int(data.get("size", ""))
            if dtype not in _BITS or nbytes != -(-math.prod(shape) * _BITS[dtype] // 8):
                continue
            if not 0 <= offset <= size - nbytes:
                raise ModelFormatError(
                    f"{xml}: {layer.get('name')!r} has bytes {offset} to {offset + nbytes} of a "
                    f"file of {size}"
                )
            array = np.frombuffer(mapping, np.uint8, nbytes, offset)
            yield layer.get("name", ""), StoredConstant(dtype, shape, array)
    except (ET.ParseError, ValueError) as exc:
        raise ModelFormatError(f"{xml}: is no IR ({exc})") from exc

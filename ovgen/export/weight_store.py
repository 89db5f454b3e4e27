"""The weights of an IR, streamed to its .bin file while the graph is built.

`openvino.save_model` reads every constant through memory, so here a graph holds placeholders: their
bytes go to the file at once, and the saved XML is told where they are. Memory holds no weight.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset15 as op

from ovgen.errors import StorageError

MODEL_XML = "openvino_model.xml"
MODEL_BIN = "openvino_model.bin"
_COPIED_BYTES = 1 << 22  # at a time
_ALIGNMENT = 64  # what the plugin's kernels can take as it is mapped


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one constant is in the file, and the node that stands for it in the graph.

    Attributes:
        store: that it belongs to.
        node: the placeholder.
        offset: of its first byte in the file.
        row_bytes: of what is written at a time at least.
        rows: that many times.
    """

    store: WeightStore
    node: ov.Node
    offset: int
    row_bytes: int
    rows: int

    def write(self, row: int, values: npt.NDArray[Any]) -> None:
        """Write from this row on; chunks may come in any order and from any thread."""
        data = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
        end = row * self.row_bytes + data.nbytes
        assert data.nbytes % self.row_bytes == 0
        assert end <= self.rows * self.row_bytes
        self.store.write(self.offset + row * self.row_bytes, data)


class WeightStore:
    """The .bin file of an IR and the placeholders of what is in it; use as a context manager.

    Raises (any method): OSError where the disk fails.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = (folder / MODEL_BIN).open("w+b", buffering=0)
        self._lock = threading.Lock()
        self._size = 0
        self._slots: dict[str, Slot] = {}
        self._as_stored: set[str] = set()

    def __enter__(self) -> WeightStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def placeholders(self) -> list[ov.Node]:
        """The parameters that the model has to be made with, besides its inputs."""
        return [slot.node for slot in self._slots.values()]

    @property
    def nbytes(self) -> int:
        """Bytes reserved so far."""
        return self._size

    def reserve(
        self,
        name: str,
        dtype: ov.Type,
        shape: list[int],
        *,
        row_axes: int = 1,
        as_stored: bool = False,
    ) -> Slot:
        """Room for a constant; types below a byte need rows of whole bytes.

        Args:
            name: of the constant in the graph.
            dtype: of its elements.
            shape: all axes.
            row_axes: how many of them, from the first, count the rows.
            as_stored: the device computes with these 16-bit floats as they are, where it would
                else turn them into float32 for good: half the memory traffic.
        """
        rows = math.prod(shape[:row_axes])
        row_bits = dtype.bitwidth * math.prod(shape[row_axes:])
        assert row_bits % 8 == 0, "rows are written alone"
        node = op.parameter(shape, dtype)
        unique = name if name not in self._slots else f"{name}#{len(self._slots)}"
        node.set_friendly_name(unique)
        offset = -(-self._size // _ALIGNMENT) * _ALIGNMENT
        slot = Slot(self, node, offset, row_bits // 8, rows)
        self._slots[unique] = slot
        if as_stored:
            self._as_stored.add(unique)
        self._size = offset + slot.row_bytes * slot.rows
        return slot

    def write(self, offset: int, data: npt.NDArray[np.uint8]) -> None:
        """Write bytes at this place of the file."""
        view = data.data
        with self._lock:
            self._file.seek(offset)
            while view:
                view = view[self._file.write(view) :]

    def save(self, model: ov.Model) -> None:
        """Write the graph, and read it back: OpenVINO does not notice a full disk.

        Raises:
            StorageError: it could not be written whole.
        """
        xml = self._folder / MODEL_XML
        draft = self._folder / "draft.xml"
        try:
            ov.save_model(model, draft, compress_to_fp16=False)
            base = self._append(draft.with_suffix(".bin"))
            self._point_to_file(draft, xml, base)
            ov.Core().read_model(xml)
        except (RuntimeError, ET.ParseError) as exc:
            free = shutil.disk_usage(self._folder).free >> 20
            raise StorageError(
                f"{xml} was not written whole: {_first_line(exc)}; its disk has {free} MB free, "
                "free some space or take another one"
            ) from exc
        finally:
            for path in (draft, draft.with_suffix(".bin")):
                path.unlink(missing_ok=True)

    def _append(self, path: Path) -> int:
        """Put the graph's own small constants behind the weights; gives where they begin."""
        base = -(-self._size // _ALIGNMENT) * _ALIGNMENT
        self._file.seek(0, os.SEEK_END)
        self._file.truncate(base)  # rows that were never written are zeros
        with path.open("rb") as file:
            for start in range(0, path.stat().st_size, _COPIED_BYTES):
                self.write(base + start, np.frombuffer(file.read(_COPIED_BYTES), np.uint8))
        os.fsync(self._file.fileno())  # a disk that is full says so here at the latest
        return base

    def _point_to_file(self, draft: Path, xml: Path, base: int) -> None:
        tree = ET.parse(draft)
        missing = dict(self._slots)
        for layer in tree.iter("layer"):
            data = layer.find("data")
            if layer.get("type") == "Const" and data is not None:
                data.set("offset", str(int(data.get("offset", "0")) + base))
            slot = missing.get(layer.get("name", ""))
            if slot is not None and layer.get("type") == "Parameter" and data is not None:
                del missing[layer.get("name", "")]
                layer.set("type", "Const")
                data.set("offset", str(slot.offset))
                data.set("size", str(slot.row_bytes * slot.rows))
                for port in layer.iter("port"):
                    port.attrib.pop("names", None)
        assert not missing, f"the model was made without {next(iter(missing))}"
        _mark_casts(tree, self._as_stored)
        tree.write(xml, encoding="utf-8", xml_declaration=True)


def _mark_casts(tree: ET.ElementTree[ET.Element], names: set[str]) -> None:
    """Mark the casts of these constants as frontends mark decompression: the plugin folds casts
    that are not marked into float32 constants."""
    layers = {layer.get("id"): layer for layer in tree.iter("layer")}
    for edge in tree.iter("edge"):
        source, cast = layers[edge.get("from-layer")], layers[edge.get("to-layer")]
        if source.get("name") in names and cast.get("type") == "Convert":
            info = ET.Element("rt_info")
            ET.SubElement(info, "attribute", name="decompression", version="0")
            cast.insert(1, info)  # behind its data, where the format has it


def _first_line(exc: BaseException) -> str:
    return next((line.strip() for line in str(exc).splitlines() if line.strip()), "unknown error")

"""The tensors of a checkpoint as the matrices and vectors that an architecture asks for by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ovgen.errors import ModelFormatError
from ovgen.export.checkpoint import Checkpoint, Floats, Tensor
from ovgen.export.compression import CompressionConfig
from ovgen.export.compression_plan import CompressionPlan
from ovgen.export.compression_report import CompressionReport
from ovgen.export.matrices import Format, Matrix
from ovgen.export.tensor_views import OrderedTensor, SlicedTensor, TransposedTensor
from ovgen.export.weight_store import WeightStore
from ovgen.export.weights import MatrixRequest, finite, read_matrix

# What older versions of transformers saved although it follows from the config.
_DERIVED = re.compile(r"(?:.*\.)?(?:rotary_emb\.inv_freq|(?:attn|attention)\.(?:masked_)?bias)")


class WeightReader:
    """The tensors of a checkpoint, each to be asked for by name and in the wanted format."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        weights: CompressionConfig | str,
        store: WeightStore,
        importance: Mapping[str, Floats] | None = None,
        on_read: Callable[[float], None] = lambda share: None,
    ) -> None:
        config = CompressionConfig(mode=weights) if isinstance(weights, str) else weights
        self._checkpoint = checkpoint
        self._store = store
        self._tensors = checkpoint.tensors
        self._plan = CompressionPlan(config, checkpoint)
        self._unread = {name for name in self._tensors if not _DERIVED.fullmatch(name)}
        self._importance = importance or {}
        self._report = CompressionReport()
        self._on_read = on_read  # called with the share of all values that is done
        self._num_read = 0
        self._num_values = sum(map(_num_values, self._tensors.values()))
        self.joined: dict[str, str] = {}  # tensors -> the first one in the same matrix

    @property
    def placeholders(self) -> list[Any]:
        """Nodes that stand for weights in the graph; see `DecoderGraph.model`."""
        return self._store.placeholders

    @property
    def report(self) -> CompressionReport:
        """What became of the matrices that were read."""
        self._report.notes = self._plan.notes
        return self._report

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def prefix(self, module: str, name: str) -> str:
        """``module`` with a dot if the names of this checkpoint begin with it, else nothing.

        The first checkpoints of some families leave out the name of the model without its head.
        ``name``: of a tensor in the module.
        """
        return f"{module}." if f"{module}.{name}" in self._tensors else ""

    def vector(self, name: str, size: int) -> Floats:
        """A one-dimensional tensor as float32 [size]."""
        return self.array(name, (size,)).reshape(size)

    def array(self, name: str, shape: tuple[int, ...]) -> Floats:
        """A small tensor of any shape as float32."""
        tensor = self._take(name, shape)
        values = finite(tensor, tensor.values(slice(None)), np.float32)
        return np.array(values, np.float32).reshape(shape)

    def matrix(
        self,
        name: str,
        shape: tuple[int, int],
        *,
        is_table: bool = False,
        order: npt.NDArray[np.intp] | None = None,
        transposed: bool = False,
    ) -> Matrix:
        """A matrix [rows, cols].

        Args:
            name: of the tensor.
            shape: of the matrix.
            is_table: its rows are looked up.
            order: of its rows, None as the file has them.
            transposed: the file has it as [cols, rows].
        """
        tensor = self._take(name, shape[::-1] if transposed else shape)
        if transposed:
            # GGUF has turned it already, and its own form keeps its grid.
            if isinstance(tensor, TransposedTensor):
                tensor = tensor.tensor
            else:
                tensor = TransposedTensor(tensor, name)
        tensor = _ordered(tensor, order)
        return self._read([tensor], self._format(tensor, is_table))

    def experts(
        self, names: Sequence[str], shape: tuple[int, int, int], *, transposed: bool = False
    ) -> Matrix:
        """One batch of matrices [experts, rows, cols], without offsets.

        Args:
            names: of the experts' tensors, or of a single one that holds them all.
            shape: of the batch.
            transposed: the single tensor is [experts, cols, rows].
        """
        experts, rows, cols = shape
        if len(names) == experts:
            tensors = [self._take(name, (rows, cols)) for name in names]
        else:
            tensor = self._take(names[0], (experts, cols, rows) if transposed else shape)
            tensors = [TransposedTensor(tensor, names[0]) if transposed else tensor]
        formats = [self._plan.format(each, is_table=False, is_expert=True) for each in tensors]
        # One format for all: where the plan keeps some in 8 bits, it is theirs.
        fmt = next((each for each in formats if each.kind == "int8_sym"), formats[0])
        return self._read(tensors, fmt, experts=experts)

    def stack(
        self,
        parts: Sequence[tuple[str, int]],
        cols: int,
        *,
        orders: Sequence[npt.NDArray[np.intp] | None] | None = None,
    ) -> list[Matrix]:
        """Matrices ``(name, rows)`` that are applied to the same input, as few as can be.

        All in one where their formats agree, so that one matmul computes them; else each alone.
        ``orders``: of the rows of each, None as the file has them.
        """
        tensors = [
            _ordered(self._take(name, (rows, cols)), order)
            for (name, rows), order in zip(parts, orders or [None] * len(parts), strict=True)
        ]
        formats = [self._format(tensor, is_table=False) for tensor in tensors]
        if len(set(formats)) == 1 and (formats[0].kind != "codes" or _same_columns(tensors)):
            return [self._read(tensors, formats[0])]
        return [self._read([tensor], fmt) for tensor, fmt in zip(tensors, formats, strict=True)]

    def parts(self, name: str, parts: Sequence[tuple[str, int]], cols: int) -> list[Matrix]:
        """Matrices that a file has joined, each alone, in one format.

        Args:
            name: of the tensor.
            parts: what each is called in the graph, and its rows.
            cols: of all.
        """
        whole = self._take(name, (sum(rows for _, rows in parts), cols))
        fmt, first, matrices = self._format(whole, is_table=False), 0, []
        for part, rows in parts:
            matrices.append(self._read([SlicedTensor(whole, part, first, rows)], fmt))
            first += rows
        return matrices

    def ignore(self, name: str) -> None:
        """Leave a tensor unread that the model has but does not use, if it is there."""
        self._unread.discard(name)

    def refuse_unread(self) -> None:
        """Raise ModelFormatError if a tensor was not used: the graph would not be the model's."""
        unread = [name for name in self._tensors if name in self._unread]
        unread = [name for name in unread if not _is_zero_bias(self._tensors[name])]
        if unread:
            raise ModelFormatError(
                f"{self._checkpoint.path}: {len(unread)} tensors do not belong to this "
                f"architecture, the first are {', '.join(unread[:3])}"
            )

    def _read(
        self, tensors: Sequence[Tensor], fmt: Format, *, experts: int | None = None
    ) -> Matrix:
        first = tensors[0].name
        self.joined.update(dict.fromkeys((tensor.name for tensor in tensors), first))
        request = MatrixRequest(
            tensors, fmt, experts, self._importance.get(first), self._checkpoint.release_pages
        )
        matrix, errors = read_matrix(request, self._store)
        self._report.add(tensors, fmt, errors)
        self._num_read += sum(map(_num_values, tensors))
        self._on_read(self._num_read / max(1, self._num_values))
        return matrix

    def _format(self, tensor: Tensor, is_table: bool) -> Format:
        return self._plan.format(tensor, is_table=is_table)

    def _take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelFormatError(f"{self._checkpoint.path}: the tensor {name!r} is missing")
        if tuple(tensor.shape) != shape:
            raise ModelFormatError(
                f"{self._checkpoint.path}: tensor {name!r} has shape {tuple(tensor.shape)}, "
                f"the config asks for {shape}"
            )
        self._unread.discard(name)
        return tensor


def _num_values(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64))


def _is_zero_bias(tensor: Tensor) -> bool:
    """Whether it is a bias that changes nothing: some quantizers wrote one for every layer."""
    is_bias = tensor.name.endswith(".bias") and len(tensor.shape) == 1
    return is_bias and not tensor.values(slice(None)).any()


def _ordered(tensor: Tensor, order: npt.NDArray[np.intp] | None) -> Tensor:
    return tensor if order is None else OrderedTensor(tensor, tensor.name, order)


def _same_columns(tensors: Sequence[Tensor]) -> bool:
    first, *others = (tensor.column_order for tensor in tensors)
    if first is None:
        return all(order is None for order in others)
    return all(order is not None and np.array_equal(order, first) for order in others)

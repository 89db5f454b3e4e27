"""The tensors of a file as the matrices and vectors that an architecture asks for by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ovgen.errors import ModelFormatError
from ovgen.export.gguf import GGUFFile, GGUFTensor
from ovgen.export.gguf_quants import dequantize
from ovgen.export.weights import (
    INT8_GROUP,
    Format,
    Matrix,
    check_weights,
    choose_format,
    finite,
    read_matrix,
)

# The first and the last block take a group below the run time's quantization group of 64, which
# keeps their inputs in float32. They are 2 of SmolLM2's 30 blocks, and its mean KL falls from
# 0.0060 to 0.0041 by it.
OUTER_INT8_GROUP = 32
_BLOCK = re.compile(r"blk\.\d+\.")


class WeightReader:
    """The tensors of a GGUF file, each to be asked for by name and in the wanted format."""

    def __init__(self, gguf: GGUFFile, weights: str) -> None:
        check_weights(weights)
        self._gguf = gguf
        self._weights = weights
        self._unread = dict.fromkeys(gguf.tensors)
        blocks = [int(name.split(".")[1]) for name in gguf.tensors if _BLOCK.match(name)]
        self._outer_blocks = ("blk.0.", f"blk.{max(blocks, default=0)}.")
        self.num_parameters = sum(int(np.prod(t.shape)) for t in gguf.tensors.values())

    def __contains__(self, name: str) -> bool:
        return name in self._gguf.tensors

    def vector(self, name: str, size: int) -> npt.NDArray[np.float32]:
        """A one-dimensional tensor as float32 [size]."""
        tensor = self._take(name, (size,))
        return finite(tensor, dequantize(tensor.data, tensor.type), np.float32).reshape(size)

    def matrix(
        self,
        name: str,
        shape: tuple[int, int],
        *,
        is_table: bool = False,
    ) -> Matrix:
        """A matrix [rows, cols]; a table is looked up by row."""
        tensor = self._take(name, shape)
        return self._read([tensor], self._format(tensor, is_table))

    def stack(
        self,
        parts: Sequence[tuple[str, int]],
        cols: int,
        *,
        interleaved: Sequence[int] | None = None,
    ) -> list[Matrix]:
        """Matrices ``(name, rows)`` that are applied to the same input, as few as can be.

        All in one where their formats agree, so that one matmul computes them; else each alone.
        ``interleaved``: see `read_matrix`.
        """
        tensors = [self._take(name, (rows, cols)) for name, rows in parts]
        formats = [self._format(tensor, is_table=False) for tensor in tensors]
        heads = interleaved or [0] * len(tensors)
        kept_codes = formats[0].kind == "codes"
        if len(set(formats)) == 1 and (not kept_codes or len({t.type for t in tensors}) == 1):
            return [self._read(tensors, formats[0], heads)]
        return [
            self._read([tensor], fmt, [head])
            for tensor, fmt, head in zip(tensors, formats, heads, strict=True)
        ]

    def refuse_unread(self) -> None:
        """Raise ModelFormatError if a tensor was not used: the graph would not be the model's."""
        if self._unread:
            names = ", ".join(list(self._unread)[:3])
            raise ModelFormatError(
                f"{self._gguf.path}: {len(self._unread)} tensors do not belong to this "
                f"architecture, the first are {names}"
            )

    def _read(
        self, tensors: Sequence[GGUFTensor], fmt: Format, interleaved: Sequence[int] | None = None
    ) -> Matrix:
        is_outer = tensors[0].name.startswith(self._outer_blocks)
        group = OUTER_INT8_GROUP if is_outer else INT8_GROUP
        matrix = read_matrix(tensors, fmt, interleaved=interleaved, int8_group=group)
        self._gguf.release_pages()
        return matrix

    def _format(self, tensor: GGUFTensor, is_table: bool) -> Format:
        return choose_format(
            tensor.type,
            self._weights,
            num_parameters=self.num_parameters,
            is_table=is_table,
        )

    def _take(self, name: str, shape: tuple[int, ...]) -> GGUFTensor:
        tensor = self._gguf.tensors.get(name)
        if tensor is None:
            raise ModelFormatError(f"{self._gguf.path}: the tensor {name!r} is missing")
        if tuple(tensor.shape) != shape:
            raise ModelFormatError(
                f"{self._gguf.path}: tensor {name!r} has shape {tuple(tensor.shape)}, "
                f"the metadata asks for {shape}"
            )
        self._unread.pop(name, None)
        return tensor

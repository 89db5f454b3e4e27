"""What every source of weights is to the exporter: a config and tensors by transformers' names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Rows: TypeAlias = slice | npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Grid:
    """The integer grid that a tensor's values lie on, ``w = scales * codes + offsets`` by groups.

    Attributes:
        bits: of a code.
        group: neighbours along a row that share a scale and an offset.
        has_offsets: False where zero is in the middle of the codes.
        has_zero_points: the offsets are ``-scales`` times a whole number from 0 to 255.
    """

    bits: int
    group: int
    has_offsets: bool
    has_zero_points: bool = False


@dataclass(frozen=True, slots=True)
class Codes:
    """Some rows of a tensor on its grid; the expression in float32 is the tensor's value.

    Attributes:
        codes: [rows, cols], int8 without offsets, uint8 with.
        scales: [rows, cols / group].
        offsets: [rows, cols / group], or None.
    """

    codes: npt.NDArray[np.int8] | npt.NDArray[np.uint8]
    scales: Floats
    offsets: Floats | None


class Tensor(Protocol):
    """One tensor where it is stored: it is read some rows at a time, never as a whole.

    A tensor of more than two axes counts as [product of the leading axes, last axis] here; one of
    one axis as [1, size].
    """

    @property
    def name(self) -> str:
        """As transformers calls it, ``model.layers.0.mlp.up_proj.weight``."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Outermost axis first."""
        ...

    @property
    def dtype(self) -> str:
        """How it is stored, for messages and tables: ``BF16``, ``Q4_K``, ``GPTQ 4 bit``."""
        ...

    @property
    def grid(self) -> Grid | None:
        """Of a quantized tensor; None for floats."""
        ...

    @property
    def column_order(self) -> npt.NDArray[np.intp] | None:
        """Where groups are no neighbours (GPTQ with act-order): ``codes`` comes with its columns in
        this order, ``values`` as transformers has it. None for the usual case.
        """
        ...

    def values(self, rows: Rows) -> Floats:
        """Rows as float32 [rows, cols]; not finite where the file is not."""
        ...

    def codes(self, rows: Rows) -> Codes:
        """Rows of a tensor that has a grid."""
        ...


class Checkpoint(Protocol):
    """A model's config and tensors, mapped from its files until it is closed."""

    @property
    def path(self) -> Path:
        """The file or folder, for messages."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json, or what it would be: transformers' names and meanings, not yet checked."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """By transformers' names."""
        ...

    def release_pages(self) -> None:
        """Let the system drop from memory what was read."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...

"""MXFP4 checkpoints: gpt-oss's experts, four-bit floats of which 32 share a power of two.

OCP Microscaling Formats 1.0, E2M1 with E8M0 scales, as transformers stores them: ``X_blocks``
[experts, out, groups, 16] with the even columns in the low halves of the bytes, and ``X_scales``
[experts, out, groups].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ovgen.errors import ModelFormatError
from ovgen.export.checkpoint import Codes, Floats, Grid, Rows, Tensor
from ovgen.export.float_tensor import FloatTensor
from ovgen.export.safetensors import StoredTensor

_GROUP = 32
_BLOCKS, _SCALES = "_blocks", "_scales"
# Twice the sixteen values, so that they are integers.
_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


class MXFP4Tensor:
    """Weights [experts, out, in] on an integer grid; see `ovgen.export.checkpoint.Tensor`."""

    __slots__ = ("_blocks", "_name", "_scales", "_shape")

    def __init__(self, name: str, blocks: StoredTensor, scales: StoredTensor) -> None:
        *leading, groups, _ = blocks.shape
        self._name = name
        self._shape = (*leading, groups * _GROUP)
        self._blocks = blocks.data.reshape(-1, groups * _GROUP // 2)
        self._scales = scales.data

    @property
    def name(self) -> str:
        """As ``model.layers.0.mlp.experts.down_proj.weight``."""
        return self._name

    @property
    def shape(self) -> tuple[int, ...]:
        """[experts, out, in]."""
        return self._shape

    @property
    def dtype(self) -> str:
        """``MXFP4``."""
        return "MXFP4"

    @property
    def grid(self) -> Grid | None:
        """Eight bits, though stored in four: the values are no neighbours."""
        return Grid(8, _GROUP, has_offsets=False)

    @property
    def column_order(self) -> npt.NDArray[np.intp] | None:
        """None: groups are neighbours."""
        return None

    def values(self, rows: Rows) -> Floats:
        """Rows as float32 [rows, in]."""
        found = self.codes(rows)
        values = found.codes.reshape(*found.scales.shape, _GROUP) * found.scales[..., None]
        return values.reshape(found.codes.shape)

    def codes(self, rows: Rows) -> Codes:
        """Rows on the grid."""
        packed = self._blocks[rows]
        codes = np.stack((_DOUBLED[packed & 15], _DOUBLED[packed >> 4]), axis=-1)
        scales = np.ldexp(np.float32(1), self._scales[rows].astype(np.int32) - 128)
        return Codes(codes.reshape(len(packed), -1), scales, None)


def mxfp4_tensors(
    stored: Mapping[str, StoredTensor], options: Mapping[str, Any], folder: Path
) -> dict[str, Tensor]:
    """The tensors of an MXFP4 checkpoint, ``X_blocks`` and ``X_scales`` as ``X.weight``.

    Raises ModelFormatError: a part is missing, or has another shape or dtype.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith(_SCALES) and name.removesuffix(_SCALES) + _BLOCKS in stored:
            continue
        if not name.endswith(_BLOCKS):
            tensors[name] = FloatTensor(tensor)
            continue
        prefix = name.removesuffix(_BLOCKS)
        scales = stored.get(prefix + _SCALES)
        if scales is None:
            raise ModelFormatError(f"{folder}: {name!r:.120} has no {_SCALES!r}")
        shapes = f"{list(tensor.shape)} and {list(scales.shape)}"
        is_sound = len(tensor.shape) > 2 and tensor.shape == (*scales.shape, _GROUP // 2)
        if not is_sound or (tensor.dtype, scales.dtype) != ("U8", "U8"):
            raise ModelFormatError(
                f"{folder}: the blocks and scales of {prefix!r:.120} are {tensor.dtype} and "
                f"{scales.dtype} of shape {shapes}, expected U8 of [..., groups, 16] and "
                "[..., groups]"
            )
        tensors[f"{prefix}.weight"] = MXFP4Tensor(f"{prefix}.weight", tensor, scales)
    return tensors

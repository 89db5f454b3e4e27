"""Which format each tensor of a checkpoint gets, decided before the first is read."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import cast

import numpy as np

from ovgen.errors import ConfigError
from ovgen.export.checkpoint import Checkpoint, Grid, Tensor
from ovgen.export.compression import (
    FLOAT_MODES,
    FOUR_BIT_MODES,
    INT8_MODES,
    PER_CHANNEL,
    CompressionConfig,
)
from ovgen.export.matrices import FloatType, Format, Kind
from ovgen.export.sensitivity import eight_bit_names

# Below this many parameters a matmul costs more in overhead than in memory traffic, so that one
# int8 matmul beats 4-bit codes with a second matmul for the offsets.
SMALL_MODEL_PARAMETERS = 500_000_000
INT8_GROUP = 64
# A group below the run time's quantization group of 64 keeps a matrix's input in floating point. It
# does most for queries, keys and values, an eighth of SmolLM2's weights, and for the last block:
# mean KL of int8 at run time 0.0062 with neither, 0.0041 with both.
SMALL_INT8_GROUP = 32
# The plugin does not quantize the input of experts at run time, so small groups gain nothing there.
EXPERT_INT8_GROUP = 128
INT4_GROUP = 128
_SMALLEST_GROUP = 32  # smaller ones are slow
_INT8_REST = "8 bits beside 4"

_QKV = re.compile(r".*\.(?:[qkv]_proj|qkv_proj|query_key_value|c_attn|Wqkv)\.")
_BLOCK = re.compile(r"(?:[a-z_]+\.)+(\d+)\.")
_SHORT: dict[str, FloatType] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}


class CompressionPlan:
    """The format of every tensor.

    Args:
        config: what was asked for.
        checkpoint: a few rows of its tensors are read where a ratio is asked for.

    Raises:
        ConfigError: an override fits no tensor.
    """

    def __init__(self, config: CompressionConfig, checkpoint: Checkpoint) -> None:
        tensors = checkpoint.tensors
        self._config = config
        self._num_parameters = sum(int(np.prod(t.shape)) for t in tensors.values())
        self._last_block = max(map(block_number, tensors), default=-1)
        self._notes: dict[str, int] = {}  # an ordered set
        for pattern, _ in config.overrides:
            if not any(fnmatchcase(name, pattern) for name in tensors):
                raise ConfigError(
                    f"the override {pattern!r} fits no tensor; they are called like "
                    f"{next((n for n in tensors if block_number(n) == 0), next(iter(tensors), ''))}"
                )
        self._in_eight_bits: frozenset[str] = frozenset()
        if config.ratio is not None:
            candidates = {
                name: tensor
                for name, tensor in tensors.items()
                if len(tensor.shape) > 1 and (config.all_layers or block_number(name) >= 0)
            }
            self._in_eight_bits = eight_bit_names(
                candidates, config.ratio, self._four_bit_group, checkpoint.release_pages
            )

    @property
    def notes(self) -> list[str]:
        """What differs from what was asked for, in sentences."""
        return list(self._notes)

    def format(self, tensor: Tensor, *, is_table: bool = False, is_expert: bool = False) -> Format:
        """The format of one tensor.

        Args:
            tensor: of the checkpoint.
            is_table: its rows are looked up as well as multiplied; so it keeps no offsets, which
                a lookup would undo for the whole table at once.
            is_expert: it is one of a batch; so it keeps no offsets, whose second matmul the plugin
                would do for all experts.
        """
        mode, offsets = self._mode(tensor, is_table), not is_table and not is_expert
        if mode in FLOAT_MODES:
            return Format("dense", _SHORT[mode])
        if mode == "exact":
            return _exact(tensor, offsets)
        if mode == "auto":
            return self._auto(tensor, offsets, is_expert)
        if mode in INT8_MODES:
            is_beside = self._config.mode in FOUR_BIT_MODES  # where group_size is that of 4 bits
            wanted = None if is_beside else self._config.group_size
            return self._int8(cast(Kind, mode), tensor, is_expert, wanted)
        group = None if mode == _INT8_REST else self._four_bit_group(tensor)
        if group is None:
            return self._int8("int8_sym", tensor, is_expert)
        return Format(cast(Kind, mode), "f16", group, search=self._config.scale_search)

    def _mode(self, tensor: Tensor, is_table: bool) -> str:
        for pattern, mode in self._config.overrides:
            if fnmatchcase(tensor.name, pattern):
                return mode
        mode = self._config.mode
        if mode in FOUR_BIT_MODES:
            is_outside = is_table or block_number(tensor.name) < 0
            if (is_outside and not self._config.all_layers) or tensor.name in self._in_eight_bits:
                return _INT8_REST
        return mode

    def _auto(self, tensor: Tensor, offsets: bool, is_expert: bool) -> Format:
        """8-bit and symmetric 4-bit codes as they are, asymmetric 4-bit codes with their offsets,
        everything else as int8; small models take int8 throughout."""
        grid = tensor.grid
        if grid is not None and grid.bits > 4 and grid.group == 32 and not grid.has_offsets:
            return Format("codes", "f16", grid=grid)
        is_small = self._num_parameters < SMALL_MODEL_PARAMETERS
        if grid is not None and grid.bits == 4 and not is_small and _may_keep(grid, offsets):
            return Format("codes", "f16", grid=grid)
        return self._int8("int8_sym", tensor, is_expert)

    def _int8(
        self, kind: Kind, tensor: Tensor, is_expert: bool, wanted: int | None = None
    ) -> Format:
        cols = tensor.shape[-1]
        if wanted is not None:
            return Format(kind, "f16", self._group(wanted, cols) or cols)
        is_last = block_number(tensor.name) == self._last_block
        default = SMALL_INT8_GROUP if is_last or _QKV.match(tensor.name) else INT8_GROUP
        sizes = (EXPERT_INT8_GROUP, 64, 32) if is_expert else (default, 32)
        return Format(kind, "f16", next((size for size in sizes if cols % size == 0), cols))

    def _four_bit_group(self, tensor: Tensor) -> int | None:
        """The group, or None where a row cannot be in 4 bits: it has to fill whole bytes."""
        cols = tensor.shape[-1]
        group = self._group(self._config.group_size or INT4_GROUP, cols)
        if group is None or cols % 2:
            self._notes[f"rows of {cols} values stay in 8 bits: no group divides them"] = 1
            return None
        return group

    def _group(self, wanted: int, cols: int) -> int | None:
        """The group for rows of so many columns, None where there is none."""
        if wanted == PER_CHANNEL:
            return cols
        if cols % wanted == 0:
            return wanted
        size = 1 << (wanted.bit_length() - 1)
        while cols % size:
            size //= 2
        if size < _SMALLEST_GROUP:
            return None
        self._notes[
            f"rows of {cols} values take groups of {size}: {wanted} does not divide them"
        ] = 1
        return size


def _exact(tensor: Tensor, offsets: bool) -> Format:
    grid = tensor.grid
    if grid is None or not _may_keep(grid, offsets):
        dense: dict[str, FloatType] = {"F16": "f16", "BF16": "bf16"}
        return Format("dense", dense.get(tensor.dtype, "f32"))
    return Format("codes", "f32", grid=grid)


def _may_keep(grid: Grid, offsets: bool) -> bool:
    """Whether codes can stay, where offsets may or may not be."""
    return offsets or not grid.has_offsets or grid.has_zero_points


def block_number(name: str) -> int:
    """The number of the block that a tensor is in; -1 outside of them."""
    found = _BLOCK.match(name)
    return int(found[1]) if found else -1

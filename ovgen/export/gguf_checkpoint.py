"""A GGUF file as a checkpoint: its metadata as a config, its tensors by transformers' names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ovgen.errors import ModelFormatError
from ovgen.export.checkpoint import Codes, Floats, Grid, Rows, Tensor
from ovgen.export.checkpoint_config import MAX_SIZE
from ovgen.export.gguf import GGUFFile, GGUFTensor, open_gguf
from ovgen.export.gguf_config import config_of, family_of
from ovgen.export.gguf_names import EXPERT, transformers_name
from ovgen.export.gguf_quants import codes, dequantize
from ovgen.export.gguf_rope import ROPE_FACTORS
from ovgen.export.tensor_views import (
    AlternatingColumns,
    AlternatingTensor,
    OrderedTensor,
    ShiftedTensor,
    SlicedTensor,
    TransposedTensor,
    halves_first,
    parts_first,
)

# llama.cpp rotates neighbours in these, so that its converter interleaved the rows.
_INTERLEAVED = ("granite", "llama", "mixtral", "smollm3")
# Queries, keys and values of a head are together in these, and the converter parted them.
_PARTS_FIRST = ("bloom", "falcon", "gptneox")
_TRANSPOSED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
_GEMMAS = ("gemma", "gemma2", "gemma3")  # their norms multiply by 1 + weight, GGUF stores the sum


class FileTensor:
    """A tensor of a GGUF file; see `ovgen.export.checkpoint.Tensor`."""

    __slots__ = ("_grid", "_tensor", "name")

    def __init__(self, tensor: GGUFTensor, name: str) -> None:
        self._tensor = tensor
        self.name = name
        first = codes(tensor.data[:1], tensor.type)
        self._grid = (
            None if first is None else Grid(first.bits, first.group, first.offsets is not None)
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Outermost axis first."""
        return self._tensor.shape

    @property
    def dtype(self) -> str:
        """GGML's name of the type."""
        return self._tensor.type.name

    @property
    def grid(self) -> Grid | None:
        """The grid of a quantized type."""
        return self._grid

    @property
    def column_order(self) -> npt.NDArray[np.intp] | None:
        """None: groups are neighbours."""
        return None

    def values(self, rows: Rows) -> Floats:
        """Rows as float32 [rows, cols]."""
        return dequantize(self._tensor.data[rows], self._tensor.type)

    def codes(self, rows: Rows) -> Codes:
        """Rows on the file's grid."""
        found = codes(self._tensor.data[rows], self._tensor.type)
        assert found is not None, "only quantized types have codes"
        return Codes(found.codes, found.scales, found.offsets)


class GGUFCheckpoint:
    """An open GGUF file; see `ovgen.export.checkpoint.Checkpoint`.

    Raises what `open_gguf` does, and UnsupportedModelError for an architecture whose names are
    not known.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.gguf = open_gguf(path)
        try:
            self.config: Mapping[str, Any] = config_of(self.gguf)
            self.tensors: Mapping[str, Tensor] = _tensors(self.gguf)
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> Path:
        """The file."""
        return self.gguf.path

    def release_pages(self) -> None:
        """Let the system drop from memory what was read."""
        self.gguf.release_pages()

    def close(self) -> None:
        """Let go of the file."""
        self.tensors = {}
        self.gguf.close()

    def __enter__(self) -> GGUFCheckpoint:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _tensors(gguf: GGUFFile) -> dict[str, Tensor]:
    family = family_of(gguf)
    tensors: dict[str, Tensor] = {}
    for stored in gguf.tensors.values():
        if stored.name not in ROPE_FACTORS:  # they are in the config
            for tensor in _named(gguf, family, stored):
                tensors[tensor.name] = _as_transformers(gguf, family, tensor)
    if family == "gpt-oss":
        _join_gates(tensors)
    return tensors


def _named(gguf: GGUFFile, family: str, stored: GGUFTensor) -> Iterator[Tensor]:
    """What transformers has for a tensor: one, or several that GGUF has joined."""
    known = transformers_name(family, stored.name)
    if known is not None and EXPERT in known and len(stored.shape) == 3:
        yield from _experts(FileTensor(stored, known))
    elif known is not None:
        if family == "falcon" and "blk.0.attn_norm_2.weight" in gguf.tensors:
            known = known.replace(".input_layernorm.", ".ln_mlp.")
        yield FileTensor(stored, known)
    elif ".attn_qkv." in stored.name:
        yield from _projections(gguf, family, stored)
    else:  # under GGUF's own name nobody asks for it, and it is refused
        yield FileTensor(stored, stored.name)


def _projections(gguf: GGUFFile, family: str, stored: GGUFTensor) -> Iterator[Tensor]:
    """Queries, keys and values, which llama.cpp may have joined in any family."""
    joined = FileTensor(stored, stored.name)
    heads, kv_heads = _heads(gguf)
    head_dim, rest = divmod(stored.shape[0], heads + 2 * kv_heads)
    if rest:
        raise ModelFormatError(
            f"{gguf.path}: tensor {stored.name!r} has {stored.shape[0]} rows, expected a multiple "
            f"of {heads} query heads and twice {kv_heads} key/value heads"
        )
    first = 0
    for part, count in ("attn_q", heads), ("attn_k", kv_heads), ("attn_v", kv_heads):
        own = stored.name.replace("attn_qkv", part)
        name = transformers_name(family, own) or own
        yield SlicedTensor(joined, name, first, count * head_dim)
        first += count * head_dim


def _experts(tensor: Tensor) -> Iterator[Tensor]:
    """The matrices of a tensor [experts, rows, cols]."""
    experts, rows, _ = tensor.shape
    for expert in range(experts):
        name = tensor.name.replace(EXPERT, str(expert))
        yield SlicedTensor(tensor, name, expert * rows, rows)


def _join_gates(tensors: dict[str, Tensor]) -> None:
    """gpt-oss's gates and ups in turns, as its own checkpoints have them."""
    for name, gate in list(tensors.items()):
        if ".ffn_gate_exps." not in name:
            continue
        up = tensors.pop(name.replace("_gate_", "_up_"), None)
        del tensors[name]
        if up is None or up.shape != gate.shape or up.grid != gate.grid:
            raise ModelFormatError(
                f"tensor {name!r} needs another like it, {name.replace('_gate_', '_up_')!r}"
            )
        block = name.split(".")[1]
        joined = f"model.layers.{block}.mlp.experts.gate_up_proj"
        if name.endswith(".bias"):
            whole: Tensor = AlternatingColumns(gate, f"{joined}_bias", up)
        else:
            whole = AlternatingTensor(gate, f"{joined}.weight", up)
        tensors[whole.name] = whole


def _as_transformers(gguf: GGUFFile, family: str, tensor: Tensor) -> Tensor:
    """Undo what llama.cpp's converter did to the values."""
    name = tensor.name
    if family in _GEMMAS and name.endswith("norm.weight"):
        return ShiftedTensor(tensor, name, -1.0)
    if family == "gpt2" and name.endswith(_TRANSPOSED):
        return TransposedTensor(tensor, name)
    order = _row_order(gguf, family, tensor)
    # Where the rows do not fit, the architecture refuses the shape.
    return tensor if order is None else OrderedTensor(tensor, name, order)


def _row_order(gguf: GGUFFile, family: str, tensor: Tensor) -> npt.NDArray[np.intp] | None:
    """Where transformers' rows are; None where they are in their places."""
    name, size = tensor.name, tensor.shape[0]
    heads, kv_heads = _heads(gguf)
    if family in _INTERLEAVED and (".q_proj." in name or ".k_proj." in name):
        count = heads if ".q_proj." in name else kv_heads
        return halves_first(count, size // count) if size % (2 * count) == 0 else None
    if family in _PARTS_FIRST and ".query_key_value." in name:
        head_dim, rest = divmod(size, heads + 2 * kv_heads)
        if rest == 0 and heads % kv_heads == 0:
            return np.argsort(parts_first(kv_heads, heads // kv_heads, head_dim))
    return None


def _heads(gguf: GGUFFile) -> tuple[int, int]:
    """Query heads, and key and value heads."""
    prefix = f"{gguf.architecture}.attention"
    heads = gguf.get_int(f"{prefix}.head_count", min=1, max=MAX_SIZE)
    return heads, gguf.get_int(f"{prefix}.head_count_kv", default=heads, min=1, max=MAX_SIZE)

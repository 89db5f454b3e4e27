"""Layers that a checkpoint stores in several tensors each, as ``X.qweight`` and ``X.scales``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ovgen.errors import ModelFormatError
from ovgen.export.checkpoint import Tensor
from ovgen.export.float_tensor import FloatTensor
from ovgen.export.safetensors import StoredTensor

_MAX_INT = 2**31


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """The tensors of one layer by the last part of their names."""

    name: str
    folder: Path
    parts: Mapping[str, StoredTensor]

    def __getitem__(self, part: str) -> StoredTensor:
        return self.parts[part]

    def get(self, part: str) -> StoredTensor | None:
        """One that may be missing."""
        return self.parts.get(part)

    def fail(self, problem: str) -> NoReturn:
        """Raise ModelFormatError."""
        raise ModelFormatError(f"{self.folder}: the quantized layer {self.name!r:.120} {problem}")

    def matrix(self, part: str, dtypes: Sequence[str]) -> tuple[int, int]:
        """The shape of a part that must have two axes and one of the dtypes."""
        tensor = self.parts[part]
        if len(tensor.shape) != 2 or tensor.dtype not in dtypes:
            self.fail(
                f"has {part!r} of dtype {tensor.dtype} and shape {list(tensor.shape)}, expected a "
                f"matrix of {' or '.join(dtypes)}"
            )
        return tensor.shape[0], tensor.shape[1]

    def expect(self, part: str, shape: tuple[int, ...], dtypes: Sequence[str] = ()) -> None:
        """Raise ModelFormatError unless a part has this shape and one of the dtypes."""
        tensor = self.parts[part]
        if tensor.shape != shape or (dtypes and tensor.dtype not in dtypes):
            self.fail(
                f"has {part!r} of dtype {tensor.dtype} and shape {list(tensor.shape)}, expected "
                f"{' or '.join([*dtypes, str(list(shape))])}"
            )

    def group_size(self, cols: int, groups: int, wanted: int, may_differ: bool = False) -> int:
        """The columns of a group where `cols` are in `groups`; `wanted` -1 means all of them."""
        group = cols if wanted == -1 else wanted
        if may_differ and (group < 1 or -(-cols // group) != groups):
            group = -(-cols // groups)
        if group < 1 or -(-cols // group) != groups:
            self.fail(
                f"has {groups} groups for {cols} inputs, which the config's group_size {wanted} "
                "does not give"
            )
        return group


def split_layers(
    stored: Mapping[str, StoredTensor],
    required: Sequence[str],
    optional: Sequence[str],
    folder: Path,
) -> tuple[dict[str, Tensor], list[PackedLayer]]:
    """The tensors that stand for themselves, and the layers that consist of the given parts.

    Raises ModelFormatError: a layer lacks a required part, is there as ``X.weight`` as well, or
    there is none.
    """
    parts = {*required, *optional}
    tensors: dict[str, Tensor] = {}
    found: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        prefix, _, part = name.rpartition(".")
        if part in parts:
            found.setdefault(prefix, {})[part] = tensor
        else:
            tensors[name] = FloatTensor(tensor)
    if not found:
        raise ModelFormatError(
            f"{folder}: quantized according to its config, but no tensor is called *.{required[0]}"
        )
    layers = [PackedLayer(name, folder, members) for name, members in found.items()]
    for layer in layers:
        for part in required:
            if layer.get(part) is None:
                layer.fail(f"has no {part!r}")
        if f"{layer.name}.weight" in tensors:
            layer.fail("is there as 'weight' as well")
    return tensors, layers


def get_packing(options: Mapping[str, Any], keys: Sequence[str], default: str) -> Any:
    """How the words are packed: what the first of the keys says that is there, in small letters."""
    found = next((options[key] for key in keys if options.get(key)), default)
    return found.lower() if isinstance(found, str) else found


def get_int(
    options: Mapping[str, Any], key: str, folder: Path, *, default: int | None = None
) -> int:
    """An integer of the quantization config."""
    value = options.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value <= _MAX_INT:
        raise ModelFormatError(
            f"{folder}: {key!r} of the quantization config is {value!r:.80}, expected an integer"
        )
    return value

"""A checkpoint with LoRA adapters fused into its weights, some rows at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ovgen.errors import ConfigError, ModelFormatError, UnsupportedModelError
from ovgen.export.checkpoint import Checkpoint, Codes, Floats, Grid, Rows, Tensor
from ovgen.export.float_formats import to_float32
from ovgen.export.float_tensor import no_codes
from ovgen.export.lora_adapter import LoraAdapter, LoraUpdate
from ovgen.export.safetensors import StoredTensor


class LoraTensor:
    """A weight with an update added; floats, whatever the weight was stored as.

    See `ovgen.export.checkpoint.Tensor`.
    """

    __slots__ = ("_tensor", "_update")

    def __init__(self, tensor: Tensor, update: LoraUpdate) -> None:
        self._tensor = tensor
        self._update = update
        out, size = update.up.shape[0], update.down.shape[1]
        expected = (size, out) if update.transposed else (out, size)
        if tuple(tensor.shape) != expected:
            raise ModelFormatError(
                f"{update.source}: the update of {tensor.name!r} has shape {expected}, the weight "
                f"{tuple(tensor.shape)}; the adapter belongs to another model"
            )
        if update.magnitude is not None and update.transposed:
            raise UnsupportedModelError(
                f"{update.source}: DoRA of {tensor.name!r}, stored as [in, out], cannot be fused"
            )
        if update.magnitude is not None and update.magnitude.shape != (out,):
            raise ModelFormatError(
                f"{update.source}: the magnitude of {tensor.name!r} has shape "
                f"{update.magnitude.shape}, expected ({out},)"
            )

    @property
    def name(self) -> str:
        """The weight's."""
        return self._tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's."""
        return self._tensor.shape

    @property
    def dtype(self) -> str:
        """As ``BF16 + LoRA``."""
        return f"{self._tensor.dtype} + LoRA"

    @property
    def grid(self) -> Grid | None:
        """None: the sum lies on no grid."""
        return None

    @property
    def column_order(self) -> npt.NDArray[np.intp] | None:
        """None: it has no groups."""
        return None

    def values(self, rows: Rows) -> Floats:
        """Rows of the sum as float32 [rows, cols]."""
        update = self._update
        if update.transposed:
            left, right = _floats(update.down)[:, rows].T, _floats(update.up).T
        else:
            left, right = _floats(update.up, rows), _floats(update.down)
        values = self._tensor.values(rows) + np.float32(update.scale) * (left @ right)
        if update.magnitude is None:
            return np.asarray(values, np.float32)
        lengths = np.sqrt(np.einsum("ij,ij->i", values, values))
        magnitude = _floats(update.magnitude).reshape(-1)[rows]
        with np.errstate(all="ignore"):  # a row of zeros becomes NaN, which the reader refuses
            return np.asarray(values * (magnitude / lengths)[:, None], np.float32)

    def codes(self, rows: Rows) -> Codes:
        """Not to be called: `grid` is None."""
        no_codes(self.name)


class LoraCheckpoint:
    """A checkpoint whose weights have adapters fused into them; see `Checkpoint`.

    Args:
        checkpoint: stays its owner's to close.
        adapters: fused one after the other; closed with this.

    Raises:
        ConfigError: an adapter changes nothing.
        ModelFormatError: an adapter belongs to another model.
    """

    def __init__(self, checkpoint: Checkpoint, adapters: Sequence[LoraAdapter]) -> None:
        self._checkpoint = checkpoint
        self._adapters = adapters
        self._tensors = dict(checkpoint.tensors)
        self.requantized: list[str] = []  # weights that were on a grid
        for adapter in adapters:
            for module, update in adapter.updates.items():
                name = _weight_of(module, self._tensors, adapter.folder)
                tensor = self._tensors[name]
                if tensor.grid is not None:
                    self.requantized.append(name)
                self._tensors[name] = LoraTensor(tensor, update)

    @property
    def path(self) -> Path:
        """The checkpoint's."""
        return self._checkpoint.path

    @property
    def config(self) -> Mapping[str, Any]:
        """The checkpoint's."""
        return self._checkpoint.config

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The checkpoint's, those with updates in their place."""
        return self._tensors

    def release_pages(self) -> None:
        """Let the system drop from memory what was read."""
        self._checkpoint.release_pages()

    def close(self) -> None:
        """Let go of the adapters' files."""
        for adapter in self._adapters:
            adapter.close()

    def __enter__(self) -> LoraCheckpoint:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def with_adapters(
    checkpoint: Checkpoint, adapters: Sequence[tuple[Path, float]], *, exact: bool = False
) -> LoraCheckpoint:
    """Fuse adapters, as (folder, scale), into a checkpoint.

    Args:
        checkpoint: of the model that they were trained on.
        adapters: fused one after the other.
        exact: weights on a grid are refused, which would have to leave it.

    Raises:
        ConfigError: two adapters are one, or `exact` cannot be.
        ModelError: an adapter is missing, damaged, of another model or of an unsupported kind.
    """
    opened: list[LoraAdapter] = []
    try:
        for folder, scale in adapters:
            opened.append(LoraAdapter(folder, scale))
        fused = LoraCheckpoint(checkpoint, opened)
        if exact and fused.requantized:
            raise ConfigError(
                f"weights='exact' keeps {fused.requantized[0]} on the file's grid, where an "
                "adapter's update does not lie; take fp16 or int8_sym weights"
            )
    except BaseException:
        for adapter in opened:
            adapter.close()
        raise
    return fused


def parse_adapter(text: str) -> tuple[Path, float]:
    """``FOLDER`` or ``FOLDER:SCALE``."""
    folder, colon, scale = text.rpartition(":")
    if colon:
        try:
            return Path(folder), float(scale)
        except ValueError:
            pass  # a colon of the path
    return Path(text), 1.0


def _weight_of(module: str, tensors: Mapping[str, Tensor], folder: Path) -> str:
    """The weight's name: the base may have been loaded with or without its head's prefix."""
    name = f"{module}.weight"
    if name in tensors:
        return name
    found = [other for other in tensors if other.endswith(f".{name}") or name.endswith(f".{other}")]
    if len(found) != 1:
        raise ModelFormatError(
            f"{folder}: the adapter updates {module!r}, which the model does not have; it belongs "
            "to another model"
        )
    return found[0]


def _floats(stored: StoredTensor, rows: Rows = slice(None)) -> Floats:
    return to_float32(stored.data[rows], stored.dtype)

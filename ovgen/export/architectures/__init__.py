"""The architectures that can be exported, by GGUF's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import openvino as ov

from ovgen.errors import UnsupportedModelError
from ovgen.export.architectures import llama
from ovgen.export.gguf import GGUFFile
from ovgen.export.weight_reader import WeightReader


class ModelConfig(Protocol):
    """What every architecture's config has."""

    @property
    def vocab_size(self) -> int: ...

    def to_dict(self) -> dict[str, Any]: ...


def _llama(gguf: GGUFFile, weights: WeightReader) -> tuple[ModelConfig, ov.Model]:
    config = llama.LlamaConfig.from_gguf(gguf)
    return config, llama.build(config, weights)


_BUILDERS: dict[str, Callable[[GGUFFile, WeightReader], tuple[ModelConfig, ov.Model]]] = {
    "llama": _llama,
}


def check_architecture(gguf: GGUFFile) -> None:
    """Raise UnsupportedModelError, with the list, unless the file's architecture is known."""
    if gguf.architecture not in _BUILDERS:
        raise UnsupportedModelError(
            f"{gguf.path}: the architecture {gguf.architecture!r} cannot be exported; "
            f"supported: {', '.join(sorted(_BUILDERS))}"
        )


def build_model(gguf: GGUFFile, weights: WeightReader) -> tuple[ModelConfig, ov.Model]:
    """The config and the graph of a GGUF file.

    Raises:
        UnsupportedModelError: an architecture or a variant that cannot be exported.
        ModelFormatError: metadata and tensors that do not fit together.
    """
    check_architecture(gguf)
    config, model = _BUILDERS[gguf.architecture](gguf, weights)
    weights.refuse_unread()
    return config, model

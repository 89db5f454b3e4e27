"""The architectures that can be exported, by transformers' ``model_type``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ovgen.errors import UnsupportedModelError
from ovgen.export.checkpoint import Checkpoint
from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.weight_reader import WeightReader

if TYPE_CHECKING:
    import openvino as ov

# Each is a module here with ``build(config, weights)``.
ARCHITECTURES = (
    "bloom",
    "cohere",
    "cohere2",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "gptj",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "mpt",
    "olmo2",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "stablelm",
    "starcoder2",
)


def check_architecture(checkpoint: Checkpoint) -> str:
    """The checkpoint's ``model_type``.

    Raises:
        UnsupportedModelError: it is none of those that can be exported, which are listed.
        ModelFormatError: the config has none.
    """
    model_type = CheckpointConfig(checkpoint.config, checkpoint.path).model_type
    if model_type not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{checkpoint.path}: the architecture {model_type!r:.80} cannot be exported; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    return model_type


def build_model(checkpoint: Checkpoint, weights: WeightReader) -> ov.Model:
    """The graph of a checkpoint.

    Raises:
        UnsupportedModelError: an architecture or a variant that cannot be exported.
        ModelFormatError: a config and tensors that do not fit together.
    """
    module = import_module(f"{__name__}.{check_architecture(checkpoint)}")
    config = CheckpointConfig(checkpoint.config, checkpoint.path)
    model: ov.Model = module.build(config, weights)
    weights.refuse_unread()
    return model

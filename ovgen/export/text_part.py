"""The language model of a checkpoint that can see as well, as a checkpoint of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ovgen.errors import ModelFormatError
from ovgen.export.checkpoint import Checkpoint, Tensor
from ovgen.export.tensor_views import TensorView

# The models, and what transformers takes for granted in their ``text_config``.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "model_type": "gemma3_text",
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
        "architectures": ["Gemma3ForCausalLM"],
    }
}
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What a name of the language model begins with, and what it is by itself: transformers 5 and 4.
_PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.", ""),
    ("lm_head.", "lm_head."),
)


class TextPart:
    """See `ovgen.export.checkpoint.Checkpoint`; it closes the other.

    Raises ModelFormatError where ``text_config`` is no object.
    """

    def __init__(self, whole: Checkpoint) -> None:
        self._whole = whole
        inner = whole.config.get("text_config", {})
        if not isinstance(inner, Mapping):
            raise ModelFormatError(f"{whole.path}: text_config is {inner!r:.80}, not an object")
        outer = {key: whole.config[key] for key in _IDS if key in whole.config}
        self.config: Mapping[str, Any] = {**_DEFAULTS[_model_type(whole)], **inner, **outer}
        self.tensors: Mapping[str, Tensor] = {
            name: TensorView(tensor, name)
            for stored, tensor in whole.tensors.items()
            if (name := _text_name(stored)) is not None
        }

    @property
    def path(self) -> Path:
        """The folder."""
        return self._whole.path

    def release_pages(self) -> None:
        """Let the system drop from memory what was read."""
        self._whole.release_pages()

    def close(self) -> None:
        """Let go of the files."""
        self.tensors = {}
        self._whole.close()

    def __enter__(self) -> TextPart:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def has_text_part(checkpoint: Checkpoint) -> bool:
    """Whether it is one of the models whose language model is taken out."""
    return _model_type(checkpoint) in _DEFAULTS


def _model_type(checkpoint: Checkpoint) -> str:
    return str(checkpoint.config.get("model_type"))


def _text_name(name: str) -> str | None:
    for prefix, own in _PREFIXES:
        if name.startswith(prefix):
            return own + name[len(prefix) :]
    return None

"""The tokenizer protocol over the pair openvino_tokenizer.xml and openvino_detokenizer.xml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ovgen.text.tokenizer_config import TokenizerConfig


class OpenVINOTokenizer:
    """An OpenVINO tokenizer and detokenizer, each a compiled model with string tensors."""

    def __init__(self, tokenizer: Path, detokenizer: Path, config: TokenizerConfig) -> None:
        raise NotImplementedError

    vocab_size: int
    special_ids: frozenset[int]
    bos_token: str | None
    eos_token: str | None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        raise NotImplementedError

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        raise NotImplementedError

    def token_to_id(self, token: str) -> int | None:
        raise NotImplementedError

    def id_to_token(self, token_id: int) -> str | None:
        raise NotImplementedError

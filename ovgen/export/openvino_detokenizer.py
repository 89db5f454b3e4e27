"""The decoder of a tokenizer.json as steps of openvino_tokenizers: a table from ids to bytes, whose
entries are joined and made valid UTF-8.

The table does what the decoder does token by token. The library's own step for bytes spoils every
token of six characters in angle brackets, as <html>.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ovgen.export.openvino_tokenizer_steps import (
    NotExpressibleError,
    Part,
    Steps,
    parts_of,
    token_ids,
)

if TYPE_CHECKING:
    from openvino_tokenizers.tokenizer_pipeline import BasePipelineStep

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# What WordPiece's clean-up makes of the tokens that begin with a space.
_CLEANED = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
    (" 'm", "'m"), (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def decoding_steps(content: Part) -> Steps:
    """The table, what is taken from the text's beginning, and valid UTF-8.

    Raises NotExpressibleError where a decoder looks at more than one token at once.
    """
    from openvino_tokenizers import tokenizer_pipeline as library
    from openvino_tokenizers.constants import UTF8ReplaceMode

    to_bytes, after = _decoder(content)
    ids = token_ids(content)
    table = [b""] * (max(ids.values()) + 1)
    for token, i in ids.items():
        table[i] = to_bytes(token)
    special = [token["id"] for token in content["added_tokens"] if token["special"]]
    return [
        library.VocabDecoderStep(table, skip_tokens=special),
        library.FuseStep(),
        *after,
        library.UTF8ValidateStep(mode=UTF8ReplaceMode.REPLACE),
    ]


def _decoder(content: Part) -> tuple[Callable[[str], bytes], list[BasePipelineStep]]:
    """What becomes of a token, and of the text as a whole."""
    from openvino_tokenizers.tokenizer_pipeline import RegexDecodingStep
    from openvino_tokenizers.utils import apply_unicode_to_bytes

    parts = parts_of(content["decoder"], "decoders")
    kinds = [part["type"] for part in parts]
    strip_one = RegexDecodingStep.strip_forward_space()
    if kinds == ["ByteLevel"] or _is_byte_level(parts, token_ids(content)):
        return lambda token: apply_unicode_to_bytes(token, return_corrupted_tokens=True), []
    if not kinds:
        return lambda token: f" {token}".encode(), [strip_one]
    if kinds == ["WordPiece"]:
        return _wordpiece(parts[0]), [strip_one]
    if kinds == ["Metaspace"] and parts[0]["prepend_scheme"] == "never":
        mark = parts[0]["replacement"]
        return lambda token: token.replace(mark, " ").encode(), []
    return _sentencepiece(parts), [strip_one] if kinds[-1] == "Strip" else []


def _is_byte_level(parts: list[Part], tokens: Iterable[str]) -> bool:
    """Whether what comes before ByteLevel has nothing to do: transformers makes such decoders of
    GGUF files."""
    from openvino_tokenizers.utils import unicode_to_bytes

    kinds = [part["type"] for part in parts]
    if kinds[-1:] != ["ByteLevel"] or not set(kinds[:-1]) <= {"ByteFallback", "Fuse", "Replace"}:
        return False
    found = [part["pattern"].get("String") for part in parts if part["type"] == "Replace"]
    letters = unicode_to_bytes().keys()
    return not any(
        set(token) - letters
        or _BYTE_TOKEN.fullmatch(token)
        or any(string is None or string in token for string in found)
        for token in tokens
    )


def _sentencepiece(parts: list[Part]) -> Callable[[str], bytes]:
    """Replacements, bytes, and at most one space taken from the beginning of the joined text."""
    kinds = [part["type"] for part in parts]
    body = kinds[: kinds.index("Fuse")] if "Fuse" in kinds else []
    rest = parts[len(body) + 1 :]
    is_one_space = all(
        (part["type"], part.get("content"), part.get("start"), part.get("stop"))
        == ("Strip", " ", 1, 0)
        for part in rest
    )
    if (
        not set(body) <= {"Replace", "ByteFallback"}
        or len(rest) > 1
        or not is_one_space
        or not body
    ):
        raise NotExpressibleError(f"the decoder {', '.join(kinds)}")
    replaced = [part for part in parts if part["type"] == "Replace"]
    if any("String" not in part["pattern"] for part in replaced):
        raise NotExpressibleError("a decoder that replaces by a pattern")
    has_bytes = "ByteFallback" in body

    def to_bytes(token: str) -> bytes:
        byte = _BYTE_TOKEN.fullmatch(token) if has_bytes else None
        if byte is not None:
            return bytes.fromhex(byte[1])
        for part in replaced:
            token = token.replace(part["pattern"]["String"], part["content"])
        return token.encode()

    return to_bytes


def _wordpiece(part: Part) -> Callable[[str], bytes]:
    prefix, cleanup = part["prefix"], part["cleanup"]

    def to_bytes(token: str) -> bytes:
        text = token[len(prefix) :] if token.startswith(prefix) else f" {token}"
        if cleanup:
            for before, after in _CLEANED:
                text = text.replace(before, after)
        return text.encode()

    return to_bytes

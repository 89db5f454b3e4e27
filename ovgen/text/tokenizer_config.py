"""What `tokenizer_config.json` (and `special_tokens_map.json`) say of a tokenizer: its special
tokens by role, and its chat template. Read once, shared by the tokenizer and the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovgen.errors import ModelFormatError, StorageError

CONFIG_NAME = "tokenizer_config.json"
SPECIAL_TOKENS_NAME = "special_tokens_map.json"


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """`special_tokens` maps a role (`bos_token`, `eos_token`, ...) to its text, and
    `additional_special_tokens`, where present, to a list. `chat_template` is as in the file."""

    special_tokens: Mapping[str, str | list[str]] = field(default_factory=dict)
    chat_template: Any = None

    def special_token(self, role: str) -> str | None:
        """The text of `bos_token`, `eos_token`, ...; None when the files name none."""
        token = self.special_tokens.get(role)
        return token if isinstance(token, str) else None


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Read both files of `folder`; a missing one counts as empty, a broken one is a
    ModelFormatError."""
    config = read_json_object(folder / CONFIG_NAME)
    special_tokens = _special_tokens(read_json_object(folder / SPECIAL_TOKENS_NAME))
    special_tokens.update(_special_tokens(config))
    return TokenizerConfig(special_tokens, config.get("chat_template"))


def read_text(path: Path) -> str | None:
    """The UTF-8 text of `path`, None when there is no such file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as exc:
        raise ModelFormatError(
            f"{path} is not UTF-8 text: {exc.reason} at byte {exc.start}"
        ) from exc
    except OSError as exc:
        raise StorageError(f"cannot read {path}: {exc.strerror}") from exc


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, empty when there is no such file."""
    text = read_text(path)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ModelFormatError(f"{path} is not valid JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """The `*_token` entries: a string, or an object whose "content" is the string."""
    tokens: dict[str, str | list[str]] = {}
    for name, value in config.items():
        if name.endswith("_token") and (text := _token_text(value)) is not None:
            tokens[name] = text
        elif name == "additional_special_tokens" and isinstance(value, list):
            tokens[name] = [text for item in value if (text := _token_text(item)) is not None]
    return tokens


def _token_text(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None

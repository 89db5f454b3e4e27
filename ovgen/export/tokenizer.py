"""The tokenizer of a GGUF file as Hugging Face files: tokenizer.json and what belongs to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from ovgen.errors import ModelFormatError, OvgenError, StorageError, UnsupportedModelError
from ovgen.export.gguf import GGUFFile
from ovgen.export.tokenizer_kinds import BUILDERS
from ovgen.export.vocabulary import USER_DEFINED, TokenizerInfo, Vocabulary, added_ids

__all__ = ["TokenizerInfo", "export_tokenizer"]


def export_tokenizer(gguf: GGUFFile, folder: Path) -> TokenizerInfo:
    """Write tokenizer.json, tokenizer_config.json, generation_config.json and, where the file has
    a chat template, chat_template.jinja into `folder`.

    Raises ModelFormatError (missing or contradictory metadata), UnsupportedModelError (a kind of
    tokenizer or pre-tokenizer that ovgen does not know) and StorageError.
    """
    kind = gguf.get_str("tokenizer.ggml.model")
    builder = BUILDERS.get(kind)
    if builder is None:
        raise UnsupportedModelError(
            f"{gguf.path}: tokenizer {kind!r:.80}; supported: {', '.join(BUILDERS)}"
        )
    try:
        built = builder(gguf)
        tokenizer, vocabulary = built.tokenizer, built.vocabulary
        add_bos = gguf.get_bool("tokenizer.ggml.add_bos_token", default=built.add_bos)
        add_eos = gguf.get_bool("tokenizer.ggml.add_eos_token", default=built.add_eos)
        _add_special_tokens(tokenizer, vocabulary)
        _set_template(gguf, tokenizer, vocabulary, add_bos, add_eos)
    except OvgenError:
        raise
    except Exception as exc:  # all that the library raises
        reason = " ".join(str(exc).split())
        raise ModelFormatError(f"{gguf.path}: the tokenizer cannot be built ({reason})") from exc
    _write(folder / "tokenizer.json", tokenizer.to_str())
    _write_json(
        folder / "tokenizer_config.json", _tokenizer_config(gguf, vocabulary, add_bos, add_eos)
    )
    _write_json(folder / "generation_config.json", _generation_config(vocabulary.info))
    if "tokenizer.chat_template" in gguf.metadata:
        _write(folder / "chat_template.jinja", gguf.get_str("tokenizer.chat_template"))
    return vocabulary.info


def _add_special_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    ends = set(vocabulary.info.eos_token_ids)
    tokenizer.add_tokens(
        [
            AddedToken(
                vocabulary.tokens[i],
                normalized=False,
                special=vocabulary.types[i] != USER_DEFINED or i in ends,
            )
            for i in added_ids(vocabulary)
        ]
    )


def _set_template(
    gguf: GGUFFile, tokenizer: Tokenizer, vocabulary: Vocabulary, add_bos: bool, add_eos: bool
) -> None:
    info, tokens = vocabulary.info, vocabulary.tokens
    if add_bos and info.bos_token_id is None:
        raise ModelFormatError(
            f"{gguf.path}: the tokenizer adds bos, but 'tokenizer.ggml.bos_token_id' is missing"
        )
    before = [info.bos_token_id] if add_bos and info.bos_token_id is not None else []
    after = [info.eos_token_ids[0]] if add_eos else []
    if before or after:
        around = [tokens[i] for i in before], [tokens[i] for i in after]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*around[0], "$A", *around[1]],
            pair=[*around[0], "$A", *around[1], *(f"{t}:1" for t in around[0]), "$B:1",
                  *(f"{t}:1" for t in around[1])],
            special_tokens=[(tokens[i], i) for i in dict.fromkeys(before + after)],
        )  # fmt: skip


def _tokenizer_config(
    gguf: GGUFFile, vocabulary: Vocabulary, add_bos: bool, add_eos: bool
) -> dict[str, Any]:
    info = vocabulary.info
    named = {
        "bos_token": info.bos_token_id,
        "eos_token": info.eos_token_ids[0],
        "pad_token": info.pad_token_id,
        "unk_token": info.unk_token_id,
    }
    config: dict[str, Any] = {
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        **{name: vocabulary.tokens[i] for name, i in named.items() if i is not None},
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    context = f"{gguf.architecture}.context_length"
    if context in gguf.metadata:
        config["model_max_length"] = gguf.get_int(context, min=1)
    return config


def _generation_config(info: TokenizerInfo) -> dict[str, Any]:
    ends = info.eos_token_ids
    config = {
        "bos_token_id": info.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends),
        "pad_token_id": info.pad_token_id,
    }
    return {name: value for name, value in config.items() if value is not None}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as exc:
        raise StorageError(f"{path}: cannot be written ({exc.strerror or exc})") from exc

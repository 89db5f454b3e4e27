"""The tokenizer of a GGUF file as Hugging Face files: tokenizer.json and what belongs to it.

Two kinds: "gpt2", byte-level BPE with merges, and "llama", SentencePiece-style BPE whose merges
follow from the scores. llama.cpp on the same file is the yardstick for the ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from ovgen.errors import ModelFormatError, OvgenError, StorageError, UnsupportedModelError
from ovgen.export.gguf import GGUFFile
from ovgen.export.pre_tokenizers import PRE_TOKENIZERS
from ovgen.export.vocabulary import (
    USER_DEFINED,
    TokenizerInfo,
    Vocabulary,
    added_ids,
    check_length,
    read_vocabulary,
)

__all__ = ["TokenizerInfo", "export_tokenizer", "merges_from_scores"]

_MAX_TOKEN_LENGTH = 1024  # characters; every way to cut a token is looked at
_SPACE = "▁"  # SentencePiece's visible space


def export_tokenizer(gguf: GGUFFile, folder: Path) -> TokenizerInfo:
    """Write tokenizer.json, tokenizer_config.json, generation_config.json and, where the file has
    a chat template, chat_template.jinja into `folder`.

    Raises ModelFormatError (missing or contradictory metadata), UnsupportedModelError (a kind of
    tokenizer or pre-tokenizer that ovgen does not know) and StorageError.
    """
    kind = gguf.get_str("tokenizer.ggml.model")
    builder = _BUILDERS.get(kind)
    if builder is None:
        raise UnsupportedModelError(
            f"{gguf.path}: tokenizer {kind!r:.80}; supported: {', '.join(_BUILDERS)}"
        )
    try:
        tokenizer, vocabulary, add_bos = builder(gguf)
        add_bos = gguf.get_bool("tokenizer.ggml.add_bos_token", default=add_bos)
        add_eos = gguf.get_bool("tokenizer.ggml.add_eos_token", default=False)
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


def _byte_level_bpe(gguf: GGUFFile) -> tuple[Tokenizer, Vocabulary, bool]:
    """Byte-level BPE as GPT-2 has it; also whether it adds bos by default."""
    name = gguf.get_str("tokenizer.ggml.pre", default="default")
    pre_tokenizer = PRE_TOKENIZERS.get(name)
    if pre_tokenizer is None:
        raise UnsupportedModelError(
            f"{gguf.path}: pre-tokenizer {name!r:.80}; supported: {', '.join(PRE_TOKENIZERS)}"
        )
    vocabulary = read_vocabulary(gguf)
    model = models.BPE(
        vocab=vocabulary.ids,
        merges=_merges(gguf, vocabulary.ids),
        ignore_merges=pre_tokenizer.ignore_merges,
    )
    tokenizer = Tokenizer(model)
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in pre_tokenizer.patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, vocabulary, pre_tokenizer.add_bos


def _sentencepiece_bpe(gguf: GGUFFile) -> tuple[Tokenizer, Vocabulary, bool]:
    """BPE over characters with spaces made visible and bytes for what the vocabulary lacks."""
    vocabulary = read_vocabulary(gguf, bos=1, eos=2, unk=0)
    scores = gguf.get_numbers("tokenizer.ggml.scores")
    check_length(gguf, "tokenizer.ggml.scores", scores, vocabulary.tokens)
    unk = vocabulary.info.unk_token_id
    longest = max(map(len, vocabulary.tokens))
    if longest > _MAX_TOKEN_LENGTH:
        raise ModelFormatError(
            f"{gguf.path}: a token of {longest} characters, the most is {_MAX_TOKEN_LENGTH}"
        )
    model = models.BPE(
        vocab=vocabulary.ids,
        merges=merges_from_scores(vocabulary.tokens, scores, _whole_tokens(vocabulary)),
        unk_token=None if unk is None else vocabulary.tokens[unk],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    prefix = gguf.get_bool("tokenizer.ggml.add_space_prefix", default=True)
    visible = normalizers.Replace(" ", _SPACE)
    decoding = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), visible])
        decoding.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = visible
    tokenizer.decoder = decoders.Sequence(decoding)
    return tokenizer, vocabulary, True


_BUILDERS: dict[str, Callable[[GGUFFile], tuple[Tokenizer, Vocabulary, bool]]] = {
    "gpt2": _byte_level_bpe,
    "llama": _sentencepiece_bpe,
}


def merges_from_scores(
    tokens: list[str], scores: npt.NDArray[Any], whole: Collection[str] = ()
) -> list[tuple[str, str]]:
    """The merges, first to last, that make BPE merge as SentencePiece does: of all neighbours that
    together are a token, those whose token scores best (ties: the lower id).

    Every way to split a token in two tokens is a merge with that token's rank; but `whole` tokens
    are never made by merging.
    """
    known = set(tokens)
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    merges: list[tuple[str, str]] = []
    for token_id in order.tolist():
        token = tokens[token_id]
        if token in whole:
            continue
        for cut in range(1, len(token)):
            left = token[:cut]
            if left in known and token[cut:] in known:
                merges.append((left, token[cut:]))
    return merges


def _whole_tokens(vocabulary: Vocabulary) -> set[str]:
    """The added tokens, which are cut out of the text before it is merged; not those with a
    visible space, which only the normalizer can bring into it."""
    tokens = (vocabulary.tokens[i] for i in added_ids(vocabulary))
    return {token for token in tokens if _SPACE not in token}


def _merges(gguf: GGUFFile, ids: dict[str, int]) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for line in gguf.get_strings("tokenizer.ggml.merges"):
        cut = line.find(" ", 1)
        left, right = line[:cut], line[cut + 1 :]
        if cut < 0 or left not in ids or right not in ids or left + right not in ids:
            raise ModelFormatError(
                f"{gguf.path}: merge {line!r:.80} is not two tokens that make a third"
            )
        merges.append((left, right))
    return merges


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

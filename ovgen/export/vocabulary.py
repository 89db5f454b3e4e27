"""The vocabulary in a GGUF file's metadata: tokens, their types, and the special ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ovgen.errors import ModelFormatError
from ovgen.export.gguf import GGUFFile

_UNKNOWN, _CONTROL, USER_DEFINED = 2, 3, 4  # of tokenizer.ggml.token_type

# Tokens that end a turn or a text whatever the file declares, by llama.cpp's list of names. Left
# out: "</s>", which is a strike-out tag in Gemma's vocabulary (where it does end a text the file
# declares it), and the tokens that end an infill.
_END_TOKENS = frozenset(
    {
        "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>",
        "<|flush|>", "<|calls|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>",
        "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>", "<eos>", "<turn|>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """The ids that the rest of the export and the run time need."""

    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]  # the declared one first
    pad_token_id: int | None
    unk_token_id: int | None
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens by id and the ids by token, with llama.cpp's type numbers."""

    tokens: list[str]
    ids: dict[str, int]
    types: npt.NDArray[Any]  # [vocab_size]
    info: TokenizerInfo


def read_vocabulary(
    gguf: GGUFFile, *, bos: int | None = None, eos: int | None = None, unk: int | None = None
) -> Vocabulary:
    """Tokens, types and special ids; the arguments are the ids of a file that declares none."""
    tokens = [
        token or f"[EMPTY_{i}]"  # llama.cpp's name for it
        for i, token in enumerate(gguf.get_strings("tokenizer.ggml.tokens"))
    ]
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if ids[token] != i)
        raise ModelFormatError(f"{gguf.path}: token {twice!r:.80} is twice in the vocabulary")
    types: npt.NDArray[Any] = np.ones(len(tokens), np.int32)
    if "tokenizer.ggml.token_type" in gguf.metadata:
        types = gguf.get_numbers("tokenizer.ggml.token_type")
        check_length(gguf, "tokenizer.ggml.token_type", types, tokens)

    def special_id(name: str, default: int | None = None) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        if key not in gguf.metadata:
            return default if default is None or default < len(tokens) else None
        return gguf.get_int(key, min=0, max=len(tokens) - 1)

    declared_end = [special_id("eos", eos), special_id("eot"), special_id("eom")]
    names = _END_TOKENS & ids.keys()
    if names & {"<|return|>", "<|flush|>"}:
        names -= {"<|end|>"}  # there it ends one message of several
    named_end = sorted(ids[token] for token in names)
    ends = tuple(dict.fromkeys([i for i in declared_end if i is not None] + named_end))
    if not ends:
        raise ModelFormatError(f"{gguf.path}: the metadata has no 'tokenizer.ggml.eos_token_id'")
    info = TokenizerInfo(
        bos_token_id=special_id("bos", bos),
        eos_token_ids=ends,
        pad_token_id=special_id("padding"),
        unk_token_id=special_id("unknown", unk),
        vocab_size=len(tokens),
    )
    return Vocabulary(tokens, ids, types, info)


def check_length(gguf: GGUFFile, key: str, values: npt.NDArray[Any], tokens: list[str]) -> None:
    """Raise ModelFormatError unless there is one value a token."""
    if len(values) != len(tokens):
        raise ModelFormatError(
            f"{gguf.path}: {key!r} has {len(values)} entries for {len(tokens)} tokens"
        )


def added_ids(vocabulary: Vocabulary) -> list[int]:
    """The tokens that are found whole in the raw text, before anything else is done to it."""
    kinds = (_UNKNOWN, _CONTROL, USER_DEFINED)
    marked: set[int] = set(np.flatnonzero(np.isin(vocabulary.types, kinds)).tolist())
    return sorted(marked | set(vocabulary.info.eos_token_ids))

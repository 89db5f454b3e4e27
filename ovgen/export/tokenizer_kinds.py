"""The kinds of tokenizer that a GGUF file may have, each built for the library `tokenizers`.

"gpt2", byte-level BPE with merges; "llama", SentencePiece-style BPE whose merges follow from the
scores; "bert", WordPiece. llama.cpp on the same file is the yardstick for the ids.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ovgen.errors import ModelFormatError, UnsupportedModelError
from ovgen.export.gguf import GGUFFile
from ovgen.export.pre_tokenizers import PRE_TOKENIZERS
from ovgen.export.vocabulary import Vocabulary, added_ids, check_length, read_vocabulary

_MAX_TOKEN_LENGTH = 1024  # characters; every way to cut a token is looked at
_SPACE = "▁"  # SentencePiece's visible space; of WordPiece, the mark where a word begins


@dataclass(frozen=True, slots=True)
class BuiltTokenizer:
    """A tokenizer without its added tokens and its template, and what it adds by default."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    add_bos: bool
    add_eos: bool = False


def _byte_level_bpe(gguf: GGUFFile) -> BuiltTokenizer:
    """Byte-level BPE as GPT-2 has it."""
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
    return BuiltTokenizer(tokenizer, vocabulary, pre_tokenizer.add_bos)


def _sentencepiece_bpe(gguf: GGUFFile) -> BuiltTokenizer:
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
    return BuiltTokenizer(tokenizer, vocabulary, True)


def _wordpiece(gguf: GGUFFile) -> BuiltTokenizer:
    """WordPiece as BERT has it: the longest token first, with "##" where it goes on with a word.

    The file marks the tokens that begin a word instead.
    """

    def declared(name: str, default: int) -> int:
        return gguf.get_int(f"tokenizer.ggml.{name}_token_id", default=default, min=0)

    # The third name is spelled as the format spells it.
    vocabulary = read_vocabulary(
        gguf, bos=declared("cls", 101), eos=declared("seperator", 102), unk=100
    )
    unk = vocabulary.info.unk_token_id
    if unk is None:
        raise ModelFormatError(f"{gguf.path}: WordPiece needs a 'tokenizer.ggml.unknown_token_id'")
    names = [_wordpiece_name(token) for token in vocabulary.tokens]
    for i in added_ids(vocabulary):
        names[i] = vocabulary.tokens[i]
    ids = {name: i for i, name in enumerate(names)}
    if len(ids) != len(names):
        raise ModelFormatError(f"{gguf.path}: two tokens are one in WordPiece's own spelling")
    tokenizer = Tokenizer(models.WordPiece(vocab=ids, unk_token=names[unk]))
    lowercase = gguf.get_bool("tokenizer.ggml.normalizer.lowercase", default=True)
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase,
        strip_accents=gguf.get_bool("tokenizer.ggml.normalizer.strip_accents", default=lowercase),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    has_sep = gguf.get_bool("tokenizer.ggml.add_sep_token", default=True)
    return BuiltTokenizer(tokenizer, vocabulary, True, has_sep)


def _wordpiece_name(token: str) -> str:
    if token.startswith(_SPACE):
        return token[1:]
    is_special = token.startswith("[") and token.endswith("]")  # as [unused0]
    return token if is_special else f"##{token}"


BUILDERS: dict[str, Callable[[GGUFFile], BuiltTokenizer]] = {
    "gpt2": _byte_level_bpe,
    "llama": _sentencepiece_bpe,
    "bert": _wordpiece,
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

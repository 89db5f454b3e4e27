"""The exported tokenizer.json against llama.cpp's recorded ids, and what else is written."""

import heapq
import itertools
import json
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from export.gguf_vocabularies import (
    BPE,
    SPM,
    SPM_TOKENS,
    SPM_WORDS,
    WORDPIECE,
    WORDPIECE_TOKENS,
    write,
)
from oracles.llama_cpp_pre_tokenizers import KINDS, digest, vocabulary, write_gguf
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.implementations import BertWordPieceTokenizer

from ovgen.errors import ModelFormatError, StorageError, UnsupportedModelError
from ovgen.export.gguf import open_gguf
from ovgen.export.pre_tokenizers import PRE_TOKENIZERS
from ovgen.export.tokenizer import TokenizerInfo, export_tokenizer
from ovgen.export.tokenizer_kinds import merges_from_scores

DATA = Path(__file__).parent / "data"
STRINGS = json.loads((DATA / "tokenizer_strings.json").read_text(encoding="utf-8"))["strings"]


def export(folder: Path, metadata: dict) -> tuple[Tokenizer, TokenizerInfo]:
    with open_gguf(write(folder / "model.gguf", metadata)) as file:
        info = export_tokenizer(file, folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json")), info


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


# --- against llama.cpp


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("smollm2", TokenizerInfo(1, (2, 0), 2, 0, 49152)),
        ("gemma3", TokenizerInfo(2, (1, 106), 0, 3, 262144)),
    ],
)
def test_ids_are_those_of_llama_cpp(name, wanted, request, tmp_path):
    record = read_json(DATA / f"llama_cpp_tokens_{name}.json")
    with open_gguf(request.getfixturevalue(f"{name}_gguf")) as file:
        assert export_tokenizer(file, tmp_path) == wanted
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert len(record["ids"]) == len(STRINGS) >= 300
    plain = [tokenizer.encode(text, add_special_tokens=False).ids for text in STRINGS]
    assert dict(zip(STRINGS, plain, strict=True)) == dict(zip(STRINGS, record["ids"], strict=True))
    for text, ids in zip(STRINGS[:9], record["ids"], strict=False):
        assert tokenizer.encode(text).ids == record["prefix"] + ids


def has_mark_or_case_beyond_ascii(text: str) -> bool:
    return any(
        ord(c) > 127 and (unicodedata.category(c)[0] == "M" or c.lower() != c.upper()) for c in text
    )


def has_wide_space(text: str) -> bool:
    return any(ord(c) >= 0x800 and c.isspace() for c in text)


def has_inner_capital_or_digit(text: str) -> bool:
    pairs = itertools.pairwise(text)
    return any(a.isalpha() and b.isupper() for a, b in pairs) or any(map(str.isnumeric, text))


# Where llama.cpp is known to differ from the model's own pattern.
EXCUSED = {
    "gpt-4o": has_mark_or_case_beyond_ascii,
    "tekken": has_mark_or_case_beyond_ascii,
    "tiny_aya": has_inner_capital_or_digit,
    "deepseek-llm": has_wide_space,
    "deepseek-coder": has_wide_space,
}


@pytest.fixture(scope="module")
def own_vocabulary() -> tuple[list[str], list[str]]:
    return vocabulary(STRINGS)


@pytest.mark.parametrize("kind", KINDS)
def test_cuts_are_those_of_llama_cpp(kind, own_vocabulary, tmp_path):
    record = read_json(DATA / "llama_cpp_pre_tokenizers.json")[kind]
    path = tmp_path / "model.gguf"
    write_gguf(path, kind, *own_vocabulary)
    with open_gguf(path) as file:
        export_tokenizer(file, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    differing = [
        text
        for i, text in enumerate(STRINGS)
        if digest(tokenizer.encode(text, add_special_tokens=False).ids) != record[4 * i : 4 * i + 4]
    ]
    excused = EXCUSED.get(kind, lambda text: False)
    assert [text for text in differing if not excused(text)] == []
    assert len(differing) <= (80 if kind == "tiny_aya" else 30)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_patterns_are_valid_and_lose_nothing(name):
    text = "Hello  World's 12345 ünï 中文 \n\t x--y 'S"
    pieces = [text]
    for pattern in PRE_TOKENIZERS[name].patterns:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        pieces = [part for piece in pieces for part, _ in split.pre_tokenize_str(piece)]
    assert len(pieces) > 5
    assert "".join(pieces) == text


# --- merges from scores


def sentencepiece(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's BPE as its paper has it: join the best-scored neighbours, leftmost first."""
    parts = list(text)
    while True:
        joins = [
            (-scores[a + b], i)
            for i, (a, b) in enumerate(itertools.pairwise(parts))
            if a + b in scores
        ]
        if not joins:
            return parts
        _, i = heapq.nsmallest(1, joins)[0]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def test_scores_merge_as_sentencepiece_does(tmp_path):
    rng = random.Random(3)
    for round_number in range(8):
        words = list(SPM_WORDS)
        rng.shuffle(words)
        tokens = SPM_TOKENS[:260] + words
        metadata = {
            **SPM,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.add_space_prefix": False,
        }
        folder = tmp_path / str(round_number)
        folder.mkdir()
        tokenizer, _ = export(folder, metadata)
        scores = {word: -float(i) for i, word in enumerate(words)}
        for _ in range(60):
            text = "".join(rng.choices("aaabc ", k=rng.randint(1, 14)))
            wanted = sentencepiece(text.replace(" ", "▁"), scores)
            assert tokenizer.encode(text, add_special_tokens=False).tokens == wanted


def test_whole_tokens_are_not_made_by_merging():
    tokens = ["a", "b", "ab", "aba"]
    scores = np.array([0.0, 0.0, -1.0, 0.0], np.float32)
    assert merges_from_scores(tokens, scores) == [("a", "b"), ("ab", "a")][::-1]
    assert merges_from_scores(tokens, scores, {"aba"}) == [("a", "b")]


# --- what the kinds have of their own


def test_sentencepiece_prefix_bytes_and_added_tokens(tmp_path):
    tokenizer, info = export(tmp_path, SPM)
    assert info == TokenizerInfo(1, (2,), None, 0, len(SPM_TOKENS))
    assert tokenizer.encode("ab").tokens == ["<s>", "▁ab"]
    assert tokenizer.encode("a<tags>b</s>").tokens == ["<s>", "▁a", "<tags>", "▁", "b", "</s>"]
    encoding = tokenizer.encode("é a", add_special_tokens=False)
    assert encoding.tokens == ["▁", "<0xC3>", "<0xA9>", "▁a"]
    assert tokenizer.decode(encoding.ids) == "é a"
    ids = tokenizer.encode("ab<tags></s>").ids
    assert tokenizer.decode(ids) == "ab<tags>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s> ab<tags></s>"


def test_byte_level_added_tokens(tmp_path):
    tokenizer, info = export(tmp_path, BPE)
    assert info == TokenizerInfo(6, (5,), None, None, 8)
    assert tokenizer.encode("ab ab  ab<|im_end|>").tokens == ["ab", "Ġab", "  ", "ab", "<|im_end|>"]
    assert tokenizer.decode([3, 4, 7, 5, 6]) == "ab ab  "
    assert not (tmp_path / "chat_template.jinja").exists()


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, ["ab"]),
        ({"tokenizer.ggml.add_bos_token": True}, ["<|s|>", "ab"]),
        ({"tokenizer.ggml.add_eos_token": True}, ["ab", "<|im_end|>"]),
        ({"tokenizer.ggml.pre": "llama-bpe"}, ["<|s|>", "ab"]),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, ["ab"]),
    ],
)
def test_bos_and_eos_around_the_text(tmp_path, changes, wanted):
    tokenizer, _ = export(tmp_path, BPE | changes)
    assert tokenizer.encode("ab").tokens == wanted
    assert tokenizer.encode("ab", "ab").tokens == wanted * 2


def test_a_word_that_is_a_token_wins_where_merges_are_ignored(tmp_path):
    changes = {"tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.add_bos_token": False}
    tokenizer, _ = export(tmp_path, BPE | changes)
    assert tokenizer.encode(" ab").tokens == ["Ġ", "ab"]
    tokenizer, _ = export(tmp_path, BPE | changes | {"tokenizer.ggml.pre": "llama3"})
    assert tokenizer.encode(" ab").tokens == ["Ġab"]


WORDPIECE_TEXTS = [
    *STRINGS, "The unaffable, running café!", "UNAFFABLE", "don't [MASK] a[SEP]b", "ab abba É中a",
    "runnings", "a" * 101, "a" * 100,
]  # fmt: skip


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece_is_berts(tmp_path, lowercase):
    changes = {} if lowercase else {"tokenizer.ggml.normalizer.lowercase": False}
    tokenizer, info = export(tmp_path, WORDPIECE | changes)
    assert info == TokenizerInfo(2, (3,), 0, 1, len(WORDPIECE_TOKENS))
    ids = {token: i for i, token in enumerate(WORDPIECE_TOKENS)}
    assert tokenizer.get_vocab() == ids
    bert = BertWordPieceTokenizer(ids, lowercase=lowercase)
    for text in WORDPIECE_TEXTS:
        mine, theirs = tokenizer.encode(text), bert.encode(text)
        assert (mine.ids, mine.tokens) == (theirs.ids, theirs.tokens)
        assert tokenizer.decode(mine.ids) == bert.decode(theirs.ids)
    assert tokenizer.encode("a", "b").tokens == ["[CLS]", "a", "[SEP]", "[CLS]", "b", "[SEP]"]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"tokenizer.ggml.add_sep_token": False}, ["[CLS]", "a"]),
        ({"tokenizer.ggml.add_bos_token": False}, ["a", "[SEP]"]),
        ({"tokenizer.ggml.add_eos_token": False}, ["[CLS]", "a"]),
    ],
)
def test_wordpiece_around_the_text(tmp_path, changes, wanted):
    tokenizer, _ = export(tmp_path, WORDPIECE | changes)
    assert tokenizer.encode("a").tokens == wanted


def test_files_beside_the_tokenizer(tmp_path):
    changes = {
        "tokenizer.ggml.padding_token_id": 6,
        "tokenizer.ggml.unknown_token_id": 5,
        "tokenizer.ggml.eot_token_id": 6,
        "tokenizer.chat_template": "{{ messages[0].content }} ü\n",
        "llama.context_length": 77,
    }
    _, info = export(tmp_path, BPE | changes)
    assert info == TokenizerInfo(6, (5, 6), 6, 5, 8)
    assert read_json(tmp_path / "generation_config.json") == {
        "bos_token_id": 6,
        "eos_token_id": [5, 6],
        "pad_token_id": 6,
    }
    assert read_json(tmp_path / "tokenizer_config.json") == {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": "<|s|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|s|>",
        "unk_token": "<|im_end|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 77,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    template = (tmp_path / "chat_template.jinja").read_bytes().decode()
    assert template == "{{ messages[0].content }} ü\n"


# --- errors


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (BPE, {"tokenizer.ggml.model": None}, "no 'tokenizer.ggml.model'"),
        (BPE, {"tokenizer.ggml.tokens": None}, "no 'tokenizer.ggml.tokens'"),
        (BPE, {"tokenizer.ggml.merges": None}, "no 'tokenizer.ggml.merges'"),
        (BPE, {"tokenizer.ggml.merges": ["a b", "Ġ b"]}, "merge 'Ġ b' is not two tokens"),
        (BPE, {"tokenizer.ggml.merges": ["ab"]}, "merge 'ab' is not two tokens"),
        (BPE, {"tokenizer.ggml.token_type": [1, 1]}, "has 2 entries for 8 tokens"),
        (BPE, {"tokenizer.ggml.eos_token_id": 8}, "eos_token_id' is 8, the allowed range is 0..7"),
        (BPE, {"tokenizer.ggml.tokens": ["a", "a"]}, "token 'a' is twice"),
        (
            BPE,
            {"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.add_bos_token": True},
            "'tokenizer.ggml.bos_token_id' is missing",
        ),
        (
            BPE,
            {"tokenizer.ggml.tokens": list("abcdefgh"), "tokenizer.ggml.eos_token_id": None},
            "no 'tokenizer.ggml.eos_token_id'",
        ),
        (BPE, {"tokenizer.chat_template": 5}, "'tokenizer.chat_template' is 5"),
        (
            BPE,
            {
                "tokenizer.ggml.tokens": ["a:b", *BPE["tokenizer.ggml.tokens"][:5], "c", "d"],
                "tokenizer.ggml.bos_token_id": 0,
                "tokenizer.ggml.add_bos_token": True,
            },
            "the tokenizer cannot be built",
        ),
        (SPM, {"tokenizer.ggml.tokens": [*SPM_TOKENS[:-1], "a" * 1025]}, "token of 1025 char"),
        (WORDPIECE, {"tokenizer.ggml.unknown_token_id": None}, "'tokenizer.ggml.unknown_token_id'"),
        (
            WORDPIECE,
            {"tokenizer.ggml.tokens": [*WORDPIECE["tokenizer.ggml.tokens"][:-1], "▁##a"]},
            "two tokens are one",
        ),
        (SPM, {"tokenizer.ggml.scores": None}, "no 'tokenizer.ggml.scores'"),
        (SPM, {"tokenizer.ggml.scores": [0.0]}, "'tokenizer.ggml.scores' has 1 entries"),
    ],
)
def test_contradictory_metadata(tmp_path, base, changes, message):
    with pytest.raises(ModelFormatError) as error:
        export(tmp_path, base | changes)
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "t5"}, "tokenizer 't5'; supported: gpt2, llama, bert"),
        ({"tokenizer.ggml.pre": "x"}, "pre-tokenizer 'x'; supported: default, falcon, gpt-2"),
    ],
)
def test_unknown_kinds_are_listed(tmp_path, changes, message):
    with pytest.raises(UnsupportedModelError, match=message):
        export(tmp_path, BPE | changes)


def test_a_folder_that_cannot_be_written(tmp_path):
    with (
        open_gguf(write(tmp_path / "model.gguf", BPE)) as file,
        pytest.raises(StorageError, match="cannot be written"),
    ):
        export_tokenizer(file, tmp_path / "absent")

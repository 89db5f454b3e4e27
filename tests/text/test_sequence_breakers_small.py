"""Sequence breakers on small vocabularies, where the sequences can be told by hand."""

import pytest

from ovgen.errors import ConfigError
from ovgen.text.sequence_breakers import TokenTexts, token_sequences


class WordTokenizer:
    """Every token is a text. Encodes with the first one that fits, and leaves out the rest."""

    special_ids = frozenset({0})

    def __init__(self, *words: str):
        self.words = ["<s>", *words]
        self.decoded = 0

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def decode(self, token_ids, *, skip_special_tokens=True):
        self.decoded += 1
        assert not skip_special_tokens
        return "".join(self.words[token_id] for token_id in token_ids)

    def encode(self, text, *, add_special_tokens=True):
        assert not add_special_tokens
        ids = []
        while fitting := [i for i, word in enumerate(self.words) if word and text.startswith(word)]:
            ids.append(fitting[0])
            text = text.removeprefix(self.words[ids[-1]])
        return ids


def spelled(tokenizer, breakers) -> set[tuple[str, ...]]:
    found = token_sequences(tokenizer, breakers)
    return {tuple(tokenizer.words[token_id] for token_id in ids) for ids in found}


def test_a_token_that_contains_the_breaker_is_a_head_alone():
    tokenizer = WordTokenizer("\n", "a", ";\n", "\n\n", "x\ny", "n")
    assert spelled(tokenizer, ["\n"]) == {("\n",), (";\n",), ("\n\n",), ("x\ny",)}


def test_a_token_that_ends_with_a_beginning_has_the_rest_as_tail():
    tokenizer = WordTokenizer("END", "xE", "N", "D", "ND", "EN", "E", "xEND", "EO", "Nx")
    assert spelled(tokenizer, ["END"]) == {
        ("END",), ("xEND",), ("xE", "N", "D"), ("E", "N", "D"), ("EN", "D"),
    }  # fmt: skip


def test_a_head_has_a_tail_for_each_beginning():
    tokenizer = WordTokenizer("xaa", "a", "b", "ab")
    assert spelled(tokenizer, ["aab"]) == {
        ("xaa", "a", "b"), ("xaa", "b"), ("a", "a", "b"),
    }  # fmt: skip


def test_special_tokens_are_looked_into():
    assert spelled(WordTokenizer("a"), ["<s"]) == {("<s>",)}


def test_of_a_long_breaker_40_characters_count_and_of_a_tail_20_tokens():
    tokenizer = WordTokenizer("a", "a" * 40)
    assert spelled(tokenizer, ["a" * 41]) == {("a",) * 21, ("a" * 40,)}
    assert spelled(WordTokenizer("b", "c"), ["b" * 21 + "c"]) == {("b",) * 21}
    assert spelled(WordTokenizer("b", "c"), ["b" * 20 + "c"]) == {("b",) * 20 + ("c",)}


def test_several_breakers_and_none():
    tokenizer = WordTokenizer(":", "*", "ok:")
    assert spelled(tokenizer, [":", "*", ":"]) == {(":",), ("*",), ("ok:",)}
    assert token_sequences(tokenizer, []) == frozenset()
    assert token_sequences(tokenizer, ["z"]) == frozenset() == token_sequences(tokenizer, ("z",))


def test_texts_are_made_once():
    tokenizer = WordTokenizer(":", "*")
    texts = TokenTexts(tokenizer)
    assert texts.texts() == ["<s>", ":", "*"]
    assert texts.texts() is texts.texts()
    decoded = tokenizer.decoded
    assert token_sequences(texts, [":"]) == token_sequences(tokenizer, [":"]) == {(1,)}
    assert tokenizer.decoded - decoded <= 2 + tokenizer.vocab_size + 2  # those of the plain one


@pytest.mark.parametrize("kind", ["byte_level", "gemma"])
@pytest.mark.parametrize("breaker", ["\n", ".", "dog", "o w", "你", "。今", "a你", "\ufffd", "é"])
def test_real_vocabularies(small_tokenizers, kind, breaker):
    """Every sequence spells the breaker and begins with it; its usual spelling is among them."""
    tokenizer = small_tokenizers[kind]
    found = token_sequences(tokenizer, [breaker])
    assert tuple(tokenizer.encode(breaker, add_special_tokens=False)) in found
    for ids in found:
        assert breaker in tokenizer.decode(ids, skip_special_tokens=False)
        rest = tokenizer.decode(ids[1:], skip_special_tokens=False)
        assert breaker not in rest.replace("\ufffd", "")


def test_a_character_without_a_token_is_spelled_in_bytes(small_tokenizers):
    for kind in ("byte_level", "llama2"):
        tokenizer = small_tokenizers[kind]
        (ids,) = token_sequences(tokenizer, ["🍕"])
        assert len(ids) > 1
        assert tokenizer.decode(ids) == "🍕"


@pytest.mark.parametrize("kind", ["byte_level", "llama2"])
def test_broken_characters_are_not_the_replacement_character(small_tokenizers, kind):
    """By themselves they decode to it."""
    tokenizer = small_tokenizers[kind]
    (ids,) = token_sequences(tokenizer, ["\ufffd"])
    assert tokenizer.decode(ids) == "\ufffd"


@pytest.mark.parametrize("bad", ["", None, 3])
def test_a_breaker_must_be_a_text(bad):
    with pytest.raises(ConfigError, match=r"dry_sequence_breakers\[1\] must be a non-empty string"):
        token_sequences(WordTokenizer("a"), ["a", bad])

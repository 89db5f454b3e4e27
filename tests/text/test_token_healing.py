"""Which prompts are healed, with which tokens, and that the shown text goes on where they end."""

from pathlib import Path

import pytest

from ovgen.text.text_stream import TextStream
from ovgen.text.token_healing import Healing, HealingIndex
from ovgen.text.tokenizer import load_tokenizer

TINY_LLAMA = Path(__file__).parents[1] / "fixtures" / "tiny" / "llama"
PROMPTS = [
    "the quick br", "hello wor", "naïve c", "  two  ", "isn't it n", "and\nl", "你", "t", "a t",
    "the lazy d", "don", "x <", "day \\", "hello", "don't s",
]  # fmt: skip


@pytest.fixture(scope="session")
def tiny_llama():
    return load_tokenizer(TINY_LLAMA)


def spellings(tokenizer, healing) -> list[str]:
    return sorted(tokenizer.id_to_token(token_id) for token_id in healing.allowed_token_ids)


def test_the_last_token_is_taken_off(tiny_llama):
    ids = tiny_llama.encode("a tha")
    assert [tiny_llama.id_to_token(i) for i in ids] == ["a", "Ġtha"]
    healing = HealingIndex(tiny_llama).heal(ids)
    assert healing == Healing(
        prompt_token_ids=(ids[0],),
        allowed_token_ids=tuple(sorted((ids[1], tiny_llama.token_to_id("Ġthat")))),
        num_hidden_characters=4,
    )


def test_a_space_at_the_end_becomes_that_of_the_next_word(tiny_llama):
    healing = HealingIndex(tiny_llama).heal(tiny_llama.encode("of "))
    words = spellings(tiny_llama, healing)
    assert "Ġ" in words
    assert "Ġthe" in words
    assert all(word.startswith("Ġ") for word in words)
    assert healing.num_hidden_characters == 1


@pytest.mark.parametrize("kind", ["byte_level", "llama2", "gemma", "metaspace", "wordpiece"])
def test_allowed_are_all_that_extend_it(small_tokenizers, kind):
    tokenizer = small_tokenizers[kind]
    index = HealingIndex(tokenizer)
    healed = 0
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        healing = index.heal(ids)
        spelling = tokenizer.id_to_token(ids[-1])
        expected = [
            i
            for i in range(tokenizer.vocab_size)
            if i not in tokenizer.special_ids
            and tokenizer.id_to_token(i).startswith(spelling)
            and not tokenizer.id_to_token(i).startswith("<0x")
        ]
        if healing is None:
            assert len(expected) < 2 or "\ufffd" in tokenizer.decode(ids[-1:]) or len(ids) < 2
            continue
        healed += 1
        assert healing.prompt_token_ids == tuple(ids[:-1])
        assert healing.allowed_token_ids == tuple(expected)
    assert healed >= 3


@pytest.mark.parametrize("skip_special_tokens", [True, False])
@pytest.mark.parametrize("kind", ["byte_level", "llama2", "gemma", "metaspace", "wordpiece"])
def test_the_shown_text_goes_on_where_the_prompt_ends(small_tokenizers, kind, skip_special_tokens):
    tokenizer = small_tokenizers[kind]
    index = HealingIndex(tokenizer)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    prompts += [[0, *ids] for ids in prompts]
    prompts += [tokenizer.encode("hello world " * 12) + ids for ids in prompts]
    for ids in prompts:
        healing = index.heal(ids, skip_special_tokens=skip_special_tokens)
        if healing is None:
            continue
        before = tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        for first in healing.allowed_token_ids:
            stream = TextStream(
                tokenizer,
                skip_special_tokens=skip_special_tokens,
                prompt_token_ids=healing.prompt_token_ids,
                num_hidden_characters=healing.num_hidden_characters,
            )
            new = [first, *ids[-2:]]
            whole = tokenizer.decode(
                [*healing.prompt_token_ids, *new], skip_special_tokens=skip_special_tokens
            )
            assert before + stream.decode(new) + stream.flush() == whole


@pytest.mark.parametrize("kind", ["byte_level", "llama2"])
def test_nothing_to_heal(small_tokenizers, kind):
    tokenizer = small_tokenizers[kind]
    index = HealingIndex(tokenizer)
    the = tokenizer.encode("the d", add_special_tokens=False)
    assert index.heal(the) is not None
    assert index.heal([]) is index.heal(the[-1:]) is None
    assert index.heal([*the, tokenizer.token_to_id("</s>")]) is None  # special
    assert index.heal([*the, 10_000]) is None  # no token
    assert index.heal(tokenizer.encode("a \x00")) is None  # of one byte
    assert index.heal(tokenizer.encode("你 🍕")) is None  # part of a character
    vocabulary = [tokenizer.id_to_token(i) for i in range(tokenizer.vocab_size)]
    longest = vocabulary.index(max(vocabulary, key=len))
    assert index.heal([*the, longest]) is None


class ListedTokenizer:
    """Every token is its text, but for `<0xE4>`, a byte."""

    vocabulary = ("<s>", "<", "a", "<a", "<0xE4>", "<0x", "b")
    vocab_size = len(vocabulary)
    special_ids = frozenset({0})

    def id_to_token(self, token_id):
        return self.vocabulary[token_id]

    def decode(self, token_ids, *, skip_special_tokens=True):
        return "".join("\ufffd" if i == 4 else self.vocabulary[i] for i in token_ids)


def test_byte_and_special_tokens_extend_nothing():
    """They only look as if they began with a `<`."""
    index = HealingIndex(ListedTokenizer())
    assert index.heal([2, 1]) == Healing((2,), (1, 3, 5), 1)
    assert index.heal([2, 5]) is None
    assert index.heal([2, 4]) is None
    assert index.heal([2, 0]) is None


def test_tokens_that_are_no_special_ones_extend(small_tokenizers):
    tokenizer = small_tokenizers["byte_level"]
    healing = HealingIndex(tokenizer).heal(tokenizer.encode("a <"))
    assert spellings(tokenizer, healing) == ["<", "<tool>"]


def test_broken_bytes_of_openvino_tokenizers_extend_no_backslash(ov_tokenizer_folder):
    """Their spelling is `\\xe4`."""
    tokenizer = load_tokenizer(ov_tokenizer_folder)
    index = HealingIndex(tokenizer)
    assert index.heal(tokenizer.encode("a \\")) is None
    ids = [*tokenizer.encode("a "), ord("h")]
    healing = index.heal(ids)
    assert healing == Healing(tuple(ids[:-1]), (ord("h"), 256, 258), 1)


@pytest.mark.model
def test_a_link_in_smollm2(smollm2_folder):
    """The example of guidance-ai's article."""
    tokenizer = load_tokenizer(smollm2_folder)
    ids = tokenizer.encode('The link is <a href="http:')
    healing = HealingIndex(tokenizer).heal(ids)
    assert tokenizer.decode(healing.prompt_token_ids) == 'The link is <a href="http'
    allowed = spellings(tokenizer, healing)
    assert {":", "://"} < set(allowed)
    assert all(spelling.startswith(":") for spelling in allowed)
    assert healing.num_hidden_characters == 1

"""The token sequences that spell a sequence breaker of the DRY sampler.

A breaker is a text, but the sampler looks at tokens. As in llama.cpp, whose DRY sampler this is to
agree with, a sequence is a head, in which the breaker begins wherever that is, and the tokenization
of what the head leaves of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import dropwhile

from ovgen.errors import ConfigError
from ovgen.text.tokenizer import Tokenizer

# llama.cpp's limits; they bound the search at each sampled token.
_MAX_CHARACTERS = 40
_MAX_TAIL = 20  # tokens
_REPLACEMENT = "\ufffd"


class TokenTexts:
    """The text of each token by itself, special ones shown, by id.

    Made when first asked for and kept: decoding a whole vocabulary takes a tenth of a second.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._texts: list[str] | None = None

    def texts(self) -> list[str]:
        """Shared, so not to be changed. Two threads may both make it, which does no harm."""
        texts = self._texts
        if texts is None:
            texts = [self.text(token_id) for token_id in range(self.tokenizer.vocab_size)]
            self._texts = texts
        return texts

    def text(self, token_id: int) -> str:
        """The text of one token; of a part of a character it is U+FFFD."""
        return self.tokenizer.decode([token_id], skip_special_tokens=False)


def token_sequences(
    tokenizer: Tokenizer | TokenTexts, breakers: Sequence[str]
) -> frozenset[tuple[int, ...]]:
    """Every (head, *tail) that spells one of `breakers`.

    A token that contains the breaker is a head without a tail. One that ends with a proper
    beginning of the breaker is a head whose tail is the tokenization of the rest; with several such
    beginnings it has several tails. Of a long breaker the first 40 characters count, and of a tail
    the first 20 tokens.

    Give the `TokenTexts` of the tokenizer when there will be further calls.
    """
    texts = tokenizer if isinstance(tokenizer, TokenTexts) else TokenTexts(tokenizer)
    found: set[tuple[int, ...]] = set()
    for index, breaker in enumerate(breakers):
        if not isinstance(breaker, str) or not breaker:
            raise ConfigError(
                f"dry_sequence_breakers[{index}] must be a non-empty string, not {breaker!r}"
            )
        found.update(_sequences(texts, breaker[:_MAX_CHARACTERS]))
    return frozenset(found)


def _sequences(texts: TokenTexts, breaker: str) -> Iterator[tuple[int, ...]]:
    yield from _whole_spelling(texts, breaker)
    if _REPLACEMENT in breaker:
        return  # the texts of tokens show it for any broken character
    first = breaker[0]
    beginnings = tuple(breaker[:length] for length in range(1, len(breaker)))
    tails: dict[str, tuple[int, ...]] = {}
    for token_id, text in enumerate(texts.texts()):
        if first not in text:
            continue
        if breaker in text:
            yield (token_id,)
        elif text.endswith(beginnings):
            for beginning in beginnings:
                if text.endswith(beginning):
                    if beginning not in tails:
                        rest = breaker[len(beginning) :]
                        tails[beginning] = _encode(texts, rest)[:_MAX_TAIL]
                    yield (token_id, *tails[beginning])


def _whole_spelling(texts: TokenTexts, breaker: str) -> Iterator[tuple[int, ...]]:
    """The breaker's own tokens if the first one is but a part of a character.

    llama.cpp compares bytes and finds such heads. Here tokens are compared as text, which a part of
    a character does not have.
    """
    # An empty text is that of SentencePiece's space before the first word.
    ids = tuple(dropwhile(lambda token_id: not texts.text(token_id), _encode(texts, breaker)))
    if ids and _REPLACEMENT in texts.text(ids[0]):
        yield ids[: 1 + _MAX_TAIL]


def _encode(texts: TokenTexts, text: str) -> tuple[int, ...]:
    return tuple(texts.tokenizer.encode(text, add_special_tokens=False))
